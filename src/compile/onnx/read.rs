//! This file is where bytes become a graph; what is malformed is refused.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message;

use super::proto::{GraphProto, ModelProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto};
use super::{function, tensor};
use crate::compile::builder::KERNELS;
use crate::compile::graph::{Attribute, Axis, Cycle, Element, Graph, Node, Port, TensorError, Type, Value};

/// Where a file keeps the bytes of an initializer that is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// File, relative to the model's folder; it never leaves that folder.
    pub location: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes; `None` for the rest of the file.
    pub length: Option<u64>,
}

/// Fetches external bytes for the reader, which does no I/O.
pub type Fetch<'a> = &'a dyn Fn(&External) -> Result<Bytes, String>;

/// Why bytes are not a graph.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not a protobuf message of the right form.
    #[error("the file is not an ONNX model: {0}")]
    Protobuf(#[from] prost::DecodeError),
    /// There is no graph in the message.
    #[error("the file holds no graph")]
    NoGraph,
    /// No version of ONNX's own operators is named.
    #[error("the file names no version of the ONNX operators")]
    NoOpset,
    /// An initializer or a constant is not what it says.
    #[error("the tensor {name:?} is malformed: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: TensorError,
    },
    /// An initializer or a constant has a form that is not read.
    #[error("the tensor {name:?} cannot be read: {reason}")]
    Form {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// External bytes could not be had.
    #[error("the external data of {name:?} cannot be read: {reason}")]
    External {
        /// The initializer.
        name: String,
        /// What went wrong.
        reason: String,
    },
    /// An attribute is not what it says.
    #[error("attribute {attribute:?} of node {node:?} is malformed")]
    Attribute {
        /// The node's label.
        node: String,
        /// The attribute's name.
        attribute: String,
    },
    /// A value has two producers.
    #[error("the value {0:?} is defined twice")]
    Twice(String),
    /// A value has no producer.
    #[error("the value {value:?}, read by {reader:?}, is defined nowhere")]
    Undefined {
        /// The value.
        value: String,
        /// The node's label, or `the outputs`.
        reader: String,
    },
    /// An input or output has no usable type.
    #[error("the type of {0:?} is malformed")]
    Type(String),
    /// The graph is no graph.
    #[error(transparent)]
    Cycle(#[from] Cycle),
    /// A function calls itself, or calls make too many nodes.
    #[error("the function {0:?} cannot be inlined: it calls itself, or there are too many calls")]
    Recursion(String),
    /// An operator that only graphs derived in this process may hold.
    #[error("node {node:?} is an operator of the domain `{KERNELS}`, which no file may hold")]
    Kernel {
        /// The node's label.
        node: String,
    },
    /// Functions are told apart by their overloads, which are not read.
    #[error("two functions have the same name")]
    Overloaded,
}

/// Reads an ONNX model. Model-local functions are inlined, nodes sorted, constants and weights shared with
/// `bytes` where they are stored as they are.
///
/// Initializers that are also listed as inputs (the habit of old files) are constants here.
pub fn read(bytes: Bytes, fetch: Fetch<'_>) -> Result<Graph, ReadError> {
    let model = ModelProto::decode(bytes)?;
    let proto = model.graph.ok_or(ReadError::NoGraph)?;
    let mut graph = graph(proto, fetch, 0)?;
    for import in model.opset_import {
        let domain = domain(import.domain.unwrap_or_default());
        graph.opsets.insert(domain, import.version.unwrap_or_default());
    }
    if graph.opset() < 1 {
        return Err(ReadError::NoOpset);
    }
    graph.ir_version = model.ir_version.unwrap_or_default();
    function::inline(&mut graph, model.functions, fetch)?;
    check(&graph, &HashSet::new())?;
    graph.sort()?;
    Ok(graph)
}

/// For models that keep everything in one file.
pub fn no_external(external: &External) -> Result<Bytes, String> {
    Err(format!("{:?} lies outside the model's bytes", external.location))
}

/// Subgraphs deeper than this are refused; exporters stay far below.
const DEEPEST: usize = 32;

fn graph(proto: GraphProto, fetch: Fetch<'_>, depth: usize) -> Result<Graph, ReadError> {
    let mut graph = Graph { name: proto.name.unwrap_or_default(), ..Graph::default() };
    if let Some(sparse) = proto.sparse_initializer.into_iter().next() {
        let name = sparse.values.and_then(|it| it.name).unwrap_or_default();
        return Err(ReadError::Form { name, reason: "it is sparse".into() });
    }
    for initializer in proto.initializer {
        let name: Value = initializer.name.clone().unwrap_or_default().into();
        let tensor = tensor::read(initializer, fetch)?;
        if name.is_absent() || graph.initializers.insert(name.clone(), tensor).is_some() {
            return Err(ReadError::Twice(name.to_string()));
        }
    }
    for info in proto.input {
        let port = port(info)?;
        if !graph.initializers.contains_key(&port.value) {
            graph.inputs.push(port);
        }
    }
    graph.outputs = proto.output.into_iter().map(port).collect::<Result<_, _>>()?;
    for info in proto.value_info {
        if let Ok(Port { value, ty }) = port(info) {
            graph.types.insert(value, ty);
        }
    }
    graph.nodes = proto.node.into_iter().map(|it| node(it, fetch, depth)).collect::<Result<_, _>>()?;
    Ok(graph)
}

/// Reads a node; subgraphs may nest up to a fixed depth.
pub(super) fn node(
    proto: super::proto::NodeProto,
    fetch: Fetch<'_>,
    depth: usize,
) -> Result<Node, ReadError> {
    let mut node = Node {
        name: proto.name.unwrap_or_default(),
        domain: domain(proto.domain.unwrap_or_default()),
        op: proto.op_type.unwrap_or_default(),
        inputs: proto.input.into_iter().map(Value::from).collect(),
        outputs: proto.output.into_iter().map(Value::from).collect(),
        ..Node::default()
    };
    if node.domain == KERNELS {
        return Err(ReadError::Kernel { node: node.label().into() });
    }
    for it in proto.attribute {
        let name = it.name.clone().unwrap_or_default();
        let read = attribute(it, fetch, depth)?;
        let attribute =
            read.ok_or_else(|| ReadError::Attribute { node: node.label().into(), attribute: name.clone() })?;
        node.attributes.insert(name, attribute);
    }
    Ok(node)
}

fn attribute(
    mut proto: super::proto::AttributeProto,
    fetch: Fetch<'_>,
    depth: usize,
) -> Result<Option<Attribute>, ReadError> {
    use super::proto::attribute_proto::AttributeType as Kind;
    if proto.ref_attr_name.as_ref().is_some_and(|it| !it.is_empty()) {
        return Ok(Some(Attribute::Other(Box::new(proto))));
    }
    Ok(match proto.r#type() {
        Kind::Int => Some(Attribute::Int(proto.i.unwrap_or_default())),
        Kind::Float => Some(Attribute::Float(proto.f.unwrap_or_default())),
        Kind::String => Some(Attribute::Text(proto.s.unwrap_or_default())),
        Kind::Ints => Some(Attribute::Ints(proto.ints)),
        Kind::Floats => Some(Attribute::Floats(proto.floats)),
        Kind::Strings => Some(Attribute::Texts(proto.strings)),
        Kind::Tensor => match proto.t.take_if(|it| it.string_data.is_empty()) {
            Some(it) => Some(Attribute::Tensor(tensor::read(it, fetch)?)),
            None => proto.t.is_some().then(|| Attribute::Other(Box::new(proto))),
        },
        Kind::Graph if depth < DEEPEST => match proto.g {
            Some(it) => Some(Attribute::Graph(Box::new(graph(it, fetch, depth + 1)?))),
            None => None,
        },
        Kind::Graph | Kind::Undefined => None,
        Kind::Tensors | Kind::Graphs | Kind::SparseTensor | Kind::SparseTensors => {
            Some(Attribute::Other(Box::new(proto)))
        }
        Kind::TypeProto | Kind::TypeProtos => Some(Attribute::Other(Box::new(proto))),
    })
}

