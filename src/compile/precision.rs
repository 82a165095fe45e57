//! This file is where half-precision models become single-precision ones, for the graphs that are derived.
//!
//! Rounded weights stay rounded: the result is exact for them, and differs from what the model computes by the
//! rounding of activations alone. Only the constants of an activation's formula, which no training found, are put
//! back: a GELU is a GELU in half precision too.

use std::collections::HashMap;
use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

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
    if !is_half(tensor.element()) {
        return None;
    }
    let meant = tensor.scalar().and_then(|it| meant(tensor.element(), it));
    meant.map(|it| Tensor::from_f64(Element::F32, tensor.dims(), &[it])).or_else(|| single(tensor))
}

/// The constant of an activation that is rounded to this number.
fn meant(element: Element, rounded: f64) -> Option<f64> {
    let root = (2.0 / PI).sqrt();
    // √(2/π) and its product with 0.044715 as exporters multiply them out; 1.702 is of the sigmoid's GELU.
    let constants = [SQRT_2, FRAC_1_SQRT_2, root, 0.044715, 0.044715 * root, 1.702];
    constants.into_iter().find(|&it| Tensor::from_f64(element, &[], &[it]).scalar() == Some(rounded))
}

fn is_half(element: Element) -> bool {
    matches!(element, Element::F16 | Element::BF16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_constant_of_an_activation_is_put_back_and_a_weight_is_not() {
        for element in [Element::F16, Element::BF16] {
            let half = |it: f64| raised(&Tensor::from_f64(element, &[], &[it])).unwrap().scalar().unwrap();
            assert_eq!(half(SQRT_2), f64::from(SQRT_2 as f32));
            assert_eq!(half(0.044715), f64::from(0.044715_f32));
            assert!((half(0.1) - 0.1).abs() > 1e-6);
        }
    }

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
