//! Derived graphs in a model folder: taken when they belong to the model, measured all the same.

use std::{fs, path::Path};

use explaind::{
    compile::{self, composite::Composite, onnx::note::with_note},
    model::{
        Manifest, Model, Need, OpenSettings,
        derived::{self, DIGEST_KEY},
        graphs,
        relevance::{SUBSTITUTIONS_KEY, file_name},
    },
    runtime::{Device, Extra, Row, Runtime, SharedWeights},
};

/// A copy of a zoo folder, with its own gradient graph noted as made for `digest`.
fn folder(digest: impl Fn(&Manifest) -> String, spoil: bool) -> (tempfile::TempDir, Runtime) {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public/bert-legacy17");
    let copy = tempfile::tempdir().expect("a folder");
    for file in ["model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(zoo.join(file), copy.path().join(file)).expect("a file of the zoo");
    }
    let runtime = Runtime::load(Device::Cpu, 1).expect("ONNX Runtime loads");
    let manifest = Manifest::read(copy.path(), None).expect("a model folder");
    let graph = graphs::read(&manifest.graph).expect("a graph");
    let compiled =
        derived::compile(graph, &runtime, &SharedWeights::default(), &manifest).expect("a structure");
    let mut gradient = compiled.gradient.expect("a gradient graph").graph;
    gradient.name = "made elsewhere".to_owned();
    if spoil {
        // The right shapes, the wrong numbers.
        gradient.flatten();
        gradient.nodes.iter_mut().filter(|it| it.is("Erf")).for_each(|it| it.op = "Tanh".into());
    }
    let bytes = with_note(compile::write(&gradient), DIGEST_KEY, &digest(&manifest));
    fs::write(copy.path().join("gradient.onnx"), bytes).expect("a file");
    (copy, runtime)
}

fn reopened(folder: &Path, runtime: &Runtime) -> Result<String, String> {
    let manifest = Manifest::read(folder, None).expect("a model folder");
    let graph = graphs::read(&manifest.graph).expect("a graph");
    let compiled =
        derived::compile(graph, runtime, &SharedWeights::default(), &manifest).expect("a structure");
    compiled.gradient.map(|it| it.graph.name).map_err(|refusal| refusal.code.slug().to_owned())
}

#[test]
fn a_graph_that_notes_the_models_digest_is_taken() {
    let (folder, runtime) = folder(|manifest| manifest.digest().expect("a digest"), false);
    assert_eq!(reopened(folder.path(), &runtime), Ok("made elsewhere".to_owned()));
}

#[test]
fn a_graph_of_another_model_is_left_alone() {
    let (folder, runtime) = folder(|_| "0".repeat(64), false);
    assert!(reopened(folder.path(), &runtime).is_ok_and(|name| name != "made elsewhere"));
}

#[test]
fn a_wrong_graph_is_not_offered() {
    let (folder, runtime) = folder(|manifest| manifest.digest().expect("a digest"), true);
    assert_eq!(reopened(folder.path(), &runtime), Err("measured".to_owned()));
}

#[test]
fn an_intervention_graph_that_was_written_edits_as_the_derived_one() {
    let (folder, runtime) = folder(|manifest| manifest.digest().expect("a digest"), false);
    let open = || {
        let settings = OpenSettings { runtime: runtime.clone(), workers: 1 };
        Model::open("bert", folder.path(), &settings).expect("a model")
    };
    let logits = |model: &Model, layer: usize| {
        let graph = model.intervention().expect("an intervention graph");
        let state: Vec<f32> = (0..5 * graph.widths[layer]).map(|it| (it as f32).sin()).collect();
        let row = Row { extras: vec![Extra::Values(state.into())], ..Row::of(vec![5; 5], None) };
        let restart = graph.from_state(layer).expect("it opens");
        restart.program.run(0, &[row]).expect("logits").remove(0).values.remove(0)
    };
    let derived = open();
    let manifest = Manifest::read(folder.path(), None).expect("a model folder");
    let graph = graphs::read(&manifest.graph).expect("a graph");
    let compiled =
        derived::compile(graph, &runtime, &SharedWeights::default(), &manifest).expect("a structure");
    let mut intervention = compiled.intervention.expect("an intervention graph").cut.graph;
    let write = |graph: &compile::graph::Graph| {
        let bytes = with_note(compile::write(graph), DIGEST_KEY, &manifest.digest().expect("a digest"));
        fs::write(folder.path().join("intervention.onnx"), bytes).expect("a file");
    };
    write(&intervention);
    let written = open();
    for layer in 0..derived.intervention().expect("an intervention graph").widths.len() {
        let (one, other) = (logits(&derived, layer), logits(&written, layer));
        assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-5), "{layer}: {one:?} {other:?}");
    }
    // A graph that edits nothing is not offered.
    for node in intervention.nodes.iter_mut().filter(|it| it.inputs.iter().any(|it| &**it == "add_1")) {
        let kept = node.inputs[0].clone();
        (node.op, node.inputs) = ("Identity".into(), vec![kept]);
    }
    for node in intervention.nodes.iter_mut().filter(|it| it.inputs.iter().any(|it| &**it == "keep_1")) {
        let raw = node.inputs[0].clone();
        (node.op, node.inputs) = ("Identity".into(), vec![raw]);
    }
    write(&intervention);
    assert_eq!(open().intervention.err().map(|it| it.code).as_deref(), Some("measured"));
}

