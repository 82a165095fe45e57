//! What anchors and decision trees say of decisions: of one label of two, of labels that are true or not one by one,
//! and of a regression, which decides nothing.

use std::path::Path;
use std::time::Instant;

use explaind::explain::{
    Arrival, ExplainAnswer, ExplainError, ExplainRequest, Explanation, House, explain, registry,
};
use explaind::runtime::Cancel;
use serde_json::{Value, json};

use crate::support::{bundled, house};

const TEXT: &str = "a slow but good film";

fn ask(house: &House, slug: &str, body: Value) -> Result<ExplainAnswer, ExplainError> {
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "decisions".into(), at: Instant::now(), cancel: Cancel::default() };
    explain(house, registry::find(slug).expect("a listed method"), &request, &arrival)
}

#[track_caller]
fn explained(house: &House, slug: &str, body: Value) -> Vec<Explanation> {
    let mut answer = ask(house, slug, body).unwrap_or_else(|error| panic!("{slug}: {error:?}"));
    answer.results.remove(0).explanations
}

/// The bundled model, its logits read as another kind of problem's.
fn bundled_as(problem: &str) -> (House, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    for file in ["model.onnx", "tokenizer.json", "tokenizer_config.json"] {
        std::os::unix::fs::symlink(bundled.join(file), folder.path().join(file)).unwrap();
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(bundled.join("config.json")).unwrap()).unwrap();
    config["problem_type"] = json!(problem);
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    (house(problem, folder.path()), folder)
}

/// The positive logit of every subset of the words, the whole text last.
fn logits(house: &House, words: &[&str]) -> Vec<f64> {
    let text = |code: usize| -> String {
        let word = |at: usize| if code >> at & 1 == 1 { words[at] } else { "[MASK]" };
        (0..words.len()).map(word).collect::<Vec<_>>().join(" ")
    };
    let value = |code: usize| {
        let body = json!({ "inputs": text(code), "target": 1, "output": "logit",
                           "parameters": { "operation": "delete" } });
        explained(house, "leave-one-out", body)[0].value
    };
    (0..1 << words.len()).map(value).collect()
}

#[test]
fn the_decision_on_a_label_that_is_true_or_not_is_its_own_probability() {
    let (house, _folder) = bundled_as("multi_label_classification");
    let words: Vec<&str> = TEXT.split(' ').collect();
    let logits = logits(&house, &words);
    let holds = logits[logits.len() - 1] > 0.0;
    let kept = logits.iter().filter(|&&it| (it > 0.0) == holds).count() as f64 / logits.len() as f64;
    let body = json!({ "inputs": TEXT, "target": 1, "parameters": { "threshold": 0.999 } });
    let found = explained(&house, "anchors", body.clone()).remove(0);
    let empty = &found.details.as_ref().unwrap()["prefixes"][0]["precision"];
    assert_eq!((&empty["share"], &empty["confidence"]), (&json!(kept), &json!(1.0)));
    // Of several rules of one length and precision none is better; this one's precision is that of its texts.
    let rule: Vec<u64> = found.details.as_ref().unwrap()["rule"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["feature"].as_u64().unwrap())
        .collect();
    let respects = |code: &usize| rule.iter().all(|at| code >> at & 1 == 1);
    let (of, all) = (0..logits.len()).filter(respects).fold((0.0, 0.0), |(of, all), code| {
        (of + f64::from(u8::from((logits[code] > 0.0) == holds)), all + 1.0)
    });
    assert_eq!(
        (&found.evidence["precision"]["share"], &found.evidence["met"]),
        (&json!(of / all), &json!(true))
    );

    let tree = explained(&house, "decision-tree", json!({ "inputs": "good", "target": 1 })).remove(0);
    let root = &tree.details.as_ref().unwrap()["tree"];
    let number = |it: &Value| it.as_f64().unwrap();
    for side in ["present", "absent"].map(|it| &root[it]).into_iter().filter(|it| it.is_object()) {
        assert_eq!(number(&side["decision_share"]) > 0.5, number(&side["value"]) > 0.5, "{root}");
    }
}

#[test]
fn a_regression_has_a_tree_without_decisions_and_no_anchor() {
    let (house, _folder) = bundled_as("regression");
    match ask(&house, "anchors", json!({ "inputs": TEXT })) {
        Err(ExplainError::Unavailable(it)) => {
            assert_eq!((&*it.code, it.method.as_deref()), ("regression", Some("anchors")));
            assert!(it.advice.starts_with("decision-tree"), "{it:?}");
        }
        other => panic!("not refused: {other:?}"),
    }
    let found = explained(&house, "decision-tree", json!({ "inputs": TEXT, "target": 1 })).remove(0);
    assert!(found.evidence["r_squared"].as_f64().unwrap() <= 1.0, "{:?}", found.evidence);
    assert!(!found.evidence.contains_key("accuracy"));
    assert!(found.details.as_ref().unwrap()["tree"].get("decision_share").is_none());
}

#[test]
fn a_replacement_that_changes_the_decision_counts_as_one_text_of_several() {
    let parameters = json!({ "operation": "replace", "replacements": [["great", "superb", "terrible"]] });
    let body = json!({ "inputs": "wonderful", "parameters": parameters });
    let found = explained(bundled(), "anchors", body.clone()).remove(0);
    let details = found.details.as_ref().unwrap();
    // The text itself, and its absence, of which two texts of three keep the prediction.
    let empty = details["prefixes"][0]["precision"]["share"].as_f64().unwrap();
    assert!((empty - 5.0 / 6.0).abs() < 1e-12, "{details}");
    assert_eq!(details["rule"][0]["text"], json!("wonderful"));

    let found = explained(bundled(), "decision-tree", body).remove(0);
    let share = found.details.as_ref().unwrap()["tree"]["absent"]["decision_share"].as_f64().unwrap();
    assert!((share - 2.0 / 3.0).abs() < 1e-9, "{share}");
}

#[test]
fn targets_asked_for_together_are_answered_as_alone_and_cost_no_more_passes() {
    let words = "a slow start and a stale plot but the cast is a joy to watch";
    for parameters in [json!({ "samples": 800 }), json!({ "samples": 800, "operation": "neighbors" })] {
        let of = |target: Value| {
            let body = json!({ "inputs": words, "target": target, "parameters": parameters.clone(),
                               "timeout_ms": 60_000 });
            ask(bundled(), "anchors", body).unwrap()
        };
        let mut all = of(json!("all"));
        let together = all.results.remove(0).explanations;
        for (target, mut it) in together.into_iter().enumerate() {
            let mut answer = of(json!(target));
            let mut alone = answer.results.remove(0).explanations.remove(0);
            // Logits depend in their last digits on which rows run together.
            let confidence = |it: &mut Explanation| {
                it.evidence.remove("perturbed_rows").unwrap()["confidence"].as_f64().unwrap()
            };
            assert!((confidence(&mut it) - confidence(&mut alone)).abs() < 1e-6);
            assert_eq!((&it.details, &it.evidence), (&alone.details, &alone.evidence), "{target}");
            assert_eq!(answer.usage.priced_passes, all.usage.priced_passes);
            assert_eq!(answer.usage.forward_passes, all.usage.forward_passes);
        }
    }
}
