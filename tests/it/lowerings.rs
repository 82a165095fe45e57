//! This file is where every lowering meets the operator that it takes apart, and every operator of our own the nodes that it
//! stands for: ONNX Runtime runs both.

use explaind::compile::builder::KERNELS;
use explaind::compile::canonize;
use explaind::compile::facts::{Fact, Facts, Length};
use explaind::compile::fuse;
use explaind::compile::graph::{Axis, Element, Graph, Node, Port, Tensor};
use explaind::compile::probe::Batch;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::evaluate::evaluate;

/// Versions that examples are tried in.
const OPSETS: [i64; 2] = [17, 23];

fn draw(port: &Port, rng: &mut ChaCha8Rng) -> Tensor {
    let length = |axis: &Axis| if let Axis::Fixed(it) = axis { *it } else { 3 };
    let dims: Vec<usize> = port.dims().map_or(vec![2, 3, 4], |it| it.iter().map(length).collect());
    let count = dims.iter().product();
    // Small integers serve as ids, positions, masks and lengths alike.
    let ints: Vec<i64> = (0..count).map(|place| (place as i64 + 1) % 2).collect();
    match port.element() {
        Some(Element::I64) => Tensor::from_i64(&dims, &ints),
        Some(Element::I32) => {
            let bytes: Vec<u8> = ints.iter().flat_map(|&it| (it as i32).to_le_bytes()).collect();
            Tensor::new(Element::I32, dims, bytes.into()).unwrap()
        }
        _ => Tensor::from_f32(&dims, &(0..count).map(|_| rng.random_range(-1.5..1.5)).collect::<Vec<_>>()),
    }
}

/// The largest difference between the results before and after `change`, which is told what running the graph has shown.
fn gap(
    text: &str,
    opset: i64,
    change: impl FnOnce(&mut Graph, &Facts) -> Result<(), String>,
) -> Result<f64, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut graph = Graph::parse(text).map_err(|error| error.to_string())?;
    graph.opsets.insert(String::new(), opset);
    // An operand left out makes no result, and integer results are not compared.
    let batch: Batch = graph.inputs.iter().map(|it| (it.value.clone(), draw(it, &mut rng))).collect();
    graph.outputs.retain(|it| &*it.value != "n");
    let before = evaluate(&graph, std::slice::from_ref(&batch))?.remove(0);
    let mut facts = Facts::default();
    for (value, tensor) in &graph.initializers {
        facts.insert(value.clone(), Fact::of(tensor));
    }
    let mut learned = graph.clone();
    let made = graph.nodes.iter().flat_map(|it| &it.outputs).filter(|it| !it.is_absent());
    learned.outputs = made.map(|it| Port::tensor(it.clone(), Element::F32, vec![])).collect();
    learned.outputs.iter_mut().for_each(|it| it.ty = explaind::compile::graph::Type::Other(Box::default()));
    let values = evaluate(&learned, std::slice::from_ref(&batch))?.remove(0);
    let values = learned.outputs.iter().zip(values).filter_map(|(port, it)| Some((port.value.clone(), it?)));
    for (value, tensor) in values.chain(batch.iter().cloned()) {
        let shape = tensor.dims().iter().map(|&it| Length::fixed(it)).collect();
        facts.insert(value, Fact::new(tensor.element(), shape));
    }
    change(&mut graph, &facts)?;
    let after = evaluate(&graph, &[batch])?.remove(0);
    let mut worst: f64 = 0.0;
    for (before, after) in before.iter().zip(&after) {
        let (before, after) = (before.as_ref().unwrap(), after.as_ref().unwrap());
        assert_eq!(before.dims(), after.dims(), "{text}");
        let pairs = before.to_f64().unwrap().into_iter().zip(after.to_f64().unwrap());
        worst = pairs.fold(worst, |worst, (a, b)| {
            if a.is_finite() && b.is_finite() { worst.max((a - b).abs()) } else { f64::INFINITY }
        });
    }
    Ok(worst)
}

/// Takes apart the operator of the last node.
fn lower(graph: &mut Graph, facts: &Facts) -> Result<(), String> {
    let composite = graph.nodes.last().unwrap().clone();
    canonize::lower(graph);
    canonize::lower_measured(graph, facts);
    let remains = |it: &Node| it.operator() == composite.operator() && it.inputs == composite.inputs;
    if graph.nodes.iter().any(remains) { Err("it was not taken apart".into()) } else { Ok(()) }
}

/// Puts operators of our own into the graph, in the place of every other.
fn fuse(graph: &mut Graph, facts: &Facts) -> Result<(), String> {
    fuse::fuse(graph, facts);
    let others = graph.nodes.iter().filter(|it| it.domain != KERNELS);
    let others: Vec<String> = others.map(Node::operator).collect();
    if others.is_empty() { Ok(()) } else { Err(format!("{} are left", others.join(", "))) }
}

#[test]
fn every_operator_of_our_own_computes_what_it_stands_for() {
    for example in fuse::examples() {
        let gap = gap(example, OPSETS[0], fuse).unwrap_or_else(|reason| panic!("{example}: {reason}"));
        assert!(gap < 2e-6, "{example}: off by {gap:e}");
    }
}

#[test]
fn every_lowering_computes_what_its_operator_computes() {
    let mut failures = Vec::new();
    for example in canonize::examples() {
        let outcome = gap(example, OPSETS[0], lower).or_else(|first| {
            gap(example, OPSETS[1], lower).map_err(|second| format!("{first}; opset 23: {second}"))
        });
        match outcome {
            Ok(gap) if gap < 2e-6 => {}
            Ok(gap) => failures.push(format!("{example}: off by {gap:e}")),
            Err(reason) => failures.push(format!("{example}: {reason}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
