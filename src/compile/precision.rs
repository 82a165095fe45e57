//! This file is where half-precision models become single-precision ones, for the graphs that are derived.
//!
//! Rounded weights stay rounded: the result is exact for them, and differs from what the model computes by the
//! rounding of activations alone.

use std::collections::HashMap;

use super::graph::{Attribute, Element, Graph, Tensor, Type, Value};
use super::normalise::single;

/// Raises every half-precision tensor, cast and port to float32. Answers whether there was one. Raised weights
/// get new names, since sessions share weights by name. Declared types of inner values are left as they were.
pub fn raise(graph: &mut Graph) -> bool {
    let mut names = graph.names();
    let mut renamed: HashMap<Value, Value> = HashMap::new();
    let mut changed = false;
    for (name, tensor) in &mut graph.initializers {
        if let Some(raised) = raised(tensor) {
            *tensor = raised;
            renamed.insert(name.clone(), names.fresh(&format!("{name}/float32")));
        }
    }
    graph.rename(&renamed);
    changed |= !renamed.is_empty();
    for port in graph.inputs.iter_mut().chain(&mut graph.outputs) {
        if let Type::Tensor(element, _) = &mut port.ty
            && is_half(*element)
        {
            *element = Element::F32;
            changed = true;
        }
    }
    for node in &mut graph.nodes {
        for (name, attribute) in &mut node.attributes {
            changed |= raise_attribute(name, attribute);
        }
    }
    changed
}

fn raise_attribute(name: &str, attribute: &mut Attribute) -> bool {
    let half = |code: i64| i32::try_from(code).ok().and_then(Element::from_code).is_some_and(is_half);
    match attribute {
        Attribute::Tensor(tensor) => match raised(tensor) {
            Some(raised) => *tensor = raised,
            None => return false,
        },
        Attribute::Int(code) if matches!(name, "to" | "dtype") && half(*code) => {
            *code = i64::from(Element::F32.code());
        }
        Attribute::Graph(inner) => {
            let changed = raise(inner);
            inner.types.clear();
            return changed;
        }
        _ => return false,
    }
    true
}

fn raised(tensor: &Tensor) -> Option<Tensor> {
    if is_half(tensor.element()) { single(tensor) } else { None }
}

fn is_half(element: Element) -> bool {
    matches!(element, Element::F16 | Element::BF16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_casts_and_ports_are_raised_and_weights_renamed() {
        let mut graph = Graph::parse("a = Cast(x) {to: 10}; y = Mul(a, w: float16[1])").unwrap();
        graph.inputs.retain(|it| &*it.value == "x");
        graph.initializers.insert("w".into(), Tensor::from_f64(Element::F16, &[1], &[0.5]));
        assert!(raise(&mut graph));
        let lines: Vec<String> = graph.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines[1..3], ["a = Cast(x) {to: 1}", "y = Mul(a, [0.5])"]);
        assert_eq!(graph.initializers.keys().next().map(|it| &**it), Some("w/float32"));
        assert!(!raise(&mut graph));
    }
}
