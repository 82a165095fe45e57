//! This file is where relevance graphs are admitted by measurement: do they compute the model's logits, and do
//! their books close?

use super::{ABSORBED, LAYERS, RELEVANCE};
use crate::compile::Compiled;
use crate::compile::cut::{EMBEDS, LOGITS};
use crate::compile::derive::COTANGENT;
use crate::compile::graph::{Graph, Tensor};
use crate::compile::measure::{TRIAL, embed};
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

/// Measures a relevance graph of `compiled`, the graph's own or one that was made elsewhere.
///
/// # Errors
/// A graph that does not run, has other outputs, computes other logits, or loses relevance.
pub fn audit(
    compiled: &Compiled,
    derived: &Graph,
    hints: &Hints,
    evaluate: Evaluate<'_>,
) -> Result<Audit, Refusal> {
    let run = |graph: &Graph, batch: Batch| {
        let runs = evaluate(graph, &[batch]).map_err(|error| Refusal::new(Code::Run, error))?;
        runs.into_iter().next().ok_or_else(|| Refusal::new(Code::Run, "a run is missing"))
    };
    let mut batch = batch_of(&compiled.graph, TRIAL, hints)?;
    batch.push((EMBEDS.into(), embed(compiled, &batch)?));
    let known = run(&compiled.forward.graph, batch.clone())?.into_iter().next().flatten();
    let missing = |name: &str| Refusal::new(Code::Run, format!("no output {name}"));
    let known = known.and_then(|it| it.to_f64()).ok_or_else(|| missing(LOGITS))?;
    let rows = batch[0].1.dims()[0].max(1);
    let labels = known.len() / rows;
    // Each row explains another label.
    let seed = |at: usize| f64::from(u8::from(at % labels == (at / labels) % labels));
    let seeds: Vec<f64> = (0..known.len()).map(seed).collect();
    let element = batch.last().map_or(crate::compile::graph::Element::F32, |it| it.1.element());
    batch.push((COTANGENT.into(), Tensor::from_f64(element, &[rows, labels], &seeds)));
    let outputs = run(derived, batch)?;
    let of = |name: &str| {
        let place = derived.outputs.iter().position(|it| &*it.value == name)?;
        outputs.get(place)?.as_ref()?.to_f64()
    };
    let need = |name: &'static str| of(name).ok_or_else(|| missing(name));
    let (logits, tokens, absorbed) = (need(LOGITS)?, need(RELEVANCE)?, need(ABSORBED)?);
    if logits.len() != known.len() || tokens.len() % rows != 0 || absorbed.len() % rows != 0 {
        return Err(Refusal::new(Code::Measured, "its outputs have the wrong shape"));
    }
    let (length, segments) = (tokens.len() / rows, absorbed.len() / rows);
    let layers = of(LAYERS).filter(|it| it.len() == rows * (segments - 1) * length);
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
    let size = known.iter().fold(f64::MIN_POSITIVE, |size, it| size.max(it.abs()));
    let gap = logits.iter().zip(&known).map(|(a, b)| (a - b).abs());
    let gap = gap.fold(0.0, |gap: f64, it| if it.is_nan() { f64::INFINITY } else { gap.max(it) });
    let audit = Audit { logits: gap / size, books };
    audit.admit().map(|()| audit)
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
