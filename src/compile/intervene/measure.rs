//! This file is where an intervention graph is admitted by measurement: it computes the model's logits when it edits
//! nothing, and every hidden state is all that the logits depend on.

use super::{add, keep, state};
use crate::compile::Compiled;
use crate::compile::cut::{EMBEDS, LOGITS};
use crate::compile::graph::{Element, Graph, Port, Tensor};
use crate::compile::measure::{embed, floats, gap, largest, rows};
use crate::compile::probe::{Batch, Evaluate, Hints, batch_of};
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

/// Rows and tokens of the test; both differ from the probes'.
const ROWS: usize = 4;
const TOKENS: usize = 9;

/// Above these, the graph is not offered. A half-precision model's own rounding stands between its logits and
/// exact ones.
const BOUND: f64 = 1e-3;
const HALF_BOUND: f64 = 0.05;

/// Measures the intervention graph `derived` of `compiled`, with `layers` hidden states, against `original`.
///
/// # Errors
/// The graph does not run, or is wrong: which hidden state does not carry everything.
pub fn measure(
    original: &Graph,
    compiled: &Compiled,
    (derived, layers): (&Graph, usize),
    hints: &Hints,
    evaluate: Evaluate<'_>,
) -> Result<Replaced, Refusal> {
    let run = |graph: &Graph, batches: &[Batch]| {
        let runs = evaluate(graph, batches).map_err(|error| Refusal::new(Code::Run, error))?;
        let complete = runs.len() == batches.len();
        if complete { Ok(runs) } else { Err(Refusal::new(Code::Run, "a run is missing")) }
    };
    let batch = batch_of(original, (ROWS, TOKENS), hints)?;
    let count = batch[0].1.dims().first().copied().unwrap_or(1).max(1);
    let model = with_logits(original, compiled);
    let known = match run(&model, std::slice::from_ref(&batch)).and_then(floats) {
        Ok(mut answers) => answers.swap_remove(0),
        // Some exports run one row at a time only; what is derived from them may run more.
        Err(_) => {
            let apart: Vec<Batch> = (0..count).map(|row| rows(&batch, row, 1)).collect();
            floats(run(&model, &apart)?)?.concat()
        }
    };
    let size = largest(&known);
    let embeds = embed(compiled, &batch)?;
    let element = |layer: usize| derived.input(&keep(layer)).and_then(Port::element).unwrap_or(Element::F32);
    let edited = |edit: &dyn Fn(usize) -> Option<Tensor>| -> Batch {
        let mut batch = batch.clone();
        batch.push((EMBEDS.into(), embeds.clone()));
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
    let neutral = run(derived, &[edited(&|_| None)])?.swap_remove(0);
    let states: Vec<Tensor> =
        (0..layers).map(|layer| taken(&neutral, &state(layer))).collect::<Result<_, _>>()?;
    let mut replaced = vec![edited(&|layer| states.get(layer).cloned())];
    replaced.extend((0..layers).map(|which| {
        edited(&|layer| states.get(layer).filter(|_| layer == which).map(|it| rolled(it, count)))
    }));
    let answers = run(derived, &replaced)?;
    let width = known.len() / count;
    let expected = [&known[width..], &known[..width]].concat();
    let mut measures = Replaced {
        neutral: gap(&logits(&neutral)?, &known) / size,
        itself: gap(&logits(&answers[0])?, &known) / size,
        exchanged: 0.0,
    };
    let bound = if compiled.raised { HALF_BOUND } else { BOUND };
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

/// The model with the scores before any final activation as its only output.
fn with_logits(original: &Graph, compiled: &Compiled) -> Graph {
    let logits = &compiled.logits;
    let mut model = if logits.activation.is_some() { compiled.graph.clone() } else { original.clone() };
    model.outputs.retain(|it| it.value == logits.output.value);
    if logits.activation.is_some() {
        model.outputs.iter_mut().for_each(|it| it.value = logits.value.clone());
    }
    model
}

/// Every row gets the next row's values, the last row the first's.
fn rolled(tensor: &Tensor, count: usize) -> Tensor {
    let stride = tensor.data().len() / count;
    let data = [&tensor.data()[stride..], &tensor.data()[..stride]].concat();
    Tensor::new(tensor.element(), tensor.dims().to_vec(), data.into()).unwrap_or_else(|_| tensor.clone())
}