#[test]
fn a_relevance_graph_that_was_written_is_taken_and_audited() {
    let (folder, runtime) = folder(|manifest| manifest.digest().expect("a digest"), false);
    let manifest = Manifest::read(folder.path(), None).expect("a model folder");
    let graph = graphs::read(&manifest.graph).expect("a graph");
    let compiled =
        derived::compile(graph, &runtime, &SharedWeights::default(), &manifest).expect("a structure");
    let open = |graph: &compile::graph::Graph| {
        let digest = manifest.digest().expect("a digest");
        let bytes = with_note(compile::write(graph), DIGEST_KEY, &digest);
        let bytes = with_note(bytes, SUBSTITUTIONS_KEY, "made elsewhere");
        fs::write(folder.path().join(file_name(Composite::Gamma)), bytes).expect("a file");
        let settings = OpenSettings { runtime: runtime.clone(), workers: 1 };
        let model = Model::open("bert", folder.path(), &settings).expect("a model");
        let made = model.relevance(Composite::Gamma).map(|it| it.substitutions.clone());
        made.map_err(|missing| missing.code)
    };
    let mut written = compiled.relevance(Composite::Gamma).expect("a relevance graph").graph;
    assert_eq!(open(&written), Ok(vec!["made elsewhere".to_owned()]));
    // Some relevance is lost.
    let lost = written.nodes.iter().rposition(|it| it.is("Sign")).expect("a rule that asks for signs");
    written.nodes[lost].op = "Floor".into();
    assert_eq!(open(&written), Err("measured".to_owned()));
}

#[test]
fn an_attention_graph_that_was_written_is_used_and_a_wrong_one_is_not_offered() {
    let (folder, runtime) = folder(|manifest| manifest.digest().expect("a digest"), false);
    let settings = OpenSettings { runtime: runtime.clone(), workers: 1 };
    let open = || Model::open("bert", folder.path(), &settings).expect("a model");
    let manifest = Manifest::read(folder.path(), None).expect("a model folder");
    let graph = graphs::read(&manifest.graph).expect("a graph");
    let compiled =
        derived::compile(graph, &runtime, &SharedWeights::default(), &manifest).expect("a structure");
    let mut attention = compiled.attention.expect("an attention graph").graph;
    let write = |graph: &compile::graph::Graph| {
        let bytes = with_note(compile::write(graph), DIGEST_KEY, &manifest.digest().expect("a digest"));
        fs::write(folder.path().join("attention.onnx"), bytes).expect("a file");
    };
    write(&attention);
    assert_eq!(open().attention().map(|it| it.heads.clone()), Ok(vec![4, 4]));
    // Gradients that belong to the other layer.
    let swap =
        |name: &str| name.replace("attention_0_grad", "swap").replace("attention_1_grad", "attention_0_grad");
    for node in &mut attention.nodes {
        for output in &mut node.outputs {
            *output = swap(output).replace("swap", "attention_1_grad").as_str().into();
        }
    }
    write(&attention);
    let model = open();
    assert_eq!(model.allows(Need::AttentionGradient).err().map(|it| it.code).as_deref(), Some("measured"));
    assert!(model.allows(Need::Attention).is_ok(), "the probabilities are right");
    // Rows that do not sum to one.
    for node in attention.nodes.iter_mut().filter(|it| &*it.outputs[0] == "attention_0") {
        node.op = "Neg".into();
    }
    write(&attention);
    assert_eq!(open().attention.err().map(|it| it.code).as_deref(), Some("measured"));
}
