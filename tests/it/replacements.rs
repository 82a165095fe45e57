//! In-distribution replacements on a hand-made vocabulary of three words, where every number can be worked out.
//!
//! The classifier's logits are sums of one row a token; the companion's logits at a place are its token's row plus
//! the mean of all rows of the text.

use std::{fs, path::Path, time::Instant};

use explaind::{
    compile::{
        self,
        graph::{Graph, Tensor},
    },
    explain::{
        Arrival, ExplainAnswer, ExplainError, ExplainRequest, Explanation, House, Limits, explain, registry,
    },
    model::{Entry, Model, OpenError, Shelf, text::Caps},
    runtime::{Cancel, Scheduler, SchedulerSettings},
};
use serde_json::{Value, json};

use crate::support::{WORKERS, bundled, open_settings};

const TOKENS: [&str; 6] = ["[PAD]", "[UNK]", "[MASK]", "ape", "bee", "cat"];
const MASK: usize = 2;
const APE: usize = 3;
const BEE: usize = 4;
const CAT: usize = 5;
/// The classifier's table: what each token adds to the logits of `no` and `yes`.
const WORTH: [[f32; 2]; 6] = [[0.0, 0.0], [0.1, 0.0], [0.0, 0.2], [0.5, 2.0], [1.5, -1.0], [1.0, -1.5]];
/// The companion's table: what each token adds to the logit of each token as a filler.
const TASTE: [[f32; 6]; 6] = [
    [0.0; 6],
    [0.0; 6],
    [0.3, 0.1, 0.9, 1.0, 0.5, -0.5],
    [0.0, 0.2, 0.0, 0.3, 1.1, 0.4],
    [0.1, 0.0, 0.0, 0.7, 0.2, 0.9],
    [0.0, 0.0, 0.4, -0.6, 0.8, 0.1],
];

fn write(folder: &Path, tokens: &[&str], graph: &str, table: &[f32], width: usize) {
    let mut graph = Graph::parse(graph).expect("a graph");
    graph.inputs.retain(|it| it.value.to_string() != "table");
    graph.initializers.insert("table".into(), Tensor::from_f32(&[table.len() / width, width], table));
    fs::write(folder.join("model.onnx"), compile::write(&graph)).expect("a file");
    let vocabulary: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect();
    let special: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter(|(_, token)| token.starts_with('['))
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "special": true, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false })
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "added_tokens": special, "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a file");
    fs::write(folder.join("config.json"), json!({ "id2label": { "0": "no", "1": "yes" } }).to_string())
        .expect("a file");
}

fn classifier() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let graph = "e = Gather(table, input_ids: int64[b, s]); logits = ReduceSum(e, [1]) {keepdims: 0}";
    // Rows beyond the vocabulary, as padded tables have them: the compiler's probes read ids below 64.
    let mut table = WORTH.as_flattened().to_vec();
    table.resize(64 * 2, 50.0);
    write(folder.path(), &TOKENS, graph, &table, 2);
    folder
}

fn companion(tokens: &[&str]) -> tempfile::TempDir {
    companion_with(tokens, &TASTE)
}

fn companion_with(tokens: &[&str], taste: &[[f32; 6]; 6]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let graph = "e = Gather(table, input_ids: int64[b, s]); m = ReduceMean(e) {axes: [1], keepdims: 1}; \
                 logits = Add(e, m)";
    write(folder.path(), tokens, graph, taste.as_flattened(), 6);
    folder
}

fn model() -> Model {
    Model::open("tiny", classifier().path(), &open_settings()).unwrap_or_else(|error| panic!("{error}"))
}

fn accompanied() -> Model {
    let mut model = model();
    model.accompany(companion(&TOKENS).path(), &open_settings()).unwrap_or_else(|error| panic!("{error}"));
    model
}

fn house(model: Model) -> House {
    let mut models = Shelf::default();
    models.put("tiny", Entry::Ready(model.into()));
    let settings = SchedulerSettings { workers: WORKERS, chunk_tokens: 512, budget: u64::MAX / 2 };
    House { models, scheduler: Scheduler::start(settings).expect("workers"), limits: Limits::default() }
}

fn ask(house: &House, slug: &str, body: Value) -> Result<ExplainAnswer, ExplainError> {
    let request: ExplainRequest = serde_json::from_value(body).expect("a well-formed request");
    let arrival = Arrival { id: "tiny".into(), at: Instant::now(), cancel: Cancel::default() };
    explain(house, registry::find(slug).expect("a listed method"), &request, &arrival)
}

#[track_caller]
fn explanation(house: &House, slug: &str, text: &str, parameters: Value) -> Explanation {
    let body = json!({ "inputs": text, "target": "yes", "output": "logit", "parameters": parameters,
                       "timeout_ms": 60_000 });
    let mut answer = ask(house, slug, body).unwrap_or_else(|error| panic!("{slug}: {error:?}"));
    answer.results.remove(0).explanations.remove(0)
}

