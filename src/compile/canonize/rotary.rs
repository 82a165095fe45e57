//! This file is where rotary position embeddings come apart into products and sums.

use super::draft::Draft;
use super::{Lowering, MICROSOFT};
use crate::compile::graph::{Node, Value};
use crate::compile::ops::Misfit;

pub(super) static LOWERINGS: &[Lowering] = &[
    Lowering {
        name: "RotaryEmbedding",
        domain: "",
        measured: false,
        lower: standard,
        examples: &[
            "y = RotaryEmbedding(x[2, 3, 5, 8], c[2, 5, 4], s[2, 5, 4])",
            "y = RotaryEmbedding(x[2, 3, 5, 8], c[2, 5, 4], s[2, 5, 4]) {interleaved: 1}",
            "y = RotaryEmbedding(x[2, 3, 5, 8], c[2, 5, 2], s[2, 5, 2]) {rotary_embedding_dim: 4}",
            "y = RotaryEmbedding(x[1, 3, 8], c[6, 2], s[6, 2], p: int64[1, 3]) {num_heads: 2, interleaved: 1}",
            "y = RotaryEmbedding(x[2, 3, 5, 8], c[2, 5, 4], s[2, 5, 4]) {num_heads: 3}",
        ],
    },
    Lowering {
        name: "RotaryEmbedding",
        domain: MICROSOFT,
        measured: true,
        lower: microsoft,
        examples: &[
            "y = com.microsoft::RotaryEmbedding(x[2, 3, 8], p: int64[2, 3], c[6, 2], s[6, 2])",
            "y = com.microsoft::RotaryEmbedding(x[2, 2, 3, 8], p: int64[1], c[6, 4], s[6, 4]) {interleaved: 1}",
        ],
    },
];

/// What is rotated, and how.
struct Rotation {
    /// Are the two parts of a pair side by side, not half a width apart?
    interleaved: bool,
    /// How many coordinates are rotated; all if 0.
    width: i64,
}

/// Opset 23: `cos` and `sin` are caches looked up by positions, or come as [batch, sequence, width/2].
fn standard(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [x, cos, sin, ..] = &node.inputs[..] else { return Err("it has too few operands".into()) };
    let factor = |d: &mut Draft<'_>, cache: &Value| match node.input(3) {
        Some(places) => d.emit("Gather", &[cache, places], &[]),
        None => cache.clone(),
    };
    let (cos, sin) = (factor(d, cos), factor(d, sin));
    let rotation = Rotation {
        interleaved: node.int("interleaved").unwrap_or(0) != 0,
        width: node.int("rotary_embedding_dim").unwrap_or(0),
    };
    // Of a flat operand, the attribute must say how many heads there are; exporters say it of others, too.
    match node.int("num_heads").filter(|_| d.rank(x) != Some(4)).unwrap_or(0) {
        0 => {
            let (cos, sin) = (d.unsqueeze(&cos, &[1]), d.unsqueeze(&sin, &[1]));
            rotate(d, x, &cos, &sin, &rotation, Some(&node.outputs[0]));
        }
        heads => flat(d, x, (&cos, &sin), heads, &rotation, &node.outputs[0]),
    }
    Ok(())
}

/// ONNX Runtime's: caches are looked up by positions [batch, sequence], or counted from one position on.
fn microsoft(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [x, places, cos, sin] = &node.inputs[..] else { return Err("it has not four operands".into()) };
    if node.int("is_packed_batching").unwrap_or(0) != 0 || node.float("scale").unwrap_or(1.0) != 1.0 {
        return Err("it is packed or scaled".into());
    }
    let rank = d.fact(x)?.rank();
    let places = if d.fact(places)?.rank() == 2 {
        places.clone()
    } else {
        let along = d.range(x, rank as i64 - 2);
        let along = d.emit("Add", &[&along, places], &[]);
        d.unsqueeze(&along, &[0])
    };
    let half = d.length(cos, 1)?;
    let (cos, sin) = (d.emit("Gather", &[cos, &places], &[]), d.emit("Gather", &[sin, &places], &[]));
    let rotation = Rotation {
        interleaved: node.int("interleaved").unwrap_or(0) != 0,
        width: node.int("rotary_embedding_dim").unwrap_or(0),
    };
    if rank == 4 {
        let (cos, sin) = (d.unsqueeze(&cos, &[1]), d.unsqueeze(&sin, &[1]));
        rotate(d, x, &cos, &sin, &rotation, Some(&node.outputs[0]));
        return Ok(());
    }
    let heads = match node.int("num_heads").unwrap_or(0) {
        0 => (d.length(x, 2)? / (2 * half).max(1)) as i64,
        heads => heads,
    };
    flat(d, x, (&cos, &sin), heads, &rotation, &node.outputs[0]);
    Ok(())
}

