//! Where a model's hidden states can be read and edited.

use std::sync::Arc;

use super::{
    EmbeddedGraph, Unavailable,
    derived::{Bench, Wires, by_token, layout, opened, refused, unavailable},
    graphs,
};
use crate::{
    compile::{Compiled, Intervention, cut::Cut, intervene, refusal::Code},
    runtime::{Deferred, Held, OutputSlot, Program, ProgramKind},
};

/// The graphs behind the embedding level and the hidden level of perturbation. Those of hidden states are opened
/// when they are first asked for.
pub struct InterventionGraph {
    /// The model from its word embeddings.
    pub embedded: EmbeddedGraph,
    /// The sizes of the hidden states' vectors, the embeddings' output first; empty when layers cannot be told
    /// apart.
    pub widths: Vec<usize>,
    states: Option<Deferred>,
    from: Vec<From>,
}

struct From {
    program: Deferred,
    reads_embeddings: bool,
}

/// The model from one hidden state on.
pub struct Restart {
    /// Logits; the first extra is the hidden state, `[tokens, width]`.
    pub program: Arc<Program>,
    /// Whether the word embeddings are wanted as a second extra, for their lengths or signs.
    pub reads_embeddings: bool,
}

impl InterventionGraph {
    /// Logits and every hidden state, `[tokens, width]`; its extra is the embeddings.
    ///
    /// # Errors
    /// The graph does not open, or the model's layers cannot be told apart.
    pub fn states(&self) -> Result<Arc<Program>, Unavailable> {
        opened(self.states.as_ref().ok_or_else(no_layers)?)
    }

    /// The model from hidden state `layer` on.
    ///
    /// # Errors
    /// The graph does not open, or there is no such layer.
    pub fn from_state(&self, layer: usize) -> Result<Restart, Unavailable> {
        let from = self.from.get(layer).ok_or_else(no_layers)?;
        Ok(Restart { program: opened(&from.program)?, reads_embeddings: from.reads_embeddings })
    }
}

/// The obstacle of a model without hidden states that every path crosses.
pub(super) fn no_layers() -> Unavailable {
    let reason = "the graph has no layers that can be told apart: no value of shape [batch, sequence, hidden] before \
                  each attention is crossed by every path from the embeddings to the logits";
    unavailable(Code::Path, reason.to_owned())
}

/// Prepares the graphs, or says why not.
///
/// # Errors
/// The compiler's refusal.
pub(super) fn intervention(
    compiled: &Compiled,
    embedded: &EmbeddedGraph,
    bench: &Bench<'_>,
) -> Result<InterventionGraph, Unavailable> {
    let Intervention { cut, widths, .. } =
        compiled.intervention.as_ref().map_err(|it| refused(it.clone()))?;
    let (embedded, widths) = (embedded.clone(), widths.clone());
    if widths.is_empty() {
        return Ok(InterventionGraph { embedded, widths, states: None, from: Vec::new() });
    }
    let failed = |error: crate::runtime::RuntimeError| unavailable(Code::Run, error.to_string());
    let states = intervene::states(cut, widths.len());
    let runnable = graphs::runnable(&states.graph);
    let held = Held::of(&runnable, bench.weights).map_err(failed)?;
    let defer = |cut: &Cut, extras: &[(&str, usize)], outputs: Vec<OutputSlot>| {
        let extras = extras.iter().map(|it| (it.0.to_owned(), by_token(it.1))).collect();
        let layout = layout(&cut.graph, Wires { extras, outputs }, bench)?;
        let graph = graphs::runnable(&cut.graph);
        held.defer(bench.runtime, graph, ProgramKind::Forward, layout, bench.workers).map_err(failed)
    };
    let hidden = compiled.embedding.hidden;
    let output = |(layer, &width): (usize, &usize)| OutputSlot {
        name: intervene::state(layer).to_string(),
        dims: by_token(width),
    };
    let outputs = widths.iter().enumerate().map(output).collect();
    let from = |(layer, &width): (usize, &usize)| {
        let cut = intervene::from_state(cut, widths.len(), layer);
        let reads_embeddings = cut.graph.input("inputs_embeds").is_some();
        let extras = [(&*intervene::state(layer), width), ("inputs_embeds", hidden)];
        Ok(From { program: defer(&cut, &extras, Vec::new())?, reads_embeddings })
    };
    let from = widths.iter().enumerate().map(from).collect::<Result<_, Unavailable>>()?;
    let states = Some(defer(&states, &[("inputs_embeds", hidden)], outputs)?);
    Ok(InterventionGraph { embedded, widths, states, from })
}
