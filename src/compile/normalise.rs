//! This file is where graphs of many opsets become graphs of two dialects: opset 17, and 18 and later.

use std::collections::HashMap;

use super::facts::Facts;
use super::graph::{Attribute, Element, Graph, Node, Tensor, Value};
use super::onnx::OLDEST_OPSET;
use super::refusal::{Code, Refusal};

/// The version that older graphs are raised to.
const RAISED: i64 = 17;

/// Constants and their copies become [`weights`], and opsets before 17 are raised.
///
/// Below opset 13 a Softmax flattened everything behind its axis, which is the same on the last axis alone; the
/// results of such nodes with another axis are answered, for the caller to check once ranks are known.
pub fn normalise(graph: &mut Graph) -> Result<Vec<Value>, Refusal> {
    weights(graph);
    let opset = graph.opset();
    if opset < OLDEST_OPSET {
        return Err(Refusal::new(Code::Opset, format!("opset {opset} is older than {OLDEST_OPSET}")));
    }
    let mut flattening = Vec::new();
    if opset < 13 {
        raise(graph, &mut flattening);
    }
    if opset < RAISED {
        graph.opsets.insert(String::new(), RAISED);
    }
    Ok(flattening)
}

/// Constants become initializers, copies of constants their original, and half-precision constants that the
/// graph widens become float32. What is not needed goes.
///
/// Done before a graph is opened, so that all graphs of a model have the same initializers: ONNX Runtime would
/// fold these nodes too, but in every session anew, and sessions could not share them.
pub fn weights(graph: &mut Graph) {
    constants(graph);
    copies(graph);
    graph.prune();
}

/// Refuses results of [`normalise`] whose axis turned out not to be the last.
pub fn check_flattening(graph: &Graph, facts: &Facts, flattening: &[Value]) -> Result<(), Refusal> {
    for value in flattening {
        let last = facts.get(value).map_or(0, |it| it.rank() as i64) - 1;
        let node = graph.nodes.iter().find(|it| it.outputs.first() == Some(value));
        if node.is_some_and(|it| it.int("axis") != Some(last)) {
            let reason = format!("{value} is a Softmax of an opset below 13 over several axes");
            return Err(Refusal::new(Code::Opset, reason));
        }
    }
    Ok(())
}

/// `Constant` nodes, as tensors among the initializers.
pub(super) fn constants(graph: &mut Graph) {
    let nodes = std::mem::take(&mut graph.nodes);
    for node in nodes {
        match constant(&node) {
            Some(tensor) => {
                graph.initializers.insert(node.outputs[0].clone(), tensor);
            }
            None => graph.nodes.push(node),
        }
    }
}

fn constant(node: &Node) -> Option<Tensor> {
    if !node.is("Constant") || node.outputs.len() != 1 {
        return None;
    }
    match node.attributes.iter().next()?.1 {
        Attribute::Tensor(it) => Some(it.clone()),
        Attribute::Float(it) => Some(Tensor::from_f32(&[], &[*it])),
        Attribute::Floats(it) => Some(Tensor::from_f32(&[it.len()], it)),
        Attribute::Int(it) => Some(Tensor::from_i64(&[], &[*it])),
        Attribute::Ints(it) => Some(Tensor::from_i64(&[it.len()], it)),
        _ => None,
    }
}

/// `Identity` of an initializer is read under the initializer's own name; and `Cast` of one from half precision
/// to float32, the form in which files are kept small, becomes its values.
fn copies(graph: &mut Graph) {
    let mut originals: HashMap<Value, Value> = HashMap::new();
    let nodes = std::mem::take(&mut graph.nodes);
    for node in nodes {
        let source = node.inputs.first().map(|it| originals.get(it).unwrap_or(it));
        let held = source.and_then(|it| Some((it, graph.initializers.get(it)?)));
        let half = |it: &&Tensor| matches!(it.element(), Element::F16 | Element::BF16);
        match (node.op.as_str(), held, node.output(0).cloned()) {
            ("Identity", Some((source, _)), Some(copy))
                if node.domain.is_empty() && graph.output(&copy).is_none() =>
            {
                originals.insert(copy, source.clone());
            }
            ("Cast", Some((_, tensor)), Some(wide))
                if node.domain.is_empty() && node.int("to") == Some(i64::from(Element::F32.code())) =>
            {
                match Some(tensor).filter(half).and_then(single) {
                    Some(tensor) => drop(graph.initializers.insert(wide, tensor)),
                    None => graph.nodes.push(node),
                }
            }
            _ => graph.nodes.push(node),
        }
    }
    if !originals.is_empty() {
        graph.rename(&originals);
    }
}

