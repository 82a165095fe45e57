//! Input reduction: against a brute force over all subsets, against the served predictions, and on bad input.

use std::{collections::HashSet, path::Path, time::Instant};

use explaind::{
    explain::{
        Arrival, ExplainAnswer, ExplainError, ExplainRequest, Explanation, House, Misfit, PredictRequest,
        explain, predict, registry,
    },
    runtime::Cancel,
};
use serde_json::{Value, json};

use crate::support::{bundled, house};

const FIVE: &str = "slow start but wonderful film";
const TEXT: &str = "Despite a slow start and a plot that hardly moves, this is a wonderful little film.";

fn arrival() -> Arrival {
    Arrival { id: "reduction".into(), at: Instant::now(), cancel: Cancel::default() }
}

fn ask(house: &House, inputs: Value, parameters: Value) -> Result<ExplainAnswer, ExplainError> {
    let body = json!({ "inputs": inputs, "parameters": parameters, "timeout_ms": 60_000 });
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    explain(house, registry::find("input-reduction").expect("a listed method"), &request, &arrival())
}

#[track_caller]
fn explanation(inputs: Value, parameters: Value) -> Explanation {
    let mut answer = ask(bundled(), inputs, parameters).unwrap_or_else(|error| panic!("{error:?}"));
    answer.results.remove(0).explanations.remove(0)
}

#[track_caller]
fn misfit(inputs: Value, parameters: Value) -> Misfit {
    match ask(bundled(), inputs, parameters) {
        Err(ExplainError::Misfits(mut misfits)) => misfits.remove(0),
        other => panic!("not refused: {other:?}"),
    }
}

/// The served label and score of each text.
fn served(texts: &[String]) -> Vec<(String, f64)> {
    let mut all = Vec::new();
    for texts in texts.chunks(32) {
        let request: PredictRequest = serde_json::from_value(json!({ "inputs": texts })).unwrap();
        let (answers, _) = predict(bundled(), &request, &arrival()).unwrap_or_else(|it| panic!("{it:?}"));
        all.extend(answers.into_iter().map(|mut it| it.remove(0)).map(|it| (it.label, it.score)));
    }
    all
}

fn beams(explanation: &Explanation) -> Vec<Value> {
    explanation.details.as_ref().expect("beams")["beams"].as_array().unwrap().clone()
}

/// The texts of the smallest size that are reached by taking words out one by one while the label stays.
fn shortest(words: &[&str]) -> HashSet<Vec<usize>> {
    let text = |kept: &Vec<usize>| kept.iter().map(|&it| words[it]).collect::<Vec<_>>().join(" ");
    let mut level: HashSet<Vec<usize>> = HashSet::from([(0..words.len()).collect()]);
    let label = served(&[text(level.iter().next().unwrap())]).remove(0).0;
    loop {
        let less: HashSet<Vec<usize>> = level
            .iter()
            .filter(|it| it.len() > 1)
            .flat_map(|it| {
                (0..it.len()).map(|gone| [&it[..gone], &it[gone + 1..]].concat()).collect::<Vec<_>>()
            })
            .collect();
        let less: Vec<Vec<usize>> = less.into_iter().collect();
        let labels = served(&less.iter().map(text).collect::<Vec<_>>());
        let kept: HashSet<Vec<usize>> =
            less.into_iter().zip(labels).filter(|(_, it)| it.0 == label).map(|(it, _)| it).collect();
        if kept.is_empty() {
            return level;
        }
        level = kept;
    }
}

#[test]
fn a_beam_that_holds_everything_finds_every_shortest_text() {
    let words: Vec<&str> = FIVE.split(' ').collect();
    let expected = shortest(&words);
    for importance in ["gradient", "leave_one_out"] {
        let found = explanation(json!(FIVE), json!({ "beam": 50, "importance": importance }));
        let texts: HashSet<Vec<usize>> =
            beams(&found).iter().map(|it| serde_json::from_value(it["features"].clone()).unwrap()).collect();
        assert_eq!(texts, expected, "{importance}");
        assert_eq!(found.evidence["importance"], json!(importance));
    }
}

#[test]
fn every_final_text_is_served_the_same_label_with_the_confidence_that_is_told() {
    let label = served(&[TEXT.to_owned()]).remove(0).0;
    for importance in ["gradient", "leave_one_out"] {
        let found = explanation(json!(TEXT), json!({ "importance": importance }));
        let beams = beams(&found);
        assert!(!beams.is_empty() && beams.len() <= 5);
        let reduced = found.evidence["reduced_length"].as_u64().unwrap() as usize;
        let length = found.evidence["length"].as_u64().unwrap() as usize;
        for beam in &beams {
            let (text, confidence) = (beam["text"].as_str().unwrap(), beam["confidence"].as_f64().unwrap());
            let (now, score) = served(&[text.to_owned()]).remove(0);
            assert_eq!(now, label, "{text}");
            assert!((score - confidence).abs() < 1e-4, "{text}: {score} {confidence}");
            let removed = beam["removed"].as_array().unwrap();
            assert_eq!(beam["features"].as_array().unwrap().len(), reduced);
            assert_eq!(removed.len(), length - reduced);
            let last = removed.last().unwrap()["confidence"].as_f64().unwrap();
            assert!((last - confidence).abs() < 1e-9);
        }
    }
}

