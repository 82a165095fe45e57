//! This file is where a model is asked for the logits and gradients that PyTorch gave, through the queue.

use std::path::Path;
use std::time::{Duration, Instant};

use explaind::model::Model;
use explaind::runtime::{Cancel, Extra, Lane, Row, RowOut, Scheduler, SchedulerSettings};

use crate::arrays::Arrays;
use crate::support::WORKERS;

/// The batches of a reference: sizes [3, 12], [1, 4] and [4, 19], rows padded on the right.
pub const BATCHES: [&str; 3] = ["", "b1_", "b4_"];

/// A lane of a scheduler of its own.
pub fn with_lane<T>(ask: impl FnOnce(&Lane) -> T) -> T {
    let settings = SchedulerSettings { workers: WORKERS, chunk_tokens: 512, budget: u64::MAX / 2 };
    let scheduler = Scheduler::start(settings).expect("workers");
    let deadline = Instant::now() + Duration::from_secs(60);
    ask(&scheduler.admit(1, deadline, Cancel::default()).expect("an empty queue"))
}

/// One row of a reference, its padding cut off, and what PyTorch said of it.
pub struct Reference {
    /// Its tokens.
    pub row: Row,
    /// Its logits.
    pub logits: Vec<f64>,
    /// What the gradient weighs the logits with.
    pub cotangent: Vec<f32>,
    /// `[tokens, hidden]`.
    pub gradient: Vec<f64>,
}

/// The rows of one batch of a folder's reference.
pub fn references(folder: &Path, prefix: &str) -> Vec<Reference> {
    let mut arrays = Arrays::open(&folder.join("reference.npz"));
    let name = |it: &str| format!("{prefix}{it}");
    let ids = arrays.ints(&name("input_ids")).expect("ids");
    let (rows, length) = (ids.dims()[0], ids.dims()[1]);
    let mask = arrays.ints(&name("attention_mask")).and_then(|it| it.to_i64()).expect("a mask");
    let types = arrays.ints(&name("token_type_ids")).and_then(|it| it.to_i64());
    let logits = arrays.floats(&name("logits")).and_then(|it| it.to_f64()).expect("logits");
    let cotangent = arrays.floats(&name("cotangent")).and_then(|it| it.to_f32()).expect("a cotangent");
    let gradient = arrays.doubles(&name("grad")).expect("a gradient");
    let (labels, hidden) = (logits.len() / rows, gradient.len() / rows / length);
    let ids = ids.to_i64().expect("integers");
    let row = |row: usize| {
        let shown = mask[row * length..][..length].iter().filter(|&&it| it == 1).count();
        let cut = |it: &[i64]| it[row * length..][..shown].iter().map(|&it| it as u32).collect::<Vec<_>>();
        Reference {
            row: Row::of(cut(&ids), types.as_deref().map(|it| cut(it).into())),
            logits: logits[row * labels..][..labels].to_vec(),
            cotangent: cotangent[row * labels..][..labels].to_vec(),
            gradient: gradient[row * length * hidden..][..shown * hidden].to_vec(),
        }
    };
    (0..rows).map(row).collect()
}

/// The largest difference.
pub fn gap(found: &[f32], wanted: &[f64]) -> f64 {
    let gaps = found.iter().zip(wanted).map(|(a, b)| (f64::from(*a) - b).abs());
    let gap = gaps.fold(0.0, |gap: f64, it| if it.is_nan() { f64::INFINITY } else { gap.max(it) });
    if found.len() == wanted.len() { gap } else { f64::INFINITY }
}

fn largest<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    values.into_iter().fold(0.0, |most: f64, it| most.max(it.abs()))
}

/// The worst gap between the model's logits and PyTorch's, over every row of every batch.
pub fn logits_gap(model: &Model, folder: &Path, batches: &[&str]) -> f64 {
    let mut worst: f64 = 0.0;
    for prefix in batches {
        let references = references(folder, prefix);
        let rows = references.iter().map(|it| it.row.clone()).collect();
        let outs = with_lane(|lane| lane.evaluate(&model.forward, rows)).expect("logits");
        for (out, reference) in outs.iter().zip(&references) {
            worst = worst.max(gap(&out.values[0], &reference.logits));
        }
    }
    worst
}

/// The worst gaps between the gradient graph's logits and gradients and PyTorch's; of gradients in parts of a
/// batch's largest value.
pub fn gradient_gaps(model: &Model, folder: &Path, batches: &[&str]) -> Result<(f64, f64), String> {
    let graph = model.gradient().map_err(|it| format!("{}: {it}", it.code))?;
    let mut worst: (f64, f64) = (0.0, 0.0);
    for prefix in batches {
        let references = references(folder, prefix);
        let seeded = |it: &Reference| {
            let point: Vec<f32> = it.row.ids.iter().flat_map(|&id| graph.words.row(id)).copied().collect();
            let cotangent = Extra::Values(it.cotangent.clone().into());
            Row { extras: vec![Extra::Values(point.into()), cotangent], ..it.row.clone() }
        };
        let rows = references.iter().map(seeded).collect();
        let outs: Vec<RowOut> =
            with_lane(|lane| lane.evaluate(&graph.gradient, rows)).map_err(|it| it.to_string())?;
        let size = largest(references.iter().flat_map(|it| &it.gradient));
        for (out, reference) in outs.iter().zip(&references) {
            worst.0 = worst.0.max(gap(&out.values[0], &reference.logits));
            worst.1 = worst.1.max(gap(&out.values[1], &reference.gradient) / size);
        }
    }
    Ok(worst)
}
