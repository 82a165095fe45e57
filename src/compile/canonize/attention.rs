//! This file is where attention operators come apart into products and a Softmax.

use super::draft::Draft;
use super::{Lowering, MICROSOFT};
use crate::compile::graph::{Element, Node, Value};
use crate::compile::ops::Misfit;

pub(super) static LOWERINGS: &[Lowering] = &[
    Lowering {
        name: "Attention",
        domain: "",
        measured: true,
        lower: standard,
        examples: &[
            "y = Attention(q[2, 3, 5, 4], k[2, 3, 6, 4], v[2, 3, 6, 2])",
            "y = Attention(q[2, 5, 12], k[2, 6, 6], v[2, 6, 4], m[5, 6]) {q_num_heads: 4, kv_num_heads: 2, scale: 0.3}",
            "m = Greater(n[2, 1, 5, 6], 0.0); y = Attention(q[2, 4, 5, 3], k[2, 2, 6, 3], v[2, 2, 6, 3], m)",
            "y = Attention(q[2, 3, 5, 4], k[2, 3, 5, 4], v[2, 3, 5, 4]) {is_causal: 1}",
            "y = Attention(q[2, 3, 5, 4], k[2, 3, 5, 4], v[2, 3, 5, 4]) {softcap: 0.5}",
        ],
    },
    Lowering {
        name: "Attention",
        domain: MICROSOFT,
        measured: true,
        lower: microsoft,
        examples: &[
            "y = com.microsoft::Attention(x[2, 3, 8], w[8, 24], b[24], m: int32[2]) {num_heads: 2}",
            "y = com.microsoft::Attention(x[2, 3, 8], w[8, 24], b[24], m: int32[2, 3]) {num_heads: 4, scale: 0.7}",
            "y = com.microsoft::Attention(x[2, 3, 8], w[8, 20], b[20], _, _, a[2, 2, 3, 3]) {num_heads: 2, unidirectional: 1, qkv_hidden_sizes: [8, 8, 4]}",
        ],
    },
    Lowering {
        name: "MultiHeadAttention",
        domain: MICROSOFT,
        measured: true,
        lower: multi_head,
        examples: &[
            "y = com.microsoft::MultiHeadAttention(q[2, 3, 8], k[2, 5, 8], v[2, 5, 8], b[24], m: int32[2, 5]) {num_heads: 2}",
            "y = com.microsoft::MultiHeadAttention(q[2, 3, 8], k[2, 5, 8], v[2, 5, 4], _, _, a[1, 2, 3, 5]) {num_heads: 2, scale: 0.4}",
        ],
    },
];

/// What stands at places that are not attended to, where nothing else is said.
const LOWEST: f64 = f32::MIN as f64;

/// The parts of attention, all [batch, heads, sequence, width].
struct Parts {
    query: Value,
    key: Value,
    value: Value,
    scale: f64,
    softcap: f64,
    /// Added to the scores, in this order.
    biases: Vec<Value>,
    /// Truth values: where the scores stay.
    kept: Vec<Value>,
}

/// `softmax(α·Q·Kᵀ + bias)·V`, [batch, heads, sequence, width].
fn attend(d: &mut Draft<'_>, parts: &Parts) -> Value {
    let turned = d.transpose(&parts.key, &[0, 1, 3, 2]);
    let scores = d.emit("MatMul", &[&parts.query, &turned], &[]);
    let scale = d.scalar(parts.scale);
    let mut scores = d.emit("Mul", &[&scores, &scale], &[]);
    if parts.softcap > 0.0 {
        let cap = d.scalar(parts.softcap);
        let share = d.emit("Div", &[&scores, &cap], &[]);
        let bent = d.emit("Tanh", &[&share], &[]);
        scores = d.emit("Mul", &[&bent, &cap], &[]);
    }
    for bias in &parts.biases {
        scores = d.emit("Add", &[&scores, bias], &[]);
    }
    if !parts.kept.is_empty() {
        let lowest = d.scalar(LOWEST);
        for kept in &parts.kept {
            scores = d.emit("Where", &[kept, &scores, &lowest], &[]);
        }
    }
    let p = d.emit("Softmax", &[&scores], &[("axis", (-1).into())]);
    d.emit("MatMul", &[&p, &parts.value], &[])
}

/// [batch, heads, sequence, width] as [batch, sequence, heads·width].
fn merge(d: &mut Draft<'_>, x: &Value, y: &Value) {
    let turned = d.transpose(x, &[0, 2, 1, 3]);
    let target = d.ints(&[0, 0, -1]);
    d.end("Reshape", &[&turned, &target], &[], std::slice::from_ref(y));
}