fn scores(explanation: &Explanation) -> Vec<f64> {
    explanation.attributions.iter().map(|it| it.score).collect()
}

/// What the companion thinks of the words as fillers of the gap in a text.
fn probabilities(text: &[usize], gap: usize) -> [(usize, f64); 3] {
    let text: Vec<usize> = (0..text.len()).map(|at| if at == gap { MASK } else { text[at] }).collect();
    let logit = |word: usize| {
        let mean = text.iter().map(|&it| f64::from(TASTE[it][word])).sum::<f64>() / text.len() as f64;
        f64::from(TASTE[MASK][word]) + mean
    };
    let sum: f64 = [APE, BEE, CAT].iter().map(|&it| logit(it).exp()).sum();
    [APE, BEE, CAT].map(|word| (word, logit(word).exp() / sum))
}

fn yes(word: usize) -> f64 {
    f64::from(WORTH[word][1])
}

#[test]
fn marginalisation_over_three_words_equals_its_closed_form() {
    let text = [APE, BEE, CAT];
    let found =
        explanation(&house(accompanied()), "leave-one-out", "ape bee cat", json!({"operation": "mlm"}));
    for (gap, score) in scores(&found).into_iter().enumerate() {
        // The logit is a sum over words, so that only the gap's own word counts.
        let expected: f64 = probabilities(&text, gap).iter().map(|(word, p)| p * yes(*word)).sum();
        assert!((score - (yes(text[gap]) - expected)).abs() < 1e-5, "{gap}: {score}");
    }
}

#[test]
fn a_probability_floor_and_k_leave_out_the_improbable_fillers() {
    let house = house(accompanied());
    let mut ranked = probabilities(&[APE, BEE, CAT], 1);
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
    let of = |count: usize| {
        let sum: f64 = ranked[..count].iter().map(|it| it.1).sum();
        yes(BEE) - ranked[..count].iter().map(|(word, p)| p / sum * yes(*word)).sum::<f64>()
    };
    let score = |more: Value| {
        let mut parameters = json!({ "operation": "mlm" });
        parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        scores(&explanation(&house, "leave-one-out", "ape bee cat", parameters))[1]
    };
    assert!((score(json!({ "k": 2 })) - of(2)).abs() < 1e-5);
    assert!((score(json!({ "k": 1 })) - of(1)).abs() < 1e-5);
    assert!((score(json!({ "floor": 1.0 })) - of(1)).abs() < 1e-5, "the most probable stays");
}

#[test]
fn neighbours_stand_where_the_word_stood() {
    let house = house(model());
    let score = |k: usize| {
        scores(&explanation(&house, "leave-one-out", "ape bee", json!({"operation": "neighbors", "k": k})))[1]
    };
    // In the table the cat lies next to the bee; the special tokens between them and the ape are no words.
    assert!((score(1) - (yes(BEE) - yes(CAT))).abs() < 1e-5);
    assert!((score(2) - (yes(BEE) - (yes(CAT) + yes(APE)) / 2.0)).abs() < 1e-5);
}

#[test]
fn sampled_fillings_converge_to_the_expected_value_of_the_empty_text() {
    let house = house(accompanied());
    let text = [APE, BEE, CAT];
    let expected: f64 =
        (0..3).map(|gap| probabilities(&text, gap).iter().map(|(word, p)| p * yes(*word)).sum::<f64>()).sum();
    let variance: f64 = (0..3)
        .map(|gap| {
            let options = probabilities(&text, gap);
            let mean: f64 = options.iter().map(|(word, p)| p * yes(*word)).sum();
            options.iter().map(|(word, p)| p * (yes(*word) - mean).powi(2)).sum::<f64>()
        })
        .sum();
    let found = explanation(&house, "exact-shap", "ape bee cat", json!({"operation": "mlm", "draws": 64}));
    let base = found.base_value.unwrap();
    assert!((base - expected).abs() < 4.0 * (variance / 64.0).sqrt(), "{base} instead of {expected}");
    let sum: f64 = scores(&found).iter().sum();
    assert!((sum - (found.value - base)).abs() < 1e-6);
}

