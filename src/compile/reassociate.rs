//! This file is where keys and values that one query alone reads are never computed.
//!
//! A product with a weight is associative: `q·(X·W)ᵀ = (q·Wᵀ)·Xᵀ` and `p·(X·W) = (p·X)·W`. With as many queries as
//! positions the left sides are cheaper; with one query, which [`super::narrow`] leaves in the last layer of a
//! classifier that reads one position, the right sides need the weight once a row instead of once a position.

use super::builder::Builder;
use super::cut::Cut;
use super::facts::{Length, Shape};
use super::graph::{Node, Tensor, Value};
use super::narrow::multiplications;

/// The graph with the products of single queries reassociated, where that takes fewer multiplications.
pub fn reassociate(mut cut: Cut) -> Cut {
    let mut cost = multiplications(&cut);
    let products: Vec<Value> =
        cut.graph.nodes.iter().filter(|it| it.is("MatMul")).map(|it| it.outputs[0].clone()).collect();
    for product in products {
        let Some(mut other) = scores(&cut, &product).or_else(|| context(&cut, &product)) else { continue };
        other.graph.prune();
        let less = multiplications(&other);
        if less < cost {
            (cut, cost) = (other, less);
        }
    }
    cut
}

/// Keys or values of all heads: `X·W + b`, times a number.
struct Projection {
    /// [batch, sequence, hidden].
    source: Value,
    /// [hidden, heads·width], the number in it.
    weight: Vec<f32>,
    /// [heads·width], the number in it; empty for none.
    bias: Vec<f32>,
    hidden: usize,
    heads: usize,
    width: usize,
}

/// Axes of keys as scores read them, and of values, in terms of [batch, sequence, heads, width].
const KEYS: [usize; 4] = [0, 2, 3, 1];
const VALUES: [usize; 4] = [0, 2, 1, 3];

/// Scores of one query: `q·(X·W + b)ᵀ = (q·Wᵀ)·Xᵀ + q·bᵀ`, head by head.
fn scores(cut: &Cut, product: &Value) -> Option<Cut> {
    let (place, node) = made(cut, product)?;
    let query = node.inputs.first()?;
    let [batch, heads, one, width] = <[Length; 4]>::try_from(&shape(cut, query)?[..]).ok()?;
    let keys = Projection::find(cut, node.inputs.get(1)?, KEYS)?;
    if one != Length::ONE || [heads, width] != [keys.heads, keys.width].map(Length::fixed) {
        return None;
    }
    let weight = keys.by_head(|[from, head, to]| [head, to, from]);
    rewritten(cut, place, |b| {
        let hidden = Length::fixed(keys.hidden);
        let query = b.reshape_to(query, vec![batch, heads, width])?;
        let query = b.transpose(&query, &[1, 0, 2]);
        let weight = b.constant(Tensor::from_f32(&[keys.heads, keys.width, keys.hidden], &weight));
        let turned = b.matmul(&query, &weight);
        debug_assert_eq!(b.shape(&turned)[2], hidden);
        let turned = b.transpose(&turned, &[1, 0, 2]);
        let source = b.transpose(&keys.source, &[0, 2, 1]);
        let mut scores = b.matmul(&turned, &source);
        if !keys.bias.is_empty() {
            let bias = b.constant(Tensor::from_f32(&[keys.heads, keys.width, 1], &keys.bias));
            let bias = b.matmul(&query, &bias);
            let bias = b.transpose(&bias, &[1, 0, 2]);
            scores = b.add(&scores, &bias);
        }
        Some(b.unsqueeze(&scores, &[2]))
    })
}

/// What one query takes of the values: `p·(X·W + b) = (p·X)·W + (Σp)·b`, head by head.
fn context(cut: &Cut, product: &Value) -> Option<Cut> {
    let (place, node) = made(cut, product)?;
    let weights = node.inputs.first()?;
    let [batch, heads, one, length] = <[Length; 4]>::try_from(&shape(cut, weights)?[..]).ok()?;
    let values = Projection::find(cut, node.inputs.get(1)?, VALUES)?;
    if one != Length::ONE || heads != Length::fixed(values.heads) {
        return None;
    }
    let weight = values.by_head(|[from, head, to]| [head, from, to]);
    rewritten(cut, place, |b| {
        let weights = b.squeeze(weights, &[2]);
        debug_assert_eq!(b.shape(&weights), [batch, heads, length]);
        let taken = b.matmul(&weights, &values.source);
        let taken = b.transpose(&taken, &[1, 0, 2]);
        let weight = b.constant(Tensor::from_f32(&[values.heads, values.hidden, values.width], &weight));
        let context = b.matmul(&taken, &weight);
        let mut context = b.transpose(&context, &[1, 0, 2]);
        if !values.bias.is_empty() {
            let bias = b.constant(Tensor::from_f32(&[values.heads, values.width], &values.bias));
            let total = b.reduce_sum(&weights, &[2], true);
            let bias = b.mul(&total, &bias);
            context = b.add(&context, &bias);
        }
        Some(b.unsqueeze(&context, &[2]))
    })
}

