//! This file is where norms, extremes and products along axes are.

use super::Gradient::Rule;
use super::Kind::{Accumulation, Maximum, Normalization};
use super::reduce::widened;
use super::{Cotangents, Kind, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row(
        "ReduceMax",
        Maximum,
        extreme,
        &["y = ReduceMax(x) {axes: [1], keepdims: 0}", "y = ReduceMax(x)", "y = ReduceMax(x, [-1, 0])"],
    ),
    row("ReduceMin", Maximum, extreme, &["y = ReduceMin(x) {axes: [-1]}", "y = ReduceMin(x) {keepdims: 0}"]),
    row(
        "ReduceL1",
        Normalization(statistic),
        l1,
        &["y = ReduceL1(x) {axes: [-2]}", "y = ReduceL1(x) {keepdims: 0}"],
    ),
    row(
        "ReduceL2",
        Normalization(statistic),
        l2,
        &["y = ReduceL2(x) {axes: [-1]}", "y = ReduceL2(x) {keepdims: 0}"],
    ),
    row(
        "ReduceSumSquare",
        Normalization(statistic),
        sum_square,
        &["y = ReduceSumSquare(x) {axes: [0], keepdims: 0}", "y = ReduceSumSquare(x)"],
    ),
    row(
        "ReduceLogSum",
        Normalization(statistic),
        log_sum,
        &["y = ReduceLogSum(x > 0) {axes: [1], keepdims: 0}"],
    ),
    row(
        "ReduceLogSumExp",
        Normalization(statistic),
        log_sum_exp,
        &["y = ReduceLogSumExp(x) {axes: [-1]}", "y = ReduceLogSumExp(x, [0, 1]) {keepdims: 0}"],
    ),
    row("ReduceProd", Accumulation, product, &["y = ReduceProd(x) {axes: [1]}", "y = ReduceProd(x, [0])"]),
    row(
        "LpNormalization",
        Normalization(lp_held),
        lp,
        &["y = LpNormalization(x)", "y = LpNormalization(x) {axis: 1, p: 1}"],
    ),
];

const fn row(
    name: &'static str,
    kind: Kind,
    rule: super::Rule,
    examples: &'static [&'static str],
) -> Operator {
    Operator { name, domain: "", kind, gradient: Rule(rule), examples }
}

/// A statistic, held: nothing flows.
fn statistic(_: &mut Builder, _: &Node, _: &Value) -> Result<Cotangents, Misfit> {
    Ok(Vec::new())
}

/// Divisors are not let below this: at an operand that is all zero, the gradient is zero.
const TINY: f64 = 1e-30;

/// `dx = dy·h/Σh` with `h = 1` where `x = y`, else 0: equal extremes share
fn extreme(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let (dy, axes) = widened(b, node, dy)?;
    let (y, _) = widened(b, node, &node.outputs[0])?;
    let (zero, element) = (b.scalar(0.0), b.fact(x).element);
    let taken = b.compare("Equal", x, &y);
    let ones = b.cast(&taken, element);
    let count = b.reduce_sum(&ones, &axes, true);
    let share = b.div(&dy, &count);
    only(b.select(&taken, &share, &zero))
}

/// `dx = dy·sign x`
fn l1(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (dy, _) = widened(b, node, dy)?;
    let sign = b.unary("Sign", &node.inputs[0]);
    only(b.mul(&sign, &dy))
}

/// `dx = dy·x/y`
fn l2(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (dy, _) = widened(b, node, dy)?;
    let (y, _) = widened(b, node, &node.outputs[0])?;
    let tiny = b.scalar(TINY);
    let y = b.binary("Max", &y, &tiny);
    let share = b.div(&dy, &y);
    only(b.mul(&node.inputs[0], &share))
}

/// `dx = dy·2x`
fn sum_square(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (dy, _) = widened(b, node, dy)?;
    let twice = b.scale(&dy, 2.0);
    only(b.mul(&node.inputs[0], &twice))
}

/// `y = ln Σx`: `dx = dy·e⁻ʸ`
fn log_sum(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (dy, _) = widened(b, node, dy)?;
    let (y, _) = widened(b, node, &node.outputs[0])?;
    let exponent = b.neg(&y);
    let slope = b.unary("Exp", &exponent);
    let share = b.mul(&dy, &slope);
    only(b.expand_like(&share, &node.inputs[0]))
}

/// `y = ln Σeˣ`: `dx = dy·eˣ⁻ʸ`
fn log_sum_exp(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (dy, _) = widened(b, node, dy)?;
    let (y, _) = widened(b, node, &node.outputs[0])?;
    let exponent = b.sub(&node.inputs[0], &y);
    let share = b.unary("Exp", &exponent);
    only(b.mul(&share, &dy))
}

/// `dxᵢ = dy·∏ⱼ≠ᵢ xⱼ`, also where elements are zero: with ones in their places, the product of the others is
/// `∏x/xᵢ`, and it counts where no other element is zero
fn product(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let (dy, axes) = widened(b, node, dy)?;
    let (zero, one, element) = (b.scalar(0.0), b.scalar(1.0), b.fact(x).element);
    let is_zero = b.compare("Equal", x, &zero);
    let safe = b.select(&is_zero, &one, x);
    let whole = b.reduce("ReduceProd", &safe, &axes, true);
    let others = b.div(&whole, &safe);
    let zeros = b.cast(&is_zero, element);
    let count = b.reduce_sum(&zeros, &axes, true);
    let alone = b.compare("Equal", &count, &zeros);
    let slope = b.select(&alone, &others, &zero);
    only(b.mul(&slope, &dy))
}

/// `y = x/n`, `n = ‖x‖`: `dx = (dy − n′·Σ(dy·y))/n`, where `n′` is `y` for the second norm and `sign x` for the
/// first
fn lp(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, y) = (&node.inputs[0], &node.outputs[0]);
    let (n, axis) = length(b, node)?;
    let slope = if node.int("p") == Some(1) { b.unary("Sign", x) } else { y.clone() };
    let product = b.mul(dy, y);
    let total = b.reduce_sum(&product, &[axis], true);
    let along = b.mul(&slope, &total);
    let rest = b.sub(dy, &along);
    only(b.div(&rest, &n))
}

/// The same with `n` held: `dx = dy/n`
fn lp_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (n, _) = length(b, node)?;
    only(b.div(dy, &n))
}

/// `‖x‖` of the first or second norm, and the axis along which it is taken.
fn length(b: &mut Builder, node: &Node) -> Result<(Value, usize), Misfit> {
    let x = &node.inputs[0];
    let axis = b.fact(x).axis(node.int("axis").unwrap_or(-1)).ok_or("the axis is out of range")?;
    let norm = match node.int("p").unwrap_or(2) {
        1 => "ReduceL1",
        2 => "ReduceL2",
        _ => return Err("p is neither 1 nor 2".into()),
    };
    let n = b.reduce(norm, x, &[axis], true);
    let tiny = b.scalar(TINY);
    Ok((b.binary("Max", &n, &tiny), axis))
}
