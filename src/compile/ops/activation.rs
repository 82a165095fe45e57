//! This file is where activations are: functions of each element alone that networks put between layers.

use std::f64::consts::{PI, SQRT_2};

use super::Gradient::Rule;
use super::Kind::{Elementwise, Gate, Rectifier};
use super::{Cotangents, Kind, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Attribute, Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row("Tanh", Elementwise, tanh, &["y = Tanh(x)"]),
    row("Sigmoid", Elementwise, sigmoid, &["y = Sigmoid(x)"]),
    row("HardSigmoid", Elementwise, hard_sigmoid, &["y = HardSigmoid(x) {alpha: 0.3}"]),
    row("HardSwish", Gate(hard_swish_held), hard_swish, &["y = HardSwish(x)"]),
    row("Mish", Gate(mish_held), mish, &["y = Mish(x)"]),
    row("Softplus", Elementwise, softplus, &["y = Softplus(x)"]),
    row("Softsign", Elementwise, softsign, &["y = Softsign(x)"]),
    row("Relu", Rectifier, relu, &["y = Relu(x)"]),
    row("LeakyRelu", Rectifier, leaky_relu, &["y = LeakyRelu(x)", "y = LeakyRelu(x) {alpha: 0.2}"]),
    row("ThresholdedRelu", Rectifier, thresholded_relu, &["y = ThresholdedRelu(x) {alpha: 0.4}"]),
    row("PRelu", Rectifier, prelu, &["y = PRelu(x, [0.1, 0.2, -0.3, 0.4])", "y = PRelu(x, slope[3, 1])"]),
    row("Elu", Elementwise, elu, &["y = Elu(x)", "y = Elu(x) {alpha: 0.5}"]),
    row("Celu", Elementwise, celu, &["y = Celu(x)", "y = Celu(x) {alpha: 0.5}"]),
    row("Selu", Elementwise, selu, &["y = Selu(x)"]),
    row("Erf", Elementwise, erf, &["y = Erf(x)"]),
    row("Gelu", Gate(gelu_held), gelu, &["y = Gelu(x)", "y = Gelu(x) {approximate: \"tanh\"}"]),
];

const fn row(
    name: &'static str,
    kind: Kind,
    rule: super::Rule,
    examples: &'static [&'static str],
) -> Operator {
    Operator { name, domain: "", kind, gradient: Rule(rule), examples }
}

/// `dx = dy·(1 − y²)`
fn tanh(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let y = &node.outputs[0];
    let one = b.scalar(1.0);
    let square = b.mul(y, y);
    let slope = b.sub(&one, &square);
    only(b.mul(dy, &slope))
}

/// `dx = dy·y·(1 − y)`
fn sigmoid(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let slope = sigmoid_slope(b, &node.outputs[0]);
    only(b.mul(dy, &slope))
}

fn sigmoid_slope(b: &mut Builder, y: &Value) -> Value {
    let one = b.scalar(1.0);
    let rest = b.sub(&one, y);
    b.mul(y, &rest)
}

/// `y = max(0, min(1, αx + β))`: `dx = α·dy` where `0 < y < 1`
fn hard_sigmoid(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let y = &node.outputs[0];
    let slope = b.scale(dy, node.float("alpha").unwrap_or(0.2));
    only(between(b, y, 0.0, 1.0, &slope))
}

/// `y = x·h`, `h = max(0, min(1, x/6 + ½))`: `dx = dy·(h + x/6` where `0 < h < 1)`
fn hard_swish(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let h = b.unary_with("HardSigmoid", x, &[("alpha", (1.0_f32 / 6.0).into()), ("beta", 0.5_f32.into())]);
    let ramp = b.scale(x, 1.0 / 6.0);
    let ramp = between(b, &h, 0.0, 1.0, &ramp);
    let slope = b.add(&h, &ramp);
    only(b.mul(dy, &slope))
}

/// The same with `h` held: `dx = dy·h`
fn hard_swish_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let third: [(&str, Attribute); 2] = [("alpha", (1.0_f32 / 6.0).into()), ("beta", 0.5_f32.into())];
    let h = b.unary_with("HardSigmoid", &node.inputs[0], &third);
    only(b.mul(dy, &h))
}

/// `y = x·t`, `t = tanh(softplus x)`: `dx = dy·(t + x·(1 − t²)·σ(x))`
fn mish(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let soft = b.unary("Softplus", x);
    let t = b.unary("Tanh", &soft);
    let (square, sigma, one) = (b.mul(&t, &t), b.unary("Sigmoid", x), b.scalar(1.0));
    let rest = b.sub(&one, &square);
    let inner = b.mul(&rest, &sigma);
    let inner = b.mul(x, &inner);
    let slope = b.add(&t, &inner);
    only(b.mul(dy, &slope))
}

/// The same with `t` held: `dx = dy·t`
fn mish_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let soft = b.unary("Softplus", &node.inputs[0]);
    let t = b.unary("Tanh", &soft);
    only(b.mul(dy, &t))
}