#[test]
fn the_seed_alone_decides_which_fillings_are_drawn() {
    let house = house(accompanied());
    for slug in ["lime", "kernel-shap", "permutation-shap", "partition-shap", "decision-tree", "anchors"] {
        let of = |seed: u64| {
            let body = json!({ "inputs": "ape bee cat ape cat bee", "seed": seed, "timeout_ms": 60_000,
                               "parameters": { "operation": "mlm" } });
            let answer = ask(&house, slug, body).unwrap_or_else(|error| panic!("{slug}: {error:?}"));
            let usage = answer.usage;
            assert!(usage.forward_passes + usage.reused_passes <= usage.priced_passes, "{slug}: {usage:?}");
            let explanation = &answer.results[0].explanations[0];
            (scores(explanation), explanation.evidence["perturbed_rows"]["confidence"].as_f64().unwrap())
        };
        assert_eq!(of(1), of(1), "{slug}");
        assert_ne!(of(1).1, of(2).1, "{slug}");
    }
}

#[test]
fn a_model_without_a_companion_says_what_is_missing() {
    let house = house(model());
    let body = json!({ "inputs": "ape", "parameters": { "operation": "mlm" } });
    match ask(&house, "leave-one-out", body) {
        Err(ExplainError::Unavailable(missing)) => {
            assert_eq!(missing.code, "fill_mask");
            assert!(missing.advice.contains("--fill-mask"), "{missing:?}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_companion_that_answers_with_nan_has_failed() {
    let mut taste = TASTE;
    taste[MASK][APE] = f32::NAN;
    let mut model = model();
    model.accompany(companion_with(&TOKENS, &taste).path(), &open_settings()).expect("a companion");
    let body = json!({ "inputs": "ape bee", "parameters": { "operation": "mlm" } });
    match ask(&house(model), "leave-one-out", body) {
        Err(ExplainError::Score(error)) => assert!(error.to_string().contains("NaN"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_companion_of_another_vocabulary_is_refused_by_its_first_other_token() {
    let mut model = model();
    let mut tokens = TOKENS;
    tokens.swap(BEE, CAT);
    let error = model.accompany(companion(&tokens).path(), &open_settings()).unwrap_err();
    assert!(matches!(&error, OpenError::OtherVocabulary { .. }), "{error}");
    assert!(error.to_string().contains("`bee` is number 4 in the classifier's and number 5"), "{error}");
    let remembered = model.fill_mask.err().expect("no companion").reason;
    assert!(remembered.contains("did not open"), "{remembered}");
}

#[test]
fn a_classifier_is_no_companion() {
    let error = model().accompany(classifier().path(), &open_settings()).unwrap_err();
    assert!(matches!(&error, OpenError::NotAMaskedModel { .. }), "{error}");
}

#[test]
fn a_word_of_several_tokens_is_one_gap_with_whole_words_as_neighbours() {
    let text = "An unwatchable film.";
    let body = json!({ "inputs": text, "parameters": { "operation": "neighbors", "k": 3 } });
    let answer = ask(bundled(), "leave-one-out", body).unwrap_or_else(|error| panic!("{error:?}"));
    let model = bundled().models.find(None).unwrap();
    assert!(model.tokenizer.piece_ids("unwatchable", Caps { characters: 20, run: 20 }).unwrap().len() > 1);
    let details = answer.results[0].explanations[0].details.as_ref().expect("the fillers");
    let words = details["fillers"][1].as_array().unwrap();
    assert_eq!(words.len(), 1);
    for option in words[0].as_array().unwrap() {
        assert!(!option["text"].as_str().unwrap().starts_with("##"), "{option}");
        assert!((option["weight"].as_f64().unwrap() - 1.0 / 3.0).abs() < 1e-12);
    }
    let sentence = json!({ "inputs": text, "granularity": "sentence",
                           "parameters": { "operation": "neighbors", "k": 3 } });
    let answer = ask(bundled(), "leave-one-out", sentence).unwrap_or_else(|error| panic!("{error:?}"));
    let details = answer.results[0].explanations[0].details.as_ref().expect("the fillers");
    assert_eq!(details["fillers"][0].as_array().unwrap().len(), 4, "a gap for each word and the full stop");
}

#[test]
fn values_over_drawn_fillings_are_not_called_exact() {
    let house = house(accompanied());
    for slug in ["exact-shap", "kernel-shap", "permutation-shap", "partition-shap"] {
        for operation in ["neighbors", "mlm"] {
            let found =
                explanation(&house, slug, "ape bee cat bee", json!({ "operation": operation, "draws": 4 }));
            assert_eq!(found.evidence["exact"], false, "{slug}");
            assert_eq!(
                (&found.evidence["ended"], &found.evidence["draws"]),
                (&json!("exhausted"), &json!(4))
            );
            assert!(found.evidence["largest_standard_error"].as_f64().unwrap() > 0.0, "{slug} {operation}");
            assert!(found.attributions.iter().all(|it| it.standard_error.is_some_and(|it| it > 0.0)));
        }
        let found = explanation(&house, slug, "ape bee cat bee", json!({ "operation": "mask" }));
        assert_eq!(found.evidence["exact"], true, "{slug}");
    }
}
