//! This file is where Softmax and its logarithm are.

use super::Gradient::Rule;
use super::Kind::Softmax;
use super::{Cotangents, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Graph, Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    Operator {
        name: "Softmax",
        domain: "",
        kind: Softmax,
        gradient: Rule(softmax),
        examples: &["y = Softmax(x)", "y = Softmax(x) {axis: 1}"],
    },
    Operator {
        name: "LogSoftmax",
        domain: "",
        kind: Softmax,
        gradient: Rule(log_softmax),
        examples: &["y = LogSoftmax(x)", "y = LogSoftmax(x) {axis: 0}"],
    },
];

/// `dx = s − p·Σs` with `s = p·dy`
fn softmax(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let axis = axis(b, node)?;
    let p = guarded(b.graph(), &node.outputs[0]);
    if axis + 1 == b.rank(&p)
        && b.shape(dy) == b.shape(&p)
        && let Some(dx) = b.kernel("SoftmaxPullback", &[dy, &p])
    {
        return only(dx);
    }
    let s = b.mul(&p, dy);
    let total = b.reduce_sum(&s, &[axis], true);
    let share = b.mul(&p, &total);
    only(b.sub(&s, &share))
}

/// `dx = dy − eʸ·Σdy`
fn log_softmax(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let axis = axis(b, node)?;
    let p = b.unary("Exp", &node.outputs[0]);
    let total = b.reduce_sum(dy, &[axis], true);
    let share = b.mul(&p, &total);
    only(b.sub(dy, &share))
}

fn axis(b: &Builder, node: &Node) -> Result<usize, Misfit> {
    let axis = b.fact(&node.outputs[0]).axis(node.int("axis").unwrap_or(-1));
    axis.ok_or_else(|| "the axis is out of range".into())
}

/// The probabilities behind a guard `Where(IsNaN(p), 0, p)`, if there is one. Rows masked out entirely are NaN
/// before it, and a product with NaN would bring them back however small the cotangent.
pub fn guarded(graph: &Graph, p: &Value) -> Value {
    let test = graph.nodes.iter().find(|it| it.is("IsNaN") && it.inputs[0] == *p);
    let guard = test.and_then(|test| {
        let guards = |it: &&Node| it.is("Where") && it.inputs[0] == test.outputs[0] && it.inputs[2] == *p;
        graph.nodes.iter().find(guards)
    });
    guard.map_or_else(|| p.clone(), |it| it.outputs[0].clone())
}
