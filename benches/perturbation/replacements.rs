//! This file is where perturbed texts are compared with those that people write: by the perplexity that a masked
//! language model has of them, token by token (Salazar et al. 2020), and by what the classifier makes of them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use explaind::{
    explain::{Case, Memo, Operation, Removal, Subject, distribution::Drift, estimators::random::Stream},
    model::{
        Model, Output,
        text::{Caps, Encoded, Feature, Granularity, features},
    },
    runtime::{Cancel, Lane, Row, Scheduler, SchedulerSettings, granted_cores},
};

use super::{bundled, opening};

/// Texts that are perturbed.
const TEXTS: usize = 100;
/// Words that a text must have.
const FEWEST: usize = 6;
const SEED: u64 = 0;
/// Fillers that may stand for a word.
const K: usize = 10;

const OPERATIONS: [(&str, Option<Operation>); 5] = [
    ("nothing", None),
    ("delete", Some(Operation::Delete)),
    ("mask", Some(Operation::Mask)),
    ("neighbors", Some(Operation::Neighbors)),
    ("mlm", Some(Operation::Mlm)),
];

pub fn run(companion: &Path, texts: &[(usize, String)]) -> anyhow::Result<()> {
    let mut model = bundled()?;
    model.accompany(companion, &opening()?)?;
    let workers = granted_cores();
    let scheduler = Scheduler::start(SchedulerSettings { workers, chunk_tokens: 512, budget: u64::MAX / 2 })
        .expect("workers");
    let lane = scheduler
        .admit(1, Instant::now() + Duration::from_secs(7200), Cancel::default())
        .map_err(|_| anyhow::anyhow!("the queue is full"))?;
    let chosen = chosen(&model, texts)?;
    println!("{} texts\n", chosen.len());
    println!("| words replaced | operation | perplexity | of the words that stayed | confidence | energy |");
    println!("|---|---|---:|---:|---:|---:|");
    for (extent, share) in [("one", 0.0), ("half", 0.5)] {
        for (name, operation) in OPERATIONS {
            if operation.is_none() && share > 0.0 {
                continue;
            }
            let it = measure(&model, &lane, &chosen, operation, share)?;
            let extent = if operation.is_none() { "none" } else { extent };
            println!(
                "| {extent} | {name} | {:.0} | {:.0} | {:.3} | {:.2} |",
                it.all, it.stayed, it.confidence, it.energy
            );
        }
    }
    Ok(())
}

struct Measured {
    all: f64,
    stayed: f64,
    confidence: f64,
    energy: f64,
}

/// More than any text here has.
const CAPS: Caps = Caps { characters: 100_000, run: 20_000 };

/// Texts evenly spread over the file.
fn chosen(model: &Model, texts: &[(usize, String)]) -> anyhow::Result<Vec<(Encoded, Vec<Feature>)>> {
    let mut fitting = Vec::new();
    for (_, text) in texts {
        let encoded = model.tokenizer.encode(text, None, true, CAPS)?;
        let words = features(&encoded, &Granularity::Word)?;
        if words.len() >= FEWEST {
            fitting.push((encoded, words));
        }
    }
    let step = (fitting.len() / TEXTS).max(1);
    Ok(fitting.into_iter().step_by(step).take(TEXTS).collect())
}

fn measure(
    model: &Model,
    lane: &Lane,
    texts: &[(Encoded, Vec<Feature>)],
    operation: Option<Operation>,
    share: f64,
) -> anyhow::Result<Measured> {
    let companion = model.fill_mask().map_err(|it| anyhow::anyhow!(it.reason))?;
    let mut drift = Drift::default();
    let mut reference = Vec::new();
    // Rows with one token masked: the place, the token that stood there, and whether it stayed.
    let mut asked: Vec<(usize, u32, bool)> = Vec::new();
    let mut rows = Vec::new();
    for (number, (encoded, words)) in texts.iter().enumerate() {
        let logits = first(lane, model, encoded.row())?;
        let count = if operation.is_none() { 0 } else { ((words.len() as f64 * share) as usize).max(1) };
        let gone = Stream::new(SEED, 1, number as u64).subset(words.len(), count);
        let memo = Memo::default();
        let case = Case {
            subject: Subject {
                model,
                encoded,
                features: words,
                targets: 1,
                output: Output::Logit,
                seed: SEED,
                pointer: "",
                caps: CAPS,
                most_passes: u64::MAX,
                told: &Default::default(),
                longest: encoded.tokens.len().into(),
            },
            row: encoded.row(),
            logits: logits.clone(),
            targets: vec![0],
            lane,
            memo: &memo,
        };
        let operation = operation.unwrap_or_default();
        let removal = Removal { operation, replacements: None, k: K, floor: 0.0, draws: 1 };
        let masker = removal.masker(&case, words).map_err(|it| anyhow::anyhow!("{it:?}"))?;
        let row = masker.rows(|it| gone.contains(it), 1).swap_remove(0);
        drift
            .add(&model.labels, &first(lane, model, row.clone())?, 1.0)
            .map_err(|it| anyhow::anyhow!("{it:?}"))?;
        reference = logits;
        for (place, (stayed, special)) in fates(encoded, words, operation, |it| gone.contains(it)).enumerate()
        {
            if !special {
                let mut ids = row.ids.to_vec();
                asked.push((place, ids[place], stayed));
                ids[place] = companion.mask;
                rows.push(Row { ids: ids.into(), ..row.clone() });
            }
        }
    }
    let (mut all, mut stayed) = ((0.0, 0usize), (0.0, 0usize));
    lane.stream(&companion.program, rows, |number, out| {
        let (place, token, kept) = asked[number];
        let logits = &out.values[0][place * companion.columns..(place + 1) * companion.columns];
        let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|it| f64::from(it - highest).exp()).sum();
        let surprise = sum.ln() - f64::from(logits[token as usize] - highest);
        all = (all.0 + surprise, all.1 + 1);
        if kept {
            stayed = (stayed.0 + surprise, stayed.1 + 1);
        }
    })?;
    let shift = drift.against(&model.labels, &reference).map_err(|it| anyhow::anyhow!("{it:?}"))?;
    let perplexity = |(sum, count): (f64, usize)| (sum / count.max(1) as f64).exp();
    Ok(Measured {
        all: perplexity(all),
        stayed: perplexity(stayed),
        confidence: shift.confidence.expect("a classifier has a confidence"),
        energy: shift.energy,
    })
}

/// For each token of the perturbed row, whether it stood in the text, and whether it is a special one.
fn fates(
    encoded: &Encoded,
    words: &[Feature],
    operation: Operation,
    gone: impl Fn(usize) -> bool,
) -> impl Iterator<Item = (bool, bool)> {
    let mut copies = vec![(true, 1usize); encoded.tokens.len()];
    for word in (0..words.len()).filter(|&it| gone(it)) {
        for (place, &token) in words[word].tokens.iter().enumerate() {
            copies[token] = match operation {
                Operation::Delete => (false, 0),
                Operation::Neighbors | Operation::Mlm if place > 0 => (false, 0),
                _ => (false, 1),
            };
        }
    }
    let specials: Vec<bool> = encoded.tokens.iter().map(|it| it.special).collect();
    copies
        .into_iter()
        .zip(specials)
        .flat_map(|((stayed, count), special)| std::iter::repeat_n((stayed, special), count))
}

fn first(lane: &Lane, model: &Model, row: Row) -> anyhow::Result<Vec<f32>> {
    let out = lane.evaluate(&model.forward, vec![row])?;
    Ok(out.into_iter().flat_map(|it| it.values).next().unwrap_or_default())
}
