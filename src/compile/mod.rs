//! This file is where the compiler begins: it reads ONNX graphs and derives new ones from them.
//!
//! It works once, when a model is opened. It is pure: no I/O, no lock, no clock, no setting; running a graph
//! to learn its shapes is the caller's, through a closure.

pub mod activity;
pub mod anatomy;
pub mod attend;
pub mod builder;
pub mod canonize;
pub mod composite;
pub mod cut;
pub mod derive;
pub mod facts;
mod fold;
pub mod fuse;
pub mod gradient;
pub mod graph;
pub mod intervene;
pub mod lean;
pub mod locate;
pub mod measure;
pub mod narrow;
pub mod normalise;
pub mod onnx;
pub mod ops;
mod precision;
pub mod probe;
mod reassociate;
pub mod refusal;
pub mod relevance;
pub mod reverse;

use anatomy::Anatomy;
use attend::AttentionDerived;
use composite::Composite;
use cut::Cut;
use graph::{Axis, Graph, Tensor};
use intervene::Replaced;
use locate::{Embedding, Logits};
use measure::{Export, Known, Lengths, Measures};
use probe::{Evaluate, Hints, Probe};
use refusal::{Code, Refusal};
use relevance::Relevance;

pub use onnx::read::{ReadError, no_external, read};
pub use onnx::write::{Split, write, write_split};

/// A model whose structure is known.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The model in the dialect that graphs are derived in: float32, its `If`s of constant condition replaced.
    pub graph: Graph,
    /// What two runs of it told.
    pub probe: Probe,
    /// Where token ids become vectors.
    pub embedding: Embedding,
    /// Which value holds the scores.
    pub logits: Logits,
    /// The forward graph from embeddings to logits: what gradients are gradients of, without their nodes.
    pub forward: Cut,
    /// The parts of the model; empty when nothing lies between embeddings and logits.
    pub anatomy: Anatomy,
    /// Was the model in half precision?
    pub raised: bool,
    /// Did operators that do the work of several have to be taken apart?
    pub lowered: bool,
    /// Was a branch taken for good? The file takes the other one for texts of other lengths than were tried.
    pub folded: bool,
    /// The model itself with less work, where that is worth having; see [`lean::forward`].
    pub lean: Option<Graph>,
    /// Why the export itself is wrong, or is not what was learned of it, if that was found: nothing is derived from it.
    pub wrong: Option<Refusal>,
    /// The gradient graph, or all that stands in its way.
    pub gradient: Result<Derived, Refusal>,
    /// The intervention graph, or what stands in its way.
    pub intervention: Result<Intervention, Refusal>,
    /// The attention graph, with gradients where rules allow it, or what stands in its way.
    pub attention: Result<AttentionDerived, Refusal>,
    /// What became of graphs that were made elsewhere.
    pub elsewhere: Elsewhere,
}

/// Graphs that were made elsewhere: taken, or why not; `None` where none was given.
#[derive(Debug, Clone, Default)]
pub struct Elsewhere {
    /// The gradient graph.
    pub gradient: Option<Result<(), Refusal>>,
    /// The intervention graph.
    pub intervention: Option<Result<(), Refusal>>,
    /// The attention graph.
    pub attention: Option<Result<(), Refusal>>,
}

/// Derived graphs that were made elsewhere, and what those that are made here may hold.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// May the gradient graph hold operators that only this process has? Such a graph cannot be exported.
    pub kernels: bool,
    /// See [`derive::gradient`].
    pub gradient: Option<Graph>,
    /// See [`intervene::intervention`].
    pub intervention: Option<Graph>,
    /// See [`attend::attention`].
    pub attention: Option<Graph>,
}

/// An intervention graph that was measured and admitted.
#[derive(Debug, Clone)]
pub struct Intervention {
    /// The graph; see [`intervene::intervention`] for its inputs and outputs. Nothing is known of the values of a
    /// graph that was made elsewhere.
    pub cut: Cut,
    /// The size of each hidden state's last axis; empty when layers cannot be told apart.
    pub widths: Vec<usize>,
    /// What the measurement said.
    pub measures: Replaced,
}

