//! Where a model's attention probabilities can be read, and their gradients.

use std::sync::Arc;

use super::{
    EmbeddedGraph, Unavailable,
    derived::{Bench, Wires, by_token, layout, refused, unavailable},
    graphs,
};
use crate::{
    compile::{
        Compiled, anatomy::Pooling, attend, cut::EMBEDS, derive::COTANGENT, graph::Graph as Ir, refusal::Code,
    },
    runtime::{Deferred, Dim, Held, OutputSlot, Program, ProgramKind},
};

/// The attention family's graphs, opened when they are first asked for.
pub struct AttentionGraph {
    /// The word embedding.
    pub embedded: EmbeddedGraph,
    /// Heads of each layer.
    pub heads: Vec<usize>,
    /// What the classifier reads of the last hidden state.
    pub pooling: Pooling,
    forward: Deferred,
    gradient: Deferred,
}

impl AttentionGraph {
    /// Logits and each layer's probabilities, `[heads, tokens, tokens]`; its extra is the embeddings.
    ///
    /// # Errors
    /// The graph does not open.
    pub fn forward(&self) -> Result<Arc<Program>, Unavailable> {
        self.forward.get().map_err(|error| unavailable(Code::Run, error.to_string()))
    }

    /// Logits, each layer's probabilities, and the gradients of the weighted logits with respect to them; extras are
    /// the embeddings and the cotangent.
    ///
    /// # Errors
    /// The graph does not open.
    pub fn gradient(&self) -> Result<Arc<Program>, Unavailable> {
        self.gradient.get().map_err(|error| unavailable(Code::Run, error.to_string()))
    }
}

/// Prepares the graphs, or says why not.
///
/// # Errors
/// The compiler's refusal, every node that stands in the way.
pub(super) fn attention(
    compiled: &Compiled,
    embedded: &EmbeddedGraph,
    bench: &Bench<'_>,
) -> Result<AttentionGraph, Unavailable> {
    let derived = compiled.attention.as_ref().map_err(|it| refused(it.clone()))?;
    let failed = |error: crate::runtime::RuntimeError| unavailable(Code::Run, error.to_string());
    let heads: Vec<usize> = compiled.anatomy.attention.iter().map(|it| it.heads).collect();
    let held = Held::of(&graphs::runnable(&derived.graph), bench.weights).map_err(failed)?;
    let defer = |graph: &Ir, kind: ProgramKind| {
        let names: &[fn(usize) -> crate::compile::graph::Value] = match kind {
            ProgramKind::Forward => &[attend::probabilities],
            ProgramKind::Gradient => &[attend::probabilities, attend::slope],
        };
        let output = |name: fn(usize) -> crate::compile::graph::Value| {
            heads.iter().enumerate().map(move |(layer, &heads)| OutputSlot {
                name: name(layer).to_string(),
                dims: vec![Dim::Fixed(heads), Dim::Sequence, Dim::Sequence],
            })
        };
        let embeds = (EMBEDS.to_owned(), by_token(compiled.embedding.hidden));
        let cotangent = (COTANGENT.to_owned(), bench.layout.outputs[0].dims.clone());
        let wires = Wires {
            extras: vec![embeds, cotangent],
            outputs: names.iter().flat_map(|&it| output(it)).collect(),
        };
        let layout = layout(graph, wires, bench)?;
        held.defer(bench.runtime, graphs::runnable(graph), kind, layout, bench.workers).map_err(failed)
    };
    let forward = defer(&attend::forward(&derived.graph), ProgramKind::Forward)?;
    let gradient = defer(&derived.graph, ProgramKind::Gradient)?;
    let (embedded, pooling) = (embedded.clone(), compiled.anatomy.pooling);
    Ok(AttentionGraph { embedded, heads, pooling, forward, gradient })
}