/// `dx = dy·σ(x)`
fn softplus(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let sigma = b.unary("Sigmoid", &node.inputs[0]);
    only(b.mul(dy, &sigma))
}

/// `dx = dy·(1 − |y|)²`
fn softsign(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (size, one) = (b.unary("Abs", &node.outputs[0]), b.scalar(1.0));
    let rest = b.sub(&one, &size);
    let slope = b.mul(&rest, &rest);
    only(b.mul(dy, &slope))
}

/// `dx = dy` where `x > 0`, else 0
fn relu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let zero = b.scalar(0.0);
    only(positive(b, &node.inputs[0], dy, &zero))
}

/// `dx = dy` where `x > 0`, else `α·dy`
fn leaky_relu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let leak = b.scale(dy, node.float("alpha").unwrap_or(0.01));
    only(positive(b, &node.inputs[0], dy, &leak))
}

/// `dx = dy` where `x > α`, else 0
fn thresholded_relu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (threshold, zero) = (b.scalar(node.float("alpha").unwrap_or(1.0)), b.scalar(0.0));
    let above = b.compare("Greater", &node.inputs[0], &threshold);
    only(b.select(&above, dy, &zero))
}

/// `y = x` where `x > 0`, else `s·x`: `dx = dy` or `s·dy`, `ds = 0` or `x·dy`
fn prelu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, slope) = (&node.inputs[0], &node.inputs[1]);
    let leak = b.mul(dy, slope);
    let dx = positive(b, x, dy, &leak);
    if !b.wants(slope) {
        return only(dx);
    }
    let (zero, product) = (b.scalar(0.0), b.mul(dy, x));
    let ds = positive(b, x, &zero, &product);
    Ok(vec![Some(dx), Some(ds)])
}

/// `y = x` where `x > 0`, else `α(eˣ − 1)`: `dx = dy`, else `dy·(y + α)`
fn elu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let alpha = b.scalar(node.float("alpha").unwrap_or(1.0));
    let slope = b.add(&node.outputs[0], &alpha);
    let below = b.mul(dy, &slope);
    only(positive(b, &node.inputs[0], dy, &below))
}

/// `y = x` where `x > 0`, else `α(e^(x/α) − 1)`: `dx = dy`, else `dy·(y/α + 1)`
fn celu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let one = b.scalar(1.0);
    let slope = b.scale(&node.outputs[0], 1.0 / node.float("alpha").unwrap_or(1.0));
    let slope = b.add(&slope, &one);
    let below = b.mul(dy, &slope);
    only(positive(b, &node.inputs[0], dy, &below))
}

/// `y = γx` where `x > 0`, else `γα(eˣ − 1)`: `dx = γ·dy`, else `dy·(y + γα)`
fn selu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let gamma = node.float("gamma").unwrap_or(1.050_700_987_355_480_5);
    let alpha = node.float("alpha").unwrap_or(1.673_263_242_354_377_2);
    let offset = b.scalar(gamma * alpha);
    let slope = b.add(&node.outputs[0], &offset);
    let (above, below) = (b.scale(dy, gamma), b.mul(dy, &slope));
    only(positive(b, &node.inputs[0], &above, &below))
}

/// `dx = dy·(2/√π)·exp(−x²)`
fn erf(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let slope = erf_slope(b, &node.inputs[0]);
    only(b.mul(dy, &slope))
}

/// `(2/√π)·exp(−x²)`, as `exp(ln(2/√π) − x²)`
fn erf_slope(b: &mut Builder, x: &Value) -> Value {
    let (log, square) = (b.scalar((2.0 / PI.sqrt()).ln()), b.mul(x, x));
    let exponent = b.sub(&log, &square);
    b.unary("Exp", &exponent)
}

/// `dx = dy·(Φ(x) + x·φ(x))`, or the same with the tanh form in the place of `Φ`. A group's own Erf or Tanh is
/// used again.
fn gelu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    if node.text("approximate") == Some("tanh") {
        let t = member(node, "Tanh").map(|it| it.outputs[0].clone());
        return only(tanh_form(b, x, t, dy));
    }
    let known = member(node, "Erf").map(|it| (it.inputs[0].clone(), it.outputs[0].clone()));
    only(erf_form(b, x, known, dy))
}

/// With `Φ`, or the tanh form of it, held: `dx = dy·Φ(x)`
fn gelu_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let twice = if node.text("approximate") == Some("tanh") {
        let t = member(node, "Tanh").map(|it| it.outputs[0].clone());
        tanh_gate(b, x, t)
    } else {
        let known = member(node, "Erf").map(|it| (it.inputs[0].clone(), it.outputs[0].clone()));
        erf_gate(b, x, known).1
    };
    let half = b.scale_product(dy, 0.5);
    only(b.mul(&half, &twice))
}

