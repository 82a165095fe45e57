//! This file is where folders that cannot give everything are opened: each ends with the right words, and what
//! does work keeps working.

use std::path::{Path, PathBuf};
use std::time::Instant;

use explaind::explain::{Arrival, ExplainAnswer, ExplainError, ExplainRequest, House, explain, registry};
use explaind::model::{Model, OpenError, Unavailable};
use explaind::runtime::{Cancel, Padding, Row};
use serde_json::json;

use crate::reference::{gradient_gaps, logits_gap, with_lane};
use crate::support::{house, open_settings};

const TEXT: &str = "t155 t64 t89 t60 t153 t51";

fn zoo(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse").join(name)
}

fn open(name: &str) -> Model {
    Model::open(name, &zoo(name), &open_settings()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn ask(house: &House, slug: &str) -> Result<ExplainAnswer, ExplainError> {
    let request = json!({ "inputs": TEXT, "output": "logit", "timeout_ms": 60_000 });
    let request: ExplainRequest = serde_json::from_value(request).expect("a well-formed request");
    let arrival = Arrival { id: "refusal".into(), at: Instant::now(), cancel: Cancel::default() };
    explain(house, registry::find(slug).expect("a listed method"), &request, &arrival)
}

/// What a gradient method says to a model that a black-box method explains all the same.
#[track_caller]
fn refused(name: &str) -> Unavailable {
    let house = house(name, &zoo(name));
    let answer = ask(&house, "leave-one-out").unwrap_or_else(|it| panic!("{name}: {it:?}"));
    let scores = &answer.results[0].explanations[0].attributions;
    assert!(scores.len() >= 6 && scores.iter().all(|it| it.score.is_finite()), "{name}: {scores:?}");
    match ask(&house, "integrated-gradients") {
        Err(ExplainError::Unavailable(reason)) => reason,
        other => panic!("{name}: not refused: {other:?}"),
    }
}

/// How many nodes of each operator a refusal names.
fn named<'a>(reason: &Unavailable, operators: impl IntoIterator<Item = &'a str>) -> Vec<usize> {
    let count = |it: &str| reason.operators.iter().filter(|named| named.starts_with(it)).count();
    operators.into_iter().map(count).collect()
}

#[test]
fn quantised_graphs_are_explained_without_gradients() {
    let dynamic = refused("bert-int8-dynamic");
    assert_eq!(
        (dynamic.code.as_str(), dynamic.method.as_deref()),
        ("quantised", Some("integrated-gradients"))
    );
    assert_eq!(dynamic.reason, "DequantizeLinear x3, DynamicQuantizeLinear x10, MatMulInteger x14");
    let operators = ["DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"];
    assert_eq!(named(&dynamic, operators), [3, 10, 14]);
    assert!(dynamic.advice.starts_with("put a float32 export"), "{}", dynamic.advice);
    let explicit = refused("bert-int8-qdq");
    assert_eq!(explicit.code, "quantised");
    assert!(
        named(&explicit, ["DequantizeLinear", "QuantizeLinear"]).iter().all(|&it| it > 0),
        "{explicit:?}"
    );
}

#[test]
fn a_recurrent_graph_is_explained_without_gradients() {
    let reason = refused("lstm-legacy17");
    assert_eq!((reason.code.as_str(), named(&reason, ["LSTM"])), ("recurrent", vec![1]));
    assert!(reason.advice.contains("gradient.onnx"), "{}", reason.advice);
}

/// A network that reads on into the padding: what stands beside a row must not change its answer.
#[test]
fn a_model_that_reads_padding_is_never_padded() {
    let model = open("lstm-legacy17");
    assert_eq!(model.forward.layout.padding, Padding::Never);
    assert!(model.warnings.iter().any(|it| it.contains("padding")), "{:?}", model.warnings);
    let rows = [Row::of(vec![9, 8, 7], None), Row::of(vec![9, 8, 7, 6, 5, 4, 3], None)];
    let together = with_lane(|lane| lane.evaluate(&model.forward, rows.to_vec())).expect("logits");
    let alone = with_lane(|lane| lane.evaluate(&model.forward, vec![rows[0].clone()])).expect("logits");
    assert_eq!(together[0], alone[0]);
}

#[test]
fn a_graph_that_is_no_classifier_of_tokens_is_not_opened() {
    for (name, word) in [("bert-embeds-input", "inputs_embeds"), ("bert-label-only", "logits")] {
        match Model::open(name, &zoo(name), &open_settings()) {
            Err(error @ OpenError::NotAClassifier { .. }) => {
                let said = error.to_string();
                assert!(said.contains("model.onnx") && said.contains(word), "{name}: {said}");
            }
            Err(other) => panic!("{name}: {other}"),
            Ok(_) => panic!("{name} is opened"),
        }
    }
}

#[track_caller]
fn assert_agrees(name: &str, reference: &Path, tolerance: f64) {
    let model = open(name);
    let logits = logits_gap(&model, reference, &[""]);
    let (derived, gradient) =
        gradient_gaps(&model, reference, &[""]).unwrap_or_else(|it| panic!("{name}: {it}"));
    let worst = logits.max(derived).max(gradient);
    assert!(worst <= tolerance, "{name}: off by {logits:e}, {derived:e}, {gradient:e}");
}

#[test]
fn a_network_of_convolutions_is_differentiated() {
    assert_agrees("cnn-legacy17", &zoo("cnn-legacy17"), 1e-3);
}

#[test]
fn half_precision_is_differentiated_in_single_precision() {
    // The reference has the weights before they were rounded.
    for name in ["bert-fp16", "bert-fp16-keepio"] {
        assert_agrees(name, &zoo(name), 2e-2);
    }
}

#[test]
fn fused_operators_are_taken_apart() {
    for name in ["bert-ort-fused-partial", "bert-ort-fused-full-eager14", "bert-ort-fused-full-sdpa17"] {
        assert_agrees(name, &zoo(name), 1e-3);
    }
}

#[test]
fn what_is_explained_is_before_a_final_softmax() {
    for name in ["bert-softmax-logits", "bert-softmax-probabilities"] {
        // The same weights, exported without the Softmax.
        assert_agrees(name, &zoo("bert-label-only"), 1e-3);
        let warnings = open(name).warnings;
        assert!(warnings.iter().any(|it| it.contains("Softmax")), "{name}: {warnings:?}");
    }
}

#[test]
fn what_can_be_differentiated_is_explained_with_gradients() {
    for name in ["cnn-legacy17", "bert-fp16", "bert-fp16-keepio", "bert-softmax-probabilities"] {
        let house = house(name, &zoo(name));
        let answer = ask(&house, "integrated-gradients").unwrap_or_else(|it| panic!("{name}: {it:?}"));
        let scores = &answer.results[0].explanations[0].attributions;
        assert!(scores.len() >= 6 && scores.iter().any(|it| it.score.abs() > 1e-3), "{name}: {scores:?}");
    }
}
