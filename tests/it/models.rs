//! This file is where the folders of the zoo are opened and asked as a server does it: manifest, tokenizer,
//! sessions, queue.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use explaind::compile::builder::KERNELS;
use explaind::compile::graph::{Attribute, Axis, Element, Graph, Node, Port, Tensor, Type, Value};
use explaind::compile::{no_external, read, write, write_split};
use explaind::explain::{Arrival, ExplainAnswer, ExplainError, ExplainRequest, House, explain, registry};
use explaind::model::text::{Caps, EncodeError};
use explaind::model::{Activation, ManifestError, Model, OpenError, graphs};
use explaind::runtime::{Cancel, Optimise, Padding, Row, Session, SharedWeights};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::reference::{BATCHES, gap, gradient_gaps, logits_gap, references, with_lane};
use crate::support::{house, open_settings};

/// How far logits may be off, and gradients in parts of their largest value.
const TOLERANCE: f64 = 1e-3;

const CAPS: Caps = Caps { characters: 1000, run: 1000 };

fn zoo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public").join(name)
}

fn ask(house: &House, slug: &str, request: Json) -> Result<ExplainAnswer, ExplainError> {
    let request: ExplainRequest = serde_json::from_value(request).expect("a well-formed request");
    let arrival = Arrival { id: "models".into(), at: Instant::now(), cancel: Cancel::default() };
    explain(house, registry::find(slug).expect("a listed method"), &request, &arrival)
}

fn open(name: &str, folder: &Path) -> Model {
    Model::open(name, folder, &open_settings()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Every architecture, opened once.
pub fn all() -> &'static [(PathBuf, Model)] {
    static MODELS: OnceLock<Vec<(PathBuf, Model)>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let entries = fs::read_dir(zoo("")).expect("the zoo is in the project");
        let mut folders: Vec<PathBuf> = entries.map(|it| it.expect("an entry").path()).collect();
        folders.sort();
        let name = |it: &Path| it.file_name().expect("a folder").to_string_lossy().into_owned();
        folders.into_iter().map(|it| (it.clone(), open(&name(&it), &it))).collect()
    })
}

#[track_caller]
fn assert_agrees(model: &Model, folder: &Path) {
    let logits = logits_gap(model, folder, &BATCHES);
    assert!(logits <= TOLERANCE, "{}: logits are off by {logits:e}", model.name);
    let (logits, gradient) =
        gradient_gaps(model, folder, &BATCHES).unwrap_or_else(|it| panic!("{}: {it}", model.name));
    assert!(logits <= TOLERANCE, "{}: the gradient graph's logits are off by {logits:e}", model.name);
    assert!(gradient <= TOLERANCE, "{}: the gradient is off by {gradient:e}", model.name);
}

#[test]
fn a_graph_and_its_sessions_hold_the_weights_in_memory_once() {
    let path = zoo("bert-legacy17").join("model.onnx");
    let weights = SharedWeights::default();
    let graph = graphs::read_shared(&path, &weights).expect("the model reads");
    assert_eq!(graph.initializers, graphs::read(&path).expect("the model reads").initializers);
    let runnable = graphs::runnable(&graph);
    let held = weights.count();
    assert!(held > 0 && held == runnable.weights.len());
    let runtime = &open_settings().runtime;
    let session = Session::open(runtime, &runnable, &weights, Optimise::Everything).expect("it opens");
    assert_eq!(weights.count(), held, "the session brings no copies");

    drop((graph, runnable));
    weights.forget_unused();
    assert_eq!(weights.count(), held, "the session still uses them");
    drop(session);
    weights.forget_unused();
    assert_eq!(weights.count(), 0);
}

#[test]
fn every_folder_gives_the_logits_and_gradients_of_pytorch() {
    for (folder, model) in all() {
        assert_agrees(model, folder);
    }
}

