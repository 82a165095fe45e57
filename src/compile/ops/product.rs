//! This file is where matrix products and convolutions are.

use super::Gradient::Rule;
use super::Kind::Product;
use super::window::{Window, fitted};
use super::{Cotangents, Misfit, Operator};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length};
use crate::compile::graph::{Attribute, Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row(
        "MatMul",
        matmul,
        &[
            "y = MatMul(x, w[4, 5])",
            "y = MatMul(x[2, 1, 3, 4], w[5, 4, 2])",
            "y = MatMul(x[4], w[2, 4, 3])",
            "y = MatMul(x, w[4])",
            "y = MatMul(x[4], w[4])",
        ],
    ),
    row(
        "Gemm",
        gemm,
        &[
            "y = Gemm(x[3, 4], w[4, 2], c[2]) {alpha: 0.5, beta: 2.0}",
            "y = Gemm(x[3, 4], w[2, 4]) {transB: 1}",
            "y = Gemm(x[4, 3], w[4, 2], c[3, 1]) {transA: 1}",
            "y = Gemm(x[4, 3], w[2, 4], c[1]) {transA: 1, transB: 1, alpha: 3.0}",
        ],
    ),
    row(
        "Conv",
        conv,
        &[
            "k = Reshape([0.5, -1.0, 2.0, 0.1, 0.3, -0.7, 1.1, 0.9], [2, 2, 2]); y = Conv(x[2, 2, 7], k, b[2]) {pads: [1, 0]}",
            "k = Reshape([0.5, -1.0, 2.0, 0.3, -0.7, 1.1], [2, 1, 3]); y = Conv(x[2, 2, 8], k) {group: 2, strides: [2], dilations: [2]}",
            "k = Reshape([0.5, -1.0, 2.0, 0.3, -0.7, 1.1], [1, 2, 3]); y = Conv(x[1, 2, 8], k) {strides: [2], pads: [1, 1]}",
            "k = Reshape([0.5, -1.0, 2.0, 0.3, -0.7, 1.1], [1, 2, 3]); y = Conv(x[1, 2, 7], k) {strides: [3], pads: [2, 1]}",
        ],
    ),
];

