//! This file is where channels are normalized: by stored statistics, or in groups by their own.

use super::Gradient::Rule;
use super::Kind::Normalization;
use super::{Cotangents, Kind, Misfit, Operator, only};
use crate::compile::builder::Builder;
use crate::compile::facts::{Fact, Length};
use crate::compile::graph::{Node, Value};

pub(super) static OPERATORS: &[Operator] = &[
    row(
        "BatchNormalization",
        Normalization(batch),
        batch,
        &[
            "y = BatchNormalization(x, [0.5, -1.0, 2.0], [0.1, 0.2, 0.3], [1.0, 0.0, -1.0], [0.5, 1.0, 2.0]) {epsilon: 0.1}",
        ],
    ),
    row(
        "InstanceNormalization",
        Normalization(instance_held),
        instance,
        &["y = InstanceNormalization(x, [0.5, -1.0, 2.0], [0.1, 0.2, 0.3]) {epsilon: 0.1}"],
    ),
    row(
        "GroupNormalization",
        Normalization(group_held),
        group,
        &[
            "y = GroupNormalization(x[2, 4, 3], [0.5, -1.0, 2.0, 0.7], [0.1, 0.2, 0.3, 0.4]) {num_groups: 2, epsilon: 0.1}",
        ],
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

/// `dx = dy·γ/√(σ² + ε)`, the statistics being constants
fn batch(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    if node.int("training_mode").unwrap_or(0) != 0 {
        return Err("it computes its statistics itself".into());
    }
    constant_weights(b, node)?;
    let (scale, variance) = (&node.inputs[1], &node.inputs[4]);
    let epsilon = b.scalar(node.float("epsilon").unwrap_or(1e-5));
    let sum = b.add(variance, &epsilon);
    let deviation = b.unary("Sqrt", &sum);
    let factor = b.div(scale, &deviation);
    let factor = beside_channels(b, &factor, b.rank(dy));
    only(b.mul(dy, &factor))
}

fn instance(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    by_instance(b, node, dy, false)
}

fn instance_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    by_instance(b, node, dy, true)
}

fn by_instance(b: &mut Builder, node: &Node, dy: &Value, held: bool) -> Result<Cotangents, Misfit> {
    constant_weights(b, node)?;
    let channels = b.shape(&node.inputs[0]).get(1).copied().ok_or("there are no channels")?;
    let channels = channels.constant().ok_or("the number of channels varies")?;
    let scale = beside_channels(b, &node.inputs[1], b.rank(dy));
    let g = b.mul(dy, &scale);
    grouped(b, node, &g, channels, held)
}

fn group(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    by_group(b, node, dy, false)
}

fn group_held(b: &mut Builder, node: &Node, dy: &Value) -> Result<Cotangents, Misfit> {
    by_group(b, node, dy, true)
}

fn by_group(b: &mut Builder, node: &Node, dy: &Value, held: bool) -> Result<Cotangents, Misfit> {
    constant_weights(b, node)?;
    if b.opset() < 21 {
        return Err("its weights are those of groups (before opset 21)".into());
    }
    let groups = node.int("num_groups").and_then(|it| usize::try_from(it).ok());
    let scale = beside_channels(b, &node.inputs[1], b.rank(dy));
    let g = b.mul(dy, &scale);
    grouped(b, node, &g, groups.ok_or("num_groups is missing")?, held)
}

/// Over each group, `x̂ = (x − μ)/σ`: `dx = (g − mean g − x̂·mean(g·x̂))/σ`; with `σ` held, `dx = (g − mean g)/σ`
fn grouped(b: &mut Builder, node: &Node, g: &Value, groups: usize, held: bool) -> Result<Cotangents, Misfit> {
    let x = &node.inputs[0];
    let shape = b.shape(x);
    let size = shape[1..].iter().fold(Length::ONE, |product, &it| product.zip(it, |p, q| p * q));
    let shape = vec![shape[0], Length::fixed(groups), Length(size.0.map(|it| it / groups.max(1)))];
    let target = b.ints(&[0, groups as i64, -1]);
    let (flat, g) = (b.reshape(x, &target, shape.clone()), b.reshape(g, &target, shape));
    let epsilon = b.scalar(node.float("epsilon").unwrap_or(1e-5));
    let mean = b.reduce_mean(&flat, &[2], true);
    let centred = b.sub(&flat, &mean);
    let square = b.mul(&centred, &centred);
    let variance = b.reduce_mean(&square, &[2], true);
    let sum = b.add(&variance, &epsilon);
    let deviation = b.unary("Sqrt", &sum);
    let level = b.reduce_mean(&g, &[2], true);
    let mut rest = b.sub(&g, &level);
    if !held {
        let normal = b.div(&centred, &deviation);
        let product = b.mul(&g, &normal);
        let tilt = b.reduce_mean(&product, &[2], true);
        let tilt = b.mul(&normal, &tilt);
        rest = b.sub(&rest, &tilt);
    }
    let dx = b.div(&rest, &deviation);
    only(b.reshape_like(&dx, x))
}

/// A weight for each channel, with axes of length one for what comes behind channels.
pub(super) fn beside_channels(b: &mut Builder, weight: &Value, rank: usize) -> Value {
    let shape = [b.shape(weight), vec![Length::ONE; rank.saturating_sub(2)]].concat();
    let target: Vec<i64> =
        std::iter::once(-1).chain(std::iter::repeat_n(1, rank.saturating_sub(2))).collect();
    let target = b.ints(&target);
    let fact = Fact::new(b.fact(weight).element, shape);
    b.emit("Reshape", &[weight, &target], &[], fact)
}

fn constant_weights(b: &Builder, node: &Node) -> Result<(), Misfit> {
    let active = node.inputs.iter().skip(1).any(|it| b.wants(it));
    if active { Err("a weight depends on the embeddings".into()) } else { Ok(()) }
}