#[test]
fn the_scores_of_what_was_removed_sum_to_the_change_of_the_value() {
    let found = explanation(json!(TEXT), json!({}));
    let kept: Vec<usize> = serde_json::from_value(beams(&found)[0]["features"].clone()).unwrap();
    let gone = (0..found.attributions.len()).filter(|it| !kept.contains(it));
    let removed: f64 = gone.map(|at| found.attributions[at].score).sum();
    let change = found.value - found.evidence["confidence_of_reduced"].as_f64().unwrap();
    assert!((removed - change).abs() < 1e-6, "{removed} {change}");
}

#[test]
fn protected_words_stay_and_phrases_too() {
    let found = explanation(json!(TEXT), json!({ "protected": ["slow start", "Despite"] }));
    for beam in beams(&found) {
        let text = beam["text"].as_str().unwrap();
        assert!(text.starts_with("Despite") && text.contains("slow start"), "{text}");
    }
    assert_eq!(found.evidence["protected"], json!(3));
}

#[test]
fn a_protected_word_that_is_not_in_the_text_is_refused() {
    let refused = misfit(json!(TEXT), json!({ "protected": ["slow", "wonder"] }));
    assert_eq!(refused.pointer, "/parameters/protected/1");
}

#[test]
fn protected_phrases_may_overlap_and_stand_several_times() {
    let text = "slow start slow start slow film";
    let found = explanation(json!(text), json!({ "protected": ["slow start slow", "slow start slow"] }));
    assert_eq!(found.evidence["protected"], json!(5));
    for beam in beams(&found) {
        assert!(beam["text"].as_str().unwrap().starts_with("slow start slow start slow"), "{beam}");
    }
}

#[test]
fn a_text_is_searched_once_however_many_phrases_are_protected() {
    let mut phrases: Vec<String> = (0..100_000).map(|it| format!("{} {it}", ["a"; 63].join(" "))).collect();
    phrases.push("b".to_owned());
    let before = Instant::now();
    let refused = misfit(json!(["a"; 509].join(" ")), json!({ "protected": phrases, "beam": 1 }));
    assert_eq!(refused.pointer, "/parameters/protected/0");
    phrases.splice(0..100_000, vec![["a"; 64].join(" "); 100_000]);
    let refused = misfit(json!(["a"; 509].join(" ")), json!({ "protected": phrases, "beam": 1 }));
    assert_eq!(refused.pointer, "/parameters/protected/100000");
    assert!(before.elapsed().as_secs() < 10, "{:?}", before.elapsed());
}

#[test]
fn one_side_of_a_pair_is_reduced_or_both_and_neither_is_emptied() {
    let pair = json!({ "text": "A wonderful film.", "text_pair": "Nobody was bored for a minute." });
    let sides = |side: &str| -> Vec<(usize, usize)> {
        let found = explanation(pair.clone(), json!({ "side": side }));
        let segment = |at: &Value| found.attributions[at.as_u64().unwrap() as usize].segment;
        let split = |beam: &Value| {
            let features = beam["features"].as_array().unwrap();
            let first = features.iter().filter(|it| segment(it) == 0).count();
            (first, features.len() - first)
        };
        beams(&found).iter().map(split).collect()
    };
    assert!(sides("text").iter().all(|&(one, two)| one < 4 && two == 7));
    assert!(sides("text_pair").iter().all(|&(one, two)| one == 4 && (1..7).contains(&two)));
    assert!(sides("both").iter().all(|&(one, two)| one >= 1 && two >= 1 && one + two < 11));
    assert_eq!(misfit(json!(TEXT), json!({ "side": "text_pair" })).pointer, "/parameters/side");
}

#[test]
fn a_model_without_gradients_is_reduced_by_leaving_out() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/refuse/bert-int8-dynamic");
    let house = house("int8", &folder);
    let text = json!("t155 t64 t89 t60 t153 t51");
    let answer = ask(&house, text.clone(), json!({})).unwrap_or_else(|error| panic!("{error:?}"));
    let found = &answer.results[0].explanations[0];
    assert_eq!(found.evidence["importance"], json!("leave_one_out"));
    assert!(found.evidence["rows_per_run"].as_f64().unwrap() > 1.0);
    let asked = ask(&house, text, json!({ "importance": "gradient" }));
    assert!(matches!(asked, Err(ExplainError::Unavailable(_))), "{asked:?}");
}