const fn row(name: &'static str, rule: super::Rule, examples: &'static [&'static str]) -> Operator {
    Operator { name, domain: "", kind: Product, gradient: Rule(rule), examples }
}

/// `Y = A·B + C`: `dA = dY·Bᵀ`, `dB = Aᵀ·dY`. Vectors count as matrices of one row or column; `C` is what a group
/// adds, and constant.
fn matmul(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (lhs, rhs) = (&node.inputs[0], &node.inputs[1]);
    let (row, column) = (b.rank(lhs) == 1, b.rank(rhs) == 1);
    let mut dy = dy.clone();
    if column {
        let end = b.rank(&dy);
        dy = b.unsqueeze(&dy, &[end]);
    }
    if row {
        let place = b.rank(&dy) - 1;
        dy = b.unsqueeze(&dy, &[place]);
    }
    let a = if row { b.unsqueeze(lhs, &[0]) } else { lhs.clone() };
    let w = if column { b.unsqueeze(rhs, &[1]) } else { rhs.clone() };
    let da = b.wants(lhs).then(|| {
        let da = if b.strided(lhs) {
            let turned = b.product((&w, false), (&dy, true), 1.0);
            b.transpose_last(&turned)
        } else {
            b.product((&dy, false), (&w, true), 1.0)
        };
        if row { narrowed(b, &da, 1) } else { da }
    });
    let db = b.wants(rhs).then(|| {
        let db = rhs_cotangent(b, &a, &w, &dy);
        if column { narrowed(b, &db, 0) } else { db }
    });
    Ok(vec![da, db])
}

/// `Aᵀ·dY`; for a matrix `B` under many matrices `A`, as one product over all their rows. Where `B` is a strided
/// transpose, `dYᵀ·A` is, and turned: two turns of one axis order cost one.
fn rhs_cotangent(b: &mut Builder, a: &Value, w: &Value, dy: &Value) -> Value {
    let (a_shape, dy_shape) = (b.shape(a), b.shape(dy));
    if b.rank(w) == 2 && a_shape.len() > 2 {
        let rows = a_shape[..a_shape.len() - 1].iter();
        let rows = rows.fold(Length::ONE, |product, &it| product.zip(it, |p, q| p * q));
        let flat_a = b.reshape_to(a, vec![rows, a_shape[a_shape.len() - 1]]);
        let flat_dy = b.reshape_to(dy, vec![rows, dy_shape[dy_shape.len() - 1]]);
        if let (Some(a), Some(dy)) = (flat_a, flat_dy) {
            return b.product((&a, true), (&dy, false), 1.0);
        }
    }
    if b.strided(w) {
        let turned = b.product((dy, true), (a, false), 1.0);
        return b.transpose_last(&turned);
    }
    b.product((a, true), (dy, false), 1.0)
}

/// Takes back the axis of length one that made a vector a matrix: the last but `from_end`. What is in front of
/// it was broadcast, and is summed.
fn narrowed(b: &mut Builder, x: &Value, from_end: usize) -> Value {
    let axis = b.rank(x) - 1 - from_end;
    b.squeeze(x, &[axis])
}

/// `Y = α·A′·B′ + β·C`, where a prime transposes as the flags say: `dA′ = α·dY·B′ᵀ`, `dB′ = α·A′ᵀ·dY`,
/// `dC = β·dY`
fn gemm(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (lhs, rhs) = (&node.inputs[0], &node.inputs[1]);
    let trans_a = node.int("transA").unwrap_or(0) != 0;
    let trans_b = node.int("transB").unwrap_or(0) != 0;
    let alpha = node.float("alpha").unwrap_or(1.0);
    let da = b.wants(lhs).then(|| {
        if trans_a {
            product(b, (rhs, trans_b), (dy, true), alpha)
        } else {
            product(b, (dy, false), (rhs, !trans_b), alpha)
        }
    });
    let db = b.wants(rhs).then(|| {
        if trans_b {
            product(b, (dy, true), (lhs, trans_a), alpha)
        } else {
            product(b, (lhs, !trans_a), (dy, false), alpha)
        }
    });
    let dc = node.input(2).filter(|it| b.wants(it)).is_some();
    let beta = node.float("beta").unwrap_or(1.0);
    let dc = dc.then(|| if beta == 1.0 { dy.clone() } else { b.scale(dy, beta) });
    Ok(vec![da, db, dc])
}

/// `α·A′·B′`, each operand with its flag.
fn product(b: &mut Builder, a: (&Value, bool), w: (&Value, bool), alpha: f64) -> Value {
    let (rows, columns) = (b.shape(a.0)[usize::from(a.1)], b.shape(w.0)[usize::from(!w.1)]);
    let fact = Fact::new(b.fact(a.0).element, vec![rows, columns]);
    let flags: [(&str, Attribute); 3] = [
        ("alpha", (alpha as f32).into()),
        ("transA", i64::from(a.1).into()),
        ("transB", i64::from(w.1).into()),
    ];
    b.emit("Gemm", &[a.0, w.0], &flags, fact)
}

/// `dX` = transposed convolution of `dY` with the same kernel, cut or filled up with zeros to the length of `X`
/// where the kernel moves in steps; `dB` = sum of `dY` over all but the channels.
fn conv(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, w) = (&node.inputs[0], &node.inputs[1]);
    if b.wants(w) {
        return Err("the kernel depends on the embeddings".into());
    }
    if !matches!(node.text("auto_pad"), None | Some("NOTSET" | "VALID")) {
        return Err("auto_pad is set".into());
    }
    let dx = b.wants(x).then(|| conv_input(b, node, dy));
    let db = node.input(2).filter(|it| b.wants(it)).is_some().then(|| {
        let axes: Vec<usize> = (0..b.rank(dy)).filter(|&it| it != 1).collect();
        b.reduce_sum(dy, &axes, false)
    });
    Ok(vec![dx, None, db])
}

fn conv_input(b: &mut Builder, node: &Node, dy: &Value) -> Value {
    let (x, w) = (&node.inputs[0], &node.inputs[1]);
    let (target, outer, element) = (b.shape(x), b.shape(dy), b.fact(dy).element);
    let window = Window::over(node, b.shape(w)[2..].iter().map(|it| it.0[0] as i64).collect());
    let group = ("group", node.int("group").unwrap_or(1).into());
    let [strides, dilations] = window.attributes();
    if window.strides.iter().all(|&it| it == 1) {
        let pads = ("pads", window.pads.into());
        let attributes: [(&str, Attribute); 4] = [strides, dilations, pads, group];
        return b.emit("ConvTranspose", &[dy, w], &attributes, Fact::new(element, target));
    }
    // Windows in steps may end before the padding does: it depends on the length how much of it they reached.
    let mut shape = target;
    for axis in 2..shape.len() {
        shape[axis] = window.reach(axis - 2, outer[axis]);
    }
    let spread = b.emit("ConvTranspose", &[dy, w], &[strides, dilations, group], Fact::new(element, shape));
    fitted(b, &spread, x, &window, -1)
}
