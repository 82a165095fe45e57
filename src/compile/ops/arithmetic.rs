//! This file is where arithmetic is: sums, products, powers, extremes and elementary functions.

use super::Gradient::{Rule, Stops};
use super::Kind::{Elementwise, Maximum, Metadata, Quotient, Rectifier, Scale, Sum};
use super::{Cotangents, Kind, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Tensor, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row("Add", Sum, add, &["y = Add(x, w[4])", "y = Add(x[3, 1], w[2, 1, 4])", "y = Add(x, x)"]),
    row("Sub", Sum, sub, &["y = Sub(x, w[3, 1])", "y = Sub(1.5, x)"]),
    row("Sum", Sum, sum, &["y = Sum(x, v[4], w[3, 1])"]),
    row("Mean", Sum, mean, &["y = Mean(x, v[4], w[3, 1])"]),
    row("Mul", Scale, mul, &["y = Mul(x, w[4])", "y = Mul(x[3, 1], w[2, 1, 4])", "y = Mul(x, x)"]),
    row("Div", Quotient, div, &["y = Div(x, w[3, 4] > 0)", "y = Div(1.0, x > 0)"]),
    row(
        "Pow",
        Elementwise,
        pow,
        &[
            "y = Pow(x, 2.0)",
            "y = Pow(x, 3.0)",
            "y = Pow(x > 0, 0.5)",
            "y = Pow(x > 0, [1.0, -2.0, 0.0, 1.5])",
            "y = Pow(x > 0, w[4])",
        ],
    ),
    row("Neg", Sum, neg, &["y = Neg(x)"]),
    row("Abs", Rectifier, abs, &["y = Abs(x)"]),
    row("Reciprocal", Elementwise, reciprocal, &["y = Reciprocal(x > 0)"]),
    row("Sqrt", Elementwise, sqrt, &["y = Sqrt(x > 0)"]),
    row("Exp", Elementwise, exp, &["y = Exp(x)"]),
    row("Log", Elementwise, log, &["y = Log(x > 0)"]),
    row("Sin", Elementwise, sin, &["y = Sin(x)"]),
    row("Cos", Elementwise, cos, &["y = Cos(x)"]),
    row("Max", Maximum, extreme, &["y = Max(x, w[4])", "y = Max(x, v, w[3, 1])"]),
    row("Min", Maximum, extreme, &["y = Min(x, w[4])"]),
    row("Clip", Elementwise, clip, &["y = Clip(x, -0.5, 0.5)", "y = Clip(x, _, 0.25)"]),
    stop("Sign"),
    stop("Floor"),
    stop("Ceil"),
    stop("Round"),
];

const fn row(
    name: &'static str,
    kind: Kind,
    rule: super::Rule,
    examples: &'static [&'static str],
) -> Operator {
    Operator { name, domain: "", kind, gradient: Rule(rule), examples }
}

const fn stop(name: &'static str) -> Operator {
    Operator { name, domain: "", kind: Metadata, gradient: Stops, examples: &[] }
}

/// `da = dy`, `db = dy`
fn add(_: &mut Builder, _: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    Ok(vec![Some(dy.clone()), Some(dy.clone())])
}

/// `da = dy`, `db = −dy`
fn sub(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let db = b.wants(&node.inputs[1]).then(|| b.neg(dy));
    Ok(vec![Some(dy.clone()), db])
}

/// `dxᵢ = dy`
fn sum(_: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    Ok(vec![Some(dy.clone()); node.inputs.len()])
}

/// `dxᵢ = dy/n`
fn mean(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let share = b.scale(dy, 1.0 / node.inputs.len() as f64);
    Ok(vec![Some(share); node.inputs.len()])
}

/// `da = dy·b`, `db = dy·a`
fn mul(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (lhs, rhs) = (&node.inputs[0], &node.inputs[1]);
    let da = b.wants(lhs).then(|| b.mul(dy, rhs));
    let db = b.wants(rhs).then(|| b.mul(dy, lhs));
    Ok(vec![da, db])
}

/// `da = dy/b`, `db = −dy·y/b`
fn div(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (lhs, rhs) = (&node.inputs[0], &node.inputs[1]);
    if let Some(number) = b.fact(rhs).constant.as_ref().and_then(Tensor::scalar).filter(|it| it.is_normal()) {
        return only(b.scale(dy, 1.0 / number));
    }
    let da = b.div(dy, rhs);
    if !b.wants(rhs) {
        return only(da);
    }
    let product = b.mul(&da, &node.outputs[0]);
    let db = b.neg(&product);
    Ok(vec![b.wants(lhs).then_some(da), Some(db)])
}

