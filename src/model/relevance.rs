//! Where relevance graphs are made, each when it is first asked for.

use std::sync::{Arc, OnceLock};

use super::{
    Manifest, Unavailable, derived, graphs,
    own::{Noted, OwnGraph},
};
use crate::{
    compile::{
        Compiled,
        composite::Composite,
        cut::EMBEDS,
        derive::COTANGENT,
        graph::{Axis, Graph as Ir, Port},
        probe::Batch,
        refusal::{Code, Refusal},
        relevance::{ABSORBED, HEADS, LAYERS, NEURONS, RELEVANCE, Relevance, audit},
    },
    runtime::{Dim, Layout, OutputSlot, Program, ProgramKind, Runtime, SharedWeights, release_freed_memory},
};

/// The key under which a relevance graph that was written to a file notes its substitutions, one a line.
pub const SUBSTITUTIONS_KEY: &str = "explaind.relevance.substitutions";

/// The key under which it notes its composite.
pub const COMPOSITE_KEY: &str = "explaind.relevance.composite";

/// Derives a composite's graph of a model and measures it.
///
/// # Errors
/// What stands in the way, every node of it, or what was measured.
pub fn measured(
    compiled: &Compiled,
    composite: Composite,
    manifest: &Manifest,
    runtime: &Runtime,
) -> Result<Relevance, Refusal> {
    let weights = SharedWeights::default();
    let evaluate = |graph: &Ir, batches: &[Batch]| derived::evaluate(runtime, &weights, graph, batches);
    let made = compiled.relevance(composite)?;
    audit::audit(compiled, &made.graph, &derived::hints(manifest), &evaluate)?;
    Ok(made)
}

/// The file in a model folder that may hold the relevance graph of a composite.
pub fn file_name(composite: Composite) -> String {
    format!("relevance-{}.onnx", composite.slug())
}

/// The relevance graphs of one model.
pub struct RelevanceGraphs {
    bench: Bench,
    own: Vec<OwnGraph>,
    made: [OnceLock<Result<Arc<RelevanceGraph>, Unavailable>>; Composite::ALL.len()],
}

/// What is kept to make them with. The model's structure is read from its file again: keeping it would hold the
/// weights in memory twice.
struct Bench {
    runtime: Runtime,
    weights: SharedWeights,
    workers: usize,
    layout: Layout,
    manifest: Manifest,
    digest: String,
}

/// The relevance graph of one composite.
pub struct RelevanceGraph {
    /// Extras are the embeddings and the cotangent; outputs are the logits, then as [`Self::outputs`] says.
    pub program: Arc<Program>,
    /// Hidden states whose tokens' relevance is told.
    pub states: usize,
    /// Layers and heads, where heads can be told apart.
    pub heads: Option<[usize; 2]>,
    /// Layers and neurons of each, where neurons can be told apart.
    pub neurons: Option<[usize; 2]>,
    /// Operators whose rule the composite's paper does not have, and what stands in.
    pub substitutions: Vec<String>,
    /// How the graph measured up when it was made.
    pub audit: audit::Audit,
    /// Whether it is the folder's own.
    pub own: bool,
}

/// One row's outputs by what they are.
pub struct RelevanceRow {
    /// The logits.
    pub logits: Vec<f32>,
    /// Each token's relevance.
    pub tokens: Vec<f32>,
    /// What was absorbed before the first hidden state, between any two, and after the last.
    pub absorbed: Vec<f32>,
    /// Each token's relevance at every hidden state, [states, tokens]; empty where there are none.
    pub layers: Vec<f32>,
    /// [layers, heads]; empty where heads cannot be told apart.
    pub heads: Vec<f32>,
    /// [layers, neurons]; empty where neurons cannot be told apart.
    pub neurons: Vec<f32>,
}

impl RelevanceGraphs {
    /// Keeps what the graphs are made with, if they can be made: the default composite's is derived, and not kept.
    ///
    /// # Errors
    /// What stands in the way of the gradient graph or of that graph, every node of it.
    pub(super) fn new(
        compiled: &Compiled,
        bench: &derived::Bench<'_>,
        manifest: Manifest,
        digest: String,
    ) -> Result<Self, Unavailable> {
        compiled.gradient.as_ref().map_err(|it| derived::refused(it.clone()))?;
        compiled.relevance(Composite::AttnLrp).map_err(derived::refused)?;
        let found = |composite| Some((composite, Noted::relevance(&manifest, composite)?));
        let told = |(composite, it): (Composite, Result<Noted, String>)| {
            OwnGraph::of(&manifest, &file_name(composite), it.map(|_| ()))
        };
        let own = Composite::ALL.into_iter().filter_map(found).map(told).collect();
        let bench = Bench {
            runtime: bench.runtime.clone(),
            weights: bench.weights.clone(),
            workers: bench.workers,
            layout: bench.layout.clone(),
            manifest,
            digest,
        };
        Ok(Self { bench, own, made: Default::default() })
    }

    /// The folder's own relevance graphs: used, not used, or not looked at but for their notes before they are asked for.
    pub fn own(&self) -> Vec<OwnGraph> {
        let now = |it: &OwnGraph| {
            let place = Composite::ALL.iter().position(|&composite| file_name(composite) == it.file);
            let made = place.and_then(|place| self.made[place].get());
            let unused = match (&it.unused, made) {
                (None, Some(Ok(graph))) if !graph.own => Some("it does not measure up".to_owned()),
                (None, Some(Err(missing))) => Some(missing.reason.clone()),
                (unused, _) => unused.clone(),
            };
            OwnGraph { file: it.file.clone(), unused }
        };
        self.own.iter().map(now).collect()
    }