#[test]
fn every_tokenizer_reads_the_texts_of_its_reference() {
    for (folder, model) in all() {
        let texts = fs::read(folder.join("texts.json")).expect("texts");
        let texts: Json = serde_json::from_slice(&texts).expect("JSON");
        let references = references(folder, "");
        let texts_and_logits = texts["texts"].as_array().expect("texts").iter().zip(&references);
        let rows = texts_and_logits.map(|(text, reference)| {
            let text = text.as_str().expect("a text");
            let encoded = model.tokenizer.encode(text, None, false, CAPS).expect("tokens");
            assert_eq!(encoded.ids(), *reference.row.ids, "{}", model.name);
            // A text alone has one segment, the reference has two.
            Row { types: reference.row.types.clone(), ..encoded.row() }
        });
        let rows: Vec<Row> = rows.collect();
        let outs = with_lane(|lane| lane.evaluate(&model.forward, rows)).expect("logits");
        for (out, wanted) in outs.iter().zip(texts["logits"].as_array().expect("logits")) {
            let wanted: Vec<f64> = serde_json::from_value(wanted.clone()).expect("numbers");
            assert!(gap(&out.values[0], &wanted) <= TOLERANCE, "{}: {out:?} {wanted:?}", model.name);
        }
    }
}

#[test]
fn models_of_one_process_keep_to_their_own_weights() {
    // Most names of weights are the same in all exports of an architecture, and some in all architectures.
    let names = ["bert-legacy17", "electra-legacy17", "roberta-legacy17", "bert-optimum18"];
    let models: Vec<Model> = names.iter().map(|name| open(name, &zoo(name))).collect();
    for (name, model) in names.iter().zip(&models) {
        assert_agrees(model, &zoo(name));
    }
}

/// A folder of the zoo whose graph and JSON files are changed.
pub fn derived(name: &str, graph: impl FnOnce(&mut Graph), json: &[(&str, &str, Json)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let text = fs::read(zoo(name).join(file)).expect("a file");
        let mut value: Json = serde_json::from_slice(&text).expect("JSON");
        for (_, key, changed) in json.iter().filter(|it| it.0 == file) {
            let object = value.as_object_mut().expect("an object");
            match changed {
                Json::Null => object.remove(*key),
                other => object.insert((*key).to_owned(), other.clone()),
            };
        }
        fs::write(folder.path().join(file), value.to_string()).expect("a file");
    }
    let bytes = fs::read(zoo(name).join("model.onnx")).expect("a model");
    let mut model = read(bytes.into(), &no_external).expect("an ONNX model");
    graph(&mut model);
    fs::write(folder.path().join("model.onnx"), write(&model)).expect("a file");
    folder
}

/// Inputs become int32, and are cast to what the graph computes with.
fn narrow(graph: &mut Graph) {
    for at in 0..graph.inputs.len() {
        let wide: Value = format!("{} as int64", graph.inputs[at].value).into();
        let name = graph.inputs[at].value.clone();
        for input in graph.nodes.iter_mut().flat_map(|it| &mut it.inputs).filter(|it| **it == name) {
            *input = wide.clone();
        }
        let cast = Node::new("Cast", std::slice::from_ref(&name), &[wide]);
        graph.nodes.insert(0, cast.with("to", Attribute::Int(i64::from(Element::I64.code()))));
        let dims = graph.inputs[at].dims().map(<[_]>::to_vec);
        graph.inputs[at] = Port { value: name, ty: Type::Tensor(Element::I32, dims) };
    }
}

#[test]
fn int32_inputs_are_fed_as_such() {
    for name in ["bert-legacy17", "gpt2-legacy17"] {
        let folder = derived(name, narrow, &[]);
        assert_agrees(&open(name, folder.path()), &zoo(name));
    }
}

#[test]
fn rows_are_not_padded_on_a_side_that_changes_the_logits() {
    // The classifier reads the first position, which padding on the left would fill.
    let side = ("tokenizer_config.json", "padding_side", Json::from("left"));
    let folder = derived("roberta-legacy17", |_| {}, &[side]);
    let model = open("roberta-legacy17", folder.path());
    assert_eq!(model.forward.layout.padding, Padding::Never);
    assert_agrees(&model, &zoo("roberta-legacy17"));
}

#[test]
fn rows_of_a_model_without_a_pad_token_share_a_batch_only_at_one_length() {
    let json = [
        ("config.json", "pad_token_id", Json::Null),
        ("tokenizer_config.json", "pad_token", Json::Null),
        ("tokenizer.json", "added_tokens", Json::Array(Vec::new())),
    ];
    let folder = derived("bert-legacy17", |_| {}, &json);
    let model = open("bert-legacy17", folder.path());
    assert_eq!((model.special.pad, model.forward.layout.padding), (None, Padding::Never));
    assert_agrees(&model, &zoo("bert-legacy17"));
}

