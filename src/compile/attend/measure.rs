//! This file is where an attention graph is admitted by measurement: its rows are probabilities, and its gradients
//! are the slope of the logits when the probabilities are moved.

use super::{probabilities, slope};
use crate::compile::Compiled;
use crate::compile::cut::LOGITS;
use crate::compile::derive::COTANGENT;
use crate::compile::graph::{Graph, Tensor};
use crate::compile::intervene;
use crate::compile::measure::{Known, gap, largest, noise};
use crate::compile::probe::{Batch, Evaluate};
use crate::compile::refusal::{Code, Refusal};

/// What was measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Attended {
    /// Largest difference between the derived graph's logits and the model's, in parts of their largest.
    pub logits: f64,
    /// Largest difference of a row's sum from one.
    pub rows: f64,
    /// Difference between central differences and gradient along the gradient's own direction, in parts of the
    /// latter's length; of the best step. `None` where there are no gradients.
    pub slope: Option<f64>,
}

/// Above these, the graph is not offered.
const LOGITS_BOUND: f64 = 1e-3;
const HALF_LOGITS_BOUND: f64 = 0.05;
const ROWS_BOUND: f64 = 1e-3;
const SLOPE_BOUND: f64 = 0.005;

/// How far probabilities are moved along the gradient's direction, in parts of their own length.
const STEPS: [f64; 4] = [6.25e-5, 2.5e-4, 1e-3, 4e-3];

/// Measures the attention graph `derived` of `compiled`, with `layers` layers and with gradients or without, against
/// what is known of the model.
///
/// # Errors
/// The graph does not run, or is wrong.
pub fn measure(
    known: &Known,
    compiled: &Compiled,
    (derived, layers, with_gradient): (&Graph, usize, bool),
    evaluate: Evaluate<'_>,
) -> Result<Attended, Refusal> {
    let wrong = |reason: String| Err(Refusal::new(Code::Measured, reason));
    let run = |graph: &Graph, batches: &[Batch]| {
        let runs = evaluate(graph, batches).map_err(|error| Refusal::new(Code::Run, error))?;
        let complete = runs.len() == batches.len();
        if complete { Ok(runs) } else { Err(Refusal::new(Code::Run, "a run is missing")) }
    };
    let cotangent: Vec<f64> = (0..known.logits.len()).map(|it| noise(it, 11)).collect();
    let rows = known.rows;
    let dims = [rows, known.logits.len() / rows];
    let mut batch = known.embedded();
    if with_gradient {
        batch.push((COTANGENT.into(), Tensor::from_f64(known.embeds.element(), &dims, &cotangent)));
    }
    let outputs = run(derived, &[batch])?.swap_remove(0);
    let of = |name: &str| {
        let place = derived.outputs.iter().position(|it| &*it.value == name);
        let tensor = place.and_then(|it| outputs.get(it)?.clone());
        tensor.ok_or_else(|| Refusal::new(Code::Run, format!("no output {name}")))
    };
    let floats = |tensor: &Tensor| tensor.to_f64().unwrap_or_default();
    let mut measures = Attended {
        logits: gap(&floats(&of(LOGITS)?), &known.logits) / largest(&known.logits),
        ..Attended::default()
    };
    let weights: Vec<Tensor> = (0..layers).map(|it| of(&probabilities(it))).collect::<Result<_, _>>()?;
    for weights in &weights {
        let length = weights.dims().last().copied().unwrap_or(1).max(1);
        for row in floats(weights).chunks(length) {
            measures.rows = measures.rows.max((row.iter().sum::<f64>() - 1.0).abs());
        }
    }
    if with_gradient {
        let slopes: Vec<Tensor> = (0..layers).map(|it| of(&slope(it))).collect::<Result<_, _>>()?;
        let odd = weights.iter().zip(&slopes).position(|(weights, slopes)| weights.dims() != slopes.dims());
        if let Some(layer) = odd {
            return wrong(format!("probabilities and gradients of layer {layer} have different shapes"));
        }
        measures.slope = Some(moved(compiled, known, &cotangent, &weights, &slopes, &run)?);
    }
    let bound = if compiled.raised { HALF_LOGITS_BOUND } else { LOGITS_BOUND };
    // Written so that a NaN is refused, too.
    let within = |value: f64, bound: f64| value <= bound;
    if !within(measures.logits, bound) {
        let off = measures.logits;
        return wrong(format!("the attention graph's logits are off by {off:.1e} of the largest"));
    }
    if !within(measures.rows, ROWS_BOUND) {
        return wrong(format!("a row of attention sums to one but for {:.1e}", measures.rows));
    }
    if let Some(off) = measures.slope.filter(|&it| !within(it, SLOPE_BOUND)) {
        return wrong(format!("the gradient of attention is off by {off:.1e} from central differences"));
    }
    Ok(measures)
}

type Run<'a> = &'a dyn Fn(&Graph, &[Batch]) -> Result<Vec<Vec<Option<Tensor>>>, Refusal>;

/// The relative error of the gradients along their own direction, all layers moved at once.
fn moved(
    compiled: &Compiled,
    known: &Known,
    cotangent: &[f64],
    weights: &[Tensor],
    slopes: &[Tensor],
    run: Run<'_>,
) -> Result<f64, Refusal> {
    let mut editable = compiled.forward.clone();
    for (layer, attention) in compiled.anatomy.attention.iter().enumerate() {
        let value = &attention.probabilities;
        let unknown = || Refusal::new(Code::Path, format!("the shape of {value} could not be learned"));
        let fact = compiled.forward.facts.get(value).ok_or_else(unknown)?;
        intervene::edit(&mut editable.graph, value, layer, fact)?;
    }
    let length = |it: &[f64]| it.iter().map(|it| it * it).sum::<f64>().sqrt();
    let all = |tensors: &[Tensor]| tensors.iter().filter_map(Tensor::to_f64).collect::<Vec<_>>();
    let (values, directions) = (all(weights).concat(), all(slopes));
    let norm = length(&directions.concat()).max(f64::MIN_POSITIVE);
    let batch = |step: f64| {
        let mut batch = known.embedded();
        for (layer, (direction, shape)) in directions.iter().zip(slopes).enumerate() {
            let step = step * length(&values) / norm;
            let added: Vec<f64> = direction.iter().map(|it| it * step).collect();
            batch.push((
                intervene::keep(layer),
                Tensor::from_f64(shape.element(), &vec![1; shape.dims().len()], &[1.0]),
            ));
            batch.push((intervene::add(layer), Tensor::from_f64(shape.element(), shape.dims(), &added)));
        }
        batch
    };
    let batches: Vec<Batch> = STEPS.iter().flat_map(|&it| [batch(it), batch(-it)]).collect();
    let answers = run(&editable.graph, &batches)?;
    let weighed = |at: usize| -> f64 {
        let logits = answers[at].first().cloned().flatten().and_then(|it| it.to_f64()).unwrap_or_default();
        logits.iter().zip(cotangent).map(|(a, b)| a * b).sum()
    };
    let gaps = STEPS.iter().enumerate().map(|(at, step)| {
        let rise = weighed(2 * at) - weighed(2 * at + 1);
        (rise / (2.0 * step * length(&values)) - norm).abs() / norm
    });
    Ok(gaps.fold(f64::INFINITY, f64::min))
}
