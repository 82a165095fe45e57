//! This file is where the Gather family is taken back: cotangents are added up where elements were read.

use super::{Cotangents, Misfit};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length};
use crate::compile::graph::{Attribute, Element, Node, Value};
use crate::compile::ops::only;

/// One constant index: zeros around `dy`. Any index: `dy`, its index axes in front, is added into zeros.
pub(in crate::compile::ops) fn gather(
    b: &mut Builder,
    node: &Node,
    dy: &Value,
) -> Result<Cotangents, Misfit> {
    let (x, index) = (&node.inputs[0], &node.inputs[1]);
    let axis = b.fact(x).axis(node.int("axis").unwrap_or(0)).ok_or("the axis is out of range")?;
    if let Some(dx) = one_place(b, x, index, axis, dy) {
        return only(dx);
    }
    let (rank, index_rank) = (b.rank(x), b.rank(index));
    let index = positions(b, index, x, &[axis]);
    let front: Vec<usize> = (axis..axis + index_rank).collect();
    let rest = (0..b.rank(dy)).filter(|it| !front.contains(it));
    let perm: Vec<usize> = front.iter().copied().chain(rest).collect();
    let updates = b.transpose(dy, &perm);
    let index = b.unsqueeze(&index, &[index_rank]);
    let order: Vec<usize> = std::iter::once(axis).chain((0..rank).filter(|&it| it != axis)).collect();
    let zeros = b.zeros_of(&order.iter().map(|&it| (x, it)).collect::<Vec<_>>());
    let sums = scatter_nd(b, &zeros, &index, &updates);
    let mut inverse = vec![0; rank];
    order.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
    only(b.transpose(&sums, &inverse))
}

/// `x[…, i, …]` for a constant `i` from the front, or the last element.
fn one_place(b: &mut Builder, x: &Value, index: &Value, axis: usize, dy: &Value) -> Option<Value> {
    let index = b.fact(index);
    let [place] = index.ints()?[..] else { return None };
    let row = if index.rank() == 0 { b.unsqueeze(dy, &[axis]) } else { dy.clone() };
    if b.rank(&row) != b.rank(x) {
        return None;
    }
    let length = b.shape(x)[axis].constant().map(|it| it as i64);
    if place == -1 || length == Some(place + 1) {
        return Some(b.pad_to(&row, x, &[(axis, true)]));
    }
    (place == 0).then(|| b.pad_to(&row, x, &[(axis, false)]))
}

/// `dx` = `dy`, added into zeros along the axis
pub(super) fn gather_elements(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, index) = (&node.inputs[0], &node.inputs[1]);
    let axis = b.fact(x).axis(node.int("axis").unwrap_or(0)).ok_or("the axis is out of range")?;
    let index = positions(b, index, x, &[axis]);
    let zeros = b.zeros_like(x);
    let fact = Fact::new(b.fact(dy).element, b.shape(x));
    let attributes: [(&str, Attribute); 2] = [("axis", (axis as i64).into()), ("reduction", "add".into())];
    only(b.emit("ScatterElements", &[&zeros, &index, dy], &attributes, fact))
}

/// `dx` = `dy`, added into zeros at the coordinates, in front of which the batch's are put
pub(super) fn gather_nd(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, index) = (&node.inputs[0], &node.inputs[1]);
    let batch = usize::try_from(node.int("batch_dims").unwrap_or(0)).unwrap_or(0);
    let last = b.rank(index) - 1;
    let width = b.shape(index)[last].constant().ok_or("the number of coordinates varies")?;
    let axes: Vec<usize> = (batch..batch + width).collect();
    let index = positions(b, index, x, &axes);
    let mut columns: Vec<Value> = (0..batch).map(|axis| coordinates(b, &index, axis)).collect();
    columns.push(index);
    let index = b.concat(&columns.iter().collect::<Vec<_>>(), last);
    let zeros = b.zeros_like(x);
    only(scatter_nd(b, &zeros, &index, dy))
}

/// 0, 1, 2 … along `axis` of `index`, in its shape but for a last axis of length one.
fn coordinates(b: &mut Builder, index: &Value, axis: usize) -> Value {
    let rank = b.rank(index);
    let along = b.range(index, axis);
    let others: Vec<usize> = (0..rank).filter(|&it| it != axis).collect();
    let along = b.unsqueeze(&along, &others);
    let mut shape = b.shape(index);
    shape[rank - 1] = Length::ONE;
    let mut lengths: Vec<Value> = (0..rank - 1).map(|it| b.length_of(index, it)).collect();
    lengths.push(b.ints(&[1]));
    let target = b.joined(&lengths);
    b.emit("Expand", &[&along, &target], &[], Fact::new(Element::I64, shape))
}

fn scatter_nd(b: &mut Builder, zeros: &Value, index: &Value, updates: &Value) -> Value {
    let fact = Fact::new(b.fact(updates).element, b.shape(zeros));
    b.emit("ScatterND", &[zeros, index, updates], &[("reduction", "add".into())], fact)
}

/// Positions as int64, none negative, into the given axes of `x` (one, or one for each coordinate).
fn positions(b: &mut Builder, index: &Value, x: &Value, axes: &[usize]) -> Value {
    let index = b.cast(index, Element::I64);
    if b.ints_of(&index).is_some_and(|it| it.iter().all(|&place| place >= 0)) {
        return index;
    }
    let lengths: Vec<Value> = axes.iter().map(|&it| b.length_of(x, it)).collect();
    let lengths = b.joined(&lengths);
    let lengths = if axes.len() == 1 && b.rank(&index) == 0 { b.squeeze(&lengths, &[0]) } else { lengths };
    let zero = b.int(0);
    let negative = b.compare("Less", &index, &zero);
    let shifted = b.add(&index, &lengths);
    b.select(&negative, &shifted, &index)
}