fn domain(name: String) -> String {
    if name == "ai.onnx" { String::new() } else { name }
}

fn port(info: ValueInfoProto) -> Result<Port, ReadError> {
    let name = info.name.unwrap_or_default();
    let ty = info.r#type.map_or_else(|| Ok(Type::Other(Box::default())), |it| ty(&name, it))?;
    Ok(Port { value: name.into(), ty })
}

fn ty(name: &str, proto: TypeProto) -> Result<Type, ReadError> {
    let Some(type_proto::Value::TensorType(tensor)) = &proto.value else {
        return Ok(Type::Other(Box::new(proto)));
    };
    let malformed = || ReadError::Type(name.to_owned());
    let element = tensor.elem_type.and_then(Element::from_code).ok_or_else(malformed)?;
    let Some(shape) = &tensor.shape else { return Ok(Type::Tensor(element, None)) };
    let axis = |dim: &tensor_shape_proto::Dimension| match &dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(it)) => {
            usize::try_from(*it).map(Axis::Fixed).map_err(|_| malformed())
        }
        Some(tensor_shape_proto::dimension::Value::DimParam(it)) if !it.is_empty() => {
            Ok(Axis::Named(it.clone()))
        }
        _ => Ok(Axis::Unknown),
    };
    Ok(Type::Tensor(element, Some(shape.dim.iter().map(axis).collect::<Result<_, _>>()?)))
}