/// [batch, sequence, heads·width] as [batch, heads, sequence, width].
fn divide(d: &mut Draft<'_>, x: &Value, heads: i64) -> Value {
    let split = d.reshape(x, &[0, 0, heads, -1]);
    d.transpose(&split, &[0, 2, 1, 3])
}

/// Which keys come no later than each query: [queries, keys], counted from the first of both.
fn causal(d: &mut Draft<'_>, query: &Value, key: &Value) -> Value {
    let (rows, columns) = (d.range(query, 2), d.range(key, 2));
    let rows = d.unsqueeze(&rows, &[1]);
    d.emit("GreaterOrEqual", &[&rows, &columns], &[])
}

fn none_of(node: &Node, inputs: &[usize], outputs: &[usize]) -> Result<(), Misfit> {
    let read = inputs.iter().any(|&it| node.input(it).is_some());
    let made = outputs.iter().any(|&it| node.output(it).is_some());
    if read || made { Err("it keeps keys and values from run to run".into()) } else { Ok(()) }
}

/// Opset 23. Groups of query heads share a key head.
fn standard(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [query, key, value, ..] = &node.inputs[..] else { return Err("it has too few operands".into()) };
    none_of(node, &[4, 5], &[1, 2, 3])?;
    let softcap = node.float("softcap").unwrap_or(0.0);
    let is_causal = node.int("is_causal").unwrap_or(0) != 0;
    let mask = node.input(3);
    if softcap > 0.0 && (is_causal || mask.is_some()) {
        return Err("versions differ in the order of softcap and mask".into());
    }
    let flat = d.fact(query)?.rank() == 3;
    let (heads, key_heads, width) = if flat {
        let heads = |name: &str| node.int(name).filter(|&it| it > 0).ok_or("the heads are not counted");
        let (heads, key_heads) = (heads("q_num_heads")?, heads("kv_num_heads")?);
        (heads, key_heads, d.length(query, 2)? as i64 / heads)
    } else {
        (d.length(query, 1)? as i64, d.length(key, 1)? as i64, d.length(query, 3)? as i64)
    };
    let (kept, biases) = match mask {
        Some(mask) if d.fact(mask)?.element == Element::Bool => (vec![mask.clone()], vec![]),
        Some(mask) => (vec![], vec![mask.clone()]),
        None => (vec![], vec![]),
    };
    let value_width = d.length(value, if flat { 2 } else { 3 })? as i64 / if flat { key_heads } else { 1 };
    let apart = |d: &mut Draft<'_>, x: &Value, count: i64| if flat { divide(d, x, count) } else { x.clone() };
    let query = apart(d, query, heads);
    let mut parts = Parts {
        key: apart(d, key, key_heads),
        value: apart(d, value, key_heads),
        query,
        scale: node.float("scale").unwrap_or(1.0 / (width as f64).sqrt()),
        softcap,
        biases,
        kept,
    };
    if is_causal {
        let kept = causal(d, &parts.query, &parts.key);
        parts.kept.push(kept);
    }
    if heads != key_heads {
        let group = heads.checked_div(key_heads).filter(|it| it * key_heads == heads);
        let group = group.ok_or("query heads do not divide into groups")?;
        parts.key = repeated(d, &parts.key, group, heads, width);
        parts.value = repeated(d, &parts.value, group, heads, value_width);
    }
    let y = attend(d, &parts);
    if flat {
        merge(d, &y, &node.outputs[0]);
    } else {
        d.end("Identity", &[&y], &[], &node.outputs[..1]);
    }
    Ok(())
}

/// Each head `group` times in a row.
fn repeated(d: &mut Draft<'_>, x: &Value, group: i64, heads: i64, width: i64) -> Value {
    let apart = d.unsqueeze(x, &[2]);
    let target = d.ints(&[1, 1, group, 1, 1]);
    let wide = d.emit("Expand", &[&apart, &target], &[]);
    d.reshape(&wide, &[0, heads, -1, width])
}

/// ONNX Runtime's self-attention: one product makes queries, keys and values.
fn microsoft(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    let [input, weights, ..] = &node.inputs[..] else { return Err("it has too few operands".into()) };
    none_of(node, &[4, 6], &[1])?;
    if node.int("do_rotary").unwrap_or(0) != 0 {
        return Err("it rotates".into());
    }
    let heads = node.int("num_heads").filter(|&it| it > 0).ok_or("the heads are not counted")?;
    let sum = d.length(weights, 1)? as i64;
    let sizes = node.ints("qkv_hidden_sizes").map_or_else(|| vec![sum / 3; 3], <[i64]>::to_vec);
    let [size, _, _] = sizes[..] else { return Err("qkv_hidden_sizes is not three numbers".into()) };
    let mut packed = d.emit("MatMul", &[input, weights], &[]);
    if let Some(bias) = node.input(2) {
        packed = d.emit("Add", &[&packed, bias], &[]);
    }
    let ends = [0, size, size + sizes[1], sum];
    let part = |d: &mut Draft<'_>, place: usize| {
        let end = if place == 2 { i64::MAX } else { ends[place + 1] };
        let part = d.slice(&packed, ends[place], end, -1);
        divide(d, &part, heads)
    };
    let (query, key, value) = (part(d, 0), part(d, 1), part(d, 2));
    finish(d, node, (query, key, value), (heads, size), node.input(3), node.input(5))
}

