//! Where the graphs that the compiler derives become programs, or reasons why they do not.

use std::sync::Arc;

use super::{
    Manifest, Unavailable, Words, graphs,
    own::{Noted, OwnGraph},
};
use crate::{
    compile::{
        Compiled, Given,
        anatomy::Anatomy,
        graph::{Element as Stored, Graph as Ir, Tensor as Constant},
        lean,
        measure::Measures,
        probe::{Batch, Hints},
        refusal::{Code, Refusal},
    },
    runtime::{
        Data, Deferred, Dim, Element, InputSlot, Layout, OutputSlot, Padding, Program, ProgramKind, Role,
        Runtime, Session, SharedWeights, Tensor,
    },
};

/// The word embedding, and the model behind it.
#[derive(Clone)]
pub struct EmbeddedGraph {
    /// Logits alone, from embeddings; its extra is the embeddings.
    pub program: Arc<Program>,
    /// The word embedding's table.
    pub words: Arc<Words>,
}

/// The gradient family's graphs.
pub struct GradientGraph {
    /// Logits and the gradient of the weighted logits; extras are the embeddings and the cotangent.
    pub gradient: Arc<Program>,
    /// Logits alone, from embeddings; its extra is the embeddings.
    pub embedded: Arc<Program>,
    /// The word embedding's table.
    pub words: Arc<Words>,
    /// The parts of the model that the compiler found.
    pub anatomy: Anatomy,
    /// How the gradient graph measured up when the model was opened.
    pub measures: Measures,
}

pub use super::own::DIGEST_KEY;

/// What a model's derived graphs share while it is opened.
pub(super) struct Bench<'a> {
    /// The loaded ONNX Runtime.
    pub runtime: &'a Runtime,
    /// The model's weights.
    pub weights: &'a SharedWeights,
    /// Sessions of every graph.
    pub workers: usize,
    /// How the forward graph's rows become batches.
    pub layout: &'a Layout,
}

/// Finds a model's structure and derives its graphs; sessions that probe and measure share `weights`. What is derived
/// here can be exported.
///
/// # Errors
/// The compiler's refusal, every node that stands in the way.
pub fn compile(
    graph: Ir,
    runtime: &Runtime,
    weights: &SharedWeights,
    manifest: &Manifest,
) -> Result<Compiled, Refusal> {
    let evaluate = |graph: &Ir, batches: &[Batch]| evaluate(runtime, weights, graph, batches);
    Compiled::open(graph, &hints(manifest), &evaluate)
}

/// As [`compile`], for this process alone: on a processor, the gradient graph holds the runtime's own operators. A graph
/// in the folder that is called after its kind (`gradient.onnx`, `intervention.onnx`, `attention.onnx`) and notes the
/// model's digest is taken instead of deriving one, if it measures up.
///
/// # Errors
/// As [`compile`].
pub fn compile_to_serve(
    graph: Ir,
    runtime: &Runtime,
    weights: &SharedWeights,
    manifest: &Manifest,
) -> Result<(Compiled, Vec<OwnGraph>), Refusal> {
    let evaluate = |graph: &Ir, batches: &[Batch]| evaluate(runtime, weights, graph, batches);
    let mut own = Vec::new();
    let mut take = |name: &str| match Noted::read(manifest, name)?.and_then(|it| it.graph()) {
        Ok(graph) => Some(graph),
        Err(reason) => {
            own.push(OwnGraph::of(manifest, name, Err(reason)));
            None
        }
    };
    let given = Given {
        kernels: runtime.has_kernels(),
        gradient: take(GRADIENT),
        intervention: take(INTERVENTION),
        attention: take(ATTENTION),
    };
    let mut compiled = Compiled::with(graph, given, &hints(manifest), &evaluate)?;
    let mut told = |name: &str, became: Option<Result<(), Refusal>>, missing: Option<&mut Refusal>| {
        let Some(became) = became else { return };
        if let (Err(refusal), Some(missing)) = (&became, missing) {
            let file = manifest.folder.join(name);
            missing.reason = format!("{}; {} is not used, {refusal}", missing.reason, file.display());
        }
        own.push(OwnGraph::of(manifest, name, became.map_err(|it| it.to_string())));
    };
    let elsewhere = std::mem::take(&mut compiled.elsewhere);
    told(GRADIENT, elsewhere.gradient, compiled.gradient.as_mut().err());
    told(INTERVENTION, elsewhere.intervention, compiled.intervention.as_mut().err());
    told(ATTENTION, elsewhere.attention, compiled.attention.as_mut().err());
    Ok((compiled, own))
}

