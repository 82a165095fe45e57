//! This file is where derived graphs are admitted by measurement, without any other framework.
//!
//! Three questions: does the derived graph compute the model's logits, is its gradient the slope of these
//! logits, and does the model itself give a row the same logits alone and among others? An export that baked a
//! length in fails the last one: it is wrong, whatever its operators.

mod export;
mod lengths;

use super::Compiled;
use super::cut::{EMBEDS, LOGITS};
use super::derive::{COTANGENT, EMBEDS_GRAD};
use super::graph::{Graph, Tensor, Value};
use super::probe::{Batch, Evaluate, Hints, batch_of, ids_input};
use super::refusal::{Code, Refusal};

pub use export::Export;
pub use lengths::Lengths;

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Measures {
    /// Largest difference between the derived graph's logits and the model's, in parts of their largest.
    pub logits: f64,
    /// Largest difference between central differences and gradient along the gradient's own direction and a
    /// random one, in parts of the gradient's length; of the best row.
    pub slope: f64,
    /// Largest difference between a row's logits alone and among equally long rows, in parts of the largest.
    pub alone: f64,
    /// The same between a row alone and padded to a greater length; `None` when padding cannot be tried.
    pub padded: Option<f64>,
}

/// Above these, a graph is not offered.
const LOGITS_BOUND: f64 = 1e-3;
const SLOPE_BOUND: f64 = 0.005;
/// At other lengths fewer rows are tried, and all may step over a kink; a count of tokens that is wrong is a factor.
const SLOPE_ELSEWHERE: f64 = 0.05;

/// In longer texts the logits alone are compared.
const MOST_TOKENS: usize = 100;

/// Steps of central differences, in parts of the embeddings' length; and those of models so steep that the others
/// tell of their curvature.
const STEPS: [f64; 3] = [1e-3, 4e-3, 1.6e-2];
const FINER_STEPS: [f64; 2] = [6e-5, 2.5e-4];

/// A half-precision model's own rounding stands between its logits and exact ones.
const HALF_LOGITS_BOUND: f64 = 0.05;

/// A served text may be worse conditioned than those of the test.
const SERVED_LOGITS_BOUND: f64 = 0.01;

/// How far a derived graph's logits may be off for a text that it was not measured with, in parts of the largest; `raised`
/// says that the model is in half precision.
pub(super) fn tolerance(raised: bool) -> f64 {
    if raised { HALF_LOGITS_BOUND } else { SERVED_LOGITS_BOUND }
}

/// Rows and tokens of the test; both differ from the probes', whose lengths are odd: what a stride of two leaves
/// out there, it does not here.
const ROWS: usize = 4;
const TOKENS: usize = 10;
/// The same for other measurements.
pub(super) const TRIAL: (usize, usize) = (ROWS, TOKENS);

/// What a model says of one batch: what other derived graphs are measured against.
#[derive(Debug, Clone)]
pub struct Known {
    /// The model's own inputs.
    pub batch: Batch,
    /// Rows of the batch.
    pub rows: usize,
    /// Scores before any final activation, row-major.
    pub logits: Vec<f64>,
    /// The word embeddings of the batch.
    pub embeds: Tensor,
}