impl Intervention {
    fn of(cut: Cut, known: &Known, raised: bool, evaluate: Evaluate<'_>) -> Result<Self, Refusal> {
        let width = |layer| match cut.graph.output(&intervene::state(layer))?.dims()? {
            [_, _, Axis::Fixed(width)] => Some(*width),
            _ => None,
        };
        let widths: Vec<usize> = (0..).map_while(width).collect();
        let measures = intervene::measure(known, raised, (&cut.graph, widths.len()), evaluate)?;
        Ok(Self { cut, widths, measures })
    }
}

/// What was made elsewhere, if there is one and it is admitted; what is made here otherwise. And what became of the former.
fn either<G, T>(
    given: Option<G>,
    admit: impl Fn(G) -> Result<T, Refusal>,
    make: impl FnOnce(&dyn Fn(G) -> Result<T, Refusal>) -> Result<T, Refusal>,
) -> (Result<T, Refusal>, Option<Result<(), Refusal>>) {
    match given.map(&admit) {
        Some(Ok(taken)) => (Ok(taken), Some(Ok(()))),
        Some(Err(refusal)) => (make(&admit), Some(Err(refusal))),
        None => (make(&admit), None),
    }
}

fn not_yet() -> Refusal {
    Refusal::new(Code::Path, "not derived yet")
}

/// A derived graph that was measured and admitted.
#[derive(Debug, Clone)]
pub struct Derived {
    /// The graph; see [`derive::gradient`] for its inputs and outputs.
    pub graph: Graph,
    /// What the measurement said.
    pub measures: Measures,
}

impl Compiled {
    /// Finds the structure of a model, derives its graphs and measures them. `evaluate` runs graphs for it.
    ///
    /// Refused when no graph at all can be derived; black-box methods work all the same.
    pub fn open(original: Graph, hints: &Hints, evaluate: Evaluate<'_>) -> Result<Self, Refusal> {
        Self::with(original, Given::default(), hints, evaluate)
    }

    /// As [`Compiled::open`], with derived graphs that were made elsewhere. They are measured all the same, and one that
    /// does not measure up is derived here.
    ///
    /// # Errors
    /// As [`Compiled::open`].
    pub fn with(
        original: Graph,
        given: Given,
        hints: &Hints,
        evaluate: Evaluate<'_>,
    ) -> Result<Self, Refusal> {
        let mut it = Self::structure(original.clone(), hints, evaluate)?;
        let export = Export::of(&original, &it, hints, evaluate);
        let lengths = |export| Ok((export, Lengths::of(&original, &it, hints, evaluate)?));
        let (export, lengths) = match export.and_then(lengths) {
            Ok(both) => both,
            Err(refusal) => {
                // Whatever is read off a wrong export, or off one branch of two, is wrong.
                (it.gradient, it.intervention) = (Err(refusal.clone()), Err(refusal.clone()));
                (it.attention, it.wrong) = (Err(refusal.clone()), Some(refusal.clone()));
                let refused = |given: Option<Graph>| given.map(|_| Err(refusal.clone()));
                it.elsewhere = Elsewhere {
                    gradient: refused(given.gradient),
                    intervention: refused(given.intervention),
                    attention: refused(given.attention),
                };
                return Ok(it);
            }
        };
        let (gradient, taken) = either(
            given.gradient,
            |graph| {
                let measures = measure::measure((&export, &lengths), &it, &graph, evaluate)?;
                Ok(Derived { graph, measures })
            },
            |admit| derive::gradient_with(&it.forward, given.kernels).and_then(|made| admit(made.0)),
        );
        (it.gradient, it.elsewhere.gradient) = (gradient, taken);
        let known = Known::of(&original, &it, hints, evaluate);
        let known = known.as_ref().map_err(Clone::clone);
        let (intervention, taken) = either(
            given.intervention.map(|graph| Cut { graph, facts: facts::Facts::default() }),
            |cut| Intervention::of(cut, known.clone()?, it.raised, evaluate),
            |admit| intervene::intervention(&it.forward, &it.anatomy.hidden_states).and_then(admit),
        );
        (it.intervention, it.elsewhere.intervention) = (intervention, taken);
        it.lean = known.as_ref().ok().and_then(|known| lean::forward(&it, known, evaluate));
        let (attention, taken) = either(
            given.attention,
            |graph| AttentionDerived::given(&it, graph, known.clone()?, evaluate),
            |_| AttentionDerived::of(&it, known.clone()?, evaluate),
        );
        (it.attention, it.elsewhere.attention) = (attention, taken);
        Ok(it)
    }