/// Files of the folder that may hold derived graphs.
const GRADIENT: &str = "gradient.onnx";
const INTERVENTION: &str = "intervention.onnx";
const ATTENTION: &str = "attention.onnx";

/// What the folder says that the graph does not.
pub fn hints(manifest: &Manifest) -> Hints {
    Hints {
        pad: manifest.special.pad.map(i64::from),
        eos: manifest.special.sep.map(i64::from),
        max_length: manifest.max_length,
    }
}

/// Opens the model behind its word embedding.
///
/// # Errors
/// The graph does not run.
pub(super) fn embedded(compiled: &Compiled, bench: &Bench<'_>) -> Result<EmbeddedGraph, Unavailable> {
    let hidden = compiled.embedding.hidden;
    let table = compiled.graph.initializers.get(&compiled.embedding.table).and_then(Constant::to_f32);
    let words = Words::new(table.unwrap_or_default(), hidden).into();
    let lean = lean::lean(&compiled.forward).map(|it| it.0.graph);
    let forward = lean.as_ref().unwrap_or(&compiled.forward.graph);
    let wires = Wires { extras: vec![("inputs_embeds".into(), by_token(hidden))], outputs: Vec::new() };
    let program = program(forward, ProgramKind::Forward, wires, bench)?;
    Ok(EmbeddedGraph { program, words })
}

/// The word embedding's table.
///
/// # Errors
/// A table that is not made of floating-point numbers.
pub(super) fn words(embedded: &EmbeddedGraph) -> Result<Arc<Words>, Unavailable> {
    let odd =
        || unavailable(Code::Embedding, "the word embedding holds no floating-point numbers".to_owned());
    if embedded.words.count() == 0 { Err(odd()) } else { Ok(embedded.words.clone()) }
}

/// Opens the gradient family's graphs, or says why not.
///
/// # Errors
/// What stands in the way, every node of it.
pub(super) fn gradient(
    compiled: &Compiled,
    embedded: &EmbeddedGraph,
    bench: &Bench<'_>,
) -> Result<GradientGraph, Unavailable> {
    let derived = compiled.gradient.as_ref().map_err(|it| refused(it.clone()))?;
    let hidden = compiled.embedding.hidden;
    let logits = bench.layout.outputs[0].dims.clone();
    let wires = Wires {
        extras: vec![("inputs_embeds".into(), by_token(hidden)), ("cotangent".into(), logits)],
        outputs: vec![OutputSlot { name: "inputs_embeds_grad".to_owned(), dims: by_token(hidden) }],
    };
    let gradient = program(&derived.graph, ProgramKind::Gradient, wires, bench)?;
    let EmbeddedGraph { program: embedded, words } = embedded.clone();
    let (anatomy, measures) = (compiled.anatomy.clone(), derived.measures);
    Ok(GradientGraph { gradient, embedded, words, anatomy, measures })
}

/// What a derived graph has beside the model's own inputs and its logits.
pub(super) struct Wires {
    /// Inputs and the axes of a row's values, in the order of [`crate::runtime::Row::extras`].
    pub extras: Vec<(String, Vec<Dim>)>,
    /// Outputs behind the logits.
    pub outputs: Vec<OutputSlot>,
}

/// The axes of a value that holds a vector for each token.
pub(super) fn by_token(width: usize) -> Vec<Dim> {
    vec![Dim::Sequence, Dim::Fixed(width)]
}

/// Opens a derived graph.
///
/// # Errors
/// The graph does not run.
pub(super) fn program(
    graph: &Ir,
    kind: ProgramKind,
    wires: Wires,
    bench: &Bench<'_>,
) -> Result<Arc<Program>, Unavailable> {
    let layout = layout(graph, wires, bench)?;
    Program::open(bench.runtime, &graphs::runnable(graph), bench.weights, kind, layout, bench.workers)
        .map(Arc::new)
        .map_err(|error| unavailable(Code::Run, error.to_string()))
}

