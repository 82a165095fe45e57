//! The surrogate family on the bundled model: against stored references, against itself, and on bad input.

use std::{path::Path, time::Instant};

use explaind::{
    explain::{
        Arrival, ExplainAnswer, ExplainError, ExplainRequest, Explanation, House, Limits, Misfit,
        explain_within, registry,
    },
    model::{Entry, Model, OpenSettings, Shelf},
    runtime::{Cancel, Scheduler, SchedulerSettings},
};
use serde_json::{Value, json};

use crate::support::{bundled, open_settings};

const TEXT: &str = "A warm, funny and quietly moving film.";
const TWELVE: &str = "The plot isn't good, it drags and the scenes feel stale";
const LONG: &str = "The director piles one cliché on another until the story, such as it was, simply suffocates \
                    under them, and nobody in the theatre seemed to mind very much that evening.";

/// Those that draw, and those that need not.
const FAMILY: [&str; 8] = [
    "lime",
    "kernel-shap",
    "permutation-shap",
    "exact-shap",
    "partition-shap",
    "trans-shap",
    "decision-tree",
    "anchors",
];

fn ask(slug: &str, body: Value) -> Result<ExplainAnswer, ExplainError> {
    ask_of(bundled(), slug, body)
}

fn ask_of(house: &House, slug: &str, body: Value) -> Result<ExplainAnswer, ExplainError> {
    ask_within(house, &Limits { max_passes: 1_000_000, ..Limits::default() }, slug, body)
}

fn ask_within(
    house: &House,
    limits: &Limits,
    slug: &str,
    body: Value,
) -> Result<ExplainAnswer, ExplainError> {
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "surrogate".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find(slug).expect("a listed method");
    explain_within(house, limits, method, &request, &arrival)
}

#[track_caller]
fn explanation(slug: &str, body: Value) -> Explanation {
    let mut answer = ask(slug, body).unwrap_or_else(|error| panic!("{slug}: {error:?}"));
    answer.results.remove(0).explanations.remove(0)
}

fn scores(explanation: &Explanation) -> Vec<f64> {
    explanation.attributions.iter().map(|it| it.score).collect()
}

#[track_caller]
fn misfit(slug: &str, body: Value) -> Misfit {
    refused(ask(slug, body))
}

#[track_caller]
fn refused(answer: Result<ExplainAnswer, ExplainError>) -> Misfit {
    match answer {
        Err(ExplainError::Misfits(mut misfits)) => misfits.remove(0),
        other => panic!("not refused: {other:?}"),
    }
}

fn of(text: &str, parameters: Value) -> Value {
    json!({ "inputs": text, "parameters": parameters, "timeout_ms": 60_000 })
}

#[test]
fn exact_values_equal_the_stored_enumeration() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/public.json");
    let references: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut compared = 0;
    for reference in references.iter().filter(|it| it["shapley_tokens"].is_array()) {
        let wanted: Vec<f64> =
            reference["shapley_tokens"].as_array().unwrap().iter().map(|it| it.as_f64().unwrap()).collect();
        let largest = wanted.iter().fold(0.0f64, |most, it| most.max(it.abs()));
        let mut body = of(reference["text"].as_str().unwrap(), json!({ "operation": "mask" }));
        body["granularity"] = json!("token");
        // Both by all subsets, and by the regression over all pairs.
        let slugs = if compared == 0 { &["exact-shap", "kernel-shap"][..] } else { &["exact-shap"] };
        for &slug in slugs {
            let mut body = body.clone();
            if slug == "kernel-shap" {
                body["parameters"]["samples"] = json!(4096);
            }
            let found = explanation(slug, body);
            assert_eq!(found.evidence["exact"], json!(true));
            for (found, wanted) in scores(&found).iter().zip(&wanted) {
                assert!((found - wanted).abs() <= 1e-3 * largest, "{slug}: {found} instead of {wanted}");
            }
            let base = reference["shapley_base"].as_f64().unwrap();
            assert!((found.base_value.unwrap() - base).abs() <= 1e-3 * base.abs().max(1.0));
        }
        compared += 1;
    }
    assert!(compared >= 5);
}

#[test]
fn lime_is_within_three_standard_errors_of_a_long_run() {
    let long = explanation("lime", of(TEXT, json!({ "samples": 200_000 })));
    for regression in ["linear", "interactions"] {
        let short = explanation("lime", of(TEXT, json!({ "samples": 5_000, "regression": regression })));
        for (short, long) in short.attributions.iter().zip(&long.attributions) {
            // The process knows every one of 512 texts; the ridge penalty shrinks by a part in a thousand.
            let error = short.standard_error.unwrap().hypot(long.standard_error.unwrap());
            let bound = 3.0 * error + if regression == "linear" { 0.0 } else { 2e-3 };
            assert!((short.score - long.score).abs() <= bound, "{regression}: {short:?} {long:?}");
        }
        assert!(short.evidence["r_squared"].as_f64().unwrap() <= 1.0);
    }
}