#[test]
fn weights_are_read_from_a_file_beside_the_model() {
    let folder = derived("bert-legacy17", |_| {}, &[]);
    let path = folder.path().join("model.onnx");
    let graph = read(fs::read(&path).unwrap().into(), &no_external).unwrap();
    let split = write_split(&graph, &|it| it.data().len() > 256);
    let data: Vec<u8> = split.weights.iter().flat_map(|it| it.1.data().to_vec()).collect();
    assert!(!data.is_empty());
    fs::write(&path, split.model).unwrap();
    fs::write(folder.path().join("weights.bin"), data).unwrap();
    assert_agrees(&open("bert-legacy17", folder.path()), &zoo("bert-legacy17"));
}

/// Cross-encoders are exported with their Sigmoid, and `config.json` says nothing of it.
#[test]
fn a_graph_that_ends_in_an_activation_is_scored_by_it() {
    let plain = open("bert-legacy17", &zoo("bert-legacy17"));
    let row = references(&zoo("bert-legacy17"), "b4_").remove(0).row;
    let logits = plain.forward.run(0, std::slice::from_ref(&row)).unwrap().remove(0).values.remove(0);
    for (op, problem, activation) in [
        ("Sigmoid", Json::Null, Activation::Sigmoid),
        ("Sigmoid", "single_label_classification".into(), Activation::Sigmoid),
        ("Softmax", "multi_label_classification".into(), Activation::Softmax),
    ] {
        let end = |graph: &mut Graph| {
            let node = graph.nodes.iter_mut().find(|it| it.outputs[0] == "logits".into()).unwrap();
            node.outputs[0] = "before".into();
            graph.nodes.push(Node::new(op, &["before".into()], &["logits".into()]));
        };
        let folder = derived("bert-legacy17", end, &[("config.json", "problem_type", problem)]);
        let model = open("ended", folder.path());
        assert_eq!(model.labels.activation(), activation, "{op}");
        let found = model.forward.run(0, std::slice::from_ref(&row)).unwrap().remove(0).values.remove(0);
        for (found, logit) in found.iter().zip(&logits) {
            assert!((found - logit).abs() < 1e-4, "{op}: {found} instead of {logit}");
        }
    }
}

#[test]
fn a_length_that_is_baked_in_is_named() {
    let fix = |graph: &mut Graph| {
        for port in &mut graph.inputs {
            if let Type::Tensor(_, Some(axes)) = &mut port.ty {
                axes[1] = Axis::Fixed(12);
            }
        }
    };
    let folder = derived("bert-legacy17", fix, &[]);
    let refusal = Model::open("fixed", folder.path(), &open_settings()).err().unwrap().to_string();
    assert!(refusal.contains("a length is baked in") && refusal.contains("12 tokens"), "{refusal}");
}

/// Operators that trust the compiler are not for strangers' graphs.
#[test]
fn a_file_that_holds_operators_of_our_own_is_not_opened() {
    let own = |graph: &mut Graph| {
        let node = graph.nodes.iter_mut().find(|it| it.is("Erf")).unwrap();
        (node.domain, node.op) = (KERNELS.to_owned(), "GeluPullback".to_owned());
        graph.opsets.insert(KERNELS.to_owned(), 1);
    };
    let folder = derived("bert-legacy17", own, &[]);
    let error = Model::open("own", folder.path(), &open_settings()).err().unwrap();
    assert!(matches!(error, OpenError::Manifest(ManifestError::Kernels { .. })), "{error}");
    let bytes = fs::read(folder.path().join("model.onnx")).unwrap();
    let error = read(bytes.into(), &no_external).unwrap_err().to_string();
    assert!(error.contains("domain `explaind`"), "{error}");
}

/// Fixes the number of rows.
fn with_rows(rows: usize) -> TempDir {
    let fix = |graph: &mut Graph| {
        for port in &mut graph.inputs {
            if let Type::Tensor(_, Some(axes)) = &mut port.ty {
                axes[0] = Axis::Fixed(rows);
            }
        }
    };
    derived("bert-legacy17", fix, &[])
}

