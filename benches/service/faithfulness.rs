//! Which methods point at what the model reads: the area over the perturbation curve, as a table.
//!
//! The most relevant word is masked first, then the next, and so on to the last (Samek et al. 2017,
//! arXiv:1509.06321). The area is the mean, over all numbers of masked words, of how far the predicted label's
//! probability has fallen: the larger, the earlier the words that matter were named.

use std::{fs, path::Path, time::Instant};

use explaind::{
    explain::{Arrival, ExplainRequest, Family, House, Limits, Method, explain, registry::METHODS},
    model::{Entry, Output, Shelf, text::Caps},
    runtime::{Cancel, Row, Scheduler, SchedulerSettings, granted_cores},
};
use serde_json::{Value, json};

use crate::{
    measure::{row, table},
    numbers,
};

/// A method with its parameters, as a row of the table.
struct Candidate {
    name: String,
    method: &'static dyn Method,
    parameters: Value,
}

/// Composites of `lrp`, apart from its default.
const COMPOSITES: [&str; 7] = ["attn-lrp", "cp-lrp", "lrp-0", "epsilon", "gamma", "alpha-beta", "z-plus"];

/// Measures every decomposition, gradient and attention method on `count` sentences of a file of `label<tab>text` or
/// plain lines.
pub fn faithfulness(file: &Path, count: usize) {
    let Ok(text) = fs::read_to_string(file) else {
        println!("{} cannot be read: there is no table without development sentences.", file.display());
        return;
    };
    let sentences: Vec<&str> = text.lines().filter_map(|it| it.split('\t').next_back()).collect();
    let many = |it: &&&str| it.split(' ').count() >= 5;
    let long: Vec<&str> = sentences.iter().skip(1).filter(many).copied().collect();
    let sentences: Vec<&str> =
        long.iter().step_by((long.len() / count).max(1)).take(count).copied().collect();
    let house = house();
    table(&["method", "parameters", "area over the curve", "standard error"]);
    let random = areas(&house, &sentences, |_, _, words| shuffled(words));
    row(&["words in random order".into(), String::new(), mean(&random), error(&random)]);
    let mut rows = Vec::new();
    for candidate in candidates() {
        let areas = areas(&house, &sentences, |house, text, _| order(house, &candidate, text));
        let parameters =
            if candidate.parameters == json!({}) { String::new() } else { candidate.parameters.to_string() };
        let cells = [candidate.name, parameters, mean(&areas), error(&areas)];
        rows.push((average(&areas), cells));
    }
    rows.sort_by(|a, b| b.0.total_cmp(&a.0));
    rows.iter().for_each(|it| row(&it.1));
}

fn house() -> House {
    let mut models = Shelf::default();
    models.put("sst2", Entry::Ready(numbers::model().into()));
    let settings = SchedulerSettings { workers: granted_cores(), chunk_tokens: 512, budget: u64::MAX / 2 };
    let limits = Limits { max_timeout_ms: 600_000, ..Limits::default() };
    House { models, scheduler: Scheduler::start(settings).expect("workers"), limits }
}

/// Every method of the three families once, `lrp` with each composite, and leave-one-out to compare with.
fn candidates() -> Vec<Candidate> {
    let mut all = Vec::new();
    for &method in METHODS {
        let about = method.about();
        let family = matches!(about.family, Family::Decomposition | Family::Gradient | Family::Attention);
        if !family && about.slug != "leave-one-out" {
            continue;
        }
        let sets = match about.slug {
            "lrp" => COMPOSITES.iter().map(|it| json!({ "composite": it })).collect(),
            // A pass for every token and step otherwise.
            "sequential-integrated-gradients" => vec![json!({ "exact_totals": true })],
            _ => vec![json!({})],
        };
        let one = |parameters| Candidate { name: about.slug.to_owned(), method, parameters };
        all.extend(sets.into_iter().map(one));
    }
    all
}

/// The words of a sentence from the most relevant to the least.
fn order(house: &House, candidate: &Candidate, text: &str) -> Vec<usize> {
    let body = json!({ "inputs": text, "parameters": candidate.parameters, "timeout_ms": 600_000 });
    let request: ExplainRequest = serde_json::from_value(body).expect("a request");
    let arrival = Arrival { id: "bench".into(), at: Instant::now(), cancel: Cancel::default() };
    let answer = explain(house, candidate.method, &request, &arrival);
    let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", candidate.name));
    let words = answer.results[0].explanations[0].attributions.iter().filter(|it| !it.special);
    let scores: Vec<f64> = words.map(|it| it.score).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order
}

/// The area of each sentence, its words masked in the order that `order` gives.
fn areas(
    house: &House,
    sentences: &[&str],
    mut order: impl FnMut(&House, &str, usize) -> Vec<usize>,
) -> Vec<f64> {
    let model = house.models.find(None).expect("the bundled model");
    let mask = model.special.mask.expect("BERT has a mask token");
    let caps = Caps { characters: 100_000, run: 1000 };
    let area = |text: &&str| {
        let encoded = model.tokenizer.encode(text, None, true, caps).expect("a plain text");
        let granularity = explaind::model::text::Granularity::Word;
        let words = explaind::model::text::features(&encoded, &granularity).expect("words");
        let whole = encoded.row();
        let mut ids = whole.ids.to_vec();
        let mut rows: Vec<Row> = vec![whole.clone()];
        for word in order(house, text, words.len()) {
            words[word].tokens.iter().for_each(|&at| ids[at] = mask);
            rows.push(Row { ids: ids.clone().into(), ..whole.clone() });
        }
        let (_scheduler, lane) = numbers::engine(512);
        let outs = lane.evaluate(&model.forward, rows).expect("the rows run");
        let probability = |label: usize, logits: &[f32]| {
            model.labels.values(Output::Probability, logits).expect("finite logits")[label]
        };
        let label = model.labels.predicted(&outs[0].values[0]).expect("finite logits");
        let curve: Vec<f64> = outs.iter().map(|it| probability(label, &it.values[0])).collect();
        curve[1..].iter().map(|it| curve[0] - it).sum::<f64>() / words.len() as f64
    };
    sentences.iter().map(area).collect()
}

/// A fixed order that has nothing to do with the words.
fn shuffled(words: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..words).collect();
    order.sort_by_key(|&it| (it as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7);
    order
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn mean(values: &[f64]) -> String {
    format!("{:.4}", average(values))
}

/// The standard error of the mean.
fn error(values: &[f64]) -> String {
    let (count, mean) = (values.len() as f64, average(values));
    let variance = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    format!("{:.4}", (variance / count).sqrt())
}