/// How rows become batches of a derived graph.
///
/// # Errors
/// An input that is neither the model's nor among the extras.
pub(super) fn layout(graph: &Ir, wires: Wires, bench: &Bench<'_>) -> Result<Layout, Unavailable> {
    let input = |port: &crate::compile::graph::Port| -> Option<InputSlot> {
        let name = port.value.to_string();
        let element = match port.element() {
            Some(Stored::F16) => Element::F16,
            Some(Stored::F64) => Element::F64,
            _ => Element::F32,
        };
        match wires.extras.iter().position(|it| it.0 == name) {
            Some(place) => {
                let (role, dims) = (Role::Extra(place), wires.extras[place].1.clone());
                Some(InputSlot { name, role, element, dims })
            }
            None => bench.layout.inputs.iter().find(|it| it.name == name).cloned(),
        }
    };
    let inputs = graph.inputs.iter().map(input).collect::<Option<Vec<_>>>().ok_or_else(|| {
        unavailable(Code::Input, "the derived graph has an input that the model does not have".to_owned())
    })?;
    let logits = OutputSlot { name: "logits".to_owned(), dims: bench.layout.outputs[0].dims.clone() };
    let outputs = std::iter::once(logits).chain(wires.outputs).collect();
    // A graph without its attention mask among the inputs cannot hide padding.
    let hides = inputs.iter().any(|it| it.role == Role::Mask);
    let padding = match bench.layout.padding {
        Padding::Alone => Padding::Alone,
        padding if hides => padding,
        _ => Padding::Never,
    };
    Ok(Layout { inputs, outputs, padding, counted: bench.layout.counted, least: bench.layout.least })
}

pub(super) fn refused(refusal: Refusal) -> Unavailable {
    let operators = refusal.gaps.iter().map(|gap| format!("{} ({}): {}", gap.operator, gap.node, gap.reason));
    Unavailable { operators: operators.collect(), ..unavailable(refusal.code, refusal.reason.clone()) }
}

/// The program, whose sessions open when it is first asked for.
pub(super) fn opened(program: &Deferred) -> Result<Arc<Program>, Unavailable> {
    program.get().map_err(|error| unavailable(Code::Run, error.to_string()))
}

pub(super) fn unavailable(code: Code, reason: String) -> Unavailable {
    Unavailable {
        method: None,
        code: code.slug().to_owned(),
        reason,
        operators: Vec::new(),
        advice: format!("{}; perturbation and surrogate methods work as they are", code.advice()),
    }
}

/// Runs a graph as it is on every batch, wherever it is to be served: the compiler's eyes.
///
/// # Errors
/// ONNX Runtime's words.
pub fn evaluate(
    runtime: &Runtime,
    weights: &SharedWeights,
    graph: &Ir,
    batches: &[Batch],
) -> Result<Vec<Vec<Option<Constant>>>, String> {
    let outputs: Vec<String> = graph.outputs.iter().map(|it| it.value.to_string()).collect();
    let say = |error: crate::runtime::RuntimeError| error.to_string();
    let runnable = graphs::runnable(graph);
    let mut session = Session::on_trial(runtime, &runnable, weights).map_err(say)?;
    let mut answers = Vec::with_capacity(batches.len());
    for batch in batches {
        let inputs = batch
            .iter()
            .map(|(name, constant)| Some((name.to_string(), tensor(constant)?)))
            .collect::<Option<Vec<_>>>()
            .ok_or("an input has an element type that is not fed")?;
        let found = session.run_all(inputs, outputs.iter().map(String::as_str)).map_err(say)?;
        answers.push(found.into_iter().map(|it| it.as_ref().and_then(constant)).collect());
    }
    Ok(answers)
}

fn tensor(constant: &Constant) -> Option<Tensor> {
    let dims = constant.dims().to_vec();
    let data = match constant.element() {
        Stored::F32 => Data::F32(constant.to_f32()?),
        Stored::I64 => Data::I64(constant.to_i64()?),
        Stored::I32 => Data::I32(constant.to_i64()?.into_iter().map(|it| it as i32).collect()),
        Stored::Bool => Data::Bool(constant.data().iter().map(|&it| it != 0).collect()),
        Stored::F64 => Data::F64(constant.to_f64()?),
        Stored::F16 => Data::F16(constant.to_f32()?.into_iter().map(half::f16::from_f32).collect()),
        _ => return None,
    };
    Some(Tensor { dims, data })
}

fn constant(tensor: &Tensor) -> Option<Constant> {
    let (element, bytes): (Stored, Vec<u8>) = match &tensor.data {
        Data::F32(it) => (Stored::F32, it.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::F16(it) => (Stored::F16, it.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::F64(it) => (Stored::F64, it.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::I64(it) => (Stored::I64, it.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::I32(it) => (Stored::I32, it.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Data::Bool(it) => (Stored::Bool, it.iter().map(|&v| u8::from(v)).collect()),
        Data::U8(it) => (Stored::U8, it.clone()),
        Data::I8(it) => (Stored::I8, it.iter().map(|&v| v as u8).collect()),
    };
    Constant::new(element, tensor.dims.clone(), bytes.into()).ok()
}