/// [batch, sequence, heads·width], rotated head by head.
fn flat(
    d: &mut Draft<'_>,
    x: &Value,
    (cos, sin): (&Value, &Value),
    heads: i64,
    rotation: &Rotation,
    y: &Value,
) {
    let split = d.reshape(x, &[0, 0, heads, -1]);
    let (cos, sin) = (d.unsqueeze(cos, &[2]), d.unsqueeze(sin, &[2]));
    let rotated = rotate(d, &split, &cos, &sin, rotation, None);
    let target = d.ints(&[0, 0, -1]);
    d.end("Reshape", &[&rotated, &target], &[], std::slice::from_ref(y));
}

/// Pairs `(a, b)` of the last axis become `(a·cos − b·sin, a·sin + b·cos)`; what is behind the width stays.
fn rotate(
    d: &mut Draft<'_>,
    x: &Value,
    cos: &Value,
    sin: &Value,
    rotation: &Rotation,
    y: Option<&Value>,
) -> Value {
    let whole = rotation.width == 0;
    let turned = if whole { x.clone() } else { d.slice(x, 0, rotation.width, -1) };
    let (a, b) = if rotation.interleaved {
        let pairs = d.reshape(&turned, &[0, 0, 0, -1, 2]);
        let part = |d: &mut Draft<'_>, index: i64| {
            let index = d.int(index);
            d.emit("Gather", &[&pairs, &index], &[("axis", 4.into())])
        };
        (part(d, 0), part(d, 1))
    } else {
        let pairs = d.reshape(&turned, &[0, 0, 0, 2, -1]);
        let part = |d: &mut Draft<'_>, index: i64| {
            let index = d.int(index);
            d.emit("Gather", &[&pairs, &index], &[("axis", 3.into())])
        };
        (part(d, 0), part(d, 1))
    };
    let (a_cos, b_sin) = (d.emit("Mul", &[&a, cos], &[]), d.emit("Mul", &[&b, sin], &[]));
    let (a_sin, b_cos) = (d.emit("Mul", &[&a, sin], &[]), d.emit("Mul", &[&b, cos], &[]));
    let real = d.emit("Sub", &[&a_cos, &b_sin], &[]);
    let imaginary = d.emit("Add", &[&a_sin, &b_cos], &[]);
    let last = |d: &mut Draft<'_>, parts: &[&Value], to: Option<&Value>| match to {
        Some(y) => {
            d.end("Concat", parts, &[("axis", (-1).into())], std::slice::from_ref(y));
            y.clone()
        }
        None => d.emit("Concat", parts, &[("axis", (-1).into())]),
    };
    let joined_to = y.filter(|_| whole && !rotation.interleaved);
    let joined = if rotation.interleaved {
        let (real, imaginary) = (d.unsqueeze(&real, &[4]), d.unsqueeze(&imaginary, &[4]));
        let pairs = d.emit("Concat", &[&real, &imaginary], &[("axis", 4.into())]);
        let target = d.ints(&[0, 0, 0, -1]);
        match y.filter(|_| whole) {
            Some(y) => {
                d.end("Reshape", &[&pairs, &target], &[], std::slice::from_ref(y));
                return y.clone();
            }
            None => d.emit("Reshape", &[&pairs, &target], &[]),
        }
    } else {
        last(d, &[&real, &imaginary], joined_to)
    };
    if whole {
        return joined;
    }
    let rest = d.slice(x, rotation.width, i64::MAX, -1);
    last(d, &[&joined, &rest], y)
}