    /// Finds the structure of a model and derives nothing: the gradient counts as refused.
    ///
    /// # Errors
    /// As [`Compiled::open`].
    pub fn structure(mut graph: Graph, hints: &Hints, evaluate: Evaluate<'_>) -> Result<Self, Refusal> {
        let flattening = normalise::normalise(&mut graph)?;
        let raised = precision::raise(&mut graph);
        refusal::refuse_quantised(&graph)?;
        let mut lowered = canonize::lower(&mut graph);
        // What the file declares is not true of what is derived from it.
        graph.types.clear();
        let mut probe = probe::probe(&graph, hints, evaluate)?;
        let mut folded = false;
        loop {
            let branches = fold::branches(&mut graph, &probe.facts);
            folded |= branches;
            let measured = canonize::lower_measured(&mut graph, &probe.facts);
            lowered |= measured;
            if !(branches | measured) {
                break;
            }
            normalise::constants(&mut graph);
            probe = probe::probe(&graph, hints, evaluate)?;
        }
        normalise::check_flattening(&graph, &probe.facts, &flattening)?;
        fold::idle(&mut graph, &probe.facts);
        let ids = locate::ids_name(&graph)?;
        let embedding = locate::embedding(&graph, &probe)?;
        let logits = locate::logits(&graph, &probe)?;
        let forward = cut::cut(&graph, &probe.facts, &embedding, &logits, &ids);
        let activity = derive::activity(&forward);
        let anatomy = anatomy::anatomy(&forward, &activity);
        let (gradient, intervention, attention) = (Err(not_yet()), Err(not_yet()), Err(not_yet()));
        Ok(Self {
            graph,
            probe,
            embedding,
            logits,
            forward,
            anatomy,
            raised,
            lowered,
            folded,
            lean: None,
            wrong: None,
            gradient,
            intervention,
            attention,
            elsewhere: Elsewhere::default(),
        })
    }

    /// How far a derived graph's logits may be off for a text that it was not measured with, in parts of the largest.
    pub fn tolerance(&self) -> f64 {
        measure::tolerance(self.raised)
    }

    /// Derives the relevance graph of a composite; it is not measured yet, see [`relevance::audit`].
    ///
    /// # Errors
    /// As [`relevance::derive`].
    pub fn relevance(&self, composite: Composite) -> Result<Relevance, Refusal> {
        self.relevance_with(composite, false)
    }

    /// As [`Compiled::relevance`]; with `kernels`, it may hold operators that only this process has, which take less time.
    ///
    /// # Errors
    /// As [`relevance::derive`].
    pub fn relevance_with(&self, composite: Composite, kernels: bool) -> Result<Relevance, Refusal> {
        if let Some(refusal) = &self.wrong {
            return Err(refusal.clone());
        }
        let table = self.graph.initializers.get(&self.embedding.table).and_then(Tensor::to_f32);
        let table = table.unwrap_or_default();
        let low = table.iter().copied().fold(f32::INFINITY, f32::min);
        let high = table.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        relevance::derive_with(&self.forward, &self.anatomy, composite, (low.into(), high.into()), kernels)
    }

    /// The rows of the word embedding for token ids of the given dimensions, one axis longer; `None` when an id
    /// lies outside the table.
    pub fn lookup(&self, ids: &[i64], dims: &[usize]) -> Option<Tensor> {
        let table = self.graph.initializers.get(&self.embedding.table)?;
        let width = table.data().len() / self.embedding.vocabulary.max(1);
        let mut bytes = Vec::with_capacity(ids.len() * width);
        for &id in ids {
            let start = usize::try_from(id).ok()?.checked_mul(width)?;
            bytes.extend_from_slice(table.data().get(start..start + width)?);
        }
        let dims = dims.iter().copied().chain([self.embedding.hidden]).collect();
        Tensor::new(table.element(), dims, bytes.into()).ok()
    }
}
