//! This file is where weights that are stored in half precision and cast in the graph become float32 once.
//!
//! ONNX Runtime would fold these casts too, but in every session anew, so that sessions could not share them.

use std::collections::HashSet;

use super::graph::{Element, Graph, Tensor, Value};

/// Replaces every `Cast` of a float16 initializer to float32 by the float32 values, which are exact.
pub fn widen(graph: &mut Graph) {
    let mut wide: Vec<(Value, Tensor)> = Vec::new();
    graph.nodes.retain(|node| {
        let to_f32 = node.is("Cast") && node.int("to") == Some(i64::from(Element::F32.code()));
        let half = node.inputs.first().and_then(|it| graph.initializers.get(it));
        let half = half.filter(|it| to_f32 && it.element() == Element::F16);
        let (Some(half), Some(output)) = (half, node.outputs.first()) else { return true };
        let Some(values) = half.to_f32() else { return true };
        wide.push((output.clone(), Tensor::from_f32(half.dims(), &values)));
        false
    });
    if wide.is_empty() {
        return;
    }
    graph.initializers.extend(wide);
    let read: HashSet<Value> = graph
        .nodes
        .iter()
        .flat_map(|it| it.reads())
        .chain(graph.outputs.iter().map(|it| it.value.clone()))
        .collect();
    graph.initializers.retain(|name, _| read.contains(name));
}
