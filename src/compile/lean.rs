//! This file is where a graph that computes logits is spared what the logits do not need, exactly.

use super::Compiled;
use super::cut::Cut;
use super::graph::{Graph, Port, Type};
use super::measure::{Known, floats, gap, largest, rows};
use super::narrow::{Saving, multiplications, narrow};
use super::probe::Evaluate;
use super::reassociate::reassociate;

/// Largest difference between the logits of the model and of the model with less work, in parts of the largest.
const BOUND: f64 = 1e-4;

/// The graph with positions left out that the classifier does not read, and with what remains of the last layer
/// in the cheaper order; and how much less work that is. `None` when nothing is spared.
pub fn lean(cut: &Cut) -> Option<(Cut, Saving)> {
    let (narrowed, Saving { position, .. }) = narrow(cut)?;
    let lean = reassociate(narrowed);
    let part = 1.0 - multiplications(&lean) / multiplications(cut).max(1.0);
    Some((lean, Saving { position, part }))
}

/// The model from token ids to logits with less work, measured against the model on a batch and on a row alone.
///
/// `None` when nothing is spared, and for files that are better run as they are: in half precision, with fused
/// operators, which would have to be taken apart, or with branches, of which one was taken for good.
pub fn forward(compiled: &Compiled, known: &Known, evaluate: Evaluate<'_>) -> Option<Graph> {
    if compiled.raised || compiled.lowered || compiled.folded {
        return None;
    }
    let mut graph = compiled.graph.clone();
    graph.outputs = vec![Port { value: compiled.logits.value.clone(), ty: Type::Other(Box::default()) }];
    graph.prune();
    let graph = lean(&Cut { graph, facts: compiled.probe.facts.clone() })?.0.graph;
    let batches = [known.batch.clone(), rows(&known.batch, 0, 1)];
    let answers = floats(evaluate(&graph, &batches).ok()?).ok()?;
    let alone = known.logits.get(..known.logits.len() / known.rows)?;
    let gap = gap(answers.first()?, &known.logits).max(self::gap(answers.get(1)?, alone));
    (gap <= BOUND * largest(&known.logits)).then_some(graph)
}