#[test]
fn sampled_values_are_near_the_exact_ones_and_say_how_near() {
    let exact = scores(&explanation("exact-shap", of(TWELVE, json!({}))));
    for slug in ["kernel-shap", "permutation-shap"] {
        let sampled = explanation(slug, of(TWELVE, json!({ "samples": 400 })));
        assert_eq!(sampled.evidence["ended"], json!("budget"), "{slug}");
        for (it, exact) in sampled.attributions.iter().zip(&exact) {
            let gap = (it.score - exact).abs();
            assert!(gap <= 5.0 * it.standard_error.unwrap() + 1e-4, "{slug}: {it:?} {exact}");
        }
    }
}

#[test]
fn all_targets_cost_no_more_passes_than_one() {
    for slug in ["lime", "kernel-shap", "permutation-shap", "partition-shap", "decision-tree", "anchors"] {
        let passes = |target: &str| {
            let mut body = of(TEXT, json!({ "samples": 1_000 }));
            body["target"] = json!(target);
            ask(slug, body).unwrap().usage.forward_passes
        };
        assert_eq!(passes("all"), passes("predicted"), "{slug}");
    }
}

#[test]
fn a_tolerance_ends_a_run_before_its_budget() {
    let parameters = json!({ "samples": 4_000, "tolerance": 0.03 });
    for slug in ["lime", "kernel-shap", "permutation-shap"] {
        let mut body = of(TWELVE, parameters.clone());
        body["output"] = json!("probability");
        let found = explanation(slug, body);
        assert_eq!(found.evidence["ended"], json!("tolerance"), "{slug} {:?}", found.evidence);
        assert!(found.evidence["largest_standard_error"].as_f64().unwrap() <= 0.03);
        assert!(found.evidence["evaluations"].as_u64().unwrap() < 4_000);
    }
}

#[test]
fn a_deadline_gives_the_estimate_so_far_only_where_it_is_wanted() {
    let body = |partial: bool| {
        let parameters = json!({ "samples": 200_000, "partial": partial });
        json!({ "inputs": LONG, "parameters": parameters, "timeout_ms": 6_000 })
    };
    assert!(matches!(ask("lime", body(false)), Err(ExplainError::Deadline)));
    let found = explanation("lime", body(true));
    assert_eq!((&found.evidence["partial"], &found.evidence["ended"]), (&json!(true), &json!("stopped")));
    assert!(found.evidence["evaluations"].as_u64().unwrap() < 200_000);
}

#[test]
fn a_tree_of_the_answer_leads_from_its_root_to_the_value_of_the_input() {
    let found = explanation("decision-tree", of(TEXT, json!({})));
    let details = found.details.as_ref().unwrap();
    let root = details["tree"]["value"].as_f64().unwrap();
    let leaf = found.evidence["local_prediction"].as_f64().unwrap();
    assert!((root + scores(&found).iter().sum::<f64>() - leaf).abs() < 1e-9);
    assert_eq!(details["path"].as_array().unwrap().last().unwrap()["value"], json!(leaf));
    assert!(details["path"].as_array().unwrap().len() <= 3);
}

#[test]
fn an_anchor_names_its_words_and_how_sure_it_is() {
    let found = explanation("anchors", of(TEXT, json!({})));
    let (details, precision) = (found.details.as_ref().unwrap(), &found.evidence["precision"]);
    assert_eq!(found.evidence["met"], json!(true));
    assert!(precision["share"].as_f64().unwrap() >= 0.9, "{precision}");
    let rule = details["rule"].as_array().unwrap();
    assert_eq!(details["prefixes"].as_array().unwrap().len(), rule.len() + 1);
    let coverage = found.evidence["coverage"]["share"].as_f64().unwrap();
    assert!((coverage - 0.5f64.powi(rule.len() as i32)).abs() < 0.02);
}

