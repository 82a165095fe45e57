//! This file is where relevance graphs are admitted by measurement: do they compute the model's logits, and do
//! their books close?

use super::{ABSORBED, HEADS, LAYERS, NEURONS, RELEVANCE};
use crate::compile::Compiled;
use crate::compile::cut::{EMBEDS, LOGITS};
use crate::compile::derive::COTANGENT;
use crate::compile::graph::{Element, Graph, Tensor};
use crate::compile::measure::{TRIAL, embed, gap, largest};
use crate::compile::probe::{Batch, Evaluate, Hints, batch_of};
use crate::compile::refusal::{Code, Refusal};

/// What was measured on a few made-up rows.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Audit {
    /// Largest difference between the graph's logits and the forward graph's, in parts of their largest.
    pub logits: f64,
    /// Largest difference between the explained logit and what reached the embeddings or was absorbed, and the same
    /// at every hidden state, in parts of the relevance in play (the sizes of all tokens' and all absorbed together).
    pub books: f64,
}

/// Above these, a graph is not offered.
const LOGITS_BOUND: f64 = 1e-3;
const BOOKS_BOUND: f64 = 1e-3;

/// A difference from the derived graph above this, in parts of the largest, and a graph made elsewhere is another.
const OTHER_BOUND: f64 = 1e-2;

/// Measures a relevance graph of `compiled`.
///
/// # Errors
/// A graph that does not run, has other outputs, computes other logits, or loses relevance.
pub fn audit(
    compiled: &Compiled,
    derived: &Graph,
    hints: &Hints,
    evaluate: Evaluate<'_>,
) -> Result<Audit, Refusal> {
    let trial = Trial::of(compiled, hints, evaluate)?;
    let outputs = trial.run(derived, evaluate)?;
    trial.audit(&outputs)
}

/// Measures a relevance graph of `compiled` that was made elsewhere, and compares it with the derived one, if there is
/// one: books close wherever relevance went.
///
/// # Errors
/// As [`audit`]; or its relevance is not the derived graph's.
pub fn audit_given(
    compiled: &Compiled,
    given: &Graph,
    derived: Option<&Graph>,
    hints: &Hints,
    evaluate: Evaluate<'_>,
) -> Result<Audit, Refusal> {
    let trial = Trial::of(compiled, hints, evaluate)?;
    let outputs = trial.run(given, evaluate)?;
    let audit = trial.audit(&outputs)?;
    let Some(expected) = derived.and_then(|it| trial.run(it, evaluate).ok()) else { return Ok(audit) };
    for name in [RELEVANCE, ABSORBED, LAYERS, HEADS, NEURONS] {
        let (Some(found), Some(expected)) = (outputs.of(name), expected.of(name)) else { continue };
        let off = gap(&found, &expected) / largest(&expected);
        if off > OTHER_BOUND {
            let reason = format!("its {name} is off by {off:.1e} of the derived graph's largest");
            return Err(Refusal::new(Code::Measured, reason));
        }
    }
    Ok(audit)
}

/// Made-up rows, each explaining another label.
struct Trial {
    batch: Batch,
    /// The model's logits.
    known: Vec<f64>,
    /// What is explained of them.
    seeds: Vec<f64>,
    rows: usize,
}

/// What a graph answered.
struct Outputs<'a> {
    graph: &'a Graph,
    values: Vec<Option<Tensor>>,
}

impl Outputs<'_> {
    fn of(&self, name: &str) -> Option<Vec<f64>> {
        let place = self.graph.outputs.iter().position(|it| &*it.value == name)?;
        self.values.get(place)?.as_ref()?.to_f64()
    }
}

fn missing(name: &str) -> Refusal {
    Refusal::new(Code::Run, format!("no output {name}"))
}

