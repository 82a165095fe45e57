//! The laws that hold for every method, looped over the registry: a new method is tested by being listed.

use std::time::Instant;

use explaind::{
    explain::{
        Arrival, ExplainAnswer, ExplainError, ExplainRequest, House, Limits, Method, explain, explain_within,
        registry::METHODS,
    },
    runtime::Cancel,
};
use serde_json::{Value, json};

use crate::support::bundled;

const TEXTS: [&str; 3] = [
    "A warm, funny and quietly moving film.",
    "The plot 🎬 isn't good — it drags, and the café scenes feel naïve.",
    "Dull.",
];

/// The texts that a method is asked about: those with few enough features for it.
fn texts(method: &dyn Method) -> Vec<&'static str> {
    let most = if method.about().slug == "exact-shap" { 40 } else { usize::MAX };
    TEXTS.into_iter().filter(|it| it.len() <= most).collect()
}

fn ask(house: &House, method: &dyn Method, body: Value) -> Result<ExplainAnswer, ExplainError> {
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "law".into(), at: Instant::now(), cancel: Cancel::default() };
    explain(house, method, &request, &arrival)
}

/// Parameters that take a method down another road than its example.
const OTHER_ROADS: &[(&str, &str)] = &[
    ("leave-one-out", r#"{"level": "embedding", "operation": "random", "draws": 3}"#),
    ("leave-one-out", r#"{"level": "embedding", "operation": "mean"}"#),
    ("leave-one-out", r#"{"level": "hidden", "layer": 1, "operation": "noise", "draws": 3}"#),
    ("leave-one-out", r#"{"level": "hidden", "layer": 3, "operation": "shuffle", "unit": [[0, 1, 2], [7]]}"#),
    (
        "leave-one-out",
        r#"{"level": "hidden", "layer": 2, "operation": "swap", "swap_with": 0, "unit": "layer"}"#,
    ),
];

/// A method with parameters of its own.
#[derive(Clone, Copy)]
struct Road {
    method: &'static dyn Method,
    parameters: &'static str,
}

impl std::ops::Deref for Road {
    type Target = dyn Method;

    fn deref(&self) -> &Self::Target {
        self.method
    }
}

/// Every method with its example, then the other roads.
fn roads() -> impl Iterator<Item = Road> {
    let examples = METHODS.iter().map(|it| Road { method: *it, parameters: it.about().example });
    let others = OTHER_ROADS.iter().map(|&(slug, parameters)| {
        let method = METHODS.iter().find(|it| it.about().slug == slug);
        Road { method: *method.unwrap_or_else(|| panic!("no method {slug}")), parameters }
    });
    examples.chain(others)
}

fn example(road: Road) -> Value {
    serde_json::from_str(road.parameters).expect("an example is JSON")
}

fn body(road: Road, inputs: Value) -> Value {
    json!({ "inputs": inputs, "parameters": example(road), "seed": 7, "timeout_ms": 60_000 })
}

fn answer(road: Road, body: Value) -> ExplainAnswer {
    let failed = |error| panic!("{} {}: {error:?}", road.about().slug, road.parameters);
    ask(bundled(), road.method, body).unwrap_or_else(failed)
}

fn scores(answer: &ExplainAnswer) -> Vec<Vec<f64>> {
    let of = |it: &explaind::explain::Explanation| it.attributions.iter().map(|it| it.score).collect();
    answer.results.iter().flat_map(|it| it.explanations.iter().map(of)).collect()
}

fn close(a: &[Vec<f64>], b: &[Vec<f64>], tolerance: f64) -> bool {
    let largest = a.iter().flatten().fold(0.0f64, |most, it| most.max(it.abs())).max(1e-3);
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= tolerance * largest)
        })
}

#[test]
fn the_same_seed_gives_the_same_answer() {
    for method in roads() {
        let ask = || scores(&answer(method, body(method, json!(texts(method.method)))));
        let (first, second) = (ask(), ask());
        assert!(close(&first, &second, 1e-4), "{}: {first:?} {second:?}", method.about().slug);
    }
}

#[test]
fn every_word_has_one_finite_score_and_its_offsets_slice_the_text() {
    for method in roads() {
        let slug = method.about().slug;
        let answer = answer(method, body(method, json!(texts(method.method))));
        assert_eq!(answer.results.len(), texts(method.method).len(), "{slug}");
        for (result, text) in answer.results.iter().zip(texts(method.method)) {
            let points: Vec<char> = text.chars().collect();
            for explanation in &result.explanations {
                let mut last = 0;
                for it in explanation.attributions.iter().filter(|it| !it.special) {
                    let slice: String = points[it.start..it.end].iter().collect();
                    assert_eq!(slice, it.text, "{slug}");
                    assert!(it.score.is_finite(), "{slug}: {it:?}");
                    assert!(it.start >= last, "{slug}: {it:?} overlaps");
                    last = it.end;
                }
                let letters = |text: &str| text.chars().filter(|it| !it.is_whitespace()).count();
                let covered: usize = explanation
                    .attributions
                    .iter()
                    .filter(|it| !it.special)
                    .map(|it| letters(&it.text))
                    .sum();
                assert_eq!(covered, letters(text), "{slug}: every visible character is in one feature");
            }
        }
    }
}

#[test]
fn the_explained_score_is_the_served_score() {
    for method in roads() {
        for result in answer(method, body(method, json!(texts(method.method)))).results {
            for explanation in result.explanations {
                let parity = explanation.evidence["parity"].as_f64().expect("parity is a number");
                let bound = 1e-4 * explanation.value.abs().max(1.0);
                assert!(parity.abs() <= bound, "{}: parity {parity}", method.about().slug);
            }
        }
    }
}

#[test]
fn all_targets_are_explained_in_order() {
    for method in roads() {
        let mut body = body(method, json!(TEXTS[0]));
        body["target"] = json!("all");
        let answer = answer(method, body);
        let labels: Vec<usize> = answer.results[0].explanations.iter().map(|it| it.target.index).collect();
        assert_eq!(labels, [0, 1], "{}", method.about().slug);
    }
}

/// Methods that draw what they evaluate.
const DRAWING: &[&str] = &[
    "anchors",
    "decision-tree",
    "gradient-shap",
    "kernel-shap",
    "lime",
    "permutation-shap",
    "smooth-grad",
    "trans-shap",
];

#[test]
fn another_seed_changes_what_is_drawn_and_nothing_else() {
    for method in roads() {
        let slug = method.about().slug;
        let of = |seed: u64| {
            let mut body = body(method, json!(texts(method.method)));
            body["seed"] = json!(seed);
            let answer = answer(method, body);
            assert_eq!((answer.seed, answer.generator), (seed, "chacha8"), "{slug}");
            scores(&answer)
        };
        let draws = DRAWING.contains(&slug) || example(method).get("draws").is_some();
        let (one, other) = (of(7), of(8));
        assert_eq!(!close(&one, &other, 1e-3), draws, "{slug} {}: {one:?} {other:?}", method.parameters);
    }
}

/// Methods that may stop early and are told no tolerance in their examples.
const WITHOUT_TOLERANCE: &[&str] =
    &["kernel-shap", "lime", "partition-shap", "permutation-shap", "trans-shap"];

#[test]
fn the_price_is_what_is_spent() {
    for method in roads() {
        let about = method.about();
        let usage = answer(method, body(method, json!(texts(method.method)))).usage;
        let spent = usage.forward_passes + usage.gradient_passes + usage.reused_passes;
        if about.stops_early && !WITHOUT_TOLERANCE.contains(&about.slug) {
            assert!(spent <= usage.priced_passes, "{}: {usage:?}", about.slug);
        } else {
            assert_eq!(spent, usage.priced_passes, "{}: {usage:?}", about.slug);
        }
    }
}

#[test]
fn a_price_over_the_limit_is_refused_before_anything_runs() {
    for method in roads() {
        let slug = method.about().slug;
        let body = body(method, json!(texts(method.method)));
        let priced = answer(method, body.clone()).usage.priced_passes;
        let limits = Limits { max_passes: priced - 1, ..Limits::default() };
        let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
        let arrival = Arrival { id: "law".into(), at: Instant::now(), cancel: Cancel::default() };
        match explain_within(bundled(), &limits, method.method, &request, &arrival) {
            Err(ExplainError::Misfits(misfits)) => {
                assert_eq!(misfits[0].limit.map(|it| it.name), Some("max_passes"), "{slug}");
            }
            other => panic!("{slug}: not refused: {other:?}"),
        }
    }
}

#[test]
fn batch_mates_change_nothing() {
    for method in roads() {
        let together = scores(&answer(method, body(method, json!(texts(method.method)))));
        for (text, together) in texts(method.method).iter().zip(together) {
            let alone = scores(&answer(method, body(method, json!(text))));
            let slug = method.about().slug;
            assert!(close(&alone, std::slice::from_ref(&together), 1e-3), "{slug}: {alone:?} {together:?}");
        }
    }
}

#[test]
fn every_parameter_is_in_the_schema_with_a_sentence() {
    for method in roads() {
        let slug = method.about().slug;
        let schemas = method.schemas();
        let schema = serde_json::to_value(&schemas[0].1).unwrap();
        let none = serde_json::Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&none);
        assert_eq!(schema["additionalProperties"], json!(false), "{slug} takes unknown parameters");
        let plan = method.read(example(method).as_object().unwrap()).unwrap();
        for name in plan.resolved().as_object().unwrap().keys() {
            let property =
                properties.get(name).unwrap_or_else(|| panic!("{slug}: {name} is not in the schema"));
            assert!(property["description"].is_string(), "{slug}: {name} has no sentence: {property}");
        }
    }
}

#[test]
fn an_unknown_parameter_is_refused() {
    for method in METHODS {
        let raw = json!({ "no_such_parameter": 1 });
        assert!(method.read(raw.as_object().unwrap()).is_err(), "{}", method.about().slug);
    }
}
