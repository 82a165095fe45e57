//! This file is where labelled texts are reduced, with and without calibration: how short they get, and how often
//! the model is surer of what is left than of the whole (the pathology of Feng et al. 2018).

use std::time::{Duration, Instant};

use explaind::{
    explain::House,
    model::{
        Labels, Model,
        calibration::{Labelled, fit, quality},
        text::Caps,
    },
    runtime::{Cancel, Scheduler, SchedulerSettings, granted_cores},
};
use indicatif::ProgressBar;
use serde_json::json;

use super::{ask, bundled, house};

/// Texts of one request.
const TOGETHER: usize = 32;

pub fn run(texts: &[(usize, String)]) -> anyhow::Result<()> {
    let workers = granted_cores();
    let model = bundled()?;
    let answers = answers(&model, texts, workers)?;
    let labels = model.labels.clone();
    let temperature = fit(&labels, &answers)?.temperature;
    let cooled = Labels::named(labels.names().to_vec(), labels.activation(), temperature);
    let reduced = reduce(&house(model, workers, 512), texts)?;

    println!("{} texts, accuracy {:.3}\n", texts.len(), quality(&labels, &answers)?.accuracy);
    println!(
        "| | temperature | NLL | ECE | words | words left | one word left | confidence | of what is left | it rose | by more than 0.05 |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (name, labels) in [("as trained", labels), ("calibrated", cooled)] {
        let quality = quality(&labels, &answers)?;
        let temperature = labels.temperature();
        let mean = |of: &dyn Fn(&Reduced) -> f64| reduced.iter().map(of).sum::<f64>() / reduced.len() as f64;
        let share = |of: &dyn Fn(&Reduced) -> bool| 100.0 * mean(&|it| f64::from(u8::from(of(it))));
        let before = |it: &Reduced| divided(it.before, temperature);
        let after = |it: &Reduced| divided(it.after, temperature);
        println!(
            "| {name} | {temperature:.3} | {:.4} | {:.4} | {:.2} | {:.2} | {:.1} % | {:.3} | {:.3} | {:.1} % | {:.1} % |",
            quality.nll,
            quality.ece,
            mean(&|it| it.words),
            mean(&|it| it.left),
            share(&|it| it.left == 1.0),
            mean(&before),
            mean(&after),
            share(&|it| after(it) > before(it)),
            share(&|it| after(it) > before(it) + 0.05),
        );
    }
    Ok(())
}

/// A probability of one of two labels under a temperature: which texts are left does not depend on it, for neither
/// the labels nor the order of the confidences do.
fn divided(probability: f64, temperature: f64) -> f64 {
    let odds = (probability / (1.0 - probability)).ln();
    1.0 / (1.0 + (-odds / temperature).exp())
}

/// One text's reduction.
struct Reduced {
    words: f64,
    left: f64,
    before: f64,
    after: f64,
}

fn reduce(house: &House, texts: &[(usize, String)]) -> anyhow::Result<Vec<Reduced>> {
    let mut all = Vec::with_capacity(texts.len());
    let bar = ProgressBar::new(texts.len() as u64);
    for texts in texts.chunks(TOGETHER) {
        let inputs: Vec<&str> = texts.iter().map(|it| it.1.as_str()).collect();
        for result in ask(house, "input-reduction", json!({ "inputs": inputs }))?.results {
            let evidence = &result.explanations[0].evidence;
            let number = |name: &str| evidence[name].as_f64().unwrap_or(f64::NAN);
            all.push(Reduced {
                words: number("length"),
                left: number("reduced_length"),
                before: number("confidence_of_input"),
                after: number("confidence_of_reduced"),
            });
        }
        bar.inc(texts.len() as u64);
    }
    Ok(all)
}

/// The model's answers to the texts, with the truth.
fn answers(model: &Model, texts: &[(usize, String)], workers: usize) -> anyhow::Result<Vec<Labelled>> {
    let scheduler = Scheduler::start(SchedulerSettings { workers, chunk_tokens: 512, budget: u64::MAX / 2 })
        .expect("workers");
    let lane = scheduler
        .admit(1, Instant::now() + Duration::from_secs(3600), Cancel::default())
        .map_err(|_| anyhow::anyhow!("the queue is full"))?;
    let caps = Caps { characters: 100_000, run: 20_000 };
    let rows = texts
        .iter()
        .map(|it| Ok(model.tokenizer.encode(&it.1, None, true, caps)?.row()))
        .collect::<anyhow::Result<_>>()?;
    let outs = lane.evaluate(&model.forward, rows)?;
    let labelled = |(out, (label, _)): (explaind::runtime::RowOut, &(usize, String))| Labelled {
        logits: out.values.into_iter().next().unwrap_or_default(),
        truth: (0..model.labels.len()).map(|it| it == *label).collect(),
    };
    Ok(outs.into_iter().zip(texts).map(labelled).collect())
}