#[test]
fn a_graph_that_takes_one_row_is_asked_one_row_at_a_time() {
    let folder = with_rows(1);
    let model = open("single", folder.path());
    assert_eq!(model.forward.layout.padding, Padding::Alone);
    assert_eq!(model.gradient().map(|it| it.gradient.layout.padding), Ok(Padding::Alone));
    assert!(model.warnings.iter().any(|it| it.contains("one row at a time")), "{:?}", model.warnings);
    assert_agrees(&model, &zoo("bert-legacy17"));
    let house = house("single", folder.path());
    for slug in ["leave-one-out", "kernel-shap", "integrated-gradients"] {
        let answer = ask(&house, slug, json!({ "inputs": "t155 t64 t89 t60" }));
        let answer = answer.unwrap_or_else(|it| panic!("{slug}: {it:?}"));
        assert!(!answer.results[0].explanations[0].attributions.is_empty(), "{slug}");
    }
    let refusal = Model::open("two", with_rows(2).path(), &open_settings()).err().unwrap().to_string();
    assert!(refusal.contains("a batch size is baked in") && refusal.contains("2 rows"), "{refusal}");
}

/// The table has positions for 48 tokens.
#[test]
fn a_limit_that_the_graph_does_not_reach_is_found_by_trying() {
    let opened = |positions: Json, length: Json| {
        let json = [
            ("config.json", "max_position_embeddings", positions),
            ("tokenizer_config.json", "model_max_length", length),
        ];
        let folder = derived("bert-legacy17", |_| {}, &json);
        open("positions", folder.path())
    };
    let model = opened(400.into(), 400.into());
    assert_eq!(model.max_length, Some(48));
    assert!(model.warnings.iter().any(|it| it.contains("positions for 400")), "{:?}", model.warnings);
    let long = model.tokenizer.encode(&"t1 ".repeat(49), None, false, CAPS).unwrap_err();
    assert_eq!(long, EncodeError::TooLong { tokens: 49, limit: 48 });
    let row = model.tokenizer.encode(&"t1 ".repeat(48), None, false, CAPS).expect("tokens").row();
    assert!(model.forward.run(0, &[row]).is_ok());
    let model = opened(Json::Null, Json::Null);
    assert_eq!(model.max_length, Some(48));
    assert!(model.warnings.iter().any(|it| it.contains("no file of the folder")), "{:?}", model.warnings);
    let model = opened(400.into(), 40.into());
    assert_eq!((model.max_length, model.warnings), (Some(40), Vec::new()));
}

/// A convolution over five tokens that pads nothing, and the largest of what it sees: Kim's network.
fn convolution(graph: &mut Graph) {
    let behind = "e = Gather(table, input_ids: int64[b, s]); t = Transpose(e) {perm: [0, 2, 1]}; \
                  c = Conv(t, w); logits = ReduceMax(c) {axes: [2], keepdims: 0}";
    *graph = Graph::parse(behind).expect("a graph");
    graph.inputs.retain(|it| &*it.value == "input_ids");
    for (name, dims) in [("table", &[200, 2][..]), ("w", &[2, 2, 5])] {
        let values = (0..dims.iter().product()).map(|it: usize| ((it * 37 + 11) % 101) as f32 / 50.0 - 1.0);
        graph.initializers.insert(name.into(), Tensor::from_f32(dims, &values.collect::<Vec<_>>()));
    }
}

#[test]
fn rows_that_are_shorter_than_a_window_are_refused() {
    let folder = derived("bert-legacy17", convolution, &[]);
    let house = house("window", folder.path());
    let model = house.models.find(None).unwrap();
    assert_eq!(model.forward.layout.least, 5);
    assert!(model.warnings.iter().any(|it| it.contains("fewer than 5 tokens")), "{:?}", model.warnings);
    let leave = |text: &str, operation: &str| {
        ask(&house, "leave-one-out", json!({ "inputs": text, "parameters": { "operation": operation } }))
    };
    assert!(leave("t1 t2 t5 t6 t7", "mask").is_ok());
    for (text, operation) in [("t1 t2 t5 t6", "mask"), ("t1 t2 t5 t6 t7", "delete")] {
        match leave(text, operation) {
            Err(ExplainError::Misfits(misfits)) => {
                let detail = &misfits[0].detail;
                assert!(detail.contains("4 tokens") && detail.contains("5 or more"), "{detail}");
            }
            other => panic!("{text} {operation}: {other:?}"),
        }
    }
}

