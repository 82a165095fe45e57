//! This file is where attributions are held to the laws of the gradient family: they belong to the function, not
//! to the graph that computes it, and integrated gradients are complete.

use std::path::Path;
use std::time::Instant;

use explaind::compile::graph::{Graph, Node, Tensor, Value};
use explaind::compile::{no_external, read, write};
use explaind::explain::{Arrival, ExplainAnswer, ExplainError, ExplainRequest, House, explain, registry};
use explaind::runtime::Cancel;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value as Json, json};

use crate::support::{bundled, house};

fn zoo(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/public").join(name)
}

fn ask(house: &House, slug: &str, texts: &[String], parameters: &Json) -> ExplainAnswer {
    let body = json!({
        "inputs": texts, "parameters": parameters, "granularity": "token", "output": "logit", "target": 1,
        "timeout_ms": 60_000,
    });
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "law".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find(slug).expect("a listed method");
    explain(house, method, &request, &arrival).unwrap_or_else(|error| panic!("{slug}: {error:?}"))
}

fn scores(answer: &ExplainAnswer) -> Vec<f64> {
    let all = answer.results.iter().flat_map(|it| &it.explanations).flat_map(|it| &it.attributions);
    all.map(|it| it.score).collect()
}

/// The gradient family's attributions of two texts.
fn explained(house: &House) -> Vec<(&'static str, Vec<f64>)> {
    let texts = ["t155 t64 t89 t60 t153 t51".to_owned(), "t52 t64 t199".to_owned()];
    let steps = json!({ "steps": 20, "tolerance": null });
    let asked = [("saliency", json!({})), ("gradient-x-input", json!({})), ("integrated-gradients", steps)];
    asked.map(|(slug, parameters)| (slug, scores(&ask(house, slug, &texts, &parameters)))).into()
}

/// Scores below this are rounding: DeBERTa normalises its embeddings, so that gradient × input is zero there.
const ROUNDING: f64 = 1e-2;

#[track_caller]
fn assert_same(one: &House, other: &House, what: &str) {
    for ((slug, one), (_, other)) in explained(one).into_iter().zip(explained(other)) {
        let largest = one.iter().fold(0.0f64, |most, it| most.max(it.abs()));
        assert_eq!(one.len(), other.len(), "{what}, {slug}");
        assert!(largest > ROUNDING || slug == "gradient-x-input", "{what}, {slug}: {one:?}");
        for (a, b) in one.iter().zip(&other) {
            assert!((a - b).abs() <= 1e-3 * largest.max(ROUNDING), "{what}, {slug}: {a} and {b}");
        }
    }
}

/// Implementation invariance (Sundararajan et al. 2017): exports of one architecture hold the same weights.
#[test]
fn exports_of_the_same_weights_are_explained_alike() {
    let groups: [&[&str]; 5] = [
        &["bert-legacy17", "bert-dynamo18", "bert-dynamo20", "bert-legacy14", "bert-optimum18"],
        &["llama-legacy17", "llama-dynamo18", "llama-legacy14-eager"],
        &["deberta-v2-legacy17", "deberta-v2-dynamo18"],
        &["albert-legacy17", "albert-optimum18"],
        &["gpt2-legacy17", "gpt2-dynamo18"],
    ];
    for group in groups {
        let first = house(group[0], &zoo(group[0]));
        for name in &group[1..] {
            assert_same(&first, &house(name, &zoo(name)), name);
        }
    }
}

/// Relevance belongs to the model, not to its spelling: an RMSNorm with a cast in it, a GELU whose constants are rounded
/// to half precision, a bias that an optimiser fused into the activation.
#[test]
fn relevance_does_not_depend_on_the_exporter_s_spelling() {
    let refuse = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse").join(name);
    let texts = ["t155 t64 t89 t60 t153 t51".to_owned()];
    let groups = [
        ("llama-dynamo18", vec![(zoo("llama-legacy17"), 1e-3), (zoo("llama-legacy14-eager"), 1e-3)]),
        (
            "bert-legacy17",
            vec![
                (zoo("bert-dynamo18"), 1e-3),
                (refuse("bert-fp16"), 0.03),
                (refuse("bert-ort-fused-full-sdpa17"), 1e-3),
                (refuse("bert-ort-fused-partial"), 1e-3),
            ],
        ),
    ];
    for (first, others) in groups {
        let first = house(first, &zoo(first));
        for (folder, bound) in others {
            let other = house("other", &folder);
            for composite in ["attn-lrp", "cp-lrp", "gamma", "alpha-beta", "z-plus"] {
                let of = |house| scores(&ask(house, "lrp", &texts, &json!({ "composite": composite })));
                let (one, other) = (of(&first), of(&other));
                let largest = one.iter().fold(0.0f64, |most, it| most.max(it.abs()));
                for (a, b) in one.iter().zip(&other) {
                    assert!(
                        (a - b).abs() <= bound * largest,
                        "{}, {composite}: {a} and {b}",
                        folder.display()
                    );
                }
            }
        }
    }
}