/// The same numbers in single precision.
pub(super) fn single(tensor: &Tensor) -> Option<Tensor> {
    Some(Tensor::from_f32(tensor.dims(), &tensor.to_f32()?))
}

/// Opsets 11 and 12: axes and lengths move from attributes to operands.
fn raise(graph: &mut Graph, flattening: &mut Vec<Value>) {
    let mut names = graph.names();
    let mut added: Vec<(Value, Tensor)> = Vec::new();
    for node in graph.nodes.iter_mut().filter(|it| it.domain.is_empty()) {
        let moved = match node.op.as_str() {
            "Squeeze" | "Unsqueeze" | "ReduceSum" => "axes",
            "Split" => "split",
            "Softmax" | "LogSoftmax" => {
                let axis = node.int("axis").unwrap_or(1);
                node.attributes.insert("axis".into(), axis.into());
                if axis != -1 {
                    flattening.extend(node.output(0).cloned());
                }
                continue;
            }
            "Dropout" => {
                node.attributes.clear();
                continue;
            }
            _ => continue,
        };
        if let Some(Attribute::Ints(list)) = node.attributes.remove(moved) {
            let value = names.fresh(&format!("{}/{moved}", node.label()));
            added.push((value.clone(), Tensor::from_i64(&[list.len()], &list)));
            node.inputs.push(value);
        }
    }
    graph.initializers.extend(added);
    for node in &mut graph.nodes {
        for attribute in node.attributes.values_mut() {
            if let Attribute::Graph(inner) = attribute {
                raise(inner, flattening);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn normalised(text: &str, opset: i64) -> (Graph, Vec<Value>) {
        let mut graph = Graph::parse(text).unwrap();
        graph.opsets.insert(String::new(), opset);
        let flattening = normalise(&mut graph).unwrap();
        (graph, flattening)
    }

    #[test]
    fn axes_of_opset_11_become_operands() {
        let (graph, flattening) = normalised(
            "a = Unsqueeze(x) {axes: [1]}; b = ReduceSum(a) {axes: [0], keepdims: 0}; y = Softmax(b)",
            11,
        );
        assert_snapshot!(graph, @r"
        in  x: float32
        a = Unsqueeze(x, [1])
        b = ReduceSum(a, [0]) {keepdims: 0}
        y = Softmax(b) {axis: 1}
        out y: float32
        ");
        assert_eq!((graph.opset(), flattening), (17, vec!["y".into()]));
    }

    #[test]
    fn constants_and_their_copies_become_initializers() {
        let (graph, _) =
            normalised("c = Constant() {value_floats: [1.0, 2.0]}; d = Identity(c); y = Add(x, d)", 18);
        assert_snapshot!(graph, @r"
        in  x: float32
        y = Add(x, [1.0, 2.0])
        out y: float32
        ");
    }

    #[test]
    fn weights_kept_in_half_precision_are_widened_once() {
        let mut graph = Graph::parse("w = Cast(h: float16[2]) {to: 1}; y = Mul(x, w)").unwrap();
        graph.inputs.retain(|it| &*it.value == "x");
        let halves = Tensor::from_f64(Element::F16, &[2], &[0.1, 2.0]);
        graph.initializers.insert("h".into(), halves);
        normalise(&mut graph).unwrap();
        let names: Vec<&str> = graph.initializers.keys().map(|it| &**it).collect();
        assert_eq!((names, graph.nodes.len()), (vec!["w"], 1));
        assert_eq!(graph.initializers["w"].to_f32(), Some(vec![0.099975586, 2.0]));
    }

    #[test]
    fn opset_10_is_refused() {
        let mut graph = Graph::parse("y = Exp(x)").unwrap();
        graph.opsets.insert(String::new(), 10);
        assert_eq!(normalise(&mut graph).unwrap_err().code, Code::Opset);
    }
}