/// ONNX Runtime's attention over separate queries, keys and values.
fn multi_head(d: &mut Draft<'_>, node: &Node) -> Result<(), Misfit> {
    none_of(node, &[6, 7, 8, 9], &[1, 2, 3])?;
    let operand = |place: usize| node.input(place).ok_or("queries, keys or values are packed");
    let (query, key, value) = (operand(0)?, operand(1)?, operand(2)?);
    let heads = node.int("num_heads").filter(|&it| it > 0).ok_or("the heads are not counted")?;
    for operand in [query, key, value] {
        if d.fact(operand)?.rank() != 3 {
            return Err("queries, keys or values are packed".into());
        }
    }
    let (size, value_size) = (d.length(query, 2)? as i64, d.length(value, 2)? as i64);
    let ends = [0, size, 2 * size, 2 * size + value_size];
    let part = |d: &mut Draft<'_>, x: &Value, place: usize| {
        let x = match node.input(3) {
            Some(bias) => {
                let bias = d.slice(bias, ends[place], ends[place + 1], 0);
                d.emit("Add", &[x, &bias], &[])
            }
            None => x.clone(),
        };
        divide(d, &x, heads)
    };
    let (query, key, value) = (part(d, query, 0), part(d, key, 1), part(d, value, 2));
    finish(d, node, (query, key, value), (heads, size), node.input(4), node.input(5))
}

/// What both of ONNX Runtime's operators share: mask, bias, order of tokens, scale.
fn finish(
    d: &mut Draft<'_>,
    node: &Node,
    (query, key, value): (Value, Value, Value),
    (heads, size): (i64, i64),
    mask: Option<&Value>,
    bias: Option<&Value>,
) -> Result<(), Misfit> {
    let mut biases = Vec::new();
    if let Some(mask) = mask {
        let filter = node.float("mask_filter_value").unwrap_or(-10_000.0);
        biases.push(mask_bias(d, node, &key, mask, filter)?);
    }
    biases.extend(bias.cloned());
    let kept = match node.int("unidirectional").unwrap_or(0) {
        0 => vec![],
        _ => vec![causal(d, &query, &key)],
    };
    let default = 1.0 / (size as f64 / heads as f64).sqrt();
    let scale = node.float("scale").filter(|&it| it != 0.0).unwrap_or(default);
    let y = attend(d, &Parts { query, key, value, scale, softcap: 0.0, biases, kept });
    merge(d, &y, &node.outputs[0]);
    Ok(())
}

/// What a mask adds to scores [batch, heads, queries, keys]: `filter` where it hides. A list counts the keys
/// that each row has; more axes say of each key, or of each pair, whether it is there.
fn mask_bias(
    d: &mut Draft<'_>,
    node: &Node,
    key: &Value,
    mask: &Value,
    filter: f64,
) -> Result<Value, Misfit> {
    let fact = d.fact(mask)?;
    let kept = match fact.rank() {
        1 => {
            // One number a row; the forms with two or three numbers a row would have other lengths.
            if d.fact(&node.inputs[0])?.shape.first() != fact.shape.first() {
                return Err("its mask tells beginnings and ends".into());
            }
            let columns = d.range(key, 2);
            let lengths = d.emit("Cast", &[mask], &[("to", i64::from(Element::I64.code()).into())]);
            let lengths = d.unsqueeze(&lengths, &[1, 2, 3]);
            d.emit("Less", &[&columns, &lengths], &[])
        }
        rank @ (2 | 3) => {
            let axes: &[i64] = if rank == 2 { &[1, 2] } else { &[1] };
            let there = d.emit("Cast", &[mask], &[("to", i64::from(Element::I64.code()).into())]);
            let (zero, there) = (d.int(0), d.unsqueeze(&there, axes));
            d.emit("Greater", &[&there, &zero], &[])
        }
        _ => return Err("its mask has four axes".into()),
    };
    let (zero, filter) = (d.scalar(0.0), d.scalar(filter));
    Ok(d.emit("Where", &[&kept, &zero, &filter], &[]))
}
