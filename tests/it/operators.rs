//! This file is where every rule meets finite differences, on the examples of its own row.

use std::collections::HashSet;

use explaind::compile::builder::{Builder, KERNELS};
use explaind::compile::facts::{Fact, Facts, Length};
use explaind::compile::gradient;
use explaind::compile::graph::text::Example;
use explaind::compile::graph::{Axis, Element, Graph, Node, Port, Tensor, Type, Value};
use explaind::compile::ops;
use explaind::compile::probe::Batch;
use explaind::compile::reverse::reverse;
use explaind::model::derived;
use explaind::runtime::{Device, Runtime, SharedWeights};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::evaluate::{Program, evaluate};

/// Inputs of unsaid shape have this one.
const SHAPE: [usize; 3] = [2, 3, 4];

/// Versions that examples are tried in.
pub(crate) const OPSETS: [i64; 3] = [17, 23, 24];

/// Draws that are closer to zero than this are pushed away, so that kinks at zero are not stepped over.
const KINK: f32 = 0.05;

/// Values for what an example reads.
pub(crate) fn inputs(example: &Example, rng: &mut ChaCha8Rng) -> Batch {
    let draw = |port: &Port| {
        let length = |axis: &Axis| if let Axis::Fixed(it) = axis { *it } else { 3 };
        let dims: Vec<usize> = port.dims().map_or(SHAPE.to_vec(), |it| it.iter().map(length).collect());
        let positive = example.positive.contains(&port.value);
        let values = (0..dims.iter().product()).map(|_| {
            let it: f32 = rng.random_range(-1.5..1.5);
            let it = if it.abs() < KINK { it + 2.0 * KINK } else { it };
            if positive { it.abs() + 0.4 } else { it }
        });
        (port.value.clone(), Tensor::from_f32(&dims, &values.collect::<Vec<_>>()))
    };
    example.graph.inputs.iter().map(draw).collect()
}

/// What a run at one size tells, as if every length were fixed, and the results of all nodes.
pub(crate) fn learn(graph: &Graph, batch: &Batch) -> Result<Facts, String> {
    let mut all = graph.clone();
    let made = graph.nodes.iter().flat_map(|it| &it.outputs).filter(|it| !it.is_absent());
    let port = |it: &Value| Port { value: it.clone(), ty: Type::Other(Box::default()) };
    all.outputs = made.map(port).collect();
    let run = evaluate(&all, std::slice::from_ref(batch))?.remove(0);
    let mut facts = Facts::default();
    let shape = |it: &Tensor| it.dims().iter().map(|&it| Length::fixed(it)).collect();
    let seen = all.outputs.iter().zip(&run).filter_map(|(port, it)| Some((&port.value, it.as_ref()?)));
    for (value, tensor) in seen.chain(batch.iter().map(|it| (&it.0, &it.1))) {
        facts.insert(value.clone(), Fact::new(tensor.element(), shape(tensor)));
    }
    for (value, tensor) in &graph.initializers {
        facts.insert(value.clone(), Fact::of(tensor));
    }
    Ok(facts)
}

/// The largest difference between the rule's cotangents and central differences, of a random weighing of all
/// results.
pub(crate) fn worst_gap(text: &str, opset: i64) -> Result<f64, String> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut example = Example::parse(text).map_err(|error| error.to_string())?;
    example.graph.opsets.insert(String::new(), opset);
    example.graph.outputs.iter_mut().for_each(|it| it.ty = Type::Other(Box::default()));
    let graph = &example.graph;
    let batch = inputs(&example, &mut rng);
    let facts = learn(graph, &batch)?;
    let floating = |it: &Value| facts.get(it).is_some_and(|it| it.element.is_floating());
    let outputs: Vec<Value> = graph.outputs.iter().map(|it| it.value.clone()).filter(floating).collect();

    let mut forward = graph.clone();
    forward.outputs.retain(|it| outputs.contains(&it.value));
    let mut weights: Batch = Vec::new();
    let mut derived_facts = facts.clone();
    for value in &outputs {
        let fact = facts.get(value).unwrap().clone();
        let dims: Vec<usize> = fact.shape.iter().map(|it| it.0[0]).collect();
        let draws: Vec<f64> = (0..dims.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
        let name: Value = format!("d{value}").into();
        weights.push((name.clone(), Tensor::from_f64(fact.element, &dims, &draws)));
        derived_facts.insert(name, fact);
    }
    let operands: Vec<Value> = batch.iter().map(|it| it.0.clone()).collect();
    let mut derived = graph.clone();
    for (name, tensor) in &weights {
        derived.inputs.push(Port { value: name.clone(), ty: Type::Tensor(tensor.element(), None) });
    }
    let mut active: HashSet<Value> = operands.iter().cloned().collect();
    for node in &graph.nodes {
        if node.inputs.iter().any(|it| active.contains(it)) {
            active.extend(node.outputs.iter().filter(|it| floating(it)).cloned());
        }
    }
    let mut builder = Builder::new(derived, derived_facts, active.clone());
    let seeds: Vec<_> = outputs.iter().cloned().zip(weights.iter().map(|it| it.0.clone())).collect();
    let flows = |it: &&Node| ops::find(it).is_none_or(ops::Operator::flows);
    let on_path = |it: &&Node| it.outputs.iter().any(|it| active.contains(it));
    let path: Vec<Node> = graph.nodes.iter().filter(flows).filter(on_path).cloned().collect();
    let cotangents = reverse(&mut builder, &path, &seeds, &gradient::local);
    let cotangents = cotangents.map_err(|gaps| format!("{gaps:?}"))?;
    let (mut derived, _) = builder.finish();
    let reached: Vec<&Value> = operands.iter().filter(|it| cotangents.contains_key(*it)).collect();
    let port = |it: &&Value| Port { value: cotangents[*it].clone(), ty: Type::Other(Box::default()) };
    let mut copies = Vec::new();
    for value in &reached {
        // Two operands may share a cotangent, and an input cannot be an output.
        let name: Value = format!("grad of {value}").into();
        let source = port(value).value;
        derived.nodes.push(Node::new("Identity", &[source], std::slice::from_ref(&name)));
        copies.push(Port { value: name, ty: Type::Other(Box::default()) });
    }
    derived.outputs = copies;
    derived.prune();
    let all: Batch = batch.iter().chain(&weights).cloned().collect();
    let gradients = Program::open(&derived)
        .and_then(|mut it| it.run(&all))
        .map_err(|error| format!("{error}\n{derived}"))?;

    let mut program = Program::open(&forward)?;
    let mut weighed = |batch: &Batch| -> f64 {
        let run = program.run(batch).unwrap();
        let dot = |(y, w): (&Option<Tensor>, &(Value, Tensor))| -> f64 {
            let (y, w) = (y.as_ref().unwrap().to_f64().unwrap(), w.1.to_f64().unwrap());
            y.iter().zip(&w).map(|(y, w)| y * w).sum()
        };
        run.iter().zip(&weights).map(dot).sum()
    };
    let mut worst: f64 = 0.0;
    for (place, operand) in operands.iter().enumerate() {
        let values = batch[place].1.to_f32().unwrap();
        let dims = batch[place].1.dims().to_vec();
        let gradient = reached.iter().position(|it| *it == operand).and_then(|it| gradients[it].clone());
        let gradient = gradient.map_or(vec![0.0; values.len()], |it| {
            assert_eq!(it.dims(), dims, "{text}: shape of the cotangent of {operand}");
            it.to_f64().unwrap()
        });
        for (index, known) in gradient.iter().enumerate() {
            let mut at = |step: f32| {
                let mut moved = values.clone();
                moved[index] += step;
                let mut batch = batch.clone();
                batch[place].1 = Tensor::from_f32(&dims, &moved);
                weighed(&batch)
            };
            let step = 4e-3_f32;
            let difference = (at(step) - at(-step)) / f64::from(2.0 * step);
            let gap = (difference - known).abs() / (1.0 + difference.abs());
            worst = if gap.is_nan() { f64::INFINITY } else { worst.max(gap) };
        }
    }
    Ok(worst)
}

