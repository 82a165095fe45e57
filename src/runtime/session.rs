//! Where one ONNX Runtime session is made and run, with each of its settings said explicitly.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use ort::{
    ep::{
        ArenaExtendStrategy, CUDA,
        cuda::{AttentionBackend, ConvAlgorithmSearch},
    },
    session::{
        OutputSelector, RunOptions, Session as OrtSession, SessionOutputs,
        builder::{GraphOptimizationLevel, PrepackedWeights},
    },
    value::{DynValue, ValueType},
};

use super::{
    Device, Element, Runtime, RuntimeError, SharedWeights, Tensor, Weight, granted_cores, kernels,
    tensor::element_of,
};

/// A graph to open: the serialised model, and the large initializers that were taken out of it.
#[derive(Clone)]
pub struct Graph {
    /// The ONNX model.
    pub model: Source,
    /// Initializers that the model names and does not hold.
    pub weights: Vec<Weight>,
}

/// Where the ONNX model is.
#[derive(Clone)]
pub enum Source {
    /// In memory, serialised.
    Bytes(Bytes),
    /// In a file, with its external data beside it.
    File(Arc<Path>),
}

impl Graph {
    /// The model in a file, as it is.
    pub fn file(path: &Path) -> Self {
        Self { model: Source::File(path.into()), weights: Vec::new() }
    }
}

/// Name and type of one input or output of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Outlet {
    /// The graph's name for it.
    pub name: String,
    /// `None` for an element type that explaind does not feed or read.
    pub element: Option<Element>,
    /// Sizes; `None` where the size is dynamic.
    pub dims: Vec<Option<usize>>,
}

/// A session: one graph, run by one thread at a time.
pub struct Session {
    inner: OrtSession,
    // Kept alive as long as kernels may point into them.
    _values: Vec<Arc<DynValue>>,
    _packed: PrepackedWeights,
}

/// How much ONNX Runtime may rewrite a graph before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimise {
    /// Everything: what serves requests.
    Everything,
    /// Fusions that hold on every device (for comparison).
    Extended,
    /// What keeps the graph's own operators (for comparison).
    Basic,
    /// Nothing: every tensor of the file exists (probing, reference runs).
    Nothing,
}

impl Session {
    /// Opens `graph`, sharing `weights` with the other sessions of its model.
    ///
    /// # Errors
    /// [`RuntimeError::Session`] in ONNX Runtime's words; a device that was asked for and fails is an
    /// error, never a fall-back.
    pub fn open(
        runtime: &Runtime,
        graph: &Graph,
        weights: &SharedWeights,
        optimise: Optimise,
    ) -> Result<Self, RuntimeError> {
        Self::with(runtime, graph, &weights.of(graph)?, weights, optimise)
    }

    /// Opens `graph` as it is, to learn what it takes: on the processor, whose kernels refuse what does not fit, where CUDA's
    /// read past the end of a table without a word; on the device if the processor lacks an operator of the graph.
    ///
    /// # Errors
    /// As [`Session::open`].
    pub fn on_trial(runtime: &Runtime, graph: &Graph, weights: &SharedWeights) -> Result<Self, RuntimeError> {
        match Self::open(&runtime.on_processor(), graph, weights, Optimise::Nothing) {
            Err(_) if runtime.device != Device::Cpu => Self::open(runtime, graph, weights, Optimise::Nothing),
            opened => opened,
        }
    }

    /// As [`Session::open`], the graph's `values` looked up among `weights` before.
    pub(super) fn with(
        runtime: &Runtime,
        graph: &Graph,
        values: &[Arc<DynValue>],
        weights: &SharedWeights,
        optimise: Optimise,
    ) -> Result<Self, RuntimeError> {
        let packed = weights.packed();
        let inner = build(runtime, graph, values, &packed, optimise)?;
        Ok(Self { inner, _values: values.to_vec(), _packed: packed })
    }

    /// The inputs, in the graph's order.
    pub fn inputs(&self) -> Vec<Outlet> {
        self.inner.inputs().iter().map(|it| outlet(it.name(), it.dtype())).collect()
    }

    /// The outputs, in the graph's order.
    pub fn outputs(&self) -> Vec<Outlet> {
        self.inner.outputs().iter().map(|it| outlet(it.name(), it.dtype())).collect()
    }

    /// As [`Session::run`]; `None` for an output of a type that explaind does not read.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_all<'n>(
        &mut self,
        inputs: Vec<(String, Tensor)>,
        outputs: impl IntoIterator<Item = &'n str> + Clone,
    ) -> Result<Vec<Option<Tensor>>, RuntimeError> {
        self.ask(inputs, outputs.clone(), |values| {
            Ok(outputs.into_iter().map(|name| Tensor::from_value(values.get(name)?).ok()).collect())
        })
    }

    /// Runs the graph on `inputs` and copies the named `outputs` out, in that order.
    ///
    /// # Errors
    /// [`RuntimeError::Session`] for inputs that do not fit and for failures inside the run.
    pub fn run<'n>(
        &mut self,
        inputs: Vec<(String, Tensor)>,
        outputs: impl IntoIterator<Item = &'n str> + Clone,
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let missing = |name: &str| RuntimeError::Session(format!("the run gave no output `{name}`"));
        self.ask(inputs, outputs.clone(), |values| {
            let read = |name| Ok(Tensor::from_value(values.get(name).ok_or_else(|| missing(name))?)?);
            outputs.into_iter().map(read).collect()
        })
    }
}

