//! This file is where normalizations by an operand's own statistics are.

use super::Gradient::Rule;
use super::Kind::Normalization;
use super::activation::member;
use super::{Cotangents, Misfit, Operator};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length};
use crate::compile::graph::{Element, Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    Operator {
        name: "LayerNormalization",
        domain: "",
        kind: Normalization(layer_held),
        gradient: Rule(layer),
        examples: &[
            "y = LayerNormalization(x, g[4], c[4])",
            "y = LayerNormalization(x, g[3, 4]) {axis: -2, epsilon: 0.1}",
        ],
    },
    Operator {
        name: "RMSNormalization",
        domain: "",
        kind: Normalization(rms_held),
        gradient: Rule(rms),
        examples: &["y = RMSNormalization(x, g[4])", "y = RMSNormalization(x, g[3, 4]) {axis: 1}"],
    },
];

/// `y = γ·x̂ + β`, `x̂ = (x − μ)/σ`, `g = dy·γ`: `dx = (g − mean g − x̂·mean(g·x̂))/σ`, `dγ = dy·x̂`, `dβ = dy`.
/// The forward node is asked for its `μ` and `1/σ`.
fn layer(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let (x, scale) = (&node.inputs[0], &node.inputs[1]);
    let axes = axes(b, node)?;
    let (mean, inverse) = (statistic(b, node, &axes, 1)?, statistic(b, node, &axes, 2)?);
    let by_row = axes.len() == 1 && b.shape(dy) == b.shape(x) && b.rank(scale) == 1 && !b.wants(scale);
    if by_row && let Some(dx) = b.kernel("LayerNormalizationPullback", &[dy, x, scale, &mean, &inverse]) {
        return Ok(vec![Some(dx), None, Some(dy.clone())]);
    }
    let centred = b.sub(x, &mean);
    let normal = b.mul(&centred, &inverse);
    let g = b.mul(dy, scale);
    let (level, tilt) = (b.reduce_mean(&g, &axes, true), along(b, &g, &normal, &axes));
    let level = b.sub(&g, &level);
    let rest = b.sub(&level, &tilt);
    let dx = b.mul(&rest, &inverse);
    let d_scale = b.wants(scale).then(|| b.mul(dy, &normal));
    Ok(vec![Some(dx), d_scale, Some(dy.clone())])
}

/// The same with `σ` held: `dx = (g − mean g)/σ`
fn layer_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let axes = axes(b, node)?;
    let inverse = statistic(b, node, &axes, 2)?;
    let g = b.mul(dy, &node.inputs[1]);
    let level = b.reduce_mean(&g, &axes, true);
    let rest = b.sub(&g, &level);
    Ok(vec![Some(b.mul(&rest, &inverse))])
}

/// The forward node's `μ` (1) or `1/σ` (2).
fn statistic(b: &mut Builder, node: &Node, axes: &[usize], index: usize) -> Result<Value, Misfit> {
    let x = &node.inputs[0];
    let mut shape = b.shape(x);
    axes.iter().for_each(|&it| shape[it] = Length::ONE);
    // The statistics have the type of `stash_type`, which is float32 for every exporter.
    let fact = Fact::new(Element::F32, shape);
    let value = b.further_output(&node.outputs[0], index, fact);
    let value = value.ok_or("its statistics cannot be asked for")?;
    let element = b.fact(x).element;
    Ok(b.cast(&value, element))
}

/// `y = γ·x̂`, `x̂ = x/r`, `r = √(mean x² + ε)`, `g = dy·γ`: `dx = (g − x̂·mean(g·x̂))/r`, `dγ = dy·x̂`
fn rms(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let scale = &node.inputs[1];
    let axes = axes(b, node)?;
    let (r, normal) = root(b, node, &axes);
    let g = b.mul(dy, scale);
    let tilt = along(b, &g, &normal, &axes);
    let rest = b.sub(&g, &tilt);
    let dx = b.div(&rest, &r);
    let d_scale = b.wants(scale).then(|| b.mul(dy, &normal));
    Ok(vec![Some(dx), d_scale])
}

/// The same with `r` held: `dx = g/r`
fn rms_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    let axes = axes(b, node)?;
    let (r, _) = root(b, node, &axes);
    let g = b.mul(dy, &node.inputs[1]);
    Ok(vec![Some(b.div(&g, &r))])
}

/// `r` and `x̂`.
fn root(b: &mut Builder, node: &Node, axes: &[usize]) -> (Value, Value) {
    let (x, scale) = (&node.inputs[0], &node.inputs[1]);
    match (member(node, "Sqrt"), node.members.last()) {
        // A group's last member scales what is normalized already.
        (Some(root), Some(last)) => {
            let normal = last.inputs.iter().find(|it| *it != scale).unwrap_or(x);
            (root.outputs[0].clone(), normal.clone())
        }
        _ => {
            let epsilon = b.scalar(node.float("epsilon").unwrap_or(1e-5));
            let square = b.mul(x, x);
            let mean = b.reduce_mean(&square, axes, true);
            let mean = b.add(&mean, &epsilon);
            let r = b.unary("Sqrt", &mean);
            let normal = b.div(x, &r);
            (r, normal)
        }
    }
}

/// `x̂·mean(g·x̂)`: the part of `g` along `x̂`
fn along(b: &mut Builder, g: &Value, normal: &Value, axes: &[usize]) -> Value {
    let product = b.mul(g, normal);
    let mean = b.reduce_mean(&product, axes, true);
    b.mul(normal, &mean)
}

/// The axes from `axis` on.
fn axes(b: &Builder, node: &Node) -> Result<Vec<usize>, Misfit> {
    let fact = b.fact(&node.inputs[0]);
    let first = fact.axis(node.int("axis").unwrap_or(-1)).ok_or("the axis is out of range")?;
    Ok((first..fact.rank()).collect())
}
