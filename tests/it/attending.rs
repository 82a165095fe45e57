//! Attention probabilities: against PyTorch's, out of fused exports too, and what is refused.

use std::fs;
use std::path::Path;
use std::time::Instant;

use explaind::compile::{self, graph::Node};
use explaind::explain::{Arrival, ExplainError, ExplainRequest, House, Misfit, explain, registry};
use explaind::model::{Model, graphs};
use explaind::runtime::{Cancel, Extra, Row};
use serde_json::{Value, json};

use crate::arrays::Arrays;
use crate::models::all;
use crate::reference::{gap, references, with_lane};
use crate::service::{REVIEW, Service};
use crate::support::{bundled, house, open_settings};

/// How far probabilities may be off.
const TOLERANCE: f64 = 1e-3;

fn refused_folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse").join(name)
}

#[track_caller]
fn assert_agrees(model: &Model, folder: &Path) {
    let graph = model.attention().unwrap_or_else(|it| panic!("{}: {it}", model.name));
    let program = graph.forward().expect("it opens");
    let point = |row: &Row| -> Vec<f32> {
        row.ids.iter().flat_map(|&id| graph.embedded.words.row(id)).copied().collect()
    };
    let rows = references(folder, "").into_iter().map(|it| it.row);
    let rows: Vec<Row> =
        rows.map(|row| Row { extras: vec![Extra::Values(point(&row).into())], ..row }).collect();
    let outs = with_lane(|lane| lane.evaluate(&program, rows.clone())).expect("probabilities");
    let mut arrays = Arrays::open(&folder.join("reference.npz"));
    let known = arrays.names().iter().filter(|it| it.starts_with("attentions_")).count();
    assert_eq!(graph.heads.len(), known, "{}", model.name);
    for (layer, &heads) in graph.heads.iter().enumerate() {
        let wanted = arrays.floats(&format!("attentions_{layer}")).expect("probabilities");
        let length = wanted.dims()[3];
        let wanted = wanted.to_f64().expect("floats");
        for (at, (out, row)) in outs.iter().zip(&rows).enumerate() {
            let tokens = row.len();
            let line = |head: usize, token: usize| {
                &wanted[((at * heads + head) * length + token) * length..][..tokens]
            };
            let of_row: Vec<f64> =
                (0..heads * tokens).flat_map(|it| line(it / tokens, it % tokens)).copied().collect();
            let gap = gap(&out.values[1 + layer], &of_row);
            assert!(gap <= TOLERANCE, "{}: attention {layer} is off by {gap:e}", model.name);
        }
    }
}

#[test]
fn probabilities_are_those_of_pytorch() {
    for (folder, model) in all() {
        assert_agrees(model, folder);
    }
}

#[test]
fn fused_attention_is_taken_apart() {
    for name in ["bert-ort-fused-full-eager14", "bert-ort-fused-full-sdpa17", "bert-ort-fused-partial"] {
        let folder = refused_folder(name);
        let model = Model::open(name, &folder, &open_settings()).expect("a model");
        let graph = model.attention().unwrap_or_else(|it| panic!("{name}: {it}"));
        assert_eq!(graph.heads.len(), model.intervention().expect("layers").widths.len() - 1, "{name}");
        let arrays = Arrays::open(&folder.join("reference.npz")).names();
        if arrays.iter().any(|it| it.starts_with("attentions_")) {
            assert_agrees(&model, &folder);
        }
    }
}

