//! This file is where the compiler's graphs are run for the tests: ONNX Runtime, no optimisation.

use std::sync::OnceLock;

use explaind::compile::graph::{Element, Graph, Tensor, Value};
use explaind::compile::probe::Batch;
use explaind::compile::write_split;
use explaind::runtime::{
    self, Data, Optimise, Runtime, RuntimeError, Session, SharedWeights, Source, Weight,
};

use crate::support;

/// Runs a graph on batches; the compiler's `Evaluate`, which is a trial.
pub fn evaluate(graph: &Graph, batches: &[Batch]) -> Result<Vec<Vec<Option<Tensor>>>, String> {
    let mut program = Program::of(graph, Session::on_trial)?;
    batches.iter().map(|batch| program.run(batch)).collect()
}

/// Larger initializers are handed over beside the model, as a server does it.
const THRESHOLD: usize = 1024;

/// A session and the names of its outputs.
pub struct Program {
    session: Session,
    outputs: Vec<(String, bool)>,
}

impl Program {
    /// Opens a graph on the device.
    pub fn open(graph: &Graph) -> Result<Self, String> {
        Self::of(graph, |runtime, graph, weights| Session::open(runtime, graph, weights, Optimise::Nothing))
    }

    fn of(
        graph: &Graph,
        open: impl Fn(&Runtime, &runtime::Graph, &SharedWeights) -> Result<Session, RuntimeError>,
    ) -> Result<Self, String> {
        let split = write_split(graph, &|it| it.data().len() > THRESHOLD);
        let weights = split.weights.iter().map(|(name, tensor)| weight(name, tensor)).collect();
        let split = runtime::Graph { model: Source::Bytes(split.model.into()), weights };
        let session =
            open(runtime(), &split, &SharedWeights::default()).map_err(|error| error.to_string())?;
        let outputs = session.outputs().into_iter().map(|it| (it.name, it.element.is_some())).collect();
        Ok(Self { session, outputs })
    }

    /// Its outputs in order; `None` for types that are not read.
    pub fn run(&mut self, batch: &Batch) -> Result<Vec<Option<Tensor>>, String> {
        let known: Vec<String> = self.session.inputs().into_iter().map(|it| it.name).collect();
        let inputs = batch.iter().filter(|it| known.contains(&it.0.to_string()));
        let inputs = inputs.map(|(name, tensor)| (name.to_string(), to_runtime(tensor))).collect();
        let readable = self.outputs.iter().filter(|it| it.1).map(|it| it.0.as_str());
        let tensors = self.session.run(inputs, readable).map_err(|error| error.to_string())?;
        let mut tensors = tensors.iter().map(from_runtime);
        Ok(self.outputs.iter().map(|it| if it.1 { tensors.next() } else { None }).collect())
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(support::runtime)
}

fn weight(name: &str, tensor: &Tensor) -> Weight {
    let element = match tensor.element() {
        Element::F32 => runtime::Element::F32,
        Element::F16 => runtime::Element::F16,
        Element::F64 => runtime::Element::F64,
        Element::I64 => runtime::Element::I64,
        Element::I32 => runtime::Element::I32,
        Element::Bool => runtime::Element::Bool,
        Element::U8 => runtime::Element::U8,
        Element::I8 => runtime::Element::I8,
        other => panic!("{other} is not shared"),
    };
    let (dims, bytes) = (tensor.dims().to_vec(), tensor.data().clone());
    Weight { name: name.to_owned(), element, dims, bytes }
}

fn to_runtime(tensor: &Tensor) -> runtime::Tensor {
    let ints = || tensor.to_i64().expect("an integer tensor");
    let data = match tensor.element() {
        Element::F32 => Data::F32(tensor.to_f32().expect("a floating tensor")),
        Element::F64 => Data::F64(tensor.to_f64().expect("a floating tensor")),
        Element::I64 => Data::I64(ints()),
        Element::I32 => Data::I32(ints().into_iter().map(|it| it as i32).collect()),
        Element::Bool => Data::Bool(ints().into_iter().map(|it| it != 0).collect()),
        other => panic!("{other} is not fed"),
    };
    runtime::Tensor { dims: tensor.dims().to_vec(), data }
}

fn from_runtime(tensor: &runtime::Tensor) -> Tensor {
    let dims = &tensor.dims;
    match &tensor.data {
        Data::F32(it) => Tensor::from_f32(dims, it),
        Data::F64(it) => Tensor::from_f64(Element::F64, dims, it),
        Data::F16(it) => {
            Tensor::from_f64(Element::F16, dims, &it.iter().map(|it| it.to_f64()).collect::<Vec<_>>())
        }
        Data::I64(it) => Tensor::from_i64(dims, it),
        Data::Bool(it) => Tensor::from_bool(dims, it),
        Data::I32(it) => raw(Element::I32, dims, it.iter().flat_map(|it| it.to_le_bytes()).collect()),
        Data::U8(it) => raw(Element::U8, dims, it.clone()),
        Data::I8(it) => raw(Element::I8, dims, it.iter().map(|&it| it as u8).collect()),
    }
}

fn raw(element: Element, dims: &[usize], bytes: Vec<u8>) -> Tensor {
    Tensor::new(element, dims.to_vec(), bytes.into()).expect("ONNX Runtime's sizes agree")
}

/// A named tensor.
pub fn named(name: &str, tensor: Tensor) -> (Value, Tensor) {
    (name.into(), tensor)
}
