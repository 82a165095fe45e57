//! This file is where the compiler begins: it reads ONNX graphs and derives new ones from them.
//!
//! It works once, when a model is opened. It is pure: no I/O, no lock, no clock, no setting; running a graph
//! to learn its shapes is the caller's, through a closure.

pub mod activity;
pub mod builder;
pub mod cut;
pub mod derive;
pub mod facts;
mod fold;
pub mod gradient;
pub mod graph;
pub mod locate;
pub mod normalise;
pub mod onnx;
pub mod ops;
pub mod probe;
pub mod refusal;
pub mod reverse;

use cut::Cut;
use graph::Graph;
use locate::{Embedding, Logits};
use probe::{Evaluate, Hints, Probe};
use refusal::{Code, Refusal};

pub use onnx::read::{ReadError, no_external, read};
pub use onnx::write::{Split, write, write_split};

/// A model whose structure is known.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The model in the dialect that graphs are derived in, its `If`s of constant condition replaced.
    pub graph: Graph,
    /// What two runs of it told.
    pub probe: Probe,
    /// Where token ids become vectors.
    pub embedding: Embedding,
    /// Which value holds the scores.
    pub logits: Logits,
    /// The forward graph from embeddings to logits: what gradients are gradients of, without their nodes.
    pub forward: Cut,
    /// The gradient graph, or all that stands in its way.
    pub gradient: Result<Graph, Refusal>,
}

impl Compiled {
    /// Finds the structure of a model and derives its graphs. `evaluate` runs graphs for it.
    ///
    /// Refused when no graph at all can be derived; black-box methods work all the same.
    pub fn open(graph: Graph, hints: &Hints, evaluate: Evaluate<'_>) -> Result<Self, Refusal> {
        let mut graph = graph;
        let flattening = normalise::normalise(&mut graph)?;
        let mut probe = probe::probe(&graph, hints, evaluate)?;
        while fold::branches(&mut graph, &probe.facts) {
            normalise::constants(&mut graph);
            probe = probe::probe(&graph, hints, evaluate)?;
        }
        for value in flattening {
            let rank = probe.facts.get(&value).map_or(0, |it| it.rank() as i64);
            let node = graph.nodes.iter().find(|it| it.outputs.first() == Some(&value));
            if node.is_some_and(|it| it.int("axis") != Some(rank - 1)) {
                let reason = format!("{value} is a Softmax of an opset below 13 over several axes");
                return Err(Refusal::new(Code::Opset, reason));
            }
        }
        let ids = locate::ids_name(&graph)?;
        let embedding = locate::embedding(&graph, &probe)?;
        let logits = locate::logits(&graph, &probe)?;
        let forward = cut::cut(&graph, &probe.facts, &embedding, &logits, &ids);
        let gradient = derive::gradient(&forward).map(|it| it.0);
        Ok(Self { graph, probe, embedding, logits, forward, gradient })
    }
}
