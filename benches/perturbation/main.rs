//! This file is where the perturbation family is measured: how far its texts lie from those that people write, what
//! input reduction makes of them, and how long that takes.
//!
//! `cargo bench --bench perturbation -- speed`
//! `cargo bench --bench perturbation -- reduction LABELLED.tsv`
//! `cargo bench --bench perturbation -- replacements COMPANION_DIR LABELLED.tsv`
//!
//! A line of LABELLED.tsv is a label's index and a text; the first line is a heading. What is printed is a table
//! of `docs/perturbation.md`.

mod reduction;
mod replacements;
mod speed;

use std::{path::Path, time::Instant};

use anyhow::{Context, anyhow, bail};
use explaind::{
    explain::{Arrival, ExplainAnswer, ExplainRequest, House, Limits, explain, registry},
    model::{Entry, Model, OpenSettings, Shelf},
    runtime::{Cancel, Device, Runtime, Scheduler, SchedulerSettings, granted_cores},
};
use serde_json::Value;

fn main() -> anyhow::Result<()> {
    // Cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|it| it != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["speed"] => speed::run(),
        ["reduction", texts] => reduction::run(&labelled(texts)?),
        ["replacements", companion, texts] => replacements::run(Path::new(companion), &labelled(texts)?),
        [] => {
            println!("name a section: speed, reduction TSV, or replacements DIR TSV");
            Ok(())
        }
        _ => bail!("unknown section {}", words.join(" ")),
    }
}

/// The settings under which the bench opens models.
fn opening() -> anyhow::Result<OpenSettings> {
    Ok(OpenSettings { runtime: Runtime::load(Device::Cpu, 1)?, workers: granted_cores() })
}

/// The bundled model.
fn bundled() -> anyhow::Result<Model> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/sst2");
    Ok(Model::open("sst2", &folder, &opening()?)?)
}

/// A house with one model and no limits.
fn house(model: Model, workers: usize, chunk_tokens: usize) -> House {
    let mut models = Shelf::default();
    models.put(model.name.clone(), Entry::Ready(model.into()));
    let settings = SchedulerSettings { workers, chunk_tokens, budget: u64::MAX / 2 };
    let limits = Limits { max_passes: u64::MAX, max_timeout_ms: 3_600_000, ..Limits::default() };
    House { models, scheduler: Scheduler::start(settings).expect("workers"), limits }
}

fn ask(house: &House, method: &str, mut body: Value) -> anyhow::Result<ExplainAnswer> {
    body["timeout_ms"] = 3_600_000.into();
    let request: ExplainRequest = serde_json::from_value(body)?;
    let arrival = Arrival { id: "bench".into(), at: Instant::now(), cancel: Cancel::default() };
    let method = registry::find(method).context("a listed method")?;
    explain(house, method, &request, &arrival).map_err(|error| anyhow!("{error:?}"))
}

/// The texts of a file with the indices of their labels.
fn labelled(file: &str) -> anyhow::Result<Vec<(usize, String)>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{file} cannot be read"))?;
    let line = |line: &str| {
        let (label, text) = line.split_once('\t').context("a label, a tab, a text")?;
        Ok((label.trim().parse()?, text.trim().to_owned()))
    };
    text.lines().skip(1).filter(|it| !it.trim().is_empty()).map(line).collect()
}
