//! This file is where elements are picked and put together: Concat, Split, Slice, Gather, Where.

pub(super) mod gather;
mod slice;

use super::Gradient::{Rule, Rules};
use super::Kind::Routing;
use super::{Cotangents, Misfit, Operator};
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row("Where", select, &["c = Greater(x, 0.1); y = Where(c, x, w[4])"]),
    row("Concat", concat, &["y = Concat(x, w[2, 5, 4]) {axis: 1}", "y = Concat(x, w, x) {axis: -1}"]),
    row(
        "Slice",
        slice::slice,
        &[
            "y = Slice(x, [1], [3], [1])",
            "y = Slice(x, [1, -3], [9223372036854775807, -1], [1, 2])",
            "y = Slice(x, [-1], [-9], [2], [-2])",
            "y = Slice(x, [0], [2])",
        ],
    ),
    row(
        "Gather",
        gather::gather,
        &["y = Gather(x, 0) {axis: 1}", "y = Gather(x, -1) {axis: 2}", "y = Gather(x, [0, -1, 0]) {axis: 1}"],
    ),
    row("GatherElements", gather::gather_elements, &["i = ArgMax(x); y = GatherElements(x, i)"]),
    row(
        "GatherND",
        gather::gather_nd,
        &[
            "i = ArgMax(x[2, 4, 4]) {axis: 2}; y = GatherND(x, i) {batch_dims: 1}",
            "i = Unsqueeze([0, 1, 0], [1]); y = GatherND(x, i)",
        ],
    ),
    Operator {
        name: "Split",
        domain: "",
        kind: Routing,
        gradient: Rules(split),
        examples: &["a, b = Split(x, [1, 3]) {axis: -1}", "a, b = Split(x, [1, 2]) {axis: 1}; y = Exp(b)"],
    },
];

const fn row(name: &'static str, rule: super::Rule, examples: &'static [&'static str]) -> Operator {
    Operator { name, domain: "", kind: Routing, gradient: Rule(rule), examples }
}

/// `da = dy` where the condition holds, else 0; `db` the other way round. Never by multiplication, since what
/// is not taken may be infinite.
fn select(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let [condition, lhs, rhs] = &node.inputs[..] else { return Err("it has not three operands".into()) };
    let zero = b.scalar(0.0);
    let da = b.wants(lhs).then(|| b.select(condition, dy, &zero));
    let db = b.wants(rhs).then(|| b.select(condition, &zero, dy));
    Ok(vec![None, da, db])
}

/// `dxᵢ` = the part of `dy` that `xᵢ` became
fn concat(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let axis = b.fact(dy).axis(node.int("axis").unwrap_or(0)).ok_or("the axis is out of range")?;
    let operands: Vec<&Value> = node.inputs.iter().collect();
    Ok(b.split_like(dy, &operands, axis).into_iter().map(Some).collect())
}

/// `dx` = the `dyᵢ` put together, with zeros for the parts that nothing depends on
fn split(b: &mut Builder, node: &Node, dys: &[Option<Value>]) -> Result<Cotangents, Misfit> {
    let axis =
        b.fact(&node.inputs[0]).axis(node.int("axis").unwrap_or(0)).ok_or("the axis is out of range")?;
    let mut parts = Vec::new();
    for (dy, y) in dys.iter().zip(&node.outputs) {
        parts.push(match dy {
            Some(dy) => dy.clone(),
            None => b.zeros_like(y),
        });
    }
    Ok(vec![Some(b.concat(&parts.iter().collect::<Vec<_>>(), axis))])
}
