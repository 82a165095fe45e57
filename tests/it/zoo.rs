//! This file is where derived gradients meet reference gradients: PyTorch in float64 for whole models, central
//! differences in float64 for single operators.
//!
//! `tests/zoo/public` holds tiny random classifiers of many architectures and exporters, `tests/zoo/ops`
//! one-operator graphs, `tests/zoo/refuse` what must be refused or degrade.

use std::fs;
use std::path::{Path, PathBuf};

use explaind::compile::anatomy::Pooling;
use explaind::compile::builder::KERNELS;
use explaind::compile::composite::Composite;
use explaind::compile::graph::{Graph, Node, Port, Tensor, Type, Value};
use explaind::compile::probe::{Batch, Hints};
use explaind::compile::refusal::{Code, Refusal};
use explaind::compile::{Compiled, derive, measure, no_external, read, write};
use explaind::runtime::Device;

use crate::arrays::Arrays;
use crate::evaluate::{Program, evaluate, named};
use crate::support;

/// How far a gradient may be off, in parts of the reference's largest value.
const TOLERANCE: f64 = 1e-3;

fn zoo(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo").join(folder)
}

/// Opens a model as a server would.
fn open(path: &Path) -> Result<Compiled, Refusal> {
    let graph = read(fs::read(path).unwrap().into(), &no_external).unwrap();
    Compiled::open(graph, &hints(path.parent().unwrap()), &evaluate)
}

/// What a model folder's `config.json` says.
fn hints(folder: &Path) -> Hints {
    let config = fs::read_to_string(folder.join("config.json")).unwrap_or_default();
    let number = |key: &str| {
        let value = config.split_once(&format!("\"{key}\": "))?.1;
        value.split([',', '\n', '}']).next()?.trim().parse().ok()
    };
    Hints { pad: number("pad_token_id"), ..Hints::default() }
}

/// The worst error of the derived gradient over the sizes stored, in parts of the largest reference value: of the
/// graph that is exported, and of the one that is served.
fn worst_error(model: &Path, reference: &Path, prefixes: &[&str]) -> Result<f64, String> {
    let compiled = open(model).map_err(|refusal| refusal.to_string())?;
    let one = |kernels| {
        let gradient = derive::gradient_with(&compiled.forward, kernels);
        let (gradient, _) = gradient.map_err(|refusal| refusal.to_string())?;
        error_of(&compiled, &gradient, reference, prefixes)
    };
    match support::runtime().device {
        Device::Cpu => Ok(one(false)?.max(one(true)?)),
        // Operators of our own are the processor's alone.
        Device::Cuda(_) => one(false),
    }
}

fn error_of(
    compiled: &Compiled,
    gradient: &Graph,
    reference: &Path,
    prefixes: &[&str],
) -> Result<f64, String> {
    let mut program = Program::open(gradient)?;
    let mut arrays = Arrays::open(reference);
    let names = arrays.names();
    let mut worst: f64 = 0.0;
    for prefix in prefixes {
        let mut batch: Batch = Vec::new();
        for port in &compiled.graph.inputs {
            let name = format!("{prefix}{}", port.value);
            batch.push(named(&port.value, arrays.ints(&name).ok_or(format!("no {name} in {names:?}"))?));
        }
        let ids = batch.iter().find(|it| &*it.0 == "input_ids").unwrap().1.clone();
        batch.push(named("inputs_embeds", compiled.lookup(&ids.to_i64().unwrap(), ids.dims()).unwrap()));
        batch.push(named("cotangent", arrays.floats(&format!("{prefix}cotangent")).unwrap()));
        let grad = program.run(&batch)?.pop().flatten().unwrap().to_f64().unwrap();
        let reference = arrays.doubles(&format!("{prefix}grad")).unwrap();
        let size = reference.iter().fold(0.0, |size: f64, it| size.max(it.abs()));
        if grad.len() != reference.len() {
            return Err(format!("{} values instead of {}", grad.len(), reference.len()));
        }
        let gap = grad.iter().zip(&reference).map(|(a, b)| (a - b).abs());
        let error = gap.fold(0.0, |gap: f64, it| if it.is_nan() { f64::INFINITY } else { gap.max(it) });
        worst = worst.max(if size > 0.0 { error / size } else { error });
    }
    Ok(worst)
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(zoo(folder)).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    paths
}

