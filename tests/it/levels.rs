//! Leave-one-out on embeddings and hidden states: against passes without its graphs, and what it refuses.

use std::fs;
use std::path::Path;
use std::time::Instant;

use explaind::compile::graph::{Node, Tensor};
use explaind::compile::probe::Hints;
use explaind::compile::{Compiled, no_external, read};
use explaind::explain::{Arrival, ExplainError, ExplainRequest, House, explain, registry};
use explaind::runtime::Cancel;
use serde_json::{Value, json};

use crate::evaluate::{Program, evaluate, named};
use crate::service::{REVIEW, Service};
use crate::support::{bundled, house};

fn ask(house: &House, text: &str, parameters: Value) -> Result<Value, ExplainError> {
    let body = json!({ "inputs": text, "parameters": parameters, "target": 1, "timeout_ms": 60_000 });
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "levels".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find("leave-one-out").expect("a listed method");
    let answer = explain(house, method, &request, &arrival)?;
    Ok(serde_json::to_value(&answer.results[0].explanations[0]).expect("JSON"))
}

fn explained(parameters: Value) -> Value {
    ask(bundled(), REVIEW, parameters).expect("an answer")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

fn scores(explanation: &Value) -> Vec<f64> {
    explanation["attributions"].as_array().expect("a list").iter().map(|it| number(&it["score"])).collect()
}

/// The bundled model's second logit of the review, its hidden state `layer` multiplied by `mask` in the model's own
/// graph: no derived graph, no session of the service, no optimisation.
fn logit_with(layer: usize, mask: &Tensor) -> f64 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2/model.onnx");
    let graph = read(fs::read(path).expect("a file").into(), &no_external).expect("a graph");
    let compiled =
        Compiled::open(graph, &Hints { pad: Some(0), ..Hints::default() }, &evaluate).expect("a structure");
    let state = &compiled.anatomy.hidden_states[layer];
    let mut graph = compiled.graph.clone();
    let place = graph.nodes.iter().position(|it| it.outputs.contains(state)).expect("a maker");
    for node in &mut graph.nodes {
        node.outputs.iter_mut().filter(|it| *it == state).for_each(|it| *it = "before".into());
    }
    let node = Node::new("Mul", &["before".into(), "edit".into()], std::slice::from_ref(state));
    graph.nodes.insert(place + 1, node);
    graph.initializers.insert("edit".into(), mask.clone());
    let model = bundled().models.find(None).expect("the bundled model");
    let caps = explaind::model::text::Caps { characters: 1000, run: 1000 };
    let row = model.tokenizer.encode(REVIEW, None, false, caps).expect("tokens").row();
    let ids: Vec<i64> = row.ids.iter().map(|&it| i64::from(it)).collect();
    let dims = [1, ids.len()];
    let batch = vec![
        named("input_ids", Tensor::from_i64(&dims, &ids)),
        named("attention_mask", Tensor::from_i64(&dims, &vec![1; ids.len()])),
        named("token_type_ids", Tensor::from_i64(&dims, &vec![0; ids.len()])),
    ];
    let place = graph.outputs.iter().position(|it| &*it.value == "logits").expect("logits");
    let outs = Program::open(&graph).expect("a session").run(&batch).expect("a run");
    outs[place].as_ref().and_then(Tensor::to_f64).expect("floats")[1]
}