#[test]
fn every_rule_agrees_with_finite_differences() {
    let mut failures = Vec::new();
    for operator in ops::all() {
        for example in operator.examples {
            // Some operators exist from a later opset on only.
            let outcome =
                OPSETS.iter().try_fold(String::new(), |reasons, &opset| match worst_gap(example, opset) {
                    Ok(gap) => Err(gap),
                    Err(reason) => Ok(format!("{reasons}\nopset {opset}: {reason}")),
                });
            let outcome = outcome.map_or_else(Ok, Err);
            match outcome {
                Ok(gap) if gap < 2e-3 => {}
                Ok(gap) => failures.push(format!("{example}: off by {gap:e}")),
                Err(reason) => failures.push(format!("{example}: {reason}")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What ONNX Runtime says of an operator of our own with operands of these dimensions.
fn ours(op: &str, operands: &[&[usize]], attributes: &str) -> Result<(), String> {
    let names: Vec<String> = (0..operands.len()).map(|it| format!("x{it}")).collect();
    let mut graph = Graph::parse(&format!("y = {KERNELS}::{op}({}) {attributes}", names.join(", "))).unwrap();
    let value = |(name, dims): (&String, &&[usize])| {
        let values = vec![0.5; dims.iter().product()];
        (Value::from(name.as_str()), Tensor::from_f32(dims, &values))
    };
    let batch: Batch = names.iter().zip(operands).map(value).collect();
    graph.inputs.iter_mut().for_each(|it| it.ty = Type::Tensor(Element::F32, None));
    let runtime = Runtime::load(Device::Cpu, 1).unwrap();
    derived::evaluate(&runtime, &SharedWeights::default(), &graph, &[batch]).map(|_| ())
}

#[test]
fn operands_of_our_own_operators_that_do_not_fit_are_an_error() {
    let whole: &[usize] = &[2, 3, 8];
    let turned = "{left: [0, 1, 2], right: [0, 2, 1], result: [0, 1, 2], alpha: 1.0}";
    assert_eq!(ours("GeluPullback", &[whole, whole], ""), Ok(()));
    assert_eq!(ours("SoftmaxPullback", &[whole, whole], ""), Ok(()));
    assert_eq!(ours("LayerNormalizationPullback", &[whole, whole, &[8], &[2, 3, 1], &[2, 3, 1]], ""), Ok(()));
    assert_eq!(ours("Product", &[whole, &[1, 5, 8]], turned), Ok(()));
    for (op, operands, attributes) in [
        ("GeluPullback", vec![whole, &[8]], ""),
        ("SoftmaxPullback", vec![whole, &[8]], ""),
        ("LayerNormalizationPullback", vec![whole, whole, &[6], &[6], &[6]], ""),
        ("Product", vec![whole, &[2, 8, 5]], turned),
        ("Product", vec![whole, &[5, 8]], turned),
        ("Product", vec![whole, whole], ""),
        ("Product", vec![whole, whole], "{left: [0, 1, 3], right: [0, 2, 1], result: [0, 1, 2]}"),
        ("Product", vec![&[], &[]], "{left: [0], right: [0], result: [0]}"),
    ] {
        let error = ours(op, &operands, attributes).unwrap_err();
        assert!(error.contains("do not fit each other"), "{op}: {error}");
    }
}