#[test]
fn a_hierarchy_covers_the_text_and_the_texts_of_a_pair_meet_last() {
    let inputs = json!({ "text": "A warm film.", "text_pair": "It moved me." });
    let body = json!({ "inputs": inputs, "parameters": {}, "timeout_ms": 60_000 });
    let found = explanation("partition-shap", body);
    let nodes = found.details.as_ref().unwrap()["hierarchy"].as_array().unwrap().clone();
    let root = nodes.last().unwrap();
    assert_eq!(root["features"].as_array().unwrap().len(), found.attributions.len());
    let part = root["parts"][0].as_u64().unwrap();
    let first = nodes.iter().find(|it| it["node"].as_u64() == Some(part)).unwrap();
    assert_eq!(first["texts"], json!(["A", "warm", "film", "."]));
    assert!(found.evidence["efficiency_gap"].as_f64().unwrap().abs() < 1e-6);
}

#[test]
fn a_hierarchy_of_tokens_holds_every_word_and_every_sentence() {
    let sentence = "It cost 3.14 dollars and was bad, e.g. the U.S. don't like it.";
    let long = format!("I went home. {} and so on. Go see it.", "The film was slow and ".repeat(8));
    for text in [format!("{sentence} Go home."), long] {
        let of = |unit: &str| {
            let mut body = of(&text, json!({ "samples": 4 }));
            body["granularity"] = json!(unit);
            explanation("partition-shap", body)
        };
        let (tokens, words, sentences) = (of("token"), of("word"), of("sentence"));
        let nodes: Vec<Vec<usize>> = serde_json::from_value(
            tokens.details.as_ref().unwrap()["hierarchy"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| it["features"].clone())
                .collect(),
        )
        .unwrap();
        for unit in words.attributions.iter().chain(&sentences.attributions) {
            let within = |at: &usize| {
                let it = &tokens.attributions[*at];
                unit.start <= it.start && it.end <= unit.end
            };
            let tokens: Vec<usize> = (0..tokens.attributions.len()).filter(within).collect();
            assert!(tokens.len() == 1 || nodes.contains(&tokens), "no node holds `{}`", unit.text);
        }
    }
}

#[test]
fn words_of_the_background_stand_for_absent_words() {
    let parameters = json!({
        "background": "words", "texts": ["The meeting starts at noon."], "draws": 3, "samples": 64,
    });
    let found = explanation("trans-shap", of(TEXT, parameters));
    assert_eq!(found.details.as_ref().unwrap()["background_words"], 5);
    assert_eq!((&found.evidence["draws"], &found.evidence["samples"]), (&json!(3), &json!(64)));
    assert!(found.evidence["largest_standard_error"].as_f64().unwrap() > 0.0);
    assert_eq!(found.evidence["exact"], false);
    let sum: f64 = scores(&found).iter().sum();
    assert!((sum - (found.value - found.base_value.unwrap())).abs() < 1e-6);
    assert_eq!(misfit("trans-shap", of(TEXT, json!({ "background": "words" }))).pointer, "/parameters/texts");

    let long = vec!["film"; 300].join(" ");
    let parameters = json!({ "background": "words", "texts": ["Unwatchable."] });
    let it = misfit("trans-shap", of(&long, parameters));
    assert_eq!(
        (&*it.pointer, it.limit.map(|it| it.name)),
        ("/parameters/texts", Some("max_length")),
        "{it:?}"
    );
}

#[test]
fn budgets_that_cannot_work_name_the_field_and_the_limit() {
    let it = misfit("exact-shap", of(LONG, json!({})));
    assert!(it.detail.contains("kernel-shap"), "{it:?}");
    assert_eq!(it.limit.map(|it| (it.name, it.value)), Some(("features", 16)));
    let letters = "a b c d e f g h i j k l m n o p";
    let limits = Limits { max_passes: 50_000, ..Limits::default() };
    let it = refused(ask_within(bundled(), &limits, "exact-shap", of(letters, json!({}))));
    assert!(it.detail.contains("kernel-shap"), "{it:?}");
    assert_eq!(it.limit.map(|it| (it.name, it.value)), Some(("features", 15)), "2^15 and not 2^16 passes");

    let it = misfit("kernel-shap", of(LONG, json!({ "samples": 20 })));
    assert_eq!((&*it.pointer, it.limit.map(|it| it.name)), ("/parameters/samples", Some("samples")));
    for slug in ["lime", "permutation-shap", "partition-shap", "decision-tree", "anchors", "trans-shap"] {
        let it = misfit(slug, of(TEXT, json!({ "samples": 0 })));
        assert_eq!(it.pointer, "/parameters/samples", "{slug} {it:?}");
    }
    for threshold in [0.0, 1.0, 1.5] {
        let it = misfit("anchors", of(TEXT, json!({ "threshold": threshold })));
        assert_eq!(it.pointer, "/parameters/threshold");
    }
}