impl Trial {
    fn of(compiled: &Compiled, hints: &Hints, evaluate: Evaluate<'_>) -> Result<Self, Refusal> {
        let mut batch = batch_of(&compiled.graph, TRIAL, hints)?;
        batch.push((EMBEDS.into(), embed(compiled, &batch)?));
        let rows = batch[0].1.dims()[0].max(1);
        let mut trial = Self { batch, known: Vec::new(), seeds: Vec::new(), rows };
        let known = trial.run(&compiled.forward.graph, evaluate)?.values.into_iter().next().flatten();
        trial.known = known.and_then(|it| it.to_f64()).ok_or_else(|| missing(LOGITS))?;
        let count = trial.known.len();
        let labels = count / rows;
        let seed = |at: usize| f64::from(u8::from(at % labels == (at / labels) % labels));
        trial.seeds = (0..count).map(seed).collect();
        let element = trial.batch.last().map_or(Element::F32, |it| it.1.element());
        trial.batch.push((COTANGENT.into(), Tensor::from_f64(element, &[rows, labels], &trial.seeds)));
        Ok(trial)
    }

    fn run<'a>(&self, graph: &'a Graph, evaluate: Evaluate<'_>) -> Result<Outputs<'a>, Refusal> {
        let runs = evaluate(graph, std::slice::from_ref(&self.batch));
        let runs = runs.map_err(|error| Refusal::new(Code::Run, error))?;
        let values = runs.into_iter().next().ok_or_else(|| Refusal::new(Code::Run, "a run is missing"))?;
        Ok(Outputs { graph, values })
    }

    fn audit(&self, outputs: &Outputs<'_>) -> Result<Audit, Refusal> {
        let Self { known, seeds, rows, .. } = self;
        let rows = *rows;
        let labels = known.len() / rows;
        let need = |name: &'static str| outputs.of(name).ok_or_else(|| missing(name));
        let (logits, tokens, absorbed) = (need(LOGITS)?, need(RELEVANCE)?, need(ABSORBED)?);
        if logits.len() != known.len() || tokens.len() % rows != 0 || absorbed.len() % rows != 0 {
            return Err(Refusal::new(Code::Measured, "its outputs have the wrong shape"));
        }
        let (length, segments) = (tokens.len() / rows, absorbed.len() / rows);
        let layers = outputs.of(LAYERS).filter(|it| it.len() == rows * (segments - 1) * length);
        let mut books: f64 = 0.0;
        for row in 0..rows {
            let explained: f64 = (row * labels..(row + 1) * labels).map(|it| known[it] * seeds[it]).sum();
            let absorbed = &absorbed[row * segments..(row + 1) * segments];
            let tokens = &tokens[row * length..(row + 1) * length];
            let mut gaps = vec![tokens.iter().sum::<f64>() + absorbed.iter().sum::<f64>() - explained];
            for (state, sum) in layers.iter().flat_map(|it| {
                let row = &it[row * (segments - 1) * length..(row + 1) * (segments - 1) * length];
                row.chunks(length).map(|it| it.iter().sum::<f64>()).enumerate()
            }) {
                gaps.push(sum + absorbed[state + 1..].iter().sum::<f64>() - explained);
            }
            let play: f64 = tokens.iter().chain(absorbed).map(|it| it.abs()).sum::<f64>() + explained.abs();
            let worst = gaps
                .iter()
                .fold(0.0, |worst: f64, it| if it.is_nan() { f64::INFINITY } else { worst.max(it.abs()) });
            books = books.max(worst / play.max(f64::MIN_POSITIVE));
        }
        let audit = Audit { logits: gap(&logits, known) / largest(known), books };
        audit.admit().map(|()| audit)
    }
}

impl Audit {
    fn admit(&self) -> Result<(), Refusal> {
        // Written so that a NaN is refused, too.
        let within = |value: f64, bound: f64| value <= bound;
        if !within(self.logits, LOGITS_BOUND) {
            let reason = format!("the derived graph's logits are off by {:.1e} of the largest", self.logits);
            return Err(Refusal::new(Code::Measured, reason));
        }
        if !within(self.books, BOOKS_BOUND) {
            let reason =
                format!("relevance is lost: the books are open by {:.1e} of what is in play", self.books);
            return Err(Refusal::new(Code::Measured, reason));
        }
        Ok(())
    }
}
