//! This file is where reductions are.

use super::Gradient::Rule;
use super::Kind::Sum;
use super::{Cotangents, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    Operator {
        name: "ReduceSum",
        domain: "",
        kind: Sum,
        gradient: Rule(sum),
        examples: &["y = ReduceSum(x, [-1]) {keepdims: 0}", "y = ReduceSum(x)", "y = ReduceSum(x, [0, 2])"],
    },
    Operator {
        name: "ReduceMean",
        domain: "",
        kind: Sum,
        gradient: Rule(mean),
        examples: &["y = ReduceMean(x) {axes: [1], keepdims: 0}", "y = ReduceMean(x) {keepdims: 1}"],
    },
];

/// `dx` = `dy`, repeated along the reduced axes
fn sum(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (dy, _) = widened(b, node, dy)?;
    only(b.expand_like(&dy, &node.inputs[0]))
}

/// `dx` = `dy/n`, repeated along the reduced axes, which hold `n` elements
fn mean(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let (dy, axes) = widened(b, node, dy)?;
    let n = b.count_along(x, &axes);
    let share = b.div(&dy, &n);
    only(b.expand_like(&share, x))
}

/// `dy` with the reduced axes of the node's operand back as axes of length one; and these axes. For the rules
/// of every reduction; its result, too, can be widened so.
pub(super) fn widened(b: &mut Builder, node: &Node, dy: &Value) -> Result<(Value, Vec<usize>), Misfit> {
    let axes = reduced_axes(b, node)?;
    let kept = node.int("keepdims").unwrap_or(1) != 0 || axes.is_empty();
    let dy = if kept { dy.clone() } else { b.unsqueeze(dy, &axes) };
    Ok((dy, axes))
}

/// The axes that a reduction reduces, counted from the front, in order.
fn reduced_axes(b: &Builder, node: &Node) -> Result<Vec<usize>, Misfit> {
    let given = match (node.ints("axes"), node.input(1)) {
        (Some(axes), _) => axes.to_vec(),
        (None, Some(axes)) => b.ints_of(axes).ok_or("the axes are not constant")?,
        (None, None) => Vec::new(),
    };
    let fact = b.fact(&node.inputs[0]);
    if given.is_empty() {
        let none = node.int("noop_with_empty_axes").unwrap_or(0) != 0;
        return Ok(if none { Vec::new() } else { (0..fact.rank()).collect() });
    }
    let axes: Option<Vec<usize>> = given.iter().map(|&it| fact.axis(it)).collect();
    let mut axes = axes.ok_or("an axis is out of range")?;
    axes.sort_unstable();
    Ok(axes)
}
