//! This file is where input reduction with a beam is timed beside a greedy loop that runs one row at a time.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use explaind::{
    explain::House,
    model::{
        Model, graphs,
        text::{Caps, Encoded, Granularity, features},
    },
    runtime::{
        Cancel, Device, Lane, Program, Row, Runtime, Scheduler, SchedulerSettings, SharedWeights,
        granted_cores,
    },
};
use serde_json::json;

use super::{ask, bundled, house};

/// Texts of 25 tokens, the special ones included.
const TEXTS: [&str; 4] = [
    "A lean and beautifully shot thriller that makes the most of its single location and of two actors who trust each other.",
    "The first hour is a delight, full of wit and odd details, but the film then forgets what made it fun.",
    "I would have walked out of the theatre after half an hour, had my friends not been so deeply asleep beside me.",
    "Nothing in this long and noisy sequel comes close to the charm, the patience or the quiet humour of the first film.",
];
const REPEATS: usize = 3;

pub fn run() -> anyhow::Result<()> {
    let model = bundled()?;
    for text in TEXTS {
        println!("{} tokens: {text}", encoded(&model, text)?.tokens.len());
    }
    let file = file(&model)?;
    let loop_of = |program: &Arc<Program>| best(|| greedy(&model, program));
    let (greedy, greedy_lean) = (loop_of(&file)?, loop_of(&model.forward)?);
    let (workers, house_of) =
        (granted_cores(), |workers, chunk| Ok::<House, anyhow::Error>(house(bundled()?, workers, chunk)));
    let together = house_of(workers, 512)?;
    let alone = house_of(1, 1)?;
    println!("\n| search | rows | rows per run | ms a text | times the greedy loop's speed |");
    println!("|---|---:|---:|---:|---:|");
    let line = |name: &str, (took, rows, per_run): (Duration, f64, f64)| {
        let ms = took.as_secs_f64() * 1e3 / TEXTS.len() as f64;
        let times = greedy.0.as_secs_f64() / took.as_secs_f64();
        println!("| {name} | {rows:.0} | {per_run:.1} | {ms:.0} | {times:.1} |");
    };
    line("greedy, leaving out, one row a run of the model's file", greedy);
    line("greedy, leaving out, one row a run of the service's graph", greedy_lean);
    for (name, house, beam, importance) in [
        ("beam 5, gradient", &together, 5, "gradient"),
        ("beam 5, gradient, one row a run", &alone, 5, "gradient"),
        ("beam 1, gradient", &together, 1, "gradient"),
        ("beam 1, leaving out", &together, 1, "leave_one_out"),
        ("beam 5, leaving out", &together, 5, "leave_one_out"),
    ] {
        line(name, best(|| reduced(house, beam, importance, std::ptr::eq(house, &raw const alone)))?);
    }
    Ok(())
}

type Measured = (Duration, f64, f64);

fn best(run: impl Fn() -> anyhow::Result<(f64, f64)>) -> anyhow::Result<Measured> {
    let mut best: Option<Measured> = None;
    for _ in 0..REPEATS {
        let started = Instant::now();
        let (rows, per_run) = run()?;
        let took = started.elapsed();
        if best.is_none_or(|it| took < it.0) {
            best = Some((took, rows, per_run));
        }
    }
    best.ok_or_else(|| anyhow::anyhow!("nothing was measured"))
}

/// Rows a text and rows a run of the method.
fn reduced(house: &House, beam: usize, importance: &str, one_by_one: bool) -> anyhow::Result<(f64, f64)> {
    let (mut rows, mut per_run) = (0.0, 0.0);
    for text in TEXTS {
        let body = json!({ "inputs": text, "parameters": { "beam": beam, "importance": importance } });
        let answer = ask(house, "input-reduction", body)?;
        let evidence = &answer.results[0].explanations[0].evidence;
        rows += evidence["rows"].as_f64().unwrap_or(0.0) / TEXTS.len() as f64;
        per_run += evidence["rows_per_run"].as_f64().unwrap_or(0.0) / TEXTS.len() as f64;
    }
    Ok((rows, if one_by_one { 1.0 } else { per_run }))
}

fn encoded(model: &Model, text: &str) -> anyhow::Result<Encoded> {
    Ok(model.tokenizer.encode(text, None, false, Caps { characters: 10_000, run: 1_000 })?)
}

/// The model's file as it is, without what the service spares.
fn file(model: &Model) -> anyhow::Result<Arc<Program>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2/model.onnx");
    let graph = graphs::runnable(&graphs::read(&path).map_err(anyhow::Error::msg)?);
    let (runtime, weights) = (Runtime::load(Device::Cpu, 1)?, SharedWeights::default());
    let forward = &model.forward;
    Ok(Program::open(&runtime, &graph, &weights, forward.kind, forward.layout.clone(), 1)?.into())
}

/// Takes out the word that costs the least confidence, again and again, asking about one row at a time.
fn greedy(model: &Model, program: &Arc<Program>) -> anyhow::Result<(f64, f64)> {
    let scheduler =
        Scheduler::start(SchedulerSettings { workers: 1, chunk_tokens: 512, budget: u64::MAX / 2 })
            .expect("workers");
    let lane = scheduler
        .admit(1, Instant::now() + Duration::from_secs(3600), Cancel::default())
        .map_err(|_| anyhow::anyhow!("the queue is full"))?;
    let mut rows = 0usize;
    for text in TEXTS {
        let encoded = encoded(model, text)?;
        let words = features(&encoded, &Granularity::Word)?;
        let mut gone = vec![false; encoded.tokens.len()];
        let decided = model.labels.predicted(&answer(program, &lane, &encoded, &gone)?)?;
        let mut left: Vec<usize> = (0..words.len()).collect();
        while left.len() > 1 {
            let mut best: Option<(f64, usize)> = None;
            for (place, &word) in left.iter().enumerate() {
                let mut without = gone.clone();
                words[word].tokens.iter().for_each(|&it| without[it] = true);
                let logits = answer(program, &lane, &encoded, &without)?;
                rows += 1;
                if model.labels.predicted(&logits)? == decided {
                    let confidence = model.labels.scores(&logits)?[decided];
                    if best.is_none_or(|it| confidence > it.0) {
                        best = Some((confidence, place));
                    }
                }
            }
            let Some((_, place)) = best else { break };
            words[left.remove(place)].tokens.iter().for_each(|&it| gone[it] = true);
        }
    }
    Ok((rows as f64 / TEXTS.len() as f64, 1.0))
}

fn answer(program: &Arc<Program>, lane: &Lane, encoded: &Encoded, gone: &[bool]) -> anyhow::Result<Vec<f32>> {
    let left = encoded.tokens.iter().zip(gone).filter(|it| !it.1);
    let ids: Vec<u32> = left.map(|it| it.0.id).collect();
    let out = lane.evaluate(program, vec![Row::of(ids, None)])?;
    Ok(out.into_iter().flat_map(|it| it.values).next().unwrap_or_default())
}