fn assert_all_agree(cases: impl Iterator<Item = (String, Result<f64, String>)>) {
    let mut failures = Vec::new();
    let mut count = 0;
    for (name, outcome) in cases {
        count += 1;
        match outcome {
            Ok(error) if error <= TOLERANCE => {}
            Ok(error) => failures.push(format!("{name}: off by {error:.1e}")),
            Err(reason) => failures.push(format!("{name}: {reason}")),
        }
    }
    assert!(count > 0 && failures.is_empty(), "{} of {count} fail:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn every_architecture_agrees_with_pytorch_at_every_size() {
    assert_all_agree(entries("public").into_iter().map(|folder| {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let error =
            worst_error(&folder.join("model.onnx"), &folder.join("reference.npz"), &["", "b1_", "b4_"]);
        (name, error)
    }));
}

#[test]
fn what_is_served_takes_the_process_s_own_operators_and_what_is_exported_none() {
    let compiled = open(&zoo("public/bert-legacy17/model.onnx")).unwrap();
    let own = |kernels| {
        let graph = derive::gradient_with(&compiled.forward, kernels).unwrap().0;
        let own = graph.nodes.iter().filter(|it| it.domain == KERNELS);
        let count = |op: &str| own.clone().filter(|it| it.op == op).count();
        ["GeluPullback", "LayerNormalizationPullback", "SoftmaxPullback", "Product"].map(count)
    };
    assert_eq!(own(false), [0, 0, 0, 0]);
    assert_eq!(own(true), [2, 5, 2, 12]);
}

#[test]
fn every_operator_agrees_with_central_differences() {
    let missing = fs::read_to_string(zoo("missing.txt")).unwrap();
    let missing: Vec<&str> = missing.split_whitespace().collect();
    let name = |it: &PathBuf| it.file_stem().unwrap().to_string_lossy().into_owned();
    let graphs = entries("ops").into_iter().filter(|it| it.extension().is_some_and(|it| it == "onnx"));
    let (uncovered, covered): (Vec<PathBuf>, _) = graphs.partition(|it| missing.contains(&name(it).as_str()));
    assert_all_agree(
        covered
            .into_iter()
            .map(|path| (name(&path), worst_error(&path, &path.with_extension("npz"), &["", "b3_"]))),
    );
    for path in uncovered {
        let outcome = worst_error(&path, &path.with_extension("npz"), &["", "b3_"]);
        assert!(outcome.is_err(), "{} is covered now: take it off the list", name(&path));
    }
}

#[test]
fn every_architecture_is_admitted_by_measurement() {
    let mut failures = Vec::new();
    for folder in entries("public") {
        if let Err(refusal) = open(&folder.join("model.onnx")).unwrap().gradient {
            failures.push(format!("{}: {refusal}", folder.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn hidden_states_and_attention_are_those_of_pytorch() {
    let mut failures = Vec::new();
    for folder in entries("public") {
        let compiled = open(&folder.join("model.onnx")).unwrap();
        let mut arrays = Arrays::open(&folder.join("reference.npz"));
        let anatomy = &compiled.anatomy;
        let mut wanted: Vec<(String, &Value)> = Vec::new();
        for (layer, it) in anatomy.hidden_states.iter().enumerate() {
            wanted.push((format!("hidden_states_{layer}"), it));
        }
        for (layer, it) in anatomy.attention.iter().enumerate() {
            wanted.push((format!("attentions_{layer}"), &it.probabilities));
        }
        let names = wanted.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
        let is_part = |it: &String| it.starts_with("hidden_states_") || it.starts_with("attentions_");
        let mut known: Vec<String> = arrays.names().into_iter().filter(is_part).collect();
        known.sort_by_key(|it| (it.starts_with("att"), it.clone()));
        if names != known || anatomy.neurons.len() != anatomy.attention.len() {
            failures.push(format!("{}: {anatomy:?}", folder.display()));
            continue;
        }
        let mut graph = compiled.forward.graph.clone();
        let port = |it: &&Value| Port { value: (*it).clone(), ty: Type::Other(Box::default()) };
        graph.outputs = wanted.iter().map(|it| port(&it.1)).collect();
        let mut batch: Batch = Vec::new();
        for port in &compiled.graph.inputs {
            batch.push(named(&port.value, arrays.ints(&port.value).unwrap()));
        }
        let ids = batch.iter().find(|it| &*it.0 == "input_ids").unwrap().1.clone();
        let embeds = compiled.lookup(&ids.to_i64().unwrap(), ids.dims()).unwrap();
        batch.push(named("inputs_embeds", embeds));
        let run = Program::open(&graph).unwrap().run(&batch).unwrap();
        for ((name, _), ours) in wanted.iter().zip(run) {
            let (ours, theirs) =
                (ours.unwrap().to_f64().unwrap(), arrays.floats(name).unwrap().to_f64().unwrap());
            let gaps = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
            // What is not a number is the largest of all.
            let gap = gaps.max_by(f64::total_cmp).unwrap_or(0.0);
            if ours.len() != theirs.len() || gap.is_nan() || gap > 1e-4 {
                failures.push(format!("{}: {name} is off by {gap:.1e}", folder.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Code and reason of the refusal of a model in `refuse`, wherever it is found.
fn refusal(name: &str) -> Refusal {
    match open(&zoo("refuse").join(name).join("model.onnx")) {
        Err(refusal) => refusal,
        Ok(compiled) => compiled.gradient.map(|it| it.measures).unwrap_err(),
    }
}

#[test]
fn what_cannot_be_differentiated_is_refused_with_its_code() {
    let code = |name: &str| refusal(name).code.slug();
    assert_eq!(code("bert-embeds-input"), "input");
    assert_eq!(code("bert-int8-dynamic"), "quantised");
    assert_eq!(code("bert-int8-qdq"), "quantised");
    assert_eq!(code("bert-label-only"), "path");
    assert_eq!(code("lstm-legacy17"), "recurrent");
}

#[test]
fn a_refusal_names_every_node_that_stands_in_the_way() {
    let refusal = refusal("bert-int8-dynamic");
    assert_eq!(refusal.reason, "DequantizeLinear x3, DynamicQuantizeLinear x10, MatMulInteger x14");
    assert_eq!(refusal.gaps.len(), 27);
}

#[test]
fn a_final_softmax_is_left_out() {
    for name in ["bert-softmax-logits", "bert-softmax-probabilities"] {
        let folder = zoo("refuse").join(name);
        assert_eq!(open(&folder.join("model.onnx")).unwrap().logits.activation.as_deref(), Some("Softmax"));
        // The same weights, exported without the Softmax.
        let reference = zoo("refuse/bert-label-only/reference.npz");
        let error = worst_error(&folder.join("model.onnx"), &reference, &[""]).unwrap();
        assert!(error <= TOLERANCE, "{name}: off by {error:.1e}");
    }
}

#[test]
fn fused_exports_are_taken_apart_and_differentiated() {
    for name in ["bert-ort-fused-full-eager14", "bert-ort-fused-full-sdpa17", "bert-ort-fused-partial"] {
        let folder = zoo("refuse").join(name);
        let error = worst_error(&folder.join("model.onnx"), &folder.join("reference.npz"), &[""]);
        assert!(error.as_ref().is_ok_and(|it| *it <= TOLERANCE), "{name}: {error:?}");
    }
}

#[test]
fn an_export_that_runs_one_row_at_a_time_gets_a_gradient_for_many() {
    let mut graph = read(fs::read(zoo("ops/rotary_op.onnx")).unwrap().into(), &no_external).unwrap();
    // The caches of the operator get a batch of one, which ONNX Runtime does not broadcast.
    for node in graph.nodes.iter_mut().filter(|it| it.op == "Concat" && &*it.inputs[0] == "t4") {
        node.inputs.splice(0..1, ["one".into(), "tokens".into()]);
    }
    for (name, value) in [("one", 1), ("two", 2)] {
        graph.initializers.insert(name.into(), Tensor::from_i64(&[1], &[value]));
    }
    graph.nodes.push(Node::new("Slice", &["t4".into(), "one".into(), "two".into()], &["tokens".into()]));
    graph.sort().unwrap();
    let compiled = Compiled::open(graph, &Hints::default(), &evaluate).unwrap();
    assert!(compiled.gradient.is_ok(), "{:?}", compiled.gradient.err());
}

#[test]
fn half_precision_models_are_differentiated_in_single_precision() {
    for name in ["bert-fp16", "bert-fp16-keepio"] {
        let folder = zoo("refuse").join(name);
        let compiled = open(&folder.join("model.onnx")).unwrap();
        assert!(compiled.raised && compiled.gradient.is_ok(), "{name}: {:?}", compiled.gradient.err());
        // The reference has the weights before they were rounded.
        let error = worst_error(&folder.join("model.onnx"), &folder.join("reference.npz"), &[""]).unwrap();
        assert!(error <= 1e-2, "{name}: off by {error:.1e}");
    }
}

#[test]
fn a_rule_that_is_wrong_by_a_fifth_is_not_admitted() {
    let path = zoo("public/bert-legacy17/model.onnx");
    let original = read(fs::read(&path).unwrap().into(), &no_external).unwrap();
    let hints = hints(path.parent().unwrap());
    let compiled = Compiled::open(original.clone(), &hints, &evaluate).unwrap();
    let (derived, _) = derive::gradient(&compiled.forward).unwrap();
    let export = measure::Export::of(&original, &compiled, &hints, &evaluate).unwrap();
    for op in ["Softmax", "LayerNormalization", "Gemm", "Erf", "Tanh"] {
        let caused = compiled.forward.graph.nodes.iter().filter(|it| it.op == op);
        let labels: Vec<String> = caused.map(|it| format!("{}/grad/", it.label())).collect();
        let mut wrong = derived.clone();
        let last = wrong.nodes.iter().rposition(|it| labels.iter().any(|label| it.name.starts_with(label)));
        let last = last.unwrap_or_else(|| panic!("{op} has no rule in the graph"));
        let fifth =
            Node::new("Mul", &[wrong.nodes[last].outputs[0].clone(), "1.2".into()], &["scaled".into()]);
        for node in &mut wrong.nodes[last + 1..] {
            for input in node.inputs.iter_mut().filter(|it| **it == fifth.inputs[0]) {
                *input = "scaled".into();
            }
        }
        wrong.nodes.insert(last + 1, fifth);
        wrong.initializers.insert("1.2".into(), Tensor::from_f32(&[], &[1.2]));
        let outcome = measure::measure((&export, &measure::Lengths::default()), &compiled, &wrong, &evaluate);
        assert_eq!(outcome.map_err(|it| it.code), Err(Code::Measured), "{op}");
    }
    assert!(
        measure::measure((&export, &measure::Lengths::default()), &compiled, &derived, &evaluate).is_ok()
    );
}

#[test]
fn opening_twice_gives_the_same_graph_byte_for_byte() {
    let path = zoo("public/llama-legacy17/model.onnx");
    let once = || write(&open(&path).unwrap().gradient.unwrap().graph);
    assert!(once() == once());
}

#[test]
fn the_position_that_is_read_is_told() {
    let pooling = |name: &str| open(&zoo("public").join(name).join("model.onnx")).unwrap().anatomy.pooling;
    assert_eq!(pooling("bert-legacy17"), Pooling::Position(0));
    assert_eq!(pooling("roberta-dynamo18"), Pooling::Position(0));
    assert_eq!(pooling("gpt2-legacy17"), Pooling::ByText);
}
/// The model with its logits multiplied by the length of an axis of the token ids.
fn scaled_by_length(path: &Path, axis: i64) -> explaind::compile::graph::Graph {
    let mut graph = read(fs::read(path).unwrap().into(), &no_external).unwrap();
    let shape =
        Node::new("Shape", &["input_ids".into()], &["n".into()]).with("start", axis).with("end", axis + 1);
    let cast = Node::new("Cast", &["n".into()], &["f".into()]).with("to", 1);
    let product = Node::new("Mul", &["logits".into(), "f".into()], &["scaled".into()]);
    graph.nodes.extend([shape, cast, product]);
    graph.outputs[0].value = "scaled".into();
    graph
}

#[test]
fn an_export_that_depends_on_its_batch_or_length_is_called_wrong() {
    let path = zoo("public/bert-legacy17/model.onnx");
    let hints = hints(path.parent().unwrap());
    for (axis, baked) in [(0, "batch size is baked in"), (1, "length is baked in")] {
        let compiled = Compiled::open(scaled_by_length(&path, axis), &hints, &evaluate).unwrap();
        let relevance = compiled.relevance(Composite::ALL[0]).map(|_| ());
        let gradient = compiled.gradient.map(|_| ());
        let others = [compiled.intervention.map(|_| ()), compiled.attention.map(|_| ()), relevance];
        let refusal = gradient.clone().unwrap_err();
        assert_eq!(refusal.code, Code::Measured);
        assert!(refusal.reason.contains(baked), "{}", refusal.reason);
        assert!(others.iter().all(|it| *it == gradient), "{others:?}");
    }
}
