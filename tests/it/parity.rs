//! Reference explanations that other people's libraries computed, against ours. See `tests/parity/README.md`.

use std::time::Instant;

use explaind::{
    explain::{Arrival, ExplainRequest, explain, registry},
    runtime::Cancel,
};
use serde_json::{Value, json};

use crate::support::bundled;

fn references() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/public.json");
    let text = std::fs::read_to_string(path).expect("the references are in the project");
    serde_json::from_str(&text).expect("the references are JSON")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|it| it.as_f64().expect("a number")).collect()
}

/// One score a token, special tokens in their places; 0 for special tokens that have none.
fn ours(slug: &str, reference: &Value, parameters: &Value) -> Vec<f64> {
    let body = json!({
        "inputs": reference["text"], "parameters": parameters, "granularity": "token", "output": "logit",
        "timeout_ms": 60_000,
    });
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "parity".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find(slug).expect("a listed method");
    let answer = explain(bundled(), method, &request, &arrival).unwrap_or_else(|it| panic!("{slug}: {it:?}"));
    let explanation = &answer.results[0].explanations[0];
    assert_eq!(json!(explanation.target.index), reference["target"]);
    let mut special = explanation.attributions.iter().filter(|it| it.special).map(|it| it.score);
    let mut others = explanation.attributions.iter().filter(|it| !it.special).map(|it| it.score);
    let flags = reference["special"].as_array().expect("a list");
    flags
        .iter()
        .map(|flag| match flag.as_bool() {
            Some(true) => special.next().unwrap_or(0.0),
            _ => others.next().expect("as many tokens as in the reference"),
        })
        .collect()
}

#[track_caller]
fn agree(slug: &str, key: &str, parameters: Value, tolerance: f64) {
    let mut compared = 0;
    // Two gradients a token and step: the long sentences would take minutes.
    let longest = if key == "sig_mask" { 13 } else { usize::MAX };
    let short = |it: &&Value| it["ids"].as_array().is_some_and(|ids| ids.len() <= longest);
    for reference in references().iter().filter(|it| it[key].is_array()).filter(short) {
        let wanted = numbers(&reference[key]);
        let mut found = ours(slug, reference, &parameters);
        let largest = wanted.iter().fold(0.0f64, |most, it| most.max(it.abs()));
        // These never perturb special tokens, and the references then hold 0 or a value of their own.
        let unperturbed = key.starts_with("loo_") || key == "sig_mask";
        for (at, flag) in reference["special"].as_array().expect("a list").iter().enumerate() {
            if unperturbed && flag == &json!(true) && found[at] == 0.0 {
                found[at] = wanted[at];
            }
        }
        assert_eq!(found.len(), wanted.len(), "{slug} {key}");
        for (found, wanted) in found.iter().zip(&wanted) {
            let gap = (found - wanted).abs();
            assert!(gap <= tolerance * largest, "{slug} {key}: {found} instead of {wanted}, {gap:e}");
        }
        compared += 1;
    }
    assert!(compared >= 3, "{key} has too few references");
}

#[test]
fn leave_one_out_equals_direct_enumeration() {
    agree("leave-one-out", "loo_mask", json!({ "operation": "mask" }), 1e-3);
    agree("leave-one-out", "loo_delete", json!({ "operation": "delete" }), 1e-3);
}

#[test]
fn gradients_equal_autograd() {
    agree("saliency", "grad_l2", json!({ "reduction": "l2" }), 1e-3);
    agree("gradient-x-input", "gxi", json!({}), 1e-3);
}

#[test]
fn integrated_gradients_equal_captum() {
    for (key, baseline) in [("ig_pad", "pad"), ("ig_mask", "mask"), ("ig_zero", "zero")] {
        let parameters = json!({ "baseline": baseline, "steps": 50, "tolerance": null });
        agree("integrated-gradients", key, parameters, 1e-3);
    }
}

#[test]
fn sequential_integrated_gradients_equal_time_interpret() {
    agree("sequential-integrated-gradients", "sig_mask", json!({ "baseline": "mask", "steps": 50 }), 1e-3);
}

/// Completeness of each token's line: the identity that `exact_totals` takes as a shortcut.
#[test]
fn sequential_totals_are_leave_one_out() {
    agree("sequential-integrated-gradients", "loo_mask", json!({ "exact_totals": true }), 1e-3);
}

#[test]
fn attention_aware_relevance_equals_lxt() {
    agree("lrp", "attnlrp", json!({ "composite": "attn-lrp" }), 1e-3);
}

#[test]
fn attention_rollout_equals_direct_enumeration() {
    agree("attention-rollout", "attn_rollout", json!({}), 1e-4);
}

#[test]
fn attention_relevance_equals_chefers_rule_in_pytorch() {
    agree("attention-relevance", "gae", json!({}), 1e-4);
}

#[test]
fn served_logits_equal_pytorch() {
    for reference in references() {
        let request = json!({ "inputs": reference["text"] });
        let request: ExplainRequest = serde_json::from_value(request).expect("a well-formed request");
        let arrival = Arrival { id: "parity".into(), at: Instant::now(), cancel: Cancel::default() };
        let method = registry::find("leave-one-out").expect("a listed method");
        let answer = explain(bundled(), method, &request, &arrival).expect("an answer");
        let wanted = numbers(&reference["logits"]);
        for (found, wanted) in answer.results[0].prediction.scores.iter().zip(wanted) {
            assert!((found.logit - wanted).abs() < 1e-3, "{} instead of {wanted}", found.logit);
        }
    }
}
