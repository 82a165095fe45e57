//! This file is where relevance is read off inside the model: at tokens, hidden states, heads and neurons.

use std::collections::{HashMap, HashSet};

use super::ledger::by_row;
use crate::compile::anatomy::{Anatomy, Attention, Neurons};
use crate::compile::builder::Builder;
use crate::compile::cut::EMBEDS;
use crate::compile::facts::Length;
use crate::compile::graph::{Graph, Value};
use crate::compile::ops::{self, Kind};
use crate::compile::refusal::{Code, Refusal};

/// What the walk left, and where to look.
pub struct Components<'a> {
    /// The model's parts.
    pub anatomy: &'a Anatomy,
    /// Cotangents of all active values.
    pub cotangents: &'a HashMap<Value, Value>,
    /// Is the one position that a narrowed value has the last one?
    pub last_in_front: bool,
}

/// Relevance at the parts of the model; `None` where a part was not found in every layer.
pub struct Found {
    /// [batch, sequence]
    pub tokens: Value,
    /// [batch, hidden states, sequence]
    pub layers: Option<Value>,
    /// [batch, layers, heads]
    pub heads: Option<Value>,
    /// [batch, layers, neurons]
    pub neurons: Option<Value>,
}

impl Components<'_> {
    /// Appends the nodes that read it off.
    pub fn read(&self, b: &mut Builder) -> Result<Found, Refusal> {
        let embeds: Value = EMBEDS.into();
        let tokens = self.relevance(b, &embeds);
        let none = || Refusal::new(Code::Path, "no relevance reaches the embeddings");
        let tokens = tokens.ok_or_else(none)?;
        let tokens = b.reduce_sum(&tokens, &[2], false);
        let layers = self.stacked(b, &self.anatomy.hidden_states, |b, it| self.layer(b, it, &tokens));
        let heads = self.stacked(b, &self.anatomy.attention, |b, it| self.heads(b, it));
        let neurons = self.stacked(b, &self.anatomy.neurons, |b, it| self.neurons(b, it));
        Ok(Found { tokens, layers, heads, neurons })
    }

    /// A value times its cotangent.
    fn relevance(&self, b: &mut Builder, value: &Value) -> Option<Value> {
        let cotangent = self.cotangents.get(value)?;
        Some(b.mul(value, cotangent))
    }

    /// [batch, parts, n] from one [batch, n] for each part; `None` unless all are there and alike.
    fn stacked<T>(
        &self,
        b: &mut Builder,
        parts: &[T],
        read: impl Fn(&mut Builder, &T) -> Option<Value>,
    ) -> Option<Value> {
        let found: Vec<Value> = parts.iter().map(|it| read(b, it)).collect::<Option<_>>()?;
        let first = b.shape(found.first()?);
        if found.iter().any(|it| b.shape(it) != first) {
            return None;
        }
        let rows: Vec<Value> = found.iter().map(|it| b.unsqueeze(it, &[1])).collect();
        Some(b.concat(&rows.iter().collect::<Vec<_>>(), 1))
    }

    /// [batch, sequence]; zero at positions that are not computed.
    fn layer(&self, b: &mut Builder, state: &Value, tokens: &Value) -> Option<Value> {
        let relevance = self.relevance(b, state)?;
        let rows = b.reduce_sum(&relevance, &[2], false);
        Some(b.pad_to(&rows, tokens, &[(1, self.last_in_front)]))
    }

    /// [batch, heads]: at what the probabilities make of the values.
    fn heads(&self, b: &mut Builder, attention: &Attention) -> Option<Value> {
        let embeds: Value = EMBEDS.into();
        let context = context(b.graph(), &attention.probabilities)?;
        let (batch, shape) = (b.shape(&embeds)[0], b.shape(&context));
        let heads = Length::fixed(attention.heads);
        let relevance = self.relevance(b, &context)?;
        match shape[..] {
            [first, second, _, _] if (first, second) == (batch, heads) => {
                Some(b.reduce_sum(&relevance, &[2, 3], false))
            }
            [first, _, _] if first == batch.zip(heads, |p, q| p * q) => {
                let folded = b.reduce_sum(&relevance, &[1, 2], false);
                let target = b.ints(&[-1, attention.heads as i64]);
                Some(b.reshape(&folded, &target, vec![batch, heads]))
            }
            _ => None,
        }
    }

    /// [batch, neurons], summed over positions.
    fn neurons(&self, b: &mut Builder, neurons: &Neurons) -> Option<Value> {
        let (cotangent, factor) = b.product_like(self.cotangents.get(&neurons.value)?);
        let relevance = b.mul(&neurons.value, &cotangent);
        let summed = by_row(b, &relevance, 1).ok()?;
        Some(if factor == 1.0 { summed } else { b.scale(&summed, factor) })
    }
}

/// The product of the probabilities, moved about at the most, and the values.
fn context(graph: &Graph, probabilities: &Value) -> Option<Value> {
    let mut moved: HashSet<&Value> = HashSet::from([probabilities]);
    for node in &graph.nodes {
        if node.inputs.iter().any(|it| moved.contains(it)) {
            match ops::find(node).map(|it| it.kind) {
                Some(Kind::Product) => return node.outputs.first().cloned(),
                Some(Kind::Routing) => moved.extend(&node.outputs),
                _ => {}
            }
        }
    }
    None
}