#[test]
fn zeroing_every_unit_equals_a_pass_with_the_state_zeroed() {
    for layer in 0..4 {
        let all: Vec<usize> = (0..384).collect();
        let parameters = json!({ "level": "hidden", "layer": layer, "unit": [all, [17]], "top": 2 });
        let found = explained(parameters);
        let (value, details) = (number(&found["value"]), &found["details"]);
        let zeroed = value - logit_with(layer, &Tensor::from_f32(&[1], &[0.0]));
        assert!(zeroed.abs() > 0.1, "layer {layer} matters");
        let units = details["units"].as_array().expect("a list");
        let of = |units_wanted: usize| {
            let entry =
                units.iter().find(|it| it["units"].as_array().is_some_and(|it| it.len() == units_wanted));
            number(&entry.expect("told")["score"])
        };
        assert!((number(&details["whole"]["score"]) - zeroed).abs() < 1e-3, "layer {layer}: {details}");
        assert!((of(384) - zeroed).abs() < 1e-3, "layer {layer}: {details}");
        let mask: Vec<f32> = (0..384).map(|it| if it == 17 { 0.0 } else { 1.0 }).collect();
        let one = value - logit_with(layer, &Tensor::from_f32(&[384], &mask));
        assert!((of(1) - one).abs() < 1e-4, "layer {layer}: {details} {one}");
    }
}

#[test]
fn every_unit_is_scored_and_the_largest_are_told() {
    let found = explained(json!({ "level": "hidden", "layer": 2, "unit": "unit", "top": 384 }));
    let units = found["details"]["units"].as_array().expect("a list");
    let scores: Vec<f64> = units.iter().map(|it| number(&it["score"])).collect();
    assert_eq!(scores.len(), 384);
    assert!(scores.is_sorted_by(|a, b| a.abs() >= b.abs()));
    assert!((scores.iter().sum::<f64>() - number(&found["details"]["units_sum"])).abs() < 1e-9);
    let few = explained(json!({ "level": "hidden", "layer": 2, "unit": "unit" }));
    assert_eq!(few["details"]["units"].as_array().map(Vec::len), Some(10));
    assert_eq!(few["details"]["units"][0]["units"], units[0]["units"]);
}

#[test]
fn edits_that_edit_nothing_score_nothing() {
    let nothing = [
        json!({ "level": "embedding", "operation": "noise", "noise": 0.0 }),
        json!({ "level": "hidden", "layer": 1, "operation": "noise", "noise": 0.0, "unit": "layer" }),
        json!({ "level": "hidden", "layer": 2, "operation": "swap", "swap_with": 2, "unit": [[0], [1, 5]] }),
    ];
    for parameters in nothing {
        let found = explained(parameters.clone());
        assert!(scores(&found).iter().all(|it| it.abs() < 1e-4), "{parameters}: {found}");
        if found["details"].is_object() {
            assert!(number(&found["details"]["whole"]["score"]).abs() < 1e-4, "{parameters}: {found}");
        }
    }
}

#[test]
fn a_zero_embedding_is_the_zero_baseline_of_sequential_integrated_gradients() {
    // Completeness of each token's line: with the same replacement both are the same number.
    let found = scores(&explained(json!({ "level": "embedding", "operation": "zero" })));
    let body = json!({
        "inputs": REVIEW, "parameters": { "baseline": "zero", "exact_totals": true }, "target": 1,
        "granularity": "token", "timeout_ms": 60_000,
    });
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "levels".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find("sequential-integrated-gradients").expect("a listed method");
    let answer = explain(bundled(), method, &request, &arrival).expect("an answer");
    let theirs = answer.results[0].explanations[0].attributions.iter();
    let theirs: Vec<f64> = theirs.filter(|it| !it.special).map(|it| it.score).collect();
    assert_eq!(found.len(), theirs.len());
    assert!(found.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-4), "{found:?} {theirs:?}");
}

#[test]
fn a_whole_layer_has_no_units_and_their_sum_is_zero() {
    let found = explained(json!({ "level": "hidden", "layer": 1, "unit": "layer" }));
    assert_eq!(found["details"]["units_sum"].to_string(), "0.0");
}

#[test]
fn random_edits_tell_their_standard_errors() {
    let found = explained(json!({ "level": "embedding", "operation": "random", "draws": 5 }));
    for it in found["attributions"].as_array().expect("a list") {
        assert!(it["standard_error"].as_f64().is_some_and(|it| it > 0.0), "{it}");
    }
    let certain = explained(json!({ "level": "embedding", "operation": "mean" }));
    assert!(certain["attributions"][0]["standard_error"].is_null());
}