    /// The graph of a composite, derived, measured and opened when it is asked for the first time.
    ///
    /// # Errors
    /// What stands in the way, every node of it.
    pub fn get(&self, composite: Composite) -> Result<Arc<RelevanceGraph>, Unavailable> {
        let place = Composite::ALL.iter().position(|&it| it == composite).unwrap_or(0);
        let make = || {
            let made = self.bench.make(composite).map(Arc::new);
            self.bench.weights.forget_unused();
            release_freed_memory();
            made
        };
        self.made[place].get_or_init(make).clone()
    }
}

impl Bench {
    fn make(&self, composite: Composite) -> Result<RelevanceGraph, Unavailable> {
        let unreadable = |reason: String| derived::unavailable(Code::Run, reason);
        if self.manifest.digest().map_err(|error| unreadable(error.to_string()))? != self.digest {
            return Err(unreadable("the model's file has changed since it was opened".to_owned()));
        }
        let graph = graphs::read_shared(&self.manifest.graph, &self.weights).map_err(unreadable)?;
        let evaluate =
            |graph: &Ir, batches: &[Batch]| derived::evaluate(&self.runtime, &self.weights, graph, batches);
        let hints = derived::hints(&self.manifest);
        let compiled = Compiled::structure(graph, &hints, &evaluate).map_err(derived::refused)?;
        let derived = compiled.relevance_with(composite, self.runtime.has_kernels());
        let own = Noted::relevance(&self.manifest, composite).map(|it| {
            let made = it.and_then(|it| {
                let lines = it.notes.get(SUBSTITUTIONS_KEY).map(String::as_str).unwrap_or_default();
                let substitutions = lines.lines().map(str::to_owned).collect();
                Ok(Relevance { graph: it.graph()?, substitutions })
            })?;
            let derived = derived.as_ref().ok().map(|it| &it.graph);
            let audit = audit::audit_given(&compiled, &made.graph, derived, &hints, &evaluate);
            Ok::<_, String>((made, audit.map_err(|refusal| refusal.to_string())?))
        });
        let hidden = compiled.embedding.hidden;
        let unused = match own {
            Some(Ok((made, audit))) => {
                return Ok(RelevanceGraph { own: true, ..self.open(made, audit, hidden)? });
            }
            Some(Err(reason)) => OwnGraph::of(&self.manifest, &file_name(composite), Err(reason)).unused,
            None => None,
        };
        let made = derived.and_then(|made| {
            let audit = audit::audit(&compiled, &made.graph, &hints, &evaluate)?;
            Ok((made, audit))
        });
        let (made, audit) = made.map_err(|mut refusal| {
            if let Some(reason) = unused {
                let file = self.manifest.folder.join(file_name(composite));
                refusal.reason = format!("{}; {} is not used, {reason}", refusal.reason, file.display());
            }
            derived::refused(refusal)
        })?;
        self.open(made, audit, hidden)
    }

    fn open(
        &self,
        made: Relevance,
        audit: audit::Audit,
        hidden: usize,
    ) -> Result<RelevanceGraph, Unavailable> {
        let Relevance { graph, substitutions } = made;
        let wrong = || derived::refused(Refusal::new(Code::Output, "the relevance graph has other outputs"));
        let fixed = |name: &str| -> Option<Vec<usize>> {
            let dims = graph.output(name).and_then(Port::dims)?;
            let sizes = dims[1..].iter().map(|it| if let Axis::Fixed(size) = it { *size } else { 0 });
            Some(sizes.collect())
        };
        let pair = |name: &str| fixed(name).and_then(|it| <[usize; 2]>::try_from(it).ok());
        let segments = fixed(ABSORBED).and_then(|it| it.first().copied()).ok_or_else(wrong)?;
        let states = fixed(LAYERS).and_then(|it| it.first().copied()).unwrap_or(0);
        let (heads, neurons) = (pair(HEADS), pair(NEURONS));
        let slot = |name: &str, dims: Vec<Dim>| OutputSlot { name: name.to_owned(), dims };
        let mut outputs =
            vec![slot(RELEVANCE, vec![Dim::Sequence]), slot(ABSORBED, vec![Dim::Fixed(segments)])];
        if states > 0 {
            outputs.push(slot(LAYERS, vec![Dim::Fixed(states), Dim::Sequence]));
        }
        outputs.extend(heads.map(|it| slot(HEADS, it.map(Dim::Fixed).to_vec())));
        outputs.extend(neurons.map(|it| slot(NEURONS, it.map(Dim::Fixed).to_vec())));
        let bench = derived::Bench {
            runtime: &self.runtime,
            weights: &self.weights,
            workers: self.workers,
            layout: &self.layout,
        };
        let logits = self.layout.outputs[0].dims.clone();
        let extras = vec![(EMBEDS.to_owned(), derived::by_token(hidden)), (COTANGENT.to_owned(), logits)];
        let wires = derived::Wires { extras, outputs };
        let program = derived::program(&graph, ProgramKind::Gradient, wires, &bench)?;
        Ok(RelevanceGraph { program, states, heads, neurons, substitutions, audit, own: false })
    }
}

impl RelevanceGraph {
    /// A row's outputs; `None` when there are fewer than the program's layout says.
    pub fn outputs(&self, values: Vec<Vec<f32>>) -> Option<RelevanceRow> {
        let mut values = values.into_iter();
        let (logits, tokens, absorbed) = (values.next()?, values.next()?, values.next()?);
        let mut next = |there: bool| if there { values.next() } else { Some(Vec::new()) };
        let (layers, heads) = (next(self.states > 0)?, next(self.heads.is_some())?);
        let neurons = next(self.neurons.is_some())?;
        Some(RelevanceRow { logits, tokens, absorbed, layers, heads, neurons })
    }
}
