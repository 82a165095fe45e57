//! This file is where a graph becomes bytes, whole or with its large weights left out.

use prost::Message;

use super::proto::tensor_proto::DataLocation;
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto, tensor_shape_proto,
    type_proto,
};
use crate::compile::graph::{Attribute, Axis, Graph, Node, Port, Tensor, Type, Value};

/// A model file and the weights that it refers to but does not hold.
#[derive(Debug, Clone)]
pub struct Split {
    /// The model; its large initializers are external data in a file that does not exist.
    pub model: Vec<u8>,
    /// These initializers, sharing their bytes with the graph they come from.
    pub weights: Vec<(Value, Tensor)>,
}

/// The name of the file that [`write_split`]'s external data pretends to lie in.
pub const WEIGHTS_FILE: &str = "weights.bin";

/// Writes the whole graph.
pub fn write(graph: &Graph) -> Vec<u8> {
    model(graph, &|_| false).0.encode_to_vec()
}

/// Writes the graph without the initializers for which `apart` says so, so that several sessions can be given the
/// same weights in memory.
pub fn write_split(graph: &Graph, apart: Apart<'_>) -> Split {
    let (model, weights) = model(graph, apart);
    Split { model: model.encode_to_vec(), weights }
}

/// Which tensors are not written.
pub type Apart<'a> = &'a dyn Fn(&Tensor) -> bool;

fn model(graph: &Graph, apart: Apart<'_>) -> (ModelProto, Vec<(Value, Tensor)>) {
    let mut flat = graph.clone();
    flat.flatten();
    let mut opsets = flat.opsets.clone();
    for node in &flat.nodes {
        domains(node, &mut opsets);
    }
    let import = |(domain, version)| OperatorSetIdProto { domain: Some(domain), version: Some(version) };
    let mut weights = Vec::new();
    let model = ModelProto {
        ir_version: Some(graph.ir_version.max(8)),
        producer_name: Some("explaind".into()),
        opset_import: opsets.into_iter().map(import).collect(),
        graph: Some(graph_proto(&flat, apart, &mut weights)),
        ..ModelProto::default()
    };
    (model, weights)
}

/// Some optimisers use operator domains without importing them.
fn domains(node: &Node, opsets: &mut std::collections::BTreeMap<String, i64>) {
    if !node.domain.is_empty() {
        opsets.entry(node.domain.clone()).or_insert(1);
    }
    for inner in node.subgraphs().flat_map(|it| &it.nodes) {
        domains(inner, opsets);
    }
}

fn graph_proto(graph: &Graph, apart: Apart<'_>, weights: &mut Vec<(Value, Tensor)>) -> GraphProto {
    let mut offset = 0;
    let mut initializer = Vec::with_capacity(graph.initializers.len());
    for (name, tensor) in &graph.initializers {
        let mut proto = header(name, tensor);
        if apart(tensor) {
            proto.data_location = Some(DataLocation::External.into());
            let entry = |key: &str, value: String| StringStringEntryProto {
                key: Some(key.into()),
                value: Some(value),
            };
            proto.external_data = vec![
                entry("location", WEIGHTS_FILE.into()),
                entry("offset", offset.to_string()),
                entry("length", tensor.data().len().to_string()),
            ];
            offset += tensor.data().len();
            weights.push((name.clone(), tensor.clone()));
        } else {
            proto.raw_data = Some(tensor.data().clone());
        }
        initializer.push(proto);
    }
    GraphProto {
        name: Some(if graph.name.is_empty() { "graph".into() } else { graph.name.clone() }),
        node: graph.nodes.iter().map(node_proto).collect(),
        input: graph.inputs.iter().map(port_proto).collect(),
        output: graph.outputs.iter().map(port_proto).collect(),
        initializer,
        ..GraphProto::default()
    }
}

fn node_proto(node: &Node) -> NodeProto {
    let names = |values: &[Value]| values.iter().map(|it| it.to_string()).collect();
    NodeProto {
        input: names(&node.inputs),
        output: names(&node.outputs),
        name: Some(node.name.clone()),
        op_type: Some(node.op.clone()),
        domain: Some(node.domain.clone()),
        attribute: node.attributes.iter().map(|(name, it)| attribute_proto(name, it)).collect(),
        ..NodeProto::default()
    }
}

fn attribute_proto(name: &str, attribute: &Attribute) -> AttributeProto {
    use attribute_proto::AttributeType as Kind;
    let mut proto = AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    let kind = match attribute {
        Attribute::Other(it) => return AttributeProto { name: Some(name.into()), ..(**it).clone() },
        Attribute::Int(it) => {
            proto.i = Some(*it);
            Kind::Int
        }
        Attribute::Float(it) => {
            proto.f = Some(*it);
            Kind::Float
        }
        Attribute::Text(it) => {
            proto.s = Some(it.clone());
            Kind::String
        }
        Attribute::Tensor(it) => {
            proto.t = Some(TensorProto { raw_data: Some(it.data().clone()), ..header("", it) });
            Kind::Tensor
        }
        Attribute::Graph(it) => {
            proto.g = Some(graph_proto(it, &|_| false, &mut Vec::new()));
            Kind::Graph
        }
        Attribute::Ints(it) => {
            proto.ints = it.clone();
            Kind::Ints
        }
        Attribute::Floats(it) => {
            proto.floats = it.clone();
            Kind::Floats
        }
        Attribute::Texts(it) => {
            proto.strings = it.clone();
            Kind::Strings
        }
    };
    proto.r#type = Some(kind.into());
    proto
}

/// Name, type and dimensions; no data.
fn header(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        data_type: Some(tensor.element().code()),
        dims: tensor.dims().iter().map(|&it| it as i64).collect(),
        ..TensorProto::default()
    }
}

fn port_proto(port: &Port) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension};
    let axis = |axis: &Axis| Dimension {
        denotation: None,
        value: match axis {
            Axis::Fixed(it) => Some(dimension::Value::DimValue(*it as i64)),
            Axis::Named(it) => Some(dimension::Value::DimParam(it.clone())),
            Axis::Unknown => None,
        },
    };
    let ty = match &port.ty {
        // An empty type stands for one that ONNX Runtime shall find out.
        Type::Other(it) => it.value.is_some().then(|| (**it).clone()),
        Type::Tensor(element, dims) => Some(TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(element.code()),
                shape: dims.as_ref().map(|it| TensorShapeProto { dim: it.iter().map(axis).collect() }),
            })),
        }),
    };
    ValueInfoProto { name: Some(port.value.to_string()), r#type: ty, ..ValueInfoProto::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::onnx::read::{no_external, read};

    fn example() -> Graph {
        Graph::parse("a, b = Split(x[2, n, 6], [2, 4]) {axis: -1}; y = Mul(a, 2.5); z = Gelu(b)").unwrap()
    }

    #[test]
    fn what_is_written_reads_back_the_same() {
        let bytes = write(&example());
        let again = read(bytes.into(), &no_external).unwrap();
        assert_eq!(again.to_string(), example().to_string());
    }

    #[test]
    fn large_weights_are_left_out_and_fetched_again() {
        let split = write_split(&example(), &|it| it.data().len() > 4);
        let names: Vec<&str> = split.weights.iter().map(|it| &*it.0).collect();
        assert_eq!(names, ["constant"]);
        let weight = split.weights[0].1.data().clone();
        let again = read(split.model.into(), &|it| {
            assert_eq!((it.location.as_str(), it.offset, it.length), (WEIGHTS_FILE, 0, Some(16)));
            Ok(weight.clone())
        });
        assert_eq!(again.unwrap().to_string(), example().to_string());
    }
}
