//! This file is where the export itself is measured: does the model give a row the same logits alone, among others,
//! and padded?

use super::{ROWS, TOKENS, complete, floats, gap, largest, rows};
use crate::compile::Compiled;
use crate::compile::derive;
use crate::compile::facts::Length;
use crate::compile::graph::{Graph, Node, Tensor, Value};
use crate::compile::probe::{Batch, Evaluate, Hints, batch_of, ids_input, typed};
use crate::compile::refusal::{Code, Refusal};

/// What an export answers to one batch, and how far its answers to the same rows differ.
#[derive(Debug, Clone)]
pub struct Export {
    /// The model's own inputs.
    pub batch: Batch,
    /// Its output, row-major.
    pub logits: Vec<f64>,
    /// See [`super::Measures::alone`].
    pub alone: f64,
    /// See [`super::Measures::padded`].
    pub padded: Option<f64>,
}

/// Above these, an export is wrong.
const ALONE_BOUND: f64 = 1e-3;
const PADDED_BOUND: f64 = 0.02;

/// The shorter length of the test by padding.
const SHORT: usize = 6;

impl Export {
    /// Asks the model, `original` as it was read.
    ///
    /// # Errors
    /// The model does not run, or its export is wrong.
    pub fn of(
        original: &Graph,
        compiled: &Compiled,
        hints: &Hints,
        evaluate: Evaluate<'_>,
    ) -> Result<Self, Refusal> {
        let batch = batch_of(original, (ROWS, TOKENS), hints)?;
        let mut model = original.clone();
        model.outputs.retain(|it| it.value == compiled.logits.output.value);
        let run = |batches: &[Batch]| complete(&model, batches, evaluate);
        let mut batches = vec![batch.clone()];
        let fixed_batch = batch.iter().any(|it| it.1.dims().first() != Some(&ROWS));
        if !fixed_batch {
            batches.extend((0..ROWS).map(|row| rows(&batch, row, 1)));
        }
        let padding = if minds_masks(compiled) { paddings(original, &batch, hints) } else { None };
        batches.extend(padding.iter().flatten().cloned());
        let answers = match run(&batches).and_then(floats) {
            Err(refusal) if !fixed_batch => {
                // Some exports run one row at a time only; what is derived from them may run more.
                let counts: Vec<usize> = batches.iter().map(|it| it[0].1.dims()[0]).collect();
                let apart = batches.iter().zip(&counts);
                let apart = apart.flat_map(|(it, &count)| (0..count).map(move |row| rows(it, row, 1)));
                let single = run(&apart.collect::<Vec<_>>()).and_then(floats).map_err(|_| refusal)?;
                let mut single = single.into_iter();
                counts.iter().map(|&count| single.by_ref().take(count).flatten().collect()).collect()
            }
            answers => answers?,
        };
        let size = largest(&answers[0]);
        let alone = if fixed_batch { 0.0 } else { gap(&answers[1..=ROWS].concat(), &answers[0]) / size };
        let padded = padding.is_some().then(|| {
            let [short, long, other] = &answers[answers.len() - 3..] else { return 0.0 };
            // A model that reads masked tokens gives another answer when they change; that is no error of the export.
            let leak = gap(long, other);
            let gap = gap(short, long);
            // Written so that a NaN, whose gap is infinite, counts.
            if leak.is_finite() && gap <= 4.0 * leak { 0.0 } else { gap / size }
        });
        let logits = answers.into_iter().next().unwrap_or_default();
        let export = Self { batch, logits, alone, padded };
        export.admit().map(|()| export)
    }

    fn admit(&self) -> Result<(), Refusal> {
        let refuse = |reason: String| Err(Refusal::new(Code::Measured, reason));
        // Written so that a NaN is refused, too.
        let within = |value: f64, bound: f64| value <= bound;
        if !within(self.alone, ALONE_BOUND) {
            let reason = "the export is wrong: a row's logits differ by {} of the largest when other rows are \
                          in the batch; a batch size is baked in";
            return refuse(reason.replace("{}", &format!("{:.1e}", self.alone)));
        }
        if let Some(padded) = self.padded.filter(|&it| !within(it, PADDED_BOUND)) {
            return refuse(format!(
                "the export is wrong: a row's logits differ by {padded:.1e} of the largest when it is padded; \
                 a length is baked in"
            ));
        }
        Ok(())
    }
}

/// Is it the mask alone that tells the model what is padding? A convolution behind it reads what lies beside the last
/// token, zeros of its own or places that were masked, and without a Softmax there are but sums and windows over all
/// positions: such a model may answer otherwise to a padded row, and its export be right.
fn minds_masks(compiled: &Compiled) -> bool {
    let facts = &compiled.forward.facts;
    let path = derive::activity(&compiled.forward).path;
    let kernel = |it: &Node| facts.get(it.inputs.get(1)?)?.shape.get(2..).map(<[Length]>::to_vec);
    let is_window =
        |it: &Node| it.is("Conv") && kernel(it).is_none_or(|it| it.iter().any(|&it| it != Length::ONE));
    path.iter().any(|it| it.is("Softmax")) && !path.iter().any(is_window)
}

/// A short batch, the same padded, and the same padded with something else; where that can be tried.
fn paddings(graph: &Graph, batch: &Batch, hints: &Hints) -> Option<[Batch; 3]> {
    let pad = hints.pad?;
    let ids = ids_input(graph).ok()?.value.clone();
    let is_mask = |name: &Value| name.contains("mask");
    if !batch.iter().any(|it| is_mask(&it.0)) || batch.iter().any(|it| it.1.dims() != [ROWS, TOKENS]) {
        return None;
    }
    let eos = |it: Vec<i64>| match hints.eos {
        Some(eos) => it
            .into_iter()
            .enumerate()
            .map(|(at, it)| if at % SHORT == SHORT - 1 { eos } else { it })
            .collect(),
        None => it,
    };
    let short = |(name, tensor): &(Value, Tensor)| {
        let values = tensor.to_i64()?;
        let kept = values.chunks(TOKENS).flat_map(|row| row[..SHORT].to_vec()).collect();
        let kept: Vec<i64> = if *name == ids { eos(kept) } else { kept };
        Some((name.clone(), typed(tensor.element(), &[ROWS, SHORT], &kept)?))
    };
    let short: Batch = batch.iter().map(short).collect::<Option<_>>()?;
    let long = |fill: i64| {
        let one = |((name, whole), (_, part)): (&(Value, Tensor), &(Value, Tensor))| {
            let (whole_values, part_values) = (whole.to_i64()?, part.to_i64()?);
            let value = |at: usize| match at % TOKENS {
                column if column < SHORT => part_values[at / TOKENS * SHORT + column],
                _ if *name == ids => fill,
                _ if is_mask(name) => 0,
                _ => whole_values[at],
            };
            let values: Vec<i64> = (0..whole_values.len()).map(value).collect();
            Some((name.clone(), typed(whole.element(), whole.dims(), &values)?))
        };
        batch.iter().zip(&short).map(one).collect::<Option<Batch>>()
    };
    let other = batch.iter().find(|it| it.0 == ids)?.1.to_i64()?[0];
    Some([short.clone(), long(pad)?, long(other)?])
}