impl Projection {
    /// Goes back from an operand to the linear layer that it is made of, through what only rearranges or scales it;
    /// `order` is where the axes [batch, sequence, heads, width] must have gone.
    fn find(cut: &Cut, operand: &Value, order: [usize; 4]) -> Option<Self> {
        let number = |it: &Value| cut.facts.get(it)?.constant.as_ref()?.scalar();
        let (mut at, mut factor, mut axes) = (operand.clone(), 1.0, [0, 1, 2, 3]);
        let (mut split, mut bias) = (None, None);
        loop {
            let (_, node) = made(cut, &at)?;
            let first = node.inputs.first()?.clone();
            at = match node.op.as_str() {
                _ if !node.domain.is_empty() => return None,
                "Identity" => first,
                "Mul" | "Div" if node.inputs.len() == 2 => {
                    let second = &node.inputs[1];
                    match (number(&first), number(second)) {
                        (None, Some(it)) => {
                            factor *= if node.is("Div") { 1.0 / it } else { it };
                            first
                        }
                        (Some(it), None) if node.is("Mul") => {
                            factor *= it;
                            second.clone()
                        }
                        _ => return None,
                    }
                }
                "Transpose" if split.is_none() => {
                    let perm = <[i64; 4]>::try_from(node.ints("perm")?).ok()?;
                    axes = axes.map(|it| perm[it] as usize);
                    first
                }
                "Reshape" if split.is_none() => {
                    split = Some(heads(shape(cut, &first)?, shape(cut, &at)?).filter(|_| axes == order)?);
                    first
                }
                "Add" if split.is_some() && bias.is_none() && node.inputs.len() == 2 => {
                    let vector =
                        |it: &Value| cut.graph.initializers.get(it).filter(|it| it.dims().len() == 1);
                    let (vector, rest) = match (vector(&first), vector(&node.inputs[1])) {
                        (None, Some(vector)) => (vector, first),
                        (Some(vector), None) => (vector, node.inputs[1].clone()),
                        _ => return None,
                    };
                    bias = Some((vector.to_f32()?, factor));
                    rest
                }
                "MatMul" => {
                    let (heads, width) = split?;
                    let weight = cut.graph.initializers.get(node.inputs.get(1)?)?;
                    let &[hidden, wide] = weight.dims() else { return None };
                    let (bias, bias_factor) = bias.unwrap_or_default();
                    let fits = wide == heads * width && (bias.is_empty() || bias.len() == wide);
                    let scaled = |all: Vec<f32>, by: f64| -> Vec<f32> {
                        all.into_iter().map(|it| (f64::from(it) * by) as f32).collect()
                    };
                    return (fits && shape(cut, &first)?.len() == 3).then_some(Self {
                        source: first,
                        weight: scaled(weight.to_f32()?, factor),
                        bias: scaled(bias, bias_factor),
                        hidden,
                        heads,
                        width,
                    });
                }
                _ => return None,
            };
        }
    }

    /// The weight with its axes [hidden, heads, width] in another order.
    fn by_head(&self, order: impl Fn([usize; 3]) -> [usize; 3]) -> Vec<f32> {
        let from = [self.hidden, self.heads, self.width];
        let to = order(from);
        let mut turned = vec![0.0; self.weight.len()];
        for (at, &value) in self.weight.iter().enumerate() {
            let place = order([at / (from[1] * from[2]), at / from[2] % from[1], at % from[2]]);
            turned[(place[0] * to[1] + place[1]) * to[2] + place[2]] = value;
        }
        turned
    }
}

/// Heads and their width, if a Reshape from `from` to `to` splits the last of three axes in two.
fn heads(from: &Shape, to: &Shape) -> Option<(usize, usize)> {
    let (&[batch, length, wide], &[to_batch, to_length, heads, width]) = (&from[..], &to[..]) else {
        return None;
    };
    let (heads, width) = (heads.constant()?, width.constant()?);
    let splits = [batch, length] == [to_batch, to_length] && wide == Length::fixed(heads * width);
    splits.then_some((heads, width))
}

fn made<'a>(cut: &'a Cut, value: &Value) -> Option<(usize, &'a Node)> {
    cut.graph.nodes.iter().enumerate().find(|it| it.1.outputs.first() == Some(value))
}

fn shape<'a>(cut: &'a Cut, value: &Value) -> Option<&'a Shape> {
    Some(&cut.facts.get(value)?.shape)
}

/// The graph with the node at `place` replaced by what `write` appends; the result keeps its name.
fn rewritten(cut: &Cut, place: usize, write: impl FnOnce(&mut Builder) -> Option<Value>) -> Option<Cut> {
    let Cut { graph, facts } = cut.clone();
    let (end, old) = (graph.nodes.len(), graph.nodes[place].clone());
    let mut builder = Builder::new(graph, facts, Default::default());
    let element = builder.fact(&old.outputs[0]).element;
    builder.attribute_to(old.label(), element);
    let result = write(&mut builder)?;
    let (mut graph, facts) = builder.finish();
    let mut nodes = graph.nodes.split_off(end);
    let last = nodes.iter_mut().flat_map(|it| &mut it.outputs).find(|it| **it == result)?;
    *last = old.outputs[0].clone();
    graph.nodes.splice(place..=place, nodes);
    Some(Cut { graph, facts })
}
