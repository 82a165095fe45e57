//! This file is where shapes change and elements stay: Reshape and its kin, Transpose, Expand, Cast.

use super::Gradient::Rule;
use super::Kind::Routing;
use super::{Cotangents, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row("Identity", same, &["y = Identity(x)"]),
    row("Dropout", same, &["y = Dropout(x)"]),
    row("Cast", cast, &["y = Cast(x) {to: 11}"]),
    row("CastLike", cast, &["y = CastLike(x, [1.0])"]),
    row("Reshape", reshape, &["y = Reshape(x, [4, -1])", "y = Reshape(x, [0, 12, 1])"]),
    row("Flatten", reshape, &["y = Flatten(x)", "y = Flatten(x) {axis: -1}"]),
    row("Squeeze", reshape, &["y = Squeeze(x[2, 1, 3, 1], [1])", "y = Squeeze(x[2, 1, 3, 1])"]),
    row("Unsqueeze", reshape, &["y = Unsqueeze(x, [0, -1])"]),
    row("Transpose", transpose, &["y = Transpose(x)", "y = Transpose(x) {perm: [1, 2, 0]}"]),
    row("Expand", expand, &["y = Expand(x[3, 1], [2, 1, 4])", "y = Expand(x[3, 4], [1, 1])"]),
];

const fn row(name: &'static str, rule: super::Rule, examples: &'static [&'static str]) -> Operator {
    Operator { name, domain: "", kind: Routing, gradient: Rule(rule), examples }
}

/// `dx = dy`
fn same(_: &mut Builder, _: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(dy.clone())
}

/// `dx = dy` in the type of `x`
fn cast(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let element = b.fact(&node.inputs[0]).element;
    only(b.cast(dy, element))
}

/// `dx = dy` in the shape of `x`
fn reshape(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(b.reshape_like(dy, &node.inputs[0]))
}

/// `dx = dy` with the axes in the inverse order
fn transpose(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let rank = b.rank(dy);
    let reversed: Vec<i64> = (0..rank as i64).rev().collect();
    let perm = node.ints("perm").unwrap_or(&reversed);
    let mut inverse = vec![0; rank];
    perm.iter().enumerate().for_each(|(to, &from)| inverse[from as usize] = to);
    only(b.transpose(dy, &inverse))
}

/// `dx = dy`, which the walk sums to the shape of `x`
fn expand(_: &mut Builder, _: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(dy.clone())
}
