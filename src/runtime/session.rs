//! Where one ONNX Runtime session is made and run, with each of its settings said explicitly.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use half::f16;
use ort::{
    ep::{ArenaExtendStrategy, CUDA},
    session::{
        OutputSelector, RunOptions, Session as OrtSession, SessionOutputs,
        builder::{GraphOptimizationLevel, PrepackedWeights},
    },
    value::{DynValue, PrimitiveTensorElementType, ValueType},
};

use super::{Data, Device, Element, Runtime, RuntimeError, Tensor, kernels, tensor::element_of};

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

/// One initializer, as raw little-endian bytes.
#[derive(Clone)]
pub struct Weight {
    /// The initializer's name.
    pub name: String,
    /// Its element type.
    pub element: Element,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Row-major values.
    pub bytes: Bytes,
}

/// The initializers of one model, in memory once for all of its sessions, together with the forms that
/// kernels pack them into. Two graphs may use one name for different tensors: each has its own then.
#[derive(Clone, Default)]
pub struct SharedWeights {
    values: Arc<Mutex<HashMap<String, Vec<Arc<DynValue>>>>>,
    packed: Arc<Mutex<Option<PrepackedWeights>>>,
}

impl SharedWeights {
    /// How many tensors are held.
    pub fn count(&self) -> usize {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).values().map(Vec::len).sum()
    }

    /// The values of a graph's weights, in their order.
    pub(super) fn of(&self, graph: &Graph) -> Result<Vec<Arc<DynValue>>, RuntimeError> {
        graph.weights.iter().map(|it| self.value(it)).collect()
    }

    pub(super) fn value(&self, weight: &Weight) -> Result<Arc<DynValue>, RuntimeError> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let named = values.entry(weight.name.clone()).or_default();
        if let Some(value) = named.iter().find(|it| weight.is_held_by(it)) {
            return Ok(value.clone());
        }
        let value = Arc::new(weight.tensor()?.into_value()?);
        named.push(value.clone());
        Ok(value)
    }

    fn packed(&self) -> PrepackedWeights {
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        packed.get_or_insert_with(PrepackedWeights::new).clone()
    }
}

impl Weight {
    fn tensor(&self) -> Result<Tensor, RuntimeError> {
        fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|it| read(*it)).collect()
        }
        let bytes = &self.bytes;
        let data = match self.element {
            Element::F32 => Data::F32(each(bytes, f32::from_le_bytes)),
            Element::F16 => Data::F16(each(bytes, f16::from_le_bytes)),
            Element::F64 => Data::F64(each(bytes, f64::from_le_bytes)),
            Element::I64 => Data::I64(each(bytes, i64::from_le_bytes)),
            Element::I32 => Data::I32(each(bytes, i32::from_le_bytes)),
            Element::U8 => Data::U8(bytes.to_vec()),
            Element::I8 => Data::I8(bytes.iter().map(|&b| b as i8).collect()),
            Element::Bool => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
        };
        Ok(Tensor { dims: self.dims.clone(), data })
    }

    /// Whether `value` is this very tensor, bit for bit.
    fn is_held_by(&self, value: &DynValue) -> bool {
        fn equal<const N: usize, T: PrimitiveTensorElementType + Copy>(
            weight: &Weight,
            value: &DynValue,
            bytes: impl Fn(T) -> [u8; N],
        ) -> bool {
            let Ok((shape, values)) = value.try_extract_tensor::<T>() else { return false };
            let dims = weight.dims.iter().map(|&it| it as i64);
            let (chunks, rest) = weight.bytes.as_chunks::<N>();
            let same_size = shape.iter().copied().eq(dims) && rest.is_empty() && chunks.len() == values.len();
            same_size && values.iter().zip(chunks).all(|(value, chunk)| bytes(*value) == *chunk)
        }
        match self.element {
            Element::F32 => equal(self, value, f32::to_le_bytes),
            Element::F16 => equal(self, value, f16::to_le_bytes),
            Element::F64 => equal(self, value, f64::to_le_bytes),
            Element::I64 => equal(self, value, i64::to_le_bytes),
            Element::I32 => equal(self, value, i32::to_le_bytes),
            Element::U8 => equal(self, value, u8::to_le_bytes),
            Element::I8 => equal(self, value, i8::to_le_bytes),
            Element::Bool => equal(self, value, |it: bool| [u8::from(it)]),
        }
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
    // Kept alive as long as kernels may point into it.
    _weights: SharedWeights,
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

    /// As [`Session::open`], the graph's `values` looked up among `weights` before.
    pub(super) fn with(
        runtime: &Runtime,
        graph: &Graph,
        values: &[Arc<DynValue>],
        weights: &SharedWeights,
        optimise: Optimise,
    ) -> Result<Self, RuntimeError> {
        let inner = build(runtime, graph, values, weights, optimise)?;
        Ok(Self { inner, _weights: weights.clone() })
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
    weights: &SharedWeights,
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
    let mut builder = OrtSession::builder(&runtime.environment)?
        .with_optimization_level(level)
        .map_err(plain)?
        .with_intra_threads(settings.threads)
        .map_err(plain)?
        .with_inter_threads(1)
        .map_err(plain)?
        .with_parallel_execution(false)
        .map_err(plain)?
        .with_intra_op_spinning(settings.spinning)
        .map_err(plain)?
        .with_memory_pattern(settings.memory_pattern)
        .map_err(plain)?;
    builder = match optimise {
        // A session that runs once or twice packs nothing.
        Optimise::Nothing => builder.with_prepacking(false).map_err(plain)?,
        _ => builder.with_prepacked_weights(&weights.packed()).map_err(plain)?,
    };
    builder = match runtime.device {
        Device::Cpu => builder
            .with_execution_providers([ort::ep::CPU::default().with_arena_allocator(settings.arena).build()])
            .map_err(plain)?,
        Device::Cuda(ordinal) => builder
            .with_execution_providers([CUDA::default()
                .with_device_id(ordinal as i32)
                .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
                .build()
                .error_on_failure()])
            .map_err(plain)?,
    };
    if runtime.device == Device::Cpu {
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