impl Known {
    /// Asks the model, `original` as it was read.
    ///
    /// # Errors
    /// The model does not run.
    pub fn of(
        original: &Graph,
        compiled: &Compiled,
        hints: &Hints,
        evaluate: Evaluate<'_>,
    ) -> Result<Self, Refusal> {
        let run = |graph: &Graph, batches: &[Batch]| {
            evaluate(graph, batches).map_err(|error| Refusal::new(Code::Run, error)).and_then(floats)
        };
        let batch = batch_of(original, (ROWS, TOKENS), hints)?;
        let count = batch[0].1.dims().first().copied().unwrap_or(1).max(1);
        let logits = &compiled.logits;
        let mut model = if logits.activation.is_some() { compiled.graph.clone() } else { original.clone() };
        model.outputs.retain(|it| it.value == logits.output.value);
        if logits.activation.is_some() {
            model.outputs.iter_mut().for_each(|it| it.value = logits.value.clone());
        }
        let logits = match run(&model, std::slice::from_ref(&batch)) {
            Ok(mut answers) => answers.swap_remove(0),
            // Some exports run one row at a time only; what is derived from them may run more.
            Err(_) => {
                let apart: Vec<Batch> = (0..count).map(|row| rows(&batch, row, 1)).collect();
                run(&model, &apart)?.concat()
            }
        };
        let embeds = embed(compiled, &batch)?;
        Ok(Self { batch, rows: count, logits, embeds })
    }

    /// The batch with its word embeddings.
    pub fn embedded(&self) -> Batch {
        let mut batch = self.batch.clone();
        batch.push((EMBEDS.into(), self.embeds.clone()));
        batch
    }
}

/// Measures the gradient graph `derived` of `compiled` against what its model answers, to the batch of the export and to
/// texts of other lengths.
///
/// # Errors
/// The graph does not run, or is not the model's gradient.
pub fn measure(
    (export, lengths): (&Export, &Lengths),
    compiled: &Compiled,
    derived: &Graph,
    evaluate: Evaluate<'_>,
) -> Result<Measures, Refusal> {
    let Export { batch, logits, alone, padded } = export;
    let trial = Trial { compiled, derived, evaluate };
    let (logits, slope) = trial.run(batch, logits, Some(SLOPE_BOUND))?;
    let measures = Measures { logits, slope, alone: *alone, padded: *padded };
    measures.admit(compiled.raised, SLOPE_BOUND)?;
    for (batch, logits) in &lengths.answers {
        let tokens = batch[0].1.dims()[1];
        let at = |it: Refusal| Refusal { reason: format!("at {tokens} tokens, {}", it.reason), ..it };
        let enough = Some(SLOPE_ELSEWHERE).filter(|_| batch[0].1.len() <= MOST_TOKENS);
        let (logits, slope) = trial.run(batch, logits, enough).map_err(at)?;
        Measures { logits, slope, ..measures }.admit(compiled.raised, SLOPE_ELSEWHERE).map_err(at)?;
    }
    Ok(measures)
}

/// A gradient graph that is tried.
struct Trial<'a> {
    compiled: &'a Compiled,
    derived: &'a Graph,
    evaluate: Evaluate<'a>,
}

impl Trial<'_> {
    /// How far the graph's logits are from what the model answered to the batch, and its gradient from their slope,
    /// where it should be `enough`.
    fn run(&self, batch: &Batch, answer: &[f64], enough: Option<f64>) -> Result<(f64, f64), Refusal> {
        let Self { compiled, derived, evaluate } = *self;
        let run = |graph: &Graph, batches: &[Batch]| complete(graph, batches, evaluate);
        let width = answer.len() / batch[0].1.dims()[0].max(1);
        let embeds = embed(compiled, batch)?;
        let forward = |embeds: &Tensor| {
            let mut batch = batch.clone();
            batch.push((EMBEDS.into(), embeds.clone()));
            batch
        };
        let known: Vec<f64> = match &compiled.logits.activation {
            None => answer.to_vec(),
            Some(_) => {
                let mut inner = compiled.graph.clone();
                let port = inner.outputs.iter().position(|it| it.value == compiled.logits.output.value);
                let mut port = inner.outputs.swap_remove(port.unwrap_or(0));
                port.value = compiled.logits.value.clone();
                inner.outputs = vec![port];
                floats(run(&inner, std::slice::from_ref(batch))?)?.swap_remove(0)
            }
        };
        let cotangent: Vec<f64> = (0..known.len()).map(|it| noise(it, 11)).collect();
        let dims = [known.len() / width.max(1), width];
        let mut seeded = forward(&embeds);
        seeded.push((COTANGENT.into(), Tensor::from_f64(embeds.element(), &dims, &cotangent)));
        let outputs = run(derived, &[seeded])?.swap_remove(0);
        let of = |name: &str| {
            let place = derived.outputs.iter().position(|it| &*it.value == name);
            let tensor = place.and_then(|it| outputs.get(it)?.as_ref()?.to_f64());
            tensor.ok_or_else(|| Refusal::new(Code::Run, format!("no output {name}")))
        };
        let (logits, gradient) = (of(LOGITS)?, of(EMBEDS_GRAD)?);
        if gradient.len() != embeds.len() {
            return Err(Refusal::new(Code::Measured, "the gradient has the wrong shape"));
        }
        let along = |steps: &[f64]| {
            slope(&embeds, &gradient, &cotangent, (width, steps), &|batches| {
                let batches: Vec<Batch> = batches.iter().map(forward).collect();
                floats(run(&compiled.forward.graph, &batches)?)
            })
        };
        let slope = match enough {
            None => 0.0,
            Some(enough) => match along(&STEPS)? {
                coarse if coarse <= enough => coarse,
                coarse => coarse.min(along(&FINER_STEPS)?),
            },
        };
        Ok((gap(&logits, &known) / largest(&known), slope))
    }
}