/// Every value has exactly one producer, here or around.
fn check(graph: &Graph, around: &HashSet<Value>) -> Result<(), ReadError> {
    let mut known = around.clone();
    let ports = graph.inputs.iter().map(|it| &it.value);
    let made = graph.nodes.iter().flat_map(|it| &it.outputs).filter(|it| !it.is_absent());
    let mut own = HashSet::new();
    for value in graph.initializers.keys().chain(ports).chain(made) {
        if !own.insert(value) {
            return Err(ReadError::Twice(value.to_string()));
        }
        known.insert(value.clone());
    }
    let undefined = |value: &Value, reader: &str| {
        Err(ReadError::Undefined { value: value.to_string(), reader: reader.to_owned() })
    };
    for node in &graph.nodes {
        if let Some(value) = node.inputs.iter().find(|it| !it.is_absent() && !known.contains(*it)) {
            return undefined(value, node.label());
        }
        for subgraph in node.subgraphs() {
            check(subgraph, &known)?;
        }
    }
    match graph.outputs.iter().find(|it| !known.contains(&it.value)) {
        Some(port) => undefined(&port.value, "the outputs"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::{NodeProto, OperatorSetIdProto, TensorProto};
    use super::*;

    fn model(nodes: &[(&str, &[&str], &[&str])], initializers: Vec<TensorProto>) -> Bytes {
        let names = |it: &[&str]| it.iter().map(|it| it.to_string()).collect();
        let node = |it: &(&str, &[&str], &[&str])| NodeProto {
            op_type: Some(it.0.into()),
            input: names(it.1),
            output: names(it.2),
            ..NodeProto::default()
        };
        let port = |name: &str| ValueInfoProto { name: Some(name.into()), ..ValueInfoProto::default() };
        let graph = GraphProto {
            node: nodes.iter().map(node).collect(),
            input: vec![port("x")],
            output: vec![port("y")],
            initializer: initializers,
            ..GraphProto::default()
        };
        let opset = OperatorSetIdProto { version: Some(17), ..OperatorSetIdProto::default() };
        let model = ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() };
        model.encode_to_vec().into()
    }

    fn refusal(bytes: Bytes) -> String {
        read(bytes, &no_external).unwrap_err().to_string()
    }

    fn weight(dims: &[i64], bytes: usize) -> TensorProto {
        TensorProto {
            name: Some("w".into()),
            data_type: Some(1),
            dims: dims.to_vec(),
            raw_data: Some(vec![0; bytes].into()),
            ..TensorProto::default()
        }
    }

    #[test]
    fn truncated_bytes_are_refused_at_every_length() {
        let whole = model(&[("Add", &["x", "w"], &["y"])], vec![weight(&[2], 8)]);
        assert!(read(whole.clone(), &no_external).is_ok());
        for length in 0..whole.len() {
            let _ = read(whole.slice(..length), &no_external);
        }
        assert!(refusal(whole.slice(..whole.len() - 3)).contains("not an ONNX model"));
    }

    #[test]
    fn an_undefined_value_is_named_with_its_reader() {
        let bytes = model(&[("Add", &["x", "nowhere"], &["y"])], vec![]);
        assert_eq!(refusal(bytes), r#"the value "nowhere", read by "y", is defined nowhere"#);
    }

    #[test]
    fn a_value_with_two_producers_is_refused() {
        let bytes = model(&[("Exp", &["x"], &["y"]), ("Tanh", &["x"], &["y"])], vec![]);
        assert_eq!(refusal(bytes), r#"the value "y" is defined twice"#);
    }

    #[test]
    fn a_circle_is_refused() {
        let bytes = model(&[("Add", &["x", "a"], &["y"]), ("Exp", &["y"], &["a"])], vec![]);
        assert!(refusal(bytes).contains("circle"));
    }

    #[test]
    fn an_initializer_of_the_wrong_size_is_refused() {
        let bytes = model(&[("Add", &["x", "w"], &["y"])], vec![weight(&[3], 8)]);
        assert!(refusal(bytes).contains("needs 12 bytes, not 8"));
        let bytes = model(&[("Add", &["x", "w"], &["y"])], vec![weight(&[-1], 0)]);
        assert!(refusal(bytes).contains("negative"));
    }

    #[test]
    fn external_data_may_not_leave_the_folder() {
        let mut outside = weight(&[1], 0);
        outside.data_location = Some(1);
        outside.external_data = vec![super::super::proto::StringStringEntryProto {
            key: Some("location".into()),
            value: Some("../secret".into()),
        }];
        let bytes = model(&[("Add", &["x", "w"], &["y"])], vec![outside]);
        assert!(refusal(bytes).contains("not a file of the model's folder"));
    }

    #[test]
    fn functions_are_inlined_with_their_attributes() {
        let mut proto = ModelProto::decode(model(&[("Soft", &["x"], &["y"])], vec![])).unwrap();
        let graph = proto.graph.as_mut().unwrap();
        graph.node[0].domain = Some("local".into());
        graph.node[0].name = Some("call".into());
        graph.node[0].attribute = vec![super::super::proto::AttributeProto {
            name: Some("alpha".into()),
            r#type: Some(1),
            f: Some(0.25),
            ..Default::default()
        }];
        let reference = super::super::proto::AttributeProto {
            name: Some("alpha".into()),
            ref_attr_name: Some("alpha".into()),
            r#type: Some(1),
            ..Default::default()
        };
        let inner = |op: &str, input: &str, output: &str| NodeProto {
            op_type: Some(op.into()),
            input: vec![input.into()],
            output: vec![output.into()],
            ..NodeProto::default()
        };
        let leaky = NodeProto { attribute: vec![reference], ..inner("LeakyRelu", "a", "t") };
        proto.functions = vec![super::super::proto::FunctionProto {
            name: Some("Soft".into()),
            domain: Some("local".into()),
            input: vec!["a".into()],
            output: vec!["b".into()],
            node: vec![leaky, inner("Exp", "t", "b")],
            ..Default::default()
        }];
        let graph = read(proto.encode_to_vec().into(), &no_external).unwrap();
        let lines: Vec<String> = graph.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines[1..3], ["call/t = LeakyRelu(x) {alpha: 0.25}", "y = Exp(call/t)"]);
    }

    /// Functions f0, f1, ... of which each calls the next, and the last is an Exp.
    fn chain(names: &[&str]) -> Vec<u8> {
        let mut proto = ModelProto::decode(model(&[(names[0], &["x"], &["y"])], vec![])).unwrap();
        proto.graph.as_mut().unwrap().node[0].domain = Some("local".into());
        let calls = names[1..].iter().map(|it| (*it, "local")).chain([("Exp", "")]);
        let function = |(name, (op, domain)): (&&str, (&str, &str))| super::super::proto::FunctionProto {
            name: Some((*name).into()),
            domain: Some("local".into()),
            input: vec!["a".into()],
            output: vec!["b".into()],
            node: vec![NodeProto {
                op_type: Some(op.into()),
                domain: Some(domain.into()),
                input: vec!["a".into()],
                output: vec!["b".into()],
                ..NodeProto::default()
            }],
            ..Default::default()
        };
        proto.functions = names.iter().zip(calls).map(function).collect();
        proto.encode_to_vec()
    }

    #[test]
    fn functions_that_call_each_other_without_end_are_refused_and_not_followed() {
        let names: Vec<String> = (0..50_000).map(|it| format!("f{it}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let few = read(chain(&names[..100]).into(), &no_external).unwrap();
        assert_eq!(few.nodes.len(), 1);
        let refusal = read(chain(&names).into(), &no_external).unwrap_err();
        assert!(matches!(refusal, ReadError::Recursion(_)), "{refusal}");
    }

    #[test]
    fn functions_that_share_a_name_are_refused() {
        let refusal = read(chain(&["f", "f"]).into(), &no_external).unwrap_err();
        assert!(matches!(refusal, ReadError::Overloaded), "{refusal}");
    }
}