#[tokio::test]
async fn what_does_not_fit_the_model_is_pointed_at() {
    let refused = async |parameters: Value| {
        let body = json!({ "inputs": REVIEW, "parameters": parameters });
        Service::bundled().post("/explain/leave-one-out", body).await.refusal()
    };
    insta::assert_snapshot!(refused(json!({ "level": "hidden", "layer": 9 })).await, @r#"
    422 invalid-input
      /parameters/layer: there is no hidden state 9; the model has 0 to 3
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "hidden" })).await, @r#"
    422 invalid-input
      /parameters/layer: is required by `level: "hidden"`
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "hidden", "layer": 1, "unit": [[3], [1, 384]] })).await, @r#"
    422 invalid-input
      /parameters/unit/1/1: there is no unit 384; hidden state 1 has 0 to 383
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "hidden", "layer": 1, "unit": "head" })).await, @r#"
    422 invalid-request
      /parameters/unit: is not one of ["token","unit","layer"] and is not of type array
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "hidden", "layer": 1, "operation": "swap" })).await, @r#"
    422 invalid-input
      /parameters/swap_with: is required by `operation: "swap"`
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "embedding", "operation": "shuffle" })).await, @r#"
    422 invalid-input
      /parameters/operation: goes with `level: "hidden"`; embeddings take zero, mean, random or noise
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "hidden", "layer": 1, "operation": "mask" })).await, @r#"
    422 invalid-input
      /parameters/operation: goes with `level: "token"`; vectors take zero, mean, random, noise, shuffle or swap
    "#);
    insta::assert_snapshot!(refused(json!({ "layer": 1, "top": 3 })).await, @r#"
    422 invalid-input
      /parameters/layer: goes with `level: "hidden"`
      /parameters/top: goes with `level: "hidden"`
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "embedding", "noise": 0.5 })).await, @r#"
    422 invalid-input
      /parameters/noise: goes with `operation: "noise"`
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "hidden", "layer": 1, "draws": 5, "top": 3 })).await, @r#"
    422 invalid-input
      /parameters/top: goes with a `unit` other than `token`
      /parameters/draws: goes with the operations random, noise and shuffle
    "#);
    insta::assert_snapshot!(refused(json!({ "operation": "noise", "noise": 0.1 })).await, @r#"
    422 invalid-input
      /parameters/operation: goes with `level: "embedding"` or `level: "hidden"`
    "#);
    insta::assert_snapshot!(refused(json!({ "unit": "unit" })).await, @r#"
    422 invalid-input
      /parameters/unit: goes with `level: "hidden"`
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "hidden", "layer": 1, "unit": [[5, 5, 7]] })).await, @r#"
    422 invalid-input
      /parameters/unit/0/1: the group holds unit 5 twice
    "#);
    let infinite =
        format!(r#"{{"inputs": "{REVIEW}", "parameters": {{"level": "embedding", "noise": 1e999}}}}"#);
    let answer = Service::bundled().post_bytes("/explain/leave-one-out", infinite).await;
    insta::assert_snapshot!(answer.refusal(), @r#"
    400 malformed-json
    "#);
    insta::assert_snapshot!(refused(json!({ "level": "embedding", "operation": "noise", "noise": -1.0 })).await, @r#"
    422 invalid-request
      /parameters/noise: value is less than the minimum of 0
    "#);
}

#[test]
fn a_model_without_layers_edits_embeddings_and_refuses_hidden_states_with_the_reason() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse/cnn-legacy17");
    let house = house("cnn", &folder);
    let text = "t155 t64 t89 t60 t153 t51";
    assert!(ask(&house, text, json!({ "level": "embedding" })).is_ok());
    match ask(&house, text, json!({ "level": "hidden", "layer": 0 })) {
        Err(ExplainError::Unavailable(missing)) => assert_eq!(missing.code, "path", "{missing}"),
        other => panic!("{other:?}"),
    }
}
