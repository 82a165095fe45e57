//! Where a model's attention probabilities can be read, and their gradients, if they can be had.

use std::sync::Arc;

use super::{
    EmbeddedGraph, Unavailable,
    derived::{Bench, Wires, by_token, layout, opened, refused, unavailable},
    graphs,
};
use crate::{
    compile::{
        Compiled,
        anatomy::Pooling,
        attend,
        cut::EMBEDS,
        derive::COTANGENT,
        graph::{Graph as Ir, Value},
        refusal::{Code, Refusal},
    },
    runtime::{Deferred, Dim, Held, OutputSlot, Program, ProgramKind},
};

/// The attention family's graphs, opened when they are first asked for.
pub struct AttentionGraph {
    /// The word embedding.
    pub embedded: EmbeddedGraph,
    /// Heads of each layer.
    pub heads: Vec<usize>,
    reads: Result<Reads, Unavailable>,
    forward: Deferred,
    rollout: Option<Deferred>,
    gradient: Result<Deferred, Unavailable>,
}

/// How it is told which positions of the last hidden state the classifier reads.
pub enum Reads {
    /// One, the same in every text, counted from the front, or from the end when negative.
    Position(i64),
    /// Those that have a gradient: logits and the gradient of the weighted logits with respect to the last hidden state,
    /// `[tokens, width]`. Extras are the embeddings and the cotangent.
    Gradient(Box<Deferred>),
}

impl AttentionGraph {
    /// How it is told which positions the classifier reads.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn reads(&self) -> Result<&Reads, Unavailable> {
        self.reads.as_ref().map_err(Clone::clone)
    }

    /// Logits and each layer's probabilities, `[heads, tokens, tokens]`; its extra is the embeddings.
    ///
    /// # Errors
    /// The graph does not open.
    pub fn forward(&self) -> Result<Arc<Program>, Unavailable> {
        opened(&self.forward)
    }

    /// Logits and each layer's probabilities averaged over heads, `[tokens, tokens]`; where the model keeps rows and
    /// heads in one axis, as [`AttentionGraph::forward`].
    ///
    /// # Errors
    /// The graph does not open.
    pub fn rollout(&self) -> Result<Arc<Program>, Unavailable> {
        self.rollout.as_ref().map_or_else(|| self.forward(), opened)
    }

    /// Logits and each layer's `mean_h (∇A ⊙ A)⁺`, `[tokens, tokens]`; where the model keeps rows and heads in one
    /// axis, each layer's probabilities and then their gradients. Extras are the embeddings and the cotangent.
    ///
    /// # Errors
    /// No gradient can be had, or the graph does not open.
    pub fn gradient(&self) -> Result<Arc<Program>, Unavailable> {
        self.has_gradient().and_then(opened)
    }

    /// The graph of [`AttentionGraph::gradient`], opened or not.
    ///
    /// # Errors
    /// No gradient can be had: every node that stands in the way.
    pub(super) fn has_gradient(&self) -> Result<&Deferred, Unavailable> {
        self.gradient.as_ref().map_err(Clone::clone)
    }
}

/// The name of a layer's output.
type Name = fn(usize) -> Value;

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
    let defer = |graph: &Ir, kind: ProgramKind, names: &[Name]| {
        let output = |name: Name| {
            heads.iter().enumerate().map(move |(layer, &heads)| {
                let square = [Dim::Sequence, Dim::Sequence];
                let name = name(layer);
                let dims = if name == attend::mixed(layer) {
                    square.to_vec()
                } else {
                    [&[Dim::Fixed(heads)], &square[..]].concat()
                };
                OutputSlot { name: name.to_string(), dims }
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
    let whole: [Name; 2] = [attend::probabilities, attend::slope];
    let forward = defer(&attend::forward(&derived.graph), ProgramKind::Forward, &whole[..1])?;
    let rollout = attend::rollout(&derived.graph);
    let rollout = rollout.map(|it| defer(&it, ProgramKind::Forward, &[attend::mixed])).transpose()?;
    let gradient = match &derived.gradient {
        Err(refusal) => Err(refused(refusal.clone())),
        Ok(()) => Ok(match attend::relevance(&derived.graph) {
            Some(graph) => defer(&graph, ProgramKind::Gradient, &[attend::mixed])?,
            None => defer(&derived.graph, ProgramKind::Gradient, &whole)?,
        }),
    };
    let (embedded, reads) = (embedded.clone(), reads(compiled, bench));
    Ok(AttentionGraph { embedded, heads, reads, forward, rollout, gradient })
}

fn reads(compiled: &Compiled, bench: &Bench<'_>) -> Result<Reads, Unavailable> {
    let unknown = || {
        let reason = "it is not known which positions the classifier reads: behind the last layer of attention, no \
                      value of shape [batch, sequence, hidden] is crossed by every path to the logits";
        unavailable(Code::Attention, reason.to_owned())
    };
    let anatomy = &compiled.anatomy;
    match (anatomy.pooling, anatomy.hidden_states.last()) {
        (Pooling::Position(place), _) => Ok(Reads::Position(place)),
        (Pooling::ByText, Some(state)) => {
            let graph = attend::reads(&compiled.forward, state).map_err(|it| {
                let reason = format!("it is not known which positions the classifier reads: {}", it.reason);
                refused(Refusal { reason, ..it })
            })?;
            let fact = compiled.forward.facts.get(state);
            let width = fact.and_then(|it| it.shape.last()?.constant()).ok_or_else(unknown)?;
            let wires = Wires {
                extras: vec![
                    (EMBEDS.to_owned(), by_token(compiled.embedding.hidden)),
                    (COTANGENT.to_owned(), bench.layout.outputs[0].dims.clone()),
                ],
                outputs: vec![OutputSlot { name: attend::STATE_GRAD.to_owned(), dims: by_token(width) }],
            };
            let (layout, runnable) = (layout(&graph, wires, bench)?, graphs::runnable(&graph));
            let program = Held::of(&runnable, bench.weights).and_then(|held| {
                held.defer(bench.runtime, runnable, ProgramKind::Gradient, layout, bench.workers)
            });
            program
                .map(|it| Reads::Gradient(Box::new(it)))
                .map_err(|it| unavailable(Code::Run, it.to_string()))
        }
        (Pooling::ByText | Pooling::Unknown, _) => Err(unknown()),
    }
}