impl Measures {
    fn admit(&self, raised: bool, steepness: f64) -> Result<(), Refusal> {
        let refuse = |reason: String| Err(Refusal::new(Code::Measured, reason));
        // Written so that a NaN is refused, too.
        let within = |value: f64, bound: f64| value <= bound;
        let bound = if raised { HALF_LOGITS_BOUND } else { LOGITS_BOUND };
        if !within(self.logits, bound) {
            return refuse(format!(
                "the derived graph's logits are off by {:.1e} of the largest",
                self.logits
            ));
        }
        if !within(self.slope, steepness) {
            let off = self.slope;
            return refuse(format!(
                "the gradient is off by {off:.1e} of its length from central differences"
            ));
        }
        Ok(())
    }
}

/// The best row's worst direction, each at the best of `steps`: rows where a kink is stepped over, or where
/// float32 loses the difference, do not count against the rule.
fn slope(
    embeds: &Tensor,
    gradient: &[f64],
    cotangent: &[f64],
    (width, steps): (usize, &[f64]),
    logits: Logits<'_>,
) -> Result<f64, Refusal> {
    let rows = embeds.dims()[0];
    let stride = embeds.len() / rows.max(1);
    if stride == 0 || cotangent.len() != rows * width || gradient.len() != embeds.len() {
        return Err(Refusal::new(Code::Measured, "logits or gradient have the wrong shape"));
    }
    let start = embeds.to_f64().unwrap_or_default();
    let length = |it: &[f64]| it.iter().map(|it| it * it).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    let directions = [gradient.to_vec(), (0..gradient.len()).map(|it| noise(it, 29)).collect::<Vec<f64>>()];
    let unit = |direction: &Vec<f64>| -> Vec<f64> {
        let per_row = direction.chunks(stride).map(|row| (row, length(row)));
        per_row.flat_map(|(row, length)| row.iter().map(move |it| it / length)).collect()
    };
    let directions = directions.each_ref().map(unit);
    let sizes: Vec<f64> = start.chunks(stride).map(length).collect();
    let mut moved = Vec::new();
    for direction in &directions {
        for &step in steps {
            for sign in [1.0, -1.0] {
                let place =
                    |(at, (it, along)): (usize, (&f64, &f64))| it + sign * step * sizes[at / stride] * along;
                let values: Vec<f64> = start.iter().zip(direction).enumerate().map(place).collect();
                moved.push(Tensor::from_f64(embeds.element(), embeds.dims(), &values));
            }
        }
    }
    let answers = logits(&moved)?;
    let weighed = |answer: &[f64], row: usize| -> f64 {
        let range = row * width..(row + 1) * width;
        answer.get(range.clone()).unwrap_or_default().iter().zip(&cotangent[range]).map(|(a, b)| a * b).sum()
    };
    let mut best = f64::INFINITY;
    for (row, size) in sizes.iter().enumerate() {
        let range = row * stride..(row + 1) * stride;
        let norm = length(&gradient[range.clone()]);
        let mut worst: f64 = 0.0;
        for (which, direction) in directions.iter().enumerate() {
            let known: f64 =
                gradient[range.clone()].iter().zip(&direction[range.clone()]).map(|(a, b)| a * b).sum();
            let gaps = steps.iter().enumerate().map(|(at, step)| {
                let place = (which * steps.len() + at) * 2;
                let rise = weighed(&answers[place], row) - weighed(&answers[place + 1], row);
                (rise / (2.0 * step * size) - known).abs() / norm
            });
            worst = worst.max(gaps.fold(f64::INFINITY, f64::min));
        }
        best = best.min(worst);
    }
    Ok(best)
}