/// A copy of the folder whose graph is changed.
fn changed(name: &str, change: impl FnOnce(&mut Graph)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(zoo(name).join(file), folder.path().join(file)).expect("a file");
    }
    let bytes = std::fs::read(zoo(name).join("model.onnx")).expect("a model");
    let mut graph = read(bytes.into(), &no_external).expect("an ONNX model");
    change(&mut graph);
    std::fs::write(folder.path().join("model.onnx"), write(&graph)).expect("a file");
    folder
}

/// All logits moved by the same number: no gradient moves.
#[test]
fn a_constant_added_to_the_logits_moves_no_attribution() {
    let folder = changed("bert-legacy17", |graph| {
        let inner: Value = "before the shift".into();
        let node = graph.nodes.iter_mut().find(|it| it.outputs[0] == "logits".into()).expect("logits");
        node.outputs[0] = inner.clone();
        graph.initializers.insert("shift".into(), Tensor::from_f32(&[1], &[3.0]));
        graph.nodes.push(Node::new("Add", &[inner, "shift".into()], &["logits".into()]));
    });
    let (plain, shifted) = (house("bert", &zoo("bert-legacy17")), house("bert", folder.path()));
    assert_same(&plain, &shifted, "shifted logits");
}

/// The embedding of a token that the input does not hold is ignored by the model, and so by its explanations.
#[test]
fn an_embedding_that_is_not_looked_up_moves_no_attribution() {
    let folder = changed("bert-legacy17", |graph| {
        let (_, table) =
            graph.initializers.iter_mut().find(|it| it.1.dims() == [200, 32]).expect("the word embedding");
        let mut values = table.to_f32().expect("floats");
        // Token 42 is in neither text.
        values[42 * 32..43 * 32].iter_mut().for_each(|it| *it += 5.0);
        *table = Tensor::from_f32(&[200, 32], &values);
    });
    let (plain, shifted) = (house("bert", &zoo("bert-legacy17")), house("bert", folder.path()));
    assert_same(&plain, &shifted, "another token's embedding");
}

/// Completeness: the attributions and the reported delta make up the difference to the baseline's score.
#[test]
fn integrated_gradients_are_complete_up_to_the_delta_that_they_report() {
    let words =
        prop::sample::select(vec!["good", "dull", "not", "a", "film", "moving", "the", "plot", "never"]);
    let sentence = prop::collection::vec(words, 2..9).prop_map(|it| it.join(" "));
    let config = ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() };
    let law = |(text, steps): (String, usize)| {
        let parameters = json!({ "steps": steps, "tolerance": null });
        let answer = ask(bundled(), "integrated-gradients", std::slice::from_ref(&text), &parameters);
        let explanation = &answer.results[0].explanations[0];
        let total: f64 = explanation.attributions.iter().map(|it| it.score).sum();
        let base = explanation.base_value.expect("a baseline's score");
        let delta = explanation.evidence["completeness_delta"].as_f64().expect("a delta");
        let gap = total - (explanation.value - base);
        let scale = explanation.value.abs().max(base.abs()).max(1.0);
        prop_assert!((gap.abs() - delta.abs()).abs() <= 1e-3 * scale, "{text}: {gap} and {delta}");
        prop_assert!(steps < 40 || gap.abs() <= 0.05 * scale, "{text}: {gap}");
        Ok(())
    };
    TestRunner::new(config).run(&(sentence, 5usize..60), law).expect("the law holds");
}

