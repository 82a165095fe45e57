//! `explaind calibrate MODEL_DIR labelled.jsonl`: fits the model's temperature and writes it where the server reads it.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::{
    model::{
        Activation, Labels, Model, OpenSettings,
        calibration::{CalibrationError, Fit, Labelled, fit},
        manifest::{SETTINGS_FILE, Settings},
        text::Caps,
    },
    runtime::{Cancel, Device, Row, Runtime, Scheduler, SchedulerSettings, granted_cores},
};

/// What to fit on.
#[derive(Debug, Args)]
pub(super) struct Calibrate {
    /// A model folder
    folder: PathBuf,
    /// A file with one JSON object a line: `text`, `text_pair` for pairs, and `label` (a name or an index), or
    /// `labels` (an array of names or indices) where several may hold. Of a model with a single label that holds or
    /// not, `label` may say which: 1 or 0
    labelled: PathBuf,
    /// Print the fit and write nothing
    #[arg(long)]
    dry_run: bool,
}

/// One line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    text: String,
    #[serde(default)]
    text_pair: Option<String>,
    #[serde(default)]
    label: Option<Name>,
    #[serde(default)]
    labels: Option<Vec<Name>>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a label is a name or an index, a whole number from 0 on")]
enum Name {
    Index(usize),
    Name(String),
}

/// How large a text of the file may be.
const CAPS: Caps = Caps { characters: 1_000_000, run: 20_000 };
/// Nobody waits for an answer at a certain time.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

pub(super) fn run(arguments: &Calibrate) -> anyhow::Result<()> {
    let workers = granted_cores();
    let settings = OpenSettings { runtime: Runtime::load(Device::Cpu, 1)?, workers };
    let model = Model::open("model", &arguments.folder, &settings)?;
    if model.labels.activation() == Activation::Identity {
        return Err(CalibrationError::NoProbability.into());
    }
    let file = arguments.labelled.display();
    let text = fs::read_to_string(&arguments.labelled).with_context(|| format!("{file} cannot be read"))?;
    // Some editors put a mark in front of UTF-8.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let (mut rows, mut truths, mut cut) = (Vec::new(), Vec::new(), 0);
    for (number, line) in text.lines().enumerate().filter(|(_, it)| !it.trim().is_empty()) {
        let (row, truth, truncated) =
            read(&model, line).with_context(|| format!("{file}, line {}", number + 1))?;
        rows.push(row);
        truths.push(truth);
        cut += usize::from(truncated);
    }
    let logits = evaluate(&model, rows, workers)?;
    let texts: Vec<Labelled> =
        logits.into_iter().zip(truths).map(|(logits, truth)| Labelled { logits, truth }).collect();
    let found = fit(&model.labels, &texts)?;
    // Written before anything is told, which fails where nobody reads it.
    let written = arguments.folder.join(SETTINGS_FILE);
    if !arguments.dry_run {
        let settings = Settings { temperature: found.temperature };
        let failed = || format!("{} cannot be written", written.display());
        settings.write(&arguments.folder).with_context(failed)?;
    }
    let out = &mut io::stdout().lock();
    report(&model.labels, &found, texts.len(), cut, out)?;
    if !arguments.dry_run {
        writeln!(out, "written      {}", written.display())?;
    }
    Ok(())
}

/// A line as a row, its truth, and whether it was cut to the model's length.
fn read(model: &Model, line: &str) -> anyhow::Result<(Row, Vec<bool>, bool)> {
    let line: Line = serde_json::from_str(line)?;
    let labels = &model.labels;
    let index = |name: &Name| match name {
        Name::Index(index) => labels.check(*index),
        Name::Name(name) => labels.find(name),
    };
    let names = match (&line.label, &line.labels, labels.activation()) {
        (Some(one), None, _) => std::slice::from_ref(one),
        (None, Some(several), Activation::Sigmoid) => several,
        (None, Some(_), _) => return Err(anyhow!("`labels` is for models of which several labels may hold")),
        (Some(_), Some(_), _) => return Err(anyhow!("give either `label` or `labels`")),
        (None, None, _) => return Err(anyhow!("there is no `label`")),
    };
    let mut truth = vec![false; labels.len()];
    match (&line.label, labels.len(), labels.activation()) {
        (Some(Name::Index(holds @ (0 | 1))), 1, Activation::Sigmoid) => truth[0] = *holds == 1,
        (Some(Name::Index(_)), 1, Activation::Sigmoid) => {
            return Err(anyhow!("the model has a single label: `label` is its name, 1 where it holds or 0"));
        }
        _ => {
            for name in names {
                truth[index(name)?] = true;
            }
        }
    }
    let encoded = model.tokenizer.encode(&line.text, line.text_pair.as_deref(), true, CAPS)?;
    Ok((encoded.row(), truth, encoded.truncated.is_some()))
}

/// The logits of every row, with a progress bar where there is a terminal.
fn evaluate(model: &Model, rows: Vec<Row>, workers: usize) -> anyhow::Result<Vec<Vec<f32>>> {
    let scheduler = Scheduler::start(SchedulerSettings { workers, chunk_tokens: 512, budget: u64::MAX / 2 })?;
    let lane = scheduler
        .admit(1, Instant::now() + PATIENCE, Cancel::default())
        .map_err(|_| anyhow!("the queue is full"))?;
    let style = ProgressStyle::with_template("{bar:40} {pos} of {len} texts, {eta} left")?;
    let bar = ProgressBar::new(rows.len() as u64).with_style(style);
    let mut logits = vec![Vec::new(); rows.len()];
    lane.stream(&model.forward, rows, |place, out| {
        logits[place] = out.values.into_iter().next().unwrap_or_default();
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    Ok(logits)
}

fn report(labels: &Labels, found: &Fit, texts: usize, cut: usize, out: &mut impl Write) -> io::Result<()> {
    let Fit { temperature, before, after } = found;
    writeln!(
        out,
        "texts        {texts}{}",
        if cut > 0 { format!(", {cut} of them cut") } else { String::new() }
    )?;
    writeln!(out, "accuracy     {:.4}", before.accuracy)?;
    writeln!(out, "temperature  {:.4} -> {temperature:.4}", labels.temperature())?;
    writeln!(out, "NLL          {:.4} -> {:.4}", before.nll, after.nll)?;
    writeln!(out, "ECE          {:.4} -> {:.4}", before.ece, after.ece)
}
