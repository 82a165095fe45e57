//! Attention probabilities: against PyTorch's, out of fused exports too, and what is refused.

use std::path::Path;
use std::time::Instant;

use explaind::explain::{Arrival, ExplainError, ExplainRequest, House, explain, registry};
use explaind::model::Model;
use explaind::runtime::{Cancel, Extra, Row};
use serde_json::{Value, json};

use crate::arrays::Arrays;
use crate::models::all;
use crate::reference::{gap, references, with_lane};
use crate::service::{REVIEW, Service};
use crate::support::{house, open_settings};

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
            assert_eq!(missing.code, "path");
            assert!(missing.reason.contains("no attention"), "{}", missing.reason);
        }
        other => panic!("{other:?}"),
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