const REVIEW: &str =
    "The acting is fine and the songs are good, yet the story never finds a reason to be told.";

/// The graded rule reaches with 65 points what Gauss-Legendre reaches with many, token by token.
#[test]
fn graded_integrated_gradients_are_those_of_many_points() {
    for baseline in ["pad", "mask", "zero"] {
        let asked = |rule: &str, steps: usize| {
            let parameters = json!({ "baseline": baseline, "rule": rule, "steps": steps, "tolerance": null });
            scores(&ask(bundled(), "integrated-gradients", &[REVIEW.to_owned()], &parameters))
        };
        let (found, wanted) = (asked("graded", 65), asked("gauss-legendre", 256));
        let largest = wanted.iter().fold(0.0f64, |most, it| most.max(it.abs()));
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!((found - wanted).abs() <= 1e-4 * largest, "{baseline}: {found} instead of {wanted}");
        }
    }
}

/// A rule that nests pays for a point once, however many rounds there are, and a run that uses all of its rounds costs
/// its price.
#[test]
fn what_integrated_gradients_refine_is_evaluated_once() {
    for (rule, points) in [
        (json!({}), 4 + 8 + 16),
        (json!({ "rule": "graded" }), 19),
        (json!({ "rule": "trapezoid" }), 25),
        (json!({ "rule": "left" }), 16),
        (json!({ "rule": "right" }), 16),
        (json!({ "rule": "midpoint" }), 4 + 8 + 16),
        (json!({ "rule": "gauss-legendre" }), 4 + 8 + 16),
    ] {
        let mut parameters = json!({ "steps": 4, "max_steps": 28, "tolerance": 0.0 });
        parameters.as_object_mut().expect("an object").extend(rule.as_object().expect("an object").clone());
        let answer = ask(bundled(), "integrated-gradients", &[REVIEW.to_owned()], &parameters);
        let usage = &answer.usage;
        assert_eq!(usage.gradient_passes, points, "{rule}");
        let spent = usage.forward_passes + usage.gradient_passes + usage.reused_passes;
        assert_eq!(spent, usage.priced_passes, "{rule}");
    }
}

/// What a run keeps of its earlier rounds leaves the scores those of its last round alone.
#[test]
fn refined_integrated_gradients_are_those_of_the_last_round() {
    for rule in ["graded", "trapezoid", "left", "right", "gauss-legendre"] {
        let asked = |parameters: Json| {
            let answer = ask(bundled(), "integrated-gradients", &[REVIEW.to_owned()], &parameters);
            (scores(&answer), answer.results[0].explanations[0].evidence["steps"].as_u64().expect("a number"))
        };
        let (refined, steps) = asked(json!({ "rule": rule, "steps": 3, "max_steps": 20, "tolerance": 0.0 }));
        let (alone, _) = asked(json!({ "rule": rule, "steps": steps, "tolerance": null }));
        for (refined, alone) in refined.iter().zip(&alone) {
            assert!((refined - alone).abs() <= 1e-4, "{rule}, {steps} points: {refined} and {alone}");
        }
    }
}

#[test]
fn a_kind_of_baseline_counts_once_and_the_list_has_a_limit() {
    let text = ["A warm film.".to_owned()];
    let asked = |baselines: &[&str]| json!({ "baselines": baselines, "samples": 6, "draws": 2 });
    let once = ask(bundled(), "gradient-shap", &text, &asked(&["random", "zero"]));
    let twice = ask(bundled(), "gradient-shap", &text, &asked(&["random", "zero", "random", "zero"]));
    assert_eq!(once.usage.priced_passes, twice.usage.priced_passes);
    for (once, twice) in scores(&once).into_iter().zip(scores(&twice)) {
        assert!((once - twice).abs() <= 1e-6 * once.abs().max(1.0), "{once} and {twice}");
    }
    let body = json!({ "inputs": text, "parameters": asked(&["random"; 7]) });
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "law".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find("gradient-shap").expect("a listed method");
    let Err(ExplainError::Misfits(found)) = explain(bundled(), method, &request, &arrival) else {
        panic!("not refused");
    };
    assert_eq!(found[0].pointer, "/parameters/baselines");
    assert_eq!(found[0].limit.map(|it| (it.name, it.value)), Some(("baselines", 6)));
}