#[test]
fn a_text_of_one_feature_gives_it_everything() {
    for slug in ["exact-shap", "kernel-shap", "permutation-shap", "partition-shap", "trans-shap"] {
        let found = explanation(slug, of("Dull", json!({})));
        let whole = found.value - found.base_value.unwrap();
        assert!((scores(&found)[0] - whole).abs() < 1e-12, "{slug}");
    }
    for slug in ["lime", "decision-tree", "anchors"] {
        assert_eq!(scores(&explanation(slug, of("Dull", json!({})))).len(), 1, "{slug}");
    }
}

#[test]
fn threads_and_batches_change_nothing_and_the_generator_is_named() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    let model = Model::open("sst2", &folder, &OpenSettings { workers: 1, ..open_settings() }).unwrap();
    let mut models = Shelf::default();
    models.put("sst2", Entry::Ready(model.into()));
    let scheduler =
        Scheduler::start(SchedulerSettings { workers: 1, chunk_tokens: 70, budget: u64::MAX / 2 })
            .expect("workers");
    let small = House { models, scheduler, limits: Limits::default() };
    for slug in FAMILY.into_iter().filter(|&it| it != "exact-shap") {
        let body = || {
            let mut body = of(TWELVE, json!({ "samples": 800 }));
            body["seed"] = json!(11);
            body
        };
        let mut usual = ask(slug, body()).unwrap();
        let mut other = ask_of(&small, slug, body()).unwrap();
        assert_eq!((usual.generator, usual.usage.forward_passes), ("chacha8", other.usage.forward_passes));
        let (usual, other) = (usual.results.remove(0), other.results.remove(0));
        let (usual, other) = (scores(&usual.explanations[0]), scores(&other.explanations[0]));
        for (usual, other) in usual.iter().zip(&other) {
            assert!((usual - other).abs() < 1e-3 * usual.abs().max(0.1), "{slug}: {usual} {other}");
        }
    }
}

#[test]
fn every_unit_of_text_every_output_and_pairs_are_explained() {
    let text = "A warm film. It moved me.";
    let spans = json!({ "spans": [[0, 6], [7, 12], [13, 25]] });
    let units = [(json!("token"), 8), (json!("word"), 8), (json!("sentence"), 2), (spans, 3)];
    let pair = json!({ "text": text, "text_pair": "Go." });
    for slug in FAMILY {
        for (unit, count) in &units {
            for (output, inputs, more) in
                [("logit", json!(text), 0), ("log_odds", json!(text), 0), ("probability", pair.clone(), 1)]
            {
                let ends = match unit.as_str() {
                    Some("token" | "word") => 2 * more,
                    Some(_) => more,
                    None => 0,
                };
                let body = json!({ "inputs": inputs, "granularity": unit, "output": output });
                let found = explanation(slug, body);
                assert_eq!(scores(&found).len(), count + ends, "{slug} {unit} {output}");
                let Some(base) = found.base_value else { continue };
                let sum: f64 = scores(&found).iter().sum();
                assert!((sum - (found.value - base)).abs() < 1e-5, "{slug} {unit} {output}");
            }
        }
    }
}

#[test]
fn a_perturbed_text_is_evaluated_once() {
    // Of three words there are eight subsets; the text itself was evaluated for its prediction.
    for slug in ["lime", "decision-tree", "anchors", "exact-shap", "kernel-shap", "permutation-shap"] {
        let parameters = if slug == "exact-shap" { json!({}) } else { json!({ "samples": 2_000 }) };
        let usage = ask(slug, of("A warm film", parameters)).unwrap().usage;
        assert!(usage.forward_passes <= 8 && usage.reused_passes > 0, "{slug}: {usage:?}");
    }
}

#[test]
fn a_linear_surrogate_says_how_well_it_fits() {
    for regression in ["linear", "interactions"] {
        let found = explanation("lime", of(TWELVE, json!({ "samples": 500, "regression": regression })));
        let number = |name: &str| found.evidence[name].as_f64().unwrap();
        let sum: f64 = scores(&found).iter().sum();
        assert!((number("intercept") + sum - number("local_prediction")).abs() < 1e-9);
        assert!((number("local_prediction") - found.value - number("local_error")).abs() < 1e-9);
        assert!((0.2..=1.0).contains(&number("r_squared")));
        assert_eq!(found.evidence["evaluations"], json!(500));
        assert_eq!(found.evidence["interactions"], json!(regression == "interactions"));
    }
}

#[test]
fn a_text_without_features_is_refused() {
    for slug in FAMILY {
        let it = misfit(slug, of("  \n ", json!({})));
        assert!(it.pointer.starts_with("/inputs"), "{slug}: {it:?}");
    }
}