/// Embeddings in, logits out.
type Logits<'a> = &'a dyn Fn(&[Tensor]) -> Result<Vec<Vec<f64>>, Refusal>;

/// Some rows of every tensor.
pub(super) fn rows(batch: &Batch, first: usize, count: usize) -> Batch {
    let cut = |(name, tensor): &(Value, Tensor)| {
        let stride = tensor.data().len() / tensor.dims()[0].max(1);
        let mut dims = tensor.dims().to_vec();
        dims[0] = count;
        let data = tensor.data().slice(first * stride..(first + count) * stride);
        let cut = Tensor::new(tensor.element(), dims, data).unwrap_or_else(|_| tensor.clone());
        (name.clone(), cut)
    };
    batch.iter().map(cut).collect()
}

/// The rows of the word embedding for the batch's token ids.
pub(super) fn embed(compiled: &Compiled, batch: &Batch) -> Result<Tensor, Refusal> {
    let refuse = || Refusal::new(Code::Embedding, "the word embedding cannot be read");
    let ids = ids_input(&compiled.graph)?.value.clone();
    let ids = batch.iter().find(|it| it.0 == ids).map(|it| &it.1).ok_or_else(refuse)?;
    compiled.lookup(&ids.to_i64().ok_or_else(refuse)?, ids.dims()).ok_or_else(refuse)
}

/// Runs a graph on all of the batches.
fn complete(
    graph: &Graph,
    batches: &[Batch],
    evaluate: Evaluate<'_>,
) -> Result<Vec<Vec<Option<Tensor>>>, Refusal> {
    let runs = evaluate(graph, batches).map_err(|error| Refusal::new(Code::Run, error))?;
    if runs.len() == batches.len() { Ok(runs) } else { Err(Refusal::new(Code::Run, "a run is missing")) }
}

pub(super) fn floats(runs: Vec<Vec<Option<Tensor>>>) -> Result<Vec<Vec<f64>>, Refusal> {
    let first = |run: Vec<Option<Tensor>>| run.into_iter().next().flatten()?.to_f64();
    let all: Option<Vec<Vec<f64>>> = runs.into_iter().map(first).collect();
    all.ok_or_else(|| Refusal::new(Code::Path, "the output is not floating"))
}

/// Repeatable numbers between −1 and 1.
pub(super) fn noise(index: usize, seed: u64) -> f64 {
    let mut it =
        (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((it ^ (it >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}

/// Largest difference; infinite if one is not a number.
pub(super) fn gap(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let gaps = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    gaps.fold(0.0, |gap: f64, it| if it.is_nan() { f64::INFINITY } else { gap.max(it) })
}

pub(super) fn largest(values: &[f64]) -> f64 {
    values.iter().fold(f64::MIN_POSITIVE, |size, it| size.max(it.abs()))
}