impl Session {
    /// The file with the time of every operator in every run so far, as ONNX Runtime writes it, of a session whose
    /// settings ask for one.
    ///
    /// # Errors
    /// In ONNX Runtime's words.
    pub fn end_profiling(&mut self) -> Result<PathBuf, RuntimeError> {
        Ok(self.inner.end_profiling()?.into())
    }

    fn ask<'n, T>(
        &mut self,
        inputs: Vec<(String, Tensor)>,
        outputs: impl IntoIterator<Item = &'n str>,
        read: impl FnOnce(&SessionOutputs<'_>) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let inputs = inputs
            .into_iter()
            .map(|(name, tensor)| Ok((name, tensor.into_value()?)))
            .collect::<Result<Vec<_>, RuntimeError>>()?;
        let wanted = outputs.into_iter().fold(OutputSelector::no_default(), |all, name| all.with(name));
        let options = RunOptions::new()?.with_outputs(wanted);
        let values = self.inner.run_with_options(inputs, &options)?;
        read(&values)
    }
}

fn build(
    runtime: &Runtime,
    graph: &Graph,
    values: &[Arc<DynValue>],
    packed: &PrepackedWeights,
    optimise: Optimise,
) -> Result<OrtSession, RuntimeError> {
    let level = match optimise {
        Optimise::Everything => GraphOptimizationLevel::All,
        Optimise::Extended => GraphOptimizationLevel::Level2,
        Optimise::Basic => GraphOptimizationLevel::Level1,
        Optimise::Nothing => GraphOptimizationLevel::Disable,
    };
    let plain = |error: ort::Error<ort::session::builder::SessionBuilder>| ort::Error::from(error);
    let settings = runtime.settings;
    let threads = match optimise {
        // A trial has the machine for itself.
        Optimise::Nothing => granted_cores(),
        _ => settings.threads,
    };
    let mut builder = OrtSession::builder(&runtime.environment)?
        .with_optimization_level(level)
        .map_err(plain)?
        .with_intra_threads(threads)
        .map_err(plain)?
        .with_inter_threads(1)
        .map_err(plain)?
        .with_parallel_execution(false)
        .map_err(plain)?
        .with_intra_op_spinning(settings.spinning)
        .map_err(plain)?
        .with_memory_pattern(settings.memory_pattern)
        .map_err(plain)?;
    if settings.profile {
        builder = builder.with_profiling(std::env::temp_dir().join("explaind-profile")).map_err(plain)?;
    }
    builder = match optimise {
        // A session that runs once or twice packs nothing.
        Optimise::Nothing => builder.with_prepacking(false).map_err(plain)?,
        _ => builder.with_prepacked_weights(packed).map_err(plain)?,
    };
    builder = match runtime.device {
        Device::Cpu => builder
            .with_execution_providers([ort::ep::CPU::default().with_arena_allocator(settings.arena).build()])
            .map_err(plain)?,
        Device::Cuda(ordinal) => builder
            .with_execution_providers([CUDA::default()
                .with_device_id(ordinal as i32)
                // Products of float32 stay float32: TF32 keeps 10 bits of a mantissa, and evidence would show it. Of the
                // kernels for fused attention, only the plain one honours that.
                .with_tf32(false)
                .with_attention_backend(AttentionBackend::MATH)
                // The default tries every algorithm anew for every length of a text.
                .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .build()
                .error_on_failure()])
            .map_err(plain)?,
    };
    if runtime.has_kernels() {
        builder = builder.with_operators(kernels::domain()?).map_err(plain)?;
    }
    for (weight, value) in graph.weights.iter().zip(values) {
        // The graph's optimiser reads the one, kernels and their packed forms share the other.
        builder = builder.with_external_initializer(&weight.name, value.clone()).map_err(plain)?;
        builder = builder.with_initializer(&weight.name, value.clone()).map_err(plain)?;
    }
    Ok(match &graph.model {
        Source::Bytes(bytes) => builder.commit_from_memory(bytes)?,
        Source::File(path) => builder.commit_from_file(path)?,
    })
}

fn outlet(name: &str, kind: &ValueType) -> Outlet {
    let dims = kind
        .tensor_shape()
        .map_or_else(Vec::new, |shape| shape.iter().map(|&size| usize::try_from(size).ok()).collect());
    Outlet { name: name.to_owned(), element: kind.tensor_type().and_then(element_of), dims }
}
