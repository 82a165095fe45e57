//! This file is where an intervention graph is admitted by measurement: it computes the model's logits when it edits
//! nothing, and every hidden state is all that the logits depend on.

use super::{add, keep, state};
use crate::compile::cut::LOGITS;
use crate::compile::graph::{Element, Graph, Port, Tensor};
use crate::compile::measure::{Known, gap, largest};
use crate::compile::probe::{Batch, Evaluate};
use crate::compile::refusal::{Code, Refusal};

/// What was measured, each in parts of the largest logit.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Replaced {
    /// Largest difference between the logits of the graph that edits nothing and the model's.
    pub neutral: f64,
    /// The same with every hidden state replaced by itself.
    pub itself: f64,
    /// Largest difference between the logits of rows that got the hidden state of their neighbour, and the
    /// neighbour's logits; of the worst layer.
    pub exchanged: f64,
}

/// Above these, the graph is not offered. A half-precision model's own rounding stands between its logits and
/// exact ones.
const BOUND: f64 = 1e-3;
const HALF_BOUND: f64 = 0.05;

/// Measures the intervention graph `derived`, with `layers` hidden states, against what is known of the model;
/// `raised` says that the model is in half precision.
///
/// # Errors
/// The graph does not run, or is wrong: which hidden state does not carry everything.
pub fn measure(
    known: &Known,
    raised: bool,
    (derived, layers): (&Graph, usize),
    evaluate: Evaluate<'_>,
) -> Result<Replaced, Refusal> {
    let run = |batches: &[Batch]| {
        let runs = evaluate(derived, batches).map_err(|error| Refusal::new(Code::Run, error))?;
        let complete = runs.len() == batches.len();
        if complete { Ok(runs) } else { Err(Refusal::new(Code::Run, "a run is missing")) }
    };
    let size = largest(&known.logits);
    let element = |layer: usize| derived.input(&keep(layer)).and_then(Port::element).unwrap_or(Element::F32);
    let edited = |edit: &dyn Fn(usize) -> Option<Tensor>| -> Batch {
        let mut batch = known.embedded();
        for layer in 0..layers {
            let scalar = |it: f64| Tensor::from_f64(element(layer), &[1, 1, 1], &[it]);
            let given = edit(layer);
            batch.push((keep(layer), scalar(if given.is_some() { 0.0 } else { 1.0 })));
            batch.push((add(layer), given.unwrap_or_else(|| scalar(0.0))));
        }
        batch
    };
    let place = |name: &str| derived.outputs.iter().position(|it| &*it.value == name);
    let taken = |run: &[Option<Tensor>], name: &str| {
        let tensor = place(name).and_then(|it| run.get(it)?.clone());
        tensor.ok_or_else(|| Refusal::new(Code::Run, format!("no output {name}")))
    };
    let logits = |run: &[Option<Tensor>]| {
        let wrong = || Refusal::new(Code::Path, "the logits are not floating");
        taken(run, LOGITS)?.to_f64().ok_or_else(wrong)
    };
    let neutral = run(&[edited(&|_| None)])?.swap_remove(0);
    let states: Vec<Tensor> =
        (0..layers).map(|layer| taken(&neutral, &state(layer))).collect::<Result<_, _>>()?;
    let mut replaced = vec![edited(&|layer| states.get(layer).cloned())];
    replaced.extend((0..layers).map(|which| {
        edited(&|layer| states.get(layer).filter(|_| layer == which).map(|it| rolled(it, known.rows)))
    }));
    let answers = run(&replaced)?;
    let (first, others) = known.logits.split_at(known.logits.len() / known.rows);
    let expected = [others, first].concat();
    let mut measures = Replaced {
        neutral: gap(&logits(&neutral)?, &known.logits) / size,
        itself: gap(&logits(&answers[0])?, &known.logits) / size,
        exchanged: 0.0,
    };
    let bound = if raised { HALF_BOUND } else { BOUND };
    // Written so that a NaN is refused, too.
    let within = |value: f64| value <= bound;
    for (layer, answer) in answers[1..].iter().enumerate() {
        let off = gap(&logits(answer)?, &expected) / size;
        if !within(off) {
            let reason = format!(
                "the logits depend on more than hidden state {layer}: exchanging it leaves {off:.1e} of the largest"
            );
            return Err(Refusal::new(Code::Measured, reason));
        }
        measures.exchanged = measures.exchanged.max(off);
    }
    for (what, off) in [("editing nothing", measures.neutral), ("states put back", measures.itself)] {
        if !within(off) {
            let reason =
                format!("{what}, the intervention graph's logits are off by {off:.1e} of the largest");
            return Err(Refusal::new(Code::Measured, reason));
        }
    }
    Ok(measures)
}

/// Every row gets the next row's values, the last row the first's.
fn rolled(tensor: &Tensor, count: usize) -> Tensor {
    let stride = tensor.data().len() / count;
    let data = [&tensor.data()[stride..], &tensor.data()[..stride]].concat();
    Tensor::new(tensor.element(), tensor.dims().to_vec(), data.into()).unwrap_or_else(|_| tensor.clone())
}
