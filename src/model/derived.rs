//! Where the graphs that the compiler derives become programs, or reasons why they do not.

use std::sync::Arc;

use super::{Manifest, Unavailable, graphs};
use crate::{
    compile::{
        Compiled,
        anatomy::Anatomy,
        graph::{Element as Stored, Graph as Ir, Tensor as Constant},
        measure::Measures,
        probe::{Batch, Hints},
        refusal::Refusal,
    },
    runtime::{
        Data, Dim, Element, InputSlot, Layout, Optimise, OutputSlot, Padding, Program, ProgramKind, Role,
        Runtime, Session, SharedWeights, Tensor,
    },
};

/// The gradient family's graphs.
pub struct GradientGraph {
    /// Logits and the gradient of the weighted logits; extras are the embeddings and the cotangent.
    pub gradient: Arc<Program>,
    /// Logits alone, from embeddings; its extra is the embeddings.
    pub embedded: Arc<Program>,
    /// The word embedding's table.
    pub words: Words,
    /// The parts of the model that the compiler found.
    pub anatomy: Anatomy,
    /// How the gradient graph measured up when the model was opened.
    pub measures: Measures,
}

/// The word embedding's table, `[vocabulary, hidden]`.
pub struct Words {
    values: Arc<[f32]>,
    /// Size of one embedding.
    pub hidden: usize,
}

/// What a model's derived graphs share while it is opened.
struct Bench<'a> {
    /// The loaded ONNX Runtime.
    runtime: &'a Runtime,
    /// The model's weights.
    weights: &'a SharedWeights,
    /// Sessions of every graph.
    workers: usize,
    /// How the forward graph's rows become batches.
    layout: &'a Layout,
    /// What the folder says of special tokens.
    hints: Hints,
}

impl Words {
    /// The embedding of a token; that of token 0 for an id outside of the table.
    pub fn row(&self, id: u32) -> &[f32] {
        let start = id as usize * self.hidden;
        self.values.get(start..start + self.hidden).unwrap_or(&self.values[..self.hidden])
    }

    /// Rows of the table.
    pub fn count(&self) -> usize {
        self.values.len() / self.hidden.max(1)
    }

    /// The mean of all rows.
    pub fn mean(&self) -> Vec<f32> {
        let mut sums = vec![0.0f64; self.hidden];
        for row in self.values.chunks(self.hidden) {
            sums.iter_mut().zip(row).for_each(|(sum, it)| *sum += f64::from(*it));
        }
        sums.into_iter().map(|sum| (sum / self.count().max(1) as f64) as f32).collect()
    }
}

/// Derives and opens the gradient family's graphs of a model that was read, or says why not.
///
/// # Errors
/// What stands in the way, every node of it.
pub(super) fn open(
    read: Result<Ir, String>,
    runtime: &Runtime,
    weights: &SharedWeights,
    workers: usize,
    forward: &Program,
    manifest: &Manifest,
) -> Result<GradientGraph, Unavailable> {
    let graph = read.map_err(|reason| unavailable("run", reason))?;
    let hints = Hints { pad: manifest.special.pad.map(i64::from), eos: manifest.special.sep.map(i64::from) };
    gradient(&graph, &Bench { runtime, weights, workers, layout: &forward.layout, hints })
}

fn gradient(graph: &Ir, bench: &Bench<'_>) -> Result<GradientGraph, Unavailable> {
    let evaluate = |graph: &Ir, batches: &[Batch]| evaluate(bench.runtime, graph, batches);
    let compiled = Compiled::open(graph.clone(), &bench.hints, &evaluate).map_err(refused)?;
    let derived = compiled.gradient.as_ref().map_err(|it| refused(it.clone()))?;
    let hidden = compiled.embedding.hidden;
    let table = compiled.graph.initializers.get(&compiled.embedding.table).and_then(Constant::to_f32);
    let words = Words { values: table.unwrap_or_default().into(), hidden };
    let gradient = program(&derived.graph, ProgramKind::Gradient, bench, hidden)?;
    let embedded = program(&compiled.forward.graph, ProgramKind::Forward, bench, hidden)?;
    let (anatomy, measures) = (compiled.anatomy.clone(), derived.measures.clone());
    Ok(GradientGraph { gradient, embedded, words, anatomy, measures })
}

fn program(
    graph: &Ir,
    kind: ProgramKind,
    bench: &Bench<'_>,
    hidden: usize,
) -> Result<Arc<Program>, Unavailable> {
    let labels = bench.layout.outputs[0].dims.clone();
    let input = |port: &crate::compile::graph::Port| -> Option<InputSlot> {
        let name = port.value.to_string();
        let float = match port.element() {
            Some(Stored::F16) => Element::F16,
            Some(Stored::F64) => Element::F64,
            _ => Element::F32,
        };
        match name.as_str() {
            "inputs_embeds" => Some(InputSlot {
                name,
                role: Role::Extra(0),
                element: float,
                dims: vec![Dim::Sequence, Dim::Fixed(hidden)],
            }),
            "cotangent" => {
                Some(InputSlot { name, role: Role::Extra(1), element: float, dims: labels.clone() })
            }
            _ => bench.layout.inputs.iter().find(|it| it.name == name).cloned(),
        }
    };
    let inputs = graph.inputs.iter().map(input).collect::<Option<Vec<_>>>().ok_or_else(|| {
        unavailable("input", "the derived graph has an input that the model does not have".to_owned())
    })?;
    let mut outputs = vec![OutputSlot { name: "logits".to_owned(), dims: labels }];
    if kind == ProgramKind::Gradient {
        let dims = vec![Dim::Sequence, Dim::Fixed(hidden)];
        outputs.push(OutputSlot { name: "inputs_embeds_grad".to_owned(), dims });
    }
    // A graph without its attention mask among the inputs cannot hide padding.
    let hides = inputs.iter().any(|it| it.role == Role::Mask);
    let padding = if hides { bench.layout.padding } else { Padding::Never };
    let layout = Layout { inputs, outputs, padding };
    Program::open(bench.runtime, &graphs::runnable(graph), bench.weights, kind, layout, bench.workers)
        .map(Arc::new)
        .map_err(|error| unavailable("run", error.to_string()))
}

fn refused(refusal: Refusal) -> Unavailable {
    let operators = refusal.gaps.iter().map(|gap| format!("{} ({}): {}", gap.operator, gap.node, gap.reason));
    Unavailable { operators: operators.collect(), ..unavailable(refusal.code.slug(), refusal.reason.clone()) }
}

fn unavailable(code: &str, reason: String) -> Unavailable {
    Unavailable {
        method: None,
        code: code.to_owned(),
        reason,
        operators: Vec::new(),
        advice:
            "Export the model in float32 with torch.onnx.export or Optimum, without quantisation and with \
                 dynamic batch and sequence axes. Perturbation and surrogate methods work as they are."
                .to_owned(),
    }
}

/// Runs a graph as it is on every batch: the compiler's eyes.
fn evaluate(runtime: &Runtime, graph: &Ir, batches: &[Batch]) -> Result<Vec<Vec<Option<Constant>>>, String> {
    let outputs: Vec<String> = graph.outputs.iter().map(|it| it.value.to_string()).collect();
    let say = |error: crate::runtime::RuntimeError| error.to_string();
    let runnable = graphs::runnable(graph);
    let mut session =
        Session::open(runtime, &runnable, &SharedWeights::default(), Optimise::Nothing).map_err(say)?;
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
