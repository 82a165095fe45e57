//! This file is where texts much shorter and much longer than the probes are tried: what is derived from two lengths must
//! hold at others.

use super::{HALF_LOGITS_BOUND, LOGITS_BOUND, complete, embed, floats, gap, largest};
use crate::compile::Compiled;
use crate::compile::cut::{EMBEDS, LOGITS};
use crate::compile::graph::{Graph, Port, Value};
use crate::compile::probe::{Batch, Evaluate, Hints, batch_of};
use crate::compile::refusal::{Code, Refusal};

/// Rows and tokens.
const SIZES: [(usize, usize); 3] = [(2, 3), (2, 38), (1, 131)];

/// What a model answers to texts of other lengths.
#[derive(Debug, Clone, Default)]
pub struct Lengths {
    /// Batches and the output, row-major; a length at which the file itself does not run is left out.
    pub answers: Vec<(Batch, Vec<f64>)>,
}

impl Lengths {
    /// Asks the model, `original` as it was read, and compares what its structure was learned from.
    ///
    /// # Errors
    /// At some length the two differ: a branch was taken for good, or token ids are cut off.
    pub fn of(
        original: &Graph,
        compiled: &Compiled,
        hints: &Hints,
        evaluate: Evaluate<'_>,
    ) -> Result<Self, Refusal> {
        let value = |graph: &Graph, value: &Value, batch: &Batch| {
            let mut graph = graph.clone();
            let ty = compiled.logits.output.ty.clone();
            graph.outputs = vec![Port { value: value.clone(), ty }];
            Some(floats(complete(&graph, std::slice::from_ref(batch), evaluate).ok()?).ok()?.swap_remove(0))
        };
        let output = &compiled.logits.output.value;
        let bound = if compiled.raised { HALF_LOGITS_BOUND } else { LOGITS_BOUND };
        let same = |found: Option<Vec<f64>>, known: &[f64]| {
            found.is_some_and(|it| gap(&it, known) <= bound * largest(known))
        };
        let mut answers = Vec::new();
        for size @ (rows, tokens) in SIZES {
            let batch = batch_of(original, size, hints)?;
            if batch.iter().any(|it| it.1.dims() != [rows, tokens]) {
                continue;
            }
            let Some(answer) = value(original, output, &batch) else { continue };
            let inner = match &compiled.logits.activation {
                Some(_) => value(&compiled.graph, &compiled.logits.value, &batch).unwrap_or_default(),
                None => answer.clone(),
            };
            let mut embedded = batch.clone();
            embedded.push((EMBEDS.into(), embed(compiled, &batch)?));
            if !same(value(&compiled.graph, output, &batch), &answer)
                || !same(value(&compiled.forward.graph, &LOGITS.into(), &embedded), &inner)
            {
                let reason =
                    format!("the model does something else to texts of {tokens} tokens than to those tried");
                return Err(Refusal::new(Code::Measured, reason));
            }
            answers.push((batch, answer));
        }
        Ok(Self { answers })
    }
}