/// `dy·Φ(x)` of the error function's form
pub(super) fn gelu_erf_held(b: &mut Builder, x: &Value, dy: &Value) -> Value {
    let (_, twice) = erf_gate(b, x, None);
    let half = b.scale_product(dy, 0.5);
    b.mul(&half, &twice)
}

/// `dy·Φ(x)` of the tanh form
pub(super) fn gelu_tanh_held(b: &mut Builder, x: &Value, dy: &Value) -> Value {
    let twice = tanh_gate(b, x, None);
    let half = b.scale_product(dy, 0.5);
    b.mul(&half, &twice)
}

pub(super) fn gelu_erf(b: &mut Builder, x: &Value, dy: &Value) -> Value {
    erf_form(b, x, None, dy)
}

pub(super) fn gelu_tanh(b: &mut Builder, x: &Value, dy: &Value) -> Value {
    tanh_form(b, x, None, dy)
}

/// `½dy·(1 + erf u + u·(2/√π)·exp(−u²))`, `u = x/√2`; `known` are `u` and `erf u`
fn erf_form(b: &mut Builder, x: &Value, known: Option<(Value, Value)>, dy: &Value) -> Value {
    if b.shape(dy) == b.shape(x)
        && let Some(dx) = b.kernel("GeluPullback", &[dy, x])
    {
        return dx;
    }
    let (u, twice) = erf_gate(b, x, known);
    let steep = erf_slope(b, &u);
    let rise = b.mul(&u, &steep);
    let sum = b.add(&twice, &rise);
    let half = b.scale_product(dy, 0.5);
    b.mul(&half, &sum)
}

/// `u = x/√2` and `1 + erf u`; `known` are `u` and `erf u`
fn erf_gate(b: &mut Builder, x: &Value, known: Option<(Value, Value)>) -> (Value, Value) {
    let (u, erf) = known.unwrap_or_else(|| {
        let u = b.scale(x, 1.0 / SQRT_2);
        let erf = b.unary("Erf", &u);
        (u, erf)
    });
    let one = b.scalar(1.0);
    let twice = b.forward("Add", &erf, &one);
    (u, twice)
}

/// `1 + t` with `t = tanh(√(2/π)·(x + 0.044715x³))`, which may be known
fn tanh_gate(b: &mut Builder, x: &Value, t: Option<Value>) -> Value {
    let t = t.unwrap_or_else(|| tanh_of_cubic(b, x));
    let one = b.scalar(1.0);
    b.forward("Add", &t, &one)
}

/// `tanh(√(2/π)·(x + 0.044715x³))`
fn tanh_of_cubic(b: &mut Builder, x: &Value) -> Value {
    let c = (2.0 / PI).sqrt();
    let (factor, square) = (b.scalar(c), b.mul(x, x));
    let cubic = b.scale(&square, c * 0.044715);
    let inner = b.add(&cubic, &factor);
    let inner = b.mul(x, &inner);
    b.unary("Tanh", &inner)
}

/// `y = ½x(1 + t)`, `t = tanh(c(x + 0.044715x³))`, `c = √(2/π)`:
/// `½dy·(1 + t + x·(1 − t²)·c(1 + 0.134145x²))`
fn tanh_form(b: &mut Builder, x: &Value, t: Option<Value>, dy: &Value) -> Value {
    let c = (2.0 / PI).sqrt();
    let (one, factor, square) = (b.scalar(1.0), b.scalar(c), b.mul(x, x));
    let t = t.unwrap_or_else(|| tanh_of_cubic(b, x));
    let t_square = b.mul(&t, &t);
    let t_slope = b.sub(&one, &t_square);
    let inner_slope = b.scale(&square, c * 3.0 * 0.044715);
    let inner_slope = b.add(&inner_slope, &factor);
    let rise = b.mul(&t_slope, &inner_slope);
    let rise = b.mul(x, &rise);
    let sum = b.forward("Add", &t, &one);
    let sum = b.add(&sum, &rise);
    let half = b.scale_product(dy, 0.5);
    b.mul(&half, &sum)
}

/// A group's member of this operator.
pub(super) fn member<'a>(node: &'a Node, op: &str) -> Option<&'a Node> {
    node.members.iter().find(|it| it.is(op))
}

/// `a` where `x > 0`, else `rest`
fn positive(b: &mut Builder, x: &Value, a: &Value, rest: &Value) -> Value {
    let zero = b.scalar(0.0);
    let above = b.compare("Greater", x, &zero);
    b.select(&above, a, rest)
}

/// `a` where `low < x < high`, else 0
fn between(b: &mut Builder, x: &Value, low: f64, high: f64, a: &Value) -> Value {
    let (zero, low, high) = (b.scalar(0.0), b.scalar(low), b.scalar(high));
    let (above, below) = (b.compare("Greater", x, &low), b.compare("Less", x, &high));
    let inside = b.compare("And", &above, &below);
    b.select(&inside, a, &zero)
}
