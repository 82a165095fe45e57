//! This file is where texts much shorter and much longer than the probes are tried: what is derived from two lengths must
//! hold at others.

use super::{HALF_LOGITS_BOUND, LOGITS_BOUND, complete, embed, floats, gap, largest};
use crate::compile::Compiled;
use crate::compile::cut::{EMBEDS, LOGITS};
use crate::compile::graph::{Graph, Port, Value};
use crate::compile::probe::{Batch, Evaluate, Hints, batch_ending, batch_of};
use crate::compile::refusal::{Code, Refusal};

/// Rows, tokens, and how often a row holds the token that ends a sequence.
const SIZES: [(usize, usize, usize); 3] = [(2, 3, 1), (2, 38, 2), (1, 131, 1)];

/// A row of the model's greatest length is tried, too, but for one beyond this, which would take long.
const LONGEST: usize = 512;

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
        let output = &compiled.logits.output.value;
        let values = |graph: &Graph, value: &Value, batches: &[Batch]| {
            let mut graph = graph.clone();
            let ty = compiled.logits.output.ty.clone();
            graph.outputs = vec![Port { value: value.clone(), ty }];
            floats(complete(&graph, batches, evaluate).ok()?).ok()
        };
        let (_, usual, _) = SIZES[SIZES.len() - 1];
        let longest = hints.max_length.map(|it| it.min(LONGEST)).filter(|&it| it > usual);
        let sizes = SIZES.into_iter().chain(longest.map(|it| (1, it, 1)));
        let mut batches = Vec::new();
        for (rows, tokens, ends) in sizes {
            let batch = batch_ending(original, (rows, tokens), ends, hints)?;
            if batch.iter().all(|it| it.1.dims() == [rows, tokens]) {
                batches.push((batch, ends));
            }
        }
        let all: Vec<Batch> = batches.iter().map(|it| it.0.clone()).collect();
        let (batches, found) = match values(original, output, &all) {
            Some(found) => (all, found),
            None => {
                // Some lengths are beyond the model's own table of positions, and some models expect one end in a row.
                let run = |batch: Batch| {
                    let found = values(original, output, std::slice::from_ref(&batch))?.swap_remove(0);
                    Some((batch, found))
                };
                let fewer = |batch: &Batch| {
                    batch_of(original, (batch[0].1.dims()[0], batch[0].1.dims()[1]), hints).ok()
                };
                let either = |(batch, ends): (Batch, usize)| {
                    let other = if ends > 1 { fewer(&batch) } else { None };
                    run(batch).or_else(|| run(other?))
                };
                batches.into_iter().filter_map(either).unzip()
            }
        };
        let inner = match &compiled.logits.activation {
            Some(_) => values(&compiled.graph, &compiled.logits.value, &batches).unwrap_or_default(),
            None => found.clone(),
        };
        let embedded = |batch: &Batch| {
            let mut batch = batch.clone();
            batch.push((EMBEDS.into(), embed(compiled, &batch)?));
            Ok(batch)
        };
        let embedded: Vec<Batch> = batches.iter().map(embedded).collect::<Result<_, _>>()?;
        let bound = if compiled.raised { HALF_LOGITS_BOUND } else { LOGITS_BOUND };
        // The longest row takes long, and what is behind the embeddings tells as much where no activation follows.
        let within = |it: &Batch| compiled.logits.activation.is_some() || it[0].1.dims()[1] <= usual;
        let reread = batches.iter().take_while(|it| within(it)).count();
        let read = values(&compiled.graph, output, &batches[..reread]).unwrap_or_default();
        let behind = values(&compiled.forward.graph, &LOGITS.into(), &embedded).unwrap_or_default();
        for (place, batch) in batches.iter().enumerate() {
            let same = |answers: &[Vec<f64>], known: &[Vec<f64>]| match (answers.get(place), known.get(place))
            {
                (Some(answer), Some(known)) => gap(answer, known) <= bound * largest(known),
                _ => false,
            };
            if (place < reread && !same(&read, &found)) || !same(&behind, &inner) {
                let tokens = batch[0].1.dims()[1];
                let reason =
                    format!("the model does something else to texts of {tokens} tokens than to those tried");
                return Err(Refusal::new(Code::Measured, reason));
            }
        }
        let answers = batches.into_iter().zip(found).collect();
        Ok(Self { answers })
    }
}
