//! Derived graphs in a model folder: taken when they belong to the model and measure up, derived otherwise.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use explaind::{
    compile::{
        self,
        builder::KERNELS,
        composite::Composite,
        graph::{Node, Tensor, Value},
        onnx::note::with_note,
        relevance::RELEVANCE,
    },
    model::{
        Manifest, Model, Need, OpenSettings,
        derived::{self, DIGEST_KEY},
        graphs,
        relevance::{COMPOSITE_KEY, SUBSTITUTIONS_KEY, file_name},
    },
    runtime::{Extra, Row, Runtime, SharedWeights},
};

use crate::support;

/// A copy of a zoo folder, with its own gradient graph noted as made for `digest`.
fn folder(digest: impl Fn(&Manifest) -> String, spoil: bool) -> (tempfile::TempDir, Runtime) {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public/bert-legacy17");
    let copy = tempfile::tempdir().expect("a folder");
    for file in ["model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(zoo.join(file), copy.path().join(file)).expect("a file of the zoo");
    }
    let runtime = support::runtime();
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

fn belonging(manifest: &Manifest) -> String {
    manifest.digest().expect("a digest")
}

/// The name of the gradient graph that is served, and why the folder's own is not used.
fn reopened(folder: &Path, runtime: &Runtime) -> (String, Option<String>) {
    let manifest = Manifest::read(folder, None).expect("a model folder");
    let graph = graphs::read(&manifest.graph).expect("a graph");
    let compiled = derived::compile_to_serve(graph, runtime, &SharedWeights::default(), &manifest);
    let (compiled, own) = compiled.expect("a structure");
    let [own] = &own[..] else { panic!("{own:?}") };
    assert_eq!(own.file, "gradient.onnx");
    (compiled.gradient.expect("a gradient graph").graph.name, own.unused.clone())
}

fn open(folder: &Path, runtime: &Runtime) -> Model {
    Model::open("bert", folder, &OpenSettings { runtime: runtime.clone(), workers: 1 }).expect("a model")
}

/// Why the folder's own file is not used, unless it is.
#[track_caller]
fn unused(model: &Model, file: &str) -> Option<String> {
    let own = model.own_graphs().into_iter().find(|it| it.file == file);
    own.unwrap_or_else(|| panic!("{file} is not listed")).unused
}

fn explaind(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_explaind")).args(arguments).output().expect("the program runs")
}

#[test]
fn a_graph_that_notes_the_models_digest_is_taken() {
    let (folder, runtime) = folder(belonging, false);
    assert_eq!(reopened(folder.path(), &runtime), ("made elsewhere".to_owned(), None));
}

#[test]
fn a_graph_that_is_wrong_or_of_another_model_is_derived_instead_and_named() {
    for (digest, spoil, why) in [
        (&belonging as &dyn Fn(&Manifest) -> String, true, "measured: "),
        (&|_: &Manifest| "0".repeat(64), false, "belongs to another model"),
    ] {
        let (folder, runtime) = folder(digest, spoil);
        let (name, unused) = reopened(folder.path(), &runtime);
        assert_ne!(name, "made elsewhere");
        assert!(unused.as_deref().is_some_and(|it| it.contains(why)), "{unused:?}");
    }
}

#[test]
fn a_graph_that_holds_operators_of_our_own_is_not_taken() {
    let (folder, runtime) = folder(belonging, false);
    let path = folder.path().join("gradient.onnx");
    let manifest = Manifest::read(folder.path(), None).expect("a model folder");
    let bytes = fs::read(&path).expect("a file");
    let mut graph = compile::read(bytes.into(), &compile::no_external).expect("a graph");
    graph.nodes.iter_mut().find(|it| it.is("Erf")).expect("an Erf").domain = KERNELS.to_owned();
    graph.opsets.insert(KERNELS.to_owned(), 1);
    fs::write(&path, with_note(compile::write(&graph), DIGEST_KEY, &belonging(&manifest))).expect("a file");
    let unused = reopened(folder.path(), &runtime).1;
    assert!(unused.as_deref().is_some_and(|it| it.contains("domain `explaind`")), "{unused:?}");
}

#[test]
fn a_graph_without_a_note_or_its_end_is_named() {
    let (folder, runtime) = folder(belonging, false);
    let path = folder.path().join("gradient.onnx");
    let whole = fs::read(&path).expect("a file");
    let manifest = Manifest::read(folder.path(), None).expect("a model folder");
    let bare = compile::read(whole.clone().into(), &compile::no_external).expect("a graph");
    for (bytes, why) in [(compile::write(&bare), "no note"), (whole[..whole.len() / 2].to_vec(), "no whole")]
    {
        fs::write(&path, bytes).expect("a file");
        let unused = reopened(folder.path(), &runtime).1;
        assert!(unused.as_deref().is_some_and(|it| it.contains(why)), "{unused:?}");
    }
    for composite in [Composite::Gamma, Composite::Epsilon] {
        let bytes = with_note(compile::write(&bare), DIGEST_KEY, &belonging(&manifest));
        let bytes = with_note(bytes, COMPOSITE_KEY, Composite::Gamma.slug());
        fs::write(folder.path().join(file_name(composite)), bytes).expect("a file");
    }
    let model = open(folder.path(), &runtime);
    assert_eq!(unused(&model, "relevance-gamma.onnx"), None, "not looked at yet");
    assert!(model.relevance(Composite::Gamma).is_ok_and(|it| !it.own));
    assert!(unused(&model, "relevance-gamma.onnx").is_some());
    let other = unused(&model, "relevance-epsilon.onnx");
    assert!(other.as_deref().is_some_and(|it| it.contains("of gamma")), "{other:?}");
}

#[test]
fn a_wrong_graph_is_named_where_none_can_be_derived() {
    let (folder, runtime) = folder(belonging, false);
    let lstm = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse/lstm-legacy17");
    for file in ["model.onnx", "config.json", "tokenizer.json"] {
        fs::copy(lstm.join(file), folder.path().join(file)).expect("a file of the zoo");
    }
    let path = folder.path().join("gradient.onnx");
    let manifest = Manifest::read(folder.path(), None).expect("a model folder");
    let bytes = with_note(fs::read(&path).expect("a file"), DIGEST_KEY, &belonging(&manifest));
    fs::write(&path, bytes).expect("a file");
    let missing = open(folder.path(), &runtime).gradient.err().expect("no gradient");
    assert_eq!(missing.code, "recurrent");
    assert!(missing.reason.contains(&path.display().to_string()), "{missing}");
}

#[test]
fn an_export_is_derived_afresh() {
    for spoil in [false, true] {
        let (folder, _) = folder(belonging, spoil);
        let (path, out) = (folder.path().display().to_string(), folder.path().join("out.onnx"));
        let done = explaind(&["export", &path, "--graph", "gradient", "--out", &out.display().to_string()]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let written = fs::read(&out).expect("a file").into();
        let graph = compile::read(written, &compile::no_external).expect("a graph");
        assert_ne!(graph.name, "made elsewhere");
    }
}

#[test]
fn an_exported_relevance_graph_is_of_the_composite_that_it_is_used_for() {
    let (folder, runtime) = folder(belonging, false);
    fs::remove_file(folder.path().join("gradient.onnx")).expect("a file");
    let path = folder.path().display().to_string();
    let out = folder.path().join("relevance-gamma.onnx");
    let export = |arguments: &[&str]| {
        let head = ["export", &path, "--out", out.to_str().expect("a path"), "--graph"];
        explaind(&[&head, arguments].concat())
    };
    assert!(export(&["relevance"]).status.success());
    let model = open(folder.path(), &runtime);
    let forgotten = unused(&model, "relevance-gamma.onnx");
    assert_eq!(forgotten.as_deref(), Some("it is the relevance graph of attn-lrp"));
    assert!(model.relevance(Composite::Gamma).is_ok_and(|it| !it.own));
    assert!(export(&["relevance", "--composite", "gamma"]).status.success());
    let model = open(folder.path(), &runtime);
    assert!(model.relevance(Composite::Gamma).is_ok_and(|it| it.own));
    assert_eq!(unused(&model, "relevance-gamma.onnx"), None);
    let told = explaind(&["inspect", &path]);
    assert!(String::from_utf8_lossy(&told.stdout).contains("own graph       relevance-gamma.onnx\n"));
    let contradiction = export(&["gradient", "--composite", "gamma"]);
    assert_eq!(contradiction.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&contradiction.stderr).contains("--composite goes with"));
}

#[test]
fn an_intervention_graph_that_was_written_edits_as_the_derived_one() {
    let (folder, runtime) = folder(belonging, false);
    let open = || open(folder.path(), &runtime);
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
    assert_eq!(unused(&written, "intervention.onnx"), None);
    // A graph that edits nothing is derived anew.
    for node in intervention.nodes.iter_mut().filter(|it| it.inputs.iter().any(|it| &**it == "add_1")) {
        let kept = node.inputs[0].clone();
        (node.op, node.inputs) = ("Identity".into(), vec![kept]);
    }
    for node in intervention.nodes.iter_mut().filter(|it| it.inputs.iter().any(|it| &**it == "keep_1")) {
        let raw = node.inputs[0].clone();
        (node.op, node.inputs) = ("Identity".into(), vec![raw]);
    }
    write(&intervention);
    let model = open();
    assert!(model.intervention.is_ok());
    assert!(unused(&model, "intervention.onnx").is_some_and(|it| it.starts_with("measured")));
}

#[test]
fn a_relevance_graph_that_was_written_is_taken_and_audited() {
    let (folder, runtime) = folder(belonging, false);
    let manifest = Manifest::read(folder.path(), None).expect("a model folder");
    let graph = graphs::read(&manifest.graph).expect("a graph");
    let compiled =
        derived::compile(graph, &runtime, &SharedWeights::default(), &manifest).expect("a structure");
    let open = |graph: &compile::graph::Graph| {
        let bytes = with_note(compile::write(graph), DIGEST_KEY, &belonging(&manifest));
        let bytes = with_note(bytes, COMPOSITE_KEY, Composite::Gamma.slug());
        let bytes = with_note(bytes, SUBSTITUTIONS_KEY, "made elsewhere");
        fs::write(folder.path().join(file_name(Composite::Gamma)), bytes).expect("a file");
        let made = open(folder.path(), &runtime).relevance(Composite::Gamma).expect("a relevance graph");
        (made.own, made.substitutions == ["made elsewhere"])
    };
    let written = compiled.relevance(Composite::Gamma).expect("a relevance graph").graph;
    assert_eq!(open(&written), (true, true));
    // Some relevance is lost.
    let mut lost = written.clone();
    let place = lost.nodes.iter().rposition(|it| it.is("Sign")).expect("a rule that asks for signs");
    lost.nodes[place].op = "Floor".into();
    assert_eq!(open(&lost), (false, false));
    // The books close, and each token has another's relevance.
    let mut moved = written;
    for node in &mut moved.nodes {
        for name in node.outputs.iter_mut().chain(&mut node.inputs).filter(|it| &***it == RELEVANCE) {
            *name = "unmoved".into();
        }
    }
    let constants = [("starts", -1), ("ends", i64::from(i32::MIN)), ("axes", 1), ("steps", -1)];
    let constants = constants.map(|(name, it)| (name.into(), Tensor::from_i64(&[1], &[it])));
    let inputs: Vec<Value> =
        std::iter::once("unmoved".into()).chain(constants.clone().map(|it| it.0)).collect();
    moved.initializers.extend(constants);
    moved.nodes.push(Node::new("Slice", &inputs, &[RELEVANCE.into()]));
    assert_eq!(open(&moved), (false, false));
}

#[test]
fn an_attention_graph_that_was_written_is_used_and_a_wrong_one_is_not_offered() {
    let (folder, runtime) = folder(belonging, false);
    let open = || open(folder.path(), &runtime);
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
    let refused = |model: &Model| {
        assert!(model.allows(Need::AttentionGradient).is_ok(), "it is derived");
        unused(model, "attention.onnx").expect("not used")
    };
    assert!(refused(&open()).contains("gradient of attention"));
    // Rows that do not sum to one.
    for node in attention.nodes.iter_mut().filter(|it| &*it.outputs[0] == "attention_0") {
        node.op = "Neg".into();
    }
    write(&attention);
    assert!(refused(&open()).contains("sums to one"));
}
