//! This file is where Slice is taken back.

use super::{Cotangents, Misfit};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length};
use crate::compile::graph::{Element, Node, Value};
use crate::compile::ops::only;

/// `dx` = `dy` with zeros around it; where the slice is not one run of known place, the elements are put back
/// at their positions.
pub(super) fn slice(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    match runs(b, node) {
        Some(runs) => only(b.pad_to(dy, x, &runs)),
        None => only(scattered(b, node, dy)),
    }
}

/// For each sliced axis whether the zeros go in front (`true`) or behind, if they go to one side alone. An axis
/// cut on both sides by known amounts is among them when its length is known.
fn runs(b: &Builder, node: &Node) -> Option<Vec<(usize, bool)>> {
    let fact = b.fact(&node.inputs[0]);
    let sliced = b.fact(&node.outputs[0]);
    let list = |index: usize| node.input(index).and_then(|it| b.ints_of(it));
    let count = b.fact(node.input(1)?).shape.first()?.constant()?;
    let axes = match node.input(3) {
        Some(axes) => b.ints_of(axes)?,
        None => (0..count as i64).collect(),
    };
    let steps = if node.input(4).is_some() { list(4)? } else { vec![1; count] };
    let (starts, ends) = (list(1), list(2));
    let mut runs = Vec::new();
    for (place, &axis) in axes.iter().enumerate() {
        let axis = fact.axis(axis)?;
        let (whole, part) = (fact.shape[axis], sliced.shape[axis]);
        if steps[place] != 1 {
            return None;
        }
        let start = starts.as_ref().map(|it| it[place]);
        let end = ends.as_ref().map(|it| it[place]);
        let bounded = start.is_some_and(|it| it != 0) || end.is_some_and(|it| it < i64::from(i32::MAX));
        if whole == part && whole.constant().is_none() && bounded {
            // Texts as short as the probes lose nothing; longer ones do.
            return None;
        }
        let length = whole.constant().map_or(i64::from(i32::MAX), |it| it as i64);
        if start == Some(0) || start.is_some_and(|it| it <= -length) {
            runs.push((axis, false));
        } else if end.is_some_and(|it| it >= length) {
            runs.push((axis, true));
        } else if whole != part {
            return None;
        }
    }
    Some(runs)
}

/// Slices the table of flat positions in the same way, and scatters to these positions.
fn scattered(b: &mut Builder, node: &Node, dy: &Value) -> Value {
    let x = node.inputs[0].clone();
    let count = b.shape(&x).iter().fold(Length::ONE, |product, &it| product.zip(it, |p, q| p * q));
    let size = b.emit("Size", &[&x], &[], Fact::new(Element::I64, vec![]));
    let (zero, one) = (b.int(0), b.int(1));
    let table = b.emit("Range", &[&zero, &size, &one], &[], Fact::new(Element::I64, vec![count]));
    let table = b.reshape_like(&table, &x);
    let mut operands: Vec<&Value> = node.inputs.iter().collect();
    operands[0] = &table;
    let places = b.emit("Slice", &operands, &[], Fact::new(Element::I64, b.shape(dy)));
    let (places, updates) = (b.flattened(&places), b.flattened(dy));
    let zeros = b.zeros_like(&x);
    let zeros = b.flattened(&zeros);
    let fact = Fact::new(b.fact(dy).element, vec![count]);
    let flat = b.emit("ScatterElements", &[&zeros, &places, &updates], &[("axis", 0.into())], fact);
    b.reshape_like(&flat, &x)
}