fn ask(house: &House, slug: &str, text: &str) -> Result<Value, ExplainError> {
    let request = json!({ "inputs": text, "granularity": "token", "timeout_ms": 60_000 });
    let request: ExplainRequest = serde_json::from_value(request).expect("a well-formed request");
    let arrival = Arrival { id: "attending".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find(slug).expect("a listed method");
    let answer = explain(house, method, &request, &arrival)?;
    Ok(serde_json::to_value(&answer.results[0].explanations[0]).expect("JSON"))
}

#[test]
fn a_model_without_attention_refuses_with_the_reason() {
    let house = house("cnn", &refused_folder("cnn-legacy17"));
    match ask(&house, "attention-rollout", "t155 t64 t89 t60 t153 t51") {
        Err(ExplainError::Unavailable(missing)) => {
            assert_eq!(missing.code, "attention");
            assert!(!missing.advice.contains("export the model"), "{}", missing.advice);
            assert!(missing.reason.contains("no attention"), "{}", missing.reason);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn components_that_a_model_lacks_are_refused_with_the_reason() {
    let house = house("cnn", &refused_folder("cnn-legacy17"));
    for (component, reason) in
        [("heads", "no attention"), ("neurons", "no feed-forward layers"), ("layers", "no layers")]
    {
        let body = json!({ "inputs": "t155 t64 t89", "parameters": { "components": [component] } });
        let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
        let arrival = Arrival { id: "components".into(), at: Instant::now(), cancel: Cancel::default() };
        match explain(&house, registry::find("lrp").expect("a listed method"), &request, &arrival) {
            Err(ExplainError::Misfits(misfits)) => {
                let Misfit { pointer, detail, .. } = &misfits[0];
                assert_eq!(pointer, "/parameters/components/0");
                assert!(detail.contains(reason), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_parameter_of_a_method_without_any_is_named() {
    let body = json!({ "inputs": "fine", "parameters": { "steps": 3 } });
    for slug in ["attention-rollout", "attention-relevance"] {
        let answer = Service::bundled().post(&format!("/explain/{slug}"), body.clone()).await;
        assert_eq!(answer.refusal(), "422 invalid-request\n  /parameters/steps: is not a known field");
    }
}

/// A BERT of the zoo, what each attention reads passed through an operator that changes nothing and has no rule.
fn without_rule(folder: &Path) {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public/bert-legacy17-eager");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(zoo.join(file), folder.join(file)).expect("a file of the zoo");
    }
    let mut graph = graphs::read(&zoo.join("model.onnx")).expect("a graph");
    let softmax: Vec<_> =
        graph.nodes.iter().filter(|it| it.is("Softmax")).map(|it| it.outputs[0].clone()).collect();
    for (layer, probabilities) in softmax.iter().enumerate() {
        let reads = |it: &Node| it.is("MatMul") && it.inputs[0] == *probabilities;
        let place = graph.nodes.iter().position(reads).expect("values to be weighed");
        let passed = format!("passed_{layer}");
        let values = std::mem::replace(&mut graph.nodes[place].inputs[1], passed.as_str().into());
        // y = x/(1 + αx²)^β is x, when α is as small.
        let node = Node::new("LRN", &[values], &[passed.as_str().into()]);
        graph.nodes.insert(place, node.with("size", 1).with("alpha", 1e-30_f32));
    }
    fs::write(folder.join("model.onnx"), compile::write(&graph)).expect("a file");
}

#[test]
fn probabilities_need_no_gradient_rule() {
    let folder = tempfile::tempdir().expect("a folder");
    without_rule(folder.path());
    let bare = house("bare", folder.path());
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public/bert-legacy17-eager");
    let whole = house("whole", &zoo);
    let scores = |house: &House, slug: &str| -> Vec<f64> {
        let answer =
            ask(house, slug, "t155 t64 t89 t60 t153 t51").unwrap_or_else(|it| panic!("{slug}: {it:?}"));
        let scores = answer["attributions"].as_array().expect("a list").iter();
        scores.map(|it| it["score"].as_f64().expect("a number")).collect()
    };
    for slug in ["attention", "attention-rollout"] {
        let (found, wanted) = (scores(&bare, slug), scores(&whole, slug));
        assert!(found.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{slug}: {found:?} {wanted:?}");
    }
    for slug in ["attention-relevance", "saliency", "lrp"] {
        match ask(&bare, slug, "t155 t64 t89 t60 t153 t51") {
            Err(ExplainError::Unavailable(missing)) => {
                let named = missing.operators.iter().filter(|it| it.starts_with("LRN")).count();
                assert_eq!(
                    (missing.method.as_deref(), missing.code.as_str(), named),
                    (Some(slug), "operator", 2)
                );
            }
            other => panic!("{slug}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_scores_of_attention_are_a_row_of_probabilities() {
    let body = json!({ "inputs": REVIEW, "parameters": { "layer": 2, "head": 5, "matrices": true } });
    let answer = Service::bundled().post("/explain/attention", body).await.good();
    let explanation = &answer["results"][0]["explanations"][0];
    let scores = explanation["attributions"].as_array().expect("a list").iter();
    let sum: f64 = scores.map(|it| it["score"].as_f64().expect("a number")).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    let head = &explanation["details"]["layers"][0]["heads"][0];
    assert_eq!((&head["head"], head["rows"].as_array().map(Vec::len)), (&json!(5), Some(11)));
    assert_eq!(explanation["evidence"]["read_position"], 0);
}

#[test]
fn the_matrices_of_a_whole_request_have_one_limit() {
    // 3 layers of 12 heads over 60 tokens, the two special ones among them: 129 600 numbers an input and target.
    let text = vec!["film"; 58].join(" ");
    let ask = |inputs: usize, target: &str| {
        let body = json!({
            "inputs": vec![&text; inputs], "target": target, "parameters": { "matrices": true },
            "timeout_ms": 60_000,
        });
        let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
        let arrival = Arrival { id: "matrices".into(), at: Instant::now(), cancel: Cancel::default() };
        explain(bundled(), registry::find("attention").expect("a listed method"), &request, &arrival)
    };
    let answer = ask(3, "predicted").expect("an answer");
    assert!(answer.results.iter().all(|it| it.explanations[0].details.is_some()));
    for (inputs, target) in [(4, "predicted"), (2, "all")] {
        let Err(ExplainError::Misfits(found)) = ask(inputs, target) else { panic!("{inputs} {target}") };
        assert_eq!(found[0].pointer, "/parameters/matrices");
        assert_eq!(found[0].limit.map(|it| (it.name, it.value)), Some(("matrices", 500_000)));
    }
}

#[tokio::test]
async fn a_layer_or_head_that_is_not_there_is_pointed_at() {
    let refused = async |parameters: Value| {
        let body = json!({ "inputs": REVIEW, "parameters": parameters });
        Service::bundled().post("/explain/attention", body).await.refusal()
    };
    insta::assert_snapshot!(refused(json!({ "layer": 3 })).await, @r#"
    422 invalid-input
      /parameters/layer: there is no layer 3; the model has 0 to 2
    "#);
    insta::assert_snapshot!(refused(json!({ "head": 12 })).await, @r#"
    422 invalid-input
      /parameters/head: there is no head 12; a layer has 0 to 11
    "#);
}
