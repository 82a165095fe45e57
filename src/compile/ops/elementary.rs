//! This file is where the rarer functions of each element alone are.

use super::Gradient::{Rule, Stops};
use super::Kind::{Elementwise, Gate, Metadata};
use super::activation::member;
use super::{Cotangents, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row("Tan", tan, &["y = Tan(x)"]),
    row("Sinh", sinh, &["y = Sinh(x)"]),
    row("Cosh", cosh, &["y = Cosh(x)"]),
    row("Asin", asin, &["h = Tanh(x); y = Asin(h)"]),
    row("Acos", acos, &["h = Tanh(x); y = Acos(h)"]),
    row("Atan", atan, &["y = Atan(x)"]),
    row("Asinh", asinh, &["y = Asinh(x)"]),
    row("Acosh", acosh, &["h = Add(x > 0, 1.5); y = Acosh(h)"]),
    row("Atanh", atanh, &["h = Tanh(x); y = Atanh(h)"]),
    Operator {
        name: "Swish",
        domain: "",
        kind: Gate(swish_held),
        gradient: Rule(swish),
        examples: &["y = Swish(x)", "y = Swish(x) {alpha: 1.7}"],
    },
    row("Shrink", shrink, &["y = Shrink(x) {lambd: 0.3, bias: 0.1}"]),
    row("Mod", modulo, &["y = Mod(x > 0, [10.0]) {fmod: 1}"]),
    stop("Hardmax"),
    stop("EyeLike"),
    stop("RandomNormalLike"),
    stop("RandomUniformLike"),
    stop("Bernoulli"),
];

const fn row(name: &'static str, rule: super::Rule, examples: &'static [&'static str]) -> Operator {
    Operator { name, domain: "", kind: Elementwise, gradient: Rule(rule), examples }
}

const fn stop(name: &'static str) -> Operator {
    Operator { name, domain: "", kind: Metadata, gradient: Stops, examples: &[] }
}

/// `dx = dy·(1 + y²)`
fn tan(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let slope = one_and_square(b, "Add", &node.outputs[0]);
    only(b.mul(dy, &slope))
}

/// `dx = dy·cosh x`
fn sinh(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let slope = b.unary("Cosh", &node.inputs[0]);
    only(b.mul(dy, &slope))
}

/// `dx = dy·sinh x`
fn cosh(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let slope = b.unary("Sinh", &node.inputs[0]);
    only(b.mul(dy, &slope))
}

/// `dx = dy/√(1 − x²)`
fn asin(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let rest = one_and_square(b, "Sub", &node.inputs[0]);
    let root = b.unary("Sqrt", &rest);
    only(b.div(dy, &root))
}

/// `dx = −dy/√(1 − x²)`
fn acos(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let minus = b.neg(dy);
    asin(b, node, &minus)
}

/// `dx = dy/(1 + x²)`
fn atan(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let sum = one_and_square(b, "Add", &node.inputs[0]);
    only(b.div(dy, &sum))
}

/// `dx = dy/√(1 + x²)`
fn asinh(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let sum = one_and_square(b, "Add", &node.inputs[0]);
    let root = b.unary("Sqrt", &sum);
    only(b.div(dy, &root))
}

/// `dx = dy/√(x² − 1)`
fn acosh(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let rest = one_and_square(b, "Sub", &node.inputs[0]);
    let rest = b.neg(&rest);
    let root = b.unary("Sqrt", &rest);
    only(b.div(dy, &root))
}

/// `dx = dy/(1 − x²)`
fn atanh(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let rest = one_and_square(b, "Sub", &node.inputs[0]);
    only(b.div(dy, &rest))
}

/// `y = x·s`, `s = σ(αx)`: `dx = dy·s·(1 + αx·(1 − s))`. A group's own Sigmoid is used again.
fn swish(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let known = member(node, "Sigmoid").map(|it| (it.inputs[0].clone(), it.outputs[0].clone()));
    only(swish_slope(b, &node.inputs[0], node.float("alpha").unwrap_or(1.0), known, dy))
}

/// The same with `s` held: `dx = dy·s`
fn swish_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let known = member(node, "Sigmoid").map(|it| it.outputs[0].clone());
    let s = known.unwrap_or_else(|| sigmoid_of(b, &node.inputs[0], node.float("alpha").unwrap_or(1.0)));
    only(b.mul(dy, &s))
}

/// `σ(αx)`
pub(super) fn sigmoid_of(b: &mut Builder, x: &Value, alpha: f64) -> Value {
    let scaled = b.scale(x, alpha);
    b.unary("Sigmoid", &scaled)
}

/// `dy·s·(1 + αx·(1 − s))` with `s = σ(αx)`: the cotangent behind `x·s`; `known` are `αx` and `s`.
pub(super) fn swish_slope(
    b: &mut Builder,
    x: &Value,
    alpha: f64,
    known: Option<(Value, Value)>,
    dy: &Value,
) -> Value {
    let (scaled, s) = known.unwrap_or_else(|| {
        let scaled = b.scale(x, alpha);
        let s = b.unary("Sigmoid", &scaled);
        (scaled, s)
    });
    let one = b.scalar(1.0);
    let rest = b.sub(&one, &s);
    let rise = b.mul(&scaled, &rest);
    let sum = b.add(&rise, &one);
    let slope = b.mul(&s, &sum);
    b.mul(dy, &slope)
}

/// `dx = dy` where `|x| > λ`, else 0
fn shrink(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (zero, bound) = (b.scalar(0.0), b.scalar(node.float("lambd").unwrap_or(0.5)));
    let size = b.unary("Abs", &node.inputs[0]);
    let outside = b.compare("Greater", &size, &bound);
    only(b.select(&outside, dy, &zero))
}

/// `da = dy`: the remainder moves with the dividend
fn modulo(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    if b.wants(&node.inputs[1]) {
        return Err("the divisor depends on the embeddings".into());
    }
    only(dy.clone())
}

/// `1 ± x²`
fn one_and_square(b: &mut Builder, sign: &str, x: &Value) -> Value {
    let (one, square) = (b.scalar(1.0), b.mul(x, x));
    b.binary(sign, &one, &square)
}
