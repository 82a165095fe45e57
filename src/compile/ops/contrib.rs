//! This file is where ONNX Runtime's own activations and products are, in the domain com.microsoft.

use super::Gradient::Rule;
use super::Kind::{Gate, Product};
use super::activation::{gelu_erf, gelu_erf_held, gelu_tanh, gelu_tanh_held};
use super::elementary::{sigmoid_of, swish_slope};
use super::{Cotangents, Kind, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row("Gelu", Gate(gelu_held), gelu, &["y = com.microsoft::Gelu(x)"]),
    row("FastGelu", Gate(fast_gelu_held), fast_gelu, &["y = com.microsoft::FastGelu(x)"]),
    row(
        "QuickGelu",
        Gate(quick_gelu_held),
        quick_gelu,
        &["y = com.microsoft::QuickGelu(x)", "y = com.microsoft::QuickGelu(x) {alpha: 0.7}"],
    ),
    row(
        "FusedMatMul",
        Product,
        fused_matmul,
        &[
            "y = com.microsoft::FusedMatMul(x, w[4, 5]) {alpha: 0.5}",
            "y = com.microsoft::FusedMatMul(x[2, 3, 4], w[2, 5, 4]) {transB: 1}",
            "y = com.microsoft::FusedMatMul(x[2, 4, 3], w[2, 4, 5]) {transA: 1, alpha: 2.0}",
            "y = com.microsoft::FusedMatMul(x[2, 4, 3], w[5, 4]) {transA: 1, transB: 1}",
        ],
    ),
];

const fn row(
    name: &'static str,
    kind: Kind,
    rule: super::Rule,
    examples: &'static [&'static str],
) -> Operator {
    Operator { name, domain: "com.microsoft", kind, gradient: Rule(rule), examples }
}

/// The cotangent of a GELU of the error function's form
fn gelu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(gelu_erf(b, &node.inputs[0], dy))
}

fn gelu_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(gelu_erf_held(b, &node.inputs[0], dy))
}

fn fast_gelu_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(gelu_tanh_held(b, &node.inputs[0], dy))
}

fn quick_gelu_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let s = sigmoid_of(b, &node.inputs[0], node.float("alpha").unwrap_or(f64::from(1.702_f32)));
    only(b.mul(dy, &s))
}

/// The cotangent of a GELU of the tanh form
fn fast_gelu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(gelu_tanh(b, &node.inputs[0], dy))
}

/// `y = x·σ(αx)`
fn quick_gelu(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    only(swish_slope(b, &node.inputs[0], node.float("alpha").unwrap_or(f64::from(1.702_f32)), None, dy))
}

/// `Y = α·A′·B′`, where a prime transposes as the flags say: `dA′ = α·dY·B′ᵀ`, `dB′ = α·A′ᵀ·dY`
fn fused_matmul(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (lhs, rhs) = (&node.inputs[0], &node.inputs[1]);
    let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
    if flag("transBatchA") || flag("transBatchB") || b.rank(lhs) < 2 || b.rank(rhs) < 2 {
        return Err("it exchanges batches, or an operand is a vector".into());
    }
    let (trans_a, trans_b) = (flag("transA"), flag("transB"));
    let alpha = node.float("alpha").unwrap_or(1.0);
    let da = b.wants(lhs).then(|| {
        if trans_a {
            b.product((rhs, trans_b), (dy, true), alpha)
        } else {
            b.product((dy, false), (rhs, !trans_b), alpha)
        }
    });
    let db = b.wants(rhs).then(|| {
        if trans_b {
            b.product((dy, true), (lhs, trans_a), alpha)
        } else {
            b.product((lhs, !trans_a), (dy, false), alpha)
        }
    });
    Ok(vec![da, db])
}
