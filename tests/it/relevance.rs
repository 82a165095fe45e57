//! Relevance graphs of every composite on every model of the zoo: they compute the model's logits, and their books
//! close.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use explaind::compile::composite::Composite;
use explaind::compile::probe::Hints;
use explaind::compile::relevance::audit::{Audit, audit};
use explaind::compile::{Compiled, no_external, read, write};
use explaind::explain::{Arrival, ExplainRequest, Explanation, explain, registry};
use explaind::runtime::Cancel;
use serde_json::{Value, json};

use crate::evaluate::evaluate;
use crate::support::bundled;

fn folders() -> Vec<PathBuf> {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public");
    let mut paths: Vec<PathBuf> = fs::read_dir(zoo).unwrap().map(|it| it.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_composite_closes_its_books_on_every_architecture() {
    let mut failures = Vec::new();
    for folder in folders() {
        let graph = read(fs::read(folder.join("model.onnx")).unwrap().into(), &no_external).unwrap();
        let hints = Hints { pad: Some(1), eos: None };
        let compiled = Compiled::structure(graph, &hints, &evaluate).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let mut audited = HashSet::new();
        for composite in Composite::ALL {
            let outcome = compiled.relevance(composite).and_then(|it| {
                // Where no weights read the embeddings themselves, the two forms of deep Taylor are one graph.
                let known = !audited.insert(write(&it.graph));
                if known { Ok(Audit::default()) } else { audit(&compiled, &it.graph, &hints, &evaluate) }
            });
            if let Err(refusal) = outcome {
                failures.push(format!("{name} {}: {refusal} {:?}", composite.slug(), refusal.gaps));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The explanations of every review in `tests/fixtures/sentences.txt`.
fn explained(method: &str, parameters: &Value, count: usize) -> Vec<Explanation> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sentences.txt");
    let text = fs::read_to_string(path).unwrap();
    let sentences: Vec<&str> = text.lines().filter(|it| !it.is_empty()).take(count).collect();
    assert_eq!(sentences.len(), count);
    let all: Vec<Explanation> = sentences
        .chunks(8)
        .flat_map(|inputs| {
            let body = json!({ "inputs": inputs, "parameters": parameters, "timeout_ms": 60_000 });
            let request: ExplainRequest = serde_json::from_value(body).unwrap();
            let arrival = Arrival { id: "books".into(), at: Instant::now(), cancel: Cancel::default() };
            let method = registry::find(method).unwrap();
            explain(bundled(), method, &request, &arrival).unwrap().results
        })
        .flat_map(|it| it.explanations)
        .collect();
    all
}

#[test]
fn books_close_on_every_review_and_at_every_layer() {
    let composites = ["lrp-0", "epsilon", "gamma", "alpha-beta", "z-plus", "cp-lrp", "attn-lrp"];
    let lrp = composites.map(|it| ("lrp", json!({ "composite": it })));
    let entries = ["w-squared", "z-b"].map(|it| ("deep-taylor", json!({ "entry": it })));
    for (method, parameters) in lrp.iter().chain(&entries) {
        for it in explained(method, parameters, 24) {
            let bound = 1e-3 * it.value.abs();
            let error = it.evidence["conservation_error"].as_f64().unwrap();
            assert!(error.abs() <= bound, "{method} {parameters}: {error:e} of {}", it.value);
            let layers = it.evidence["conservation_by_layer"].as_array().unwrap();
            assert_eq!(layers.len(), 4, "three layers lie between four hidden states");
            for layer in layers {
                let error = layer["error"].as_f64().unwrap();
                assert!(error.abs() <= bound, "{method} {parameters}: {layer} of {}", it.value);
            }
        }
    }
}

#[test]
fn components_sum_to_what_flows_through_them() {
    let parameters = json!({ "components": ["heads", "neurons", "layers"], "k": 4 });
    for it in explained("lrp", &parameters, 4) {
        let details = it.details.unwrap();
        let layers = details["layers"].as_array().unwrap();
        let books = it.evidence["conservation_by_layer"].as_array().unwrap();
        for (tokens, books) in layers.iter().zip(books) {
            let sum: f64 = tokens.as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).sum();
            assert!((sum - books["relevance"].as_f64().unwrap()).abs() < 1e-4);
        }
        let heads = details["heads"].as_array().unwrap();
        assert_eq!((heads.len(), heads[0].as_array().unwrap().len()), (3, 12));
        for neurons in details["neurons"].as_array().unwrap() {
            let sizes: Vec<f64> = neurons["top"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| it["score"].as_f64().unwrap().abs())
                .collect();
            assert_eq!(sizes.len(), 4);
            assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
        }
        assert_eq!(details["tokens"].as_array().unwrap().len(), layers[0].as_array().unwrap().len());
    }
}

#[test]
fn only_borrowed_rules_are_called_substitutions() {
    let of = |method: &str, parameters: Value| {
        let it = explained(method, &parameters, 1).remove(0);
        it.evidence["substitutions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it.as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(of("lrp", json!({ "composite": "attn-lrp" })), Vec::<String>::new());
    let deep: Vec<String> = of("deep-taylor", json!({}));
    for operator in ["Softmax", "LayerNormalization", "Gelu", "MatMul"] {
        assert!(deep.iter().any(|it| it.contains(operator)), "{operator} is not in {deep:?}");
    }
}