/// `y = xᵏ`: `dx = dy·k·xᵏ⁻¹`, `dk = dy·y·ln x`
fn pow(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, k, y) = (&node.inputs[0], &node.inputs[1], &node.outputs[0]);
    let mut cotangents = vec![None, None];
    if b.wants(k) {
        let log = b.unary("Log", x);
        let slope = b.mul(y, &log);
        cotangents[1] = Some(b.mul(dy, &slope));
    }
    if b.wants(x) {
        let constant = b.fact(k).constant.clone();
        cotangents[0] = match constant.as_ref().and_then(number) {
            Some(k) => power(b, x, y, k, dy),
            None => Some(general_power(b, x, k, constant, dy)),
        };
    }
    Ok(cotangents)
}

fn number(tensor: &Tensor) -> Option<f64> {
    let ints = || tensor.to_i64().filter(|it| it.len() == 1).map(|it| it[0] as f64);
    tensor.scalar().or_else(ints)
}

/// `dy·k·xᵏ⁻¹` for one number `k`, by the cheapest operators.
fn power(b: &mut Builder, x: &Value, y: &Value, k: f64, dy: &Value) -> Option<Value> {
    let half = 0.5;
    let slope = match k {
        0.0 => return None,
        1.0 => return Some(dy.clone()),
        2.0 => x.clone(),
        3.0 => b.mul(x, x),
        _ if k == half => {
            let share = b.scale(dy, half);
            return Some(b.div(&share, y));
        }
        _ => {
            let exponent = b.scalar(k - 1.0);
            b.binary("Pow", x, &exponent)
        }
    };
    let share = b.scale(dy, k);
    Some(b.mul(&share, &slope))
}

/// `dy·k·xᵏ⁻¹` for exponents that differ. Where `k = 0`, `x⁰` stands for `x⁻¹`, lest 0·∞ arise.
fn general_power(b: &mut Builder, x: &Value, k: &Value, constant: Option<Tensor>, dy: &Value) -> Value {
    let element = b.fact(x).element;
    let (k, less) = match constant.and_then(|it| Some((it.to_f64()?, it.dims().to_vec()))) {
        Some((exponents, dims)) => {
            let less: Vec<f64> = exponents.iter().map(|&k| if k == 0.0 { 0.0 } else { k - 1.0 }).collect();
            let k = b.constant(Tensor::from_f64(element, &dims, &exponents));
            (k, b.constant(Tensor::from_f64(element, &dims, &less)))
        }
        None => {
            let (k, one) = (b.cast(k, element), b.scalar(1.0));
            let less = b.sub(&k, &one);
            (k, less)
        }
    };
    let (share, slope) = (b.mul(dy, &k), b.binary("Pow", x, &less));
    b.mul(&share, &slope)
}

/// `dx = −dy`
fn neg(b: &mut Builder, _: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(b.neg(dy))
}

/// `dx = dy·sign x`
fn abs(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let sign = b.unary("Sign", &node.inputs[0]);
    only(b.mul(dy, &sign))
}

/// `dx = −dy·y²`
fn reciprocal(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let y = &node.outputs[0];
    let square = b.mul(y, y);
    let product = b.mul(dy, &square);
    only(b.neg(&product))
}

/// Smaller than the root of any number that float32 holds.
const NO_ROOT: f64 = 1e-23;

/// `dx = ½·dy/y`; at zero a large number instead of an infinite one, so that zero times it is zero: the deviation of
/// equal elements is a root of zero, whose operand does not change
fn sqrt(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let half = b.scale(dy, 0.5);
    let tiny = b.scalar(NO_ROOT);
    let y = b.binary("Max", &node.outputs[0], &tiny);
    only(b.div(&half, &y))
}

/// `dx = dy·y`
fn exp(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(b.mul(dy, &node.outputs[0]))
}

/// `dx = dy/x`
fn log(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(b.div(dy, &node.inputs[0]))
}

/// `dx = dy·cos x`
fn sin(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let slope = b.unary("Cos", &node.inputs[0]);
    only(b.mul(dy, &slope))
}

/// `dx = −dy·sin x`
fn cos(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let sine = b.unary("Sin", &node.inputs[0]);
    let product = b.mul(dy, &sine);
    only(b.neg(&product))
}

/// `dxᵢ = dy` where `xᵢ = y` and no earlier operand is, else 0
fn extreme(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let zero = b.scalar(0.0);
    let mut left = dy.clone();
    let mut cotangents = Vec::new();
    for x in &node.inputs {
        let taken = b.compare("Equal", x, &node.outputs[0]);
        cotangents.push(b.wants(x).then(|| b.select(&taken, &left, &zero)));
        left = b.select(&taken, &zero, &left);
    }
    Ok(cotangents)
}

/// `dx = dy` where `x = y`, that is, between the bounds and on them, else 0
fn clip(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    if node.inputs.iter().skip(1).any(|it| b.wants(it)) {
        return Err("a bound depends on the embeddings".into());
    }
    let (zero, inside) = (b.scalar(0.0), b.compare("Equal", &node.inputs[0], &node.outputs[0]));
    only(b.select(&inside, dy, &zero))
}