#[test]
fn rows_of_unequal_length_in_one_batch_do_not_touch_each_other() {
    for (folder, model) in all() {
        let rows: Vec<Row> = references(folder, "b4_").into_iter().map(|it| it.row).collect();
        let together = model.forward.run(0, &rows);
        // Some architectures have no pad token that hides: then the queue keeps lengths apart, and so do we.
        if model.forward.layout.padding == Padding::Never {
            continue;
        }
        for (row, together) in rows.iter().zip(together.expect("logits")) {
            let alone = model.forward.run(0, std::slice::from_ref(row)).expect("logits").remove(0);
            let alone: Vec<f64> = alone.values[0].iter().map(|&it| f64::from(it)).collect();
            assert!(gap(&together.values[0], &alone) <= TOLERANCE, "{}", model.name);
        }
    }
}

/// The tokenizer of a folder with one more token.
fn with_token(name: &str, change: impl FnOnce(&mut Json, u64)) -> TempDir {
    let folder = derived(name, |_| {}, &[]);
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: Json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let rows = fs::read(folder.path().join("config.json")).unwrap();
    let rows = serde_json::from_slice::<Json>(&rows).unwrap()["vocab_size"].as_u64().unwrap();
    change(&mut tokenizer, rows);
    fs::write(path, tokenizer.to_string()).unwrap();
    folder
}

#[test]
fn a_vocabulary_that_is_larger_than_the_embedding_is_not_opened() {
    let folder = with_token("bert-legacy17", |it, rows| it["model"]["vocab"]["beyond"] = rows.into());
    let error =
        Model::open("large", folder.path(), &open_settings()).err().expect("it is refused").to_string();
    assert!(error.contains("tokenizer.json") && error.contains("embedding table"), "{error}");
}

#[test]
fn an_added_token_that_the_embedding_lacks_is_refused_where_a_text_holds_it() {
    let folder = with_token("bert-legacy17", |it, rows| {
        let token = serde_json::json!({ "id": rows, "content": "[NEW]", "special": true, "normalized": false,
                                        "single_word": false, "lstrip": false, "rstrip": false });
        it["added_tokens"].as_array_mut().unwrap().push(token);
    });
    let model = open("added", folder.path());
    model.tokenizer.encode("t1 t2", None, false, CAPS).expect("tokens");
    let error = model.tokenizer.encode("t1 [NEW]", None, false, CAPS).unwrap_err();
    assert!(error.to_string().contains("`[NEW]`"), "{error}");
}

/// A mask token that was added and never trained: no other row of the table may stand for it.
#[test]
fn a_special_token_that_the_embedding_lacks_is_forgotten() {
    let folder = with_token("bert-legacy17", |it, rows| {
        for token in it["added_tokens"].as_array_mut().unwrap() {
            if token["content"] == "[MASK]" {
                token["id"] = rows.into();
            }
        }
        let vocabulary = it["model"]["vocab"].as_object_mut().unwrap();
        let mask = vocabulary.remove("[MASK]").unwrap();
        vocabulary.insert("[unused-mask]".into(), mask);
    });
    let model = open("masked", folder.path());
    assert!(model.special.mask.is_none() && model.special.pad.is_some(), "{:?}", model.special);
    assert!(model.warnings.iter().any(|it| it.contains("mask token")), "{:?}", model.warnings);
}

#[test]
fn a_label_that_is_called_like_a_keyword_is_warned_of() {
    let labels = serde_json::json!({ "0": "predicted", "1": "all" });
    let folder = derived("bert-legacy17", |_| {}, &[("config.json", "id2label", labels)]);
    let warnings = open("named", folder.path()).warnings;
    assert_eq!(warnings.iter().filter(|it| it.contains("by its index")).count(), 2, "{warnings:?}");
}
