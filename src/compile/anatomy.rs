//! This file is where a model's parts are told from its structure: hidden states, attention probabilities,
//! feed-forward neurons, and the position that the classifier reads.
//!
//! No node's name is looked at. A hidden state is a value that every path from the embeddings to the logits
//! crosses; layers are counted by their attention.

use std::collections::{HashMap, HashSet};

use super::activity::Activity;
use super::cut::{Cut, EMBEDS, LOGITS};
use super::facts::{Fact, Length};
use super::graph::{Graph, Node, Value};
use super::narrow;
use super::ops::{self, Kind};

/// The parts of a model, by the names of values in its cut graph.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Anatomy {
    /// [batch, sequence, hidden], before the first layer, between layers, and after the last: one more than there
    /// are layers. Empty when layers cannot be told apart.
    pub hidden_states: Vec<Value>,
    /// Attention probabilities, in order of computation.
    pub attention: Vec<Attention>,
    /// What feed-forward down-projections read, in order of computation.
    pub neurons: Vec<Neurons>,
    /// Which positions of the last hidden state the classifier reads.
    pub pooling: Pooling,
}

/// Attention probabilities of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attention {
    /// [batch, heads, sequence, sequence], rows sum to one; behind the guard against rows that are masked out
    /// entirely, if there is one.
    pub probabilities: Value,
    /// The Softmax's own result: the same, before the guard.
    pub softmax: Value,
    /// Number of heads.
    pub heads: usize,
}

/// The hidden units of one feed-forward layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neurons {
    /// The down-projection's operand; its last axis counts the units.
    pub value: Value,
    /// Number of units.
    pub width: usize,
}

/// Which positions of the last hidden state the classifier reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// One, the same in every text, counted from the front, or from the end when negative.
    Position(i64),
    /// Several, or one that depends on the text: a gradient tells; see [`super::attend::reads`].
    ByText,
    /// It cannot be told: no hidden state lies behind all attention.
    #[default]
    Unknown,
}

/// Tells the parts of a cut graph, of which `activity` lies between embeddings and logits.
pub fn anatomy(cut: &Cut, activity: &Activity) -> Anatomy {
    let reader = Reader { cut, activity, makers: makers(&activity.path) };
    let attention = reader.attention();
    let hidden_states = reader.hidden_states(&attention);
    let neurons = reader.neurons();
    let pooling = hidden_states.last().map_or(Pooling::Unknown, |last| reader.pooling(last, &attention));
    Anatomy { hidden_states, attention, neurons, pooling }
}

struct Reader<'a> {
    cut: &'a Cut,
    activity: &'a Activity,
    makers: HashMap<&'a Value, usize>,
}

fn makers(path: &[Node]) -> HashMap<&Value, usize> {
    path.iter().enumerate().flat_map(|(index, node)| node.outputs.iter().map(move |it| (it, index))).collect()
}

impl Reader<'_> {
    fn fact(&self, value: &str) -> Option<&Fact> {
        self.cut.facts.get(value)
    }

    fn graph(&self) -> &Graph {
        &self.cut.graph
    }

    /// Batch and sequence length.
    fn sizes(&self) -> Option<(Length, Length)> {
        match self.fact(EMBEDS)?.shape[..] {
            [batch, sequence, _] => Some((batch, sequence)),
            _ => None,
        }
    }

    /// Softmaxes over a square of positions.
    fn attention(&self) -> Vec<Attention> {
        let Some((batch, sequence)) = self.sizes() else { return Vec::new() };
        let of = |node: &Node| {
            let operator = ops::find(node)?;
            let softmax = node.outputs.first().filter(|_| operator.kind == Kind::Softmax)?;
            let shape = &self.fact(softmax)?.shape;
            let heads = match shape[..] {
                [b, heads, rows, columns] if (b, rows, columns) == (batch, sequence, sequence) => {
                    heads.constant()?
                }
                [folded, rows, columns] if (rows, columns) == (sequence, sequence) => {
                    let heads = folded.0[0] / batch.0[0].max(1);
                    let whole = folded == batch.zip(Length::fixed(heads), |a, b| a * b);
                    (whole && !self.heads_lead(softmax, folded, heads)).then_some(heads)?
                }
                _ => return None,
            };
            let probabilities = ops::softmax_guard(self.graph(), softmax);
            Some(Attention { probabilities, softmax: softmax.clone(), heads })
        };
        self.activity.path.iter().filter_map(of).collect()
    }

    /// Are batch and heads, which share an axis of the length `folded`, in it with the heads first? Heads that were put
    /// one behind the other along the batch are, and such probabilities cannot be told row by row.
    fn heads_lead(&self, value: &Value, folded: Length, heads: usize) -> bool {
        let Some((batch, _)) = self.sizes() else { return false };
        let place = |it: &Value, length: Length| self.fact(it)?.shape.iter().position(|&it| it == length);
        let (mut open, mut seen) = (vec![value], HashSet::new());
        while let Some(value) = open.pop() {
            let Some(node) = self.makers.get(value).map(|&it| &self.activity.path[it]) else { continue };
            let source = node.inputs.first().and_then(|it| Some((self.fact(it)?, place(it, batch)?)));
            match source {
                Some(_) if node.is("Concat") => return true,
                Some((fact, place)) if node.is("Reshape") => {
                    return place > 0 && fact.shape[place - 1] == Length::fixed(heads);
                }
                _ => open.extend(
                    node.inputs.iter().filter(|it| place(it, folded).is_some() && seen.insert((*it).clone())),
                ),
            }
        }
        false
    }

    /// For each layer, the last bottleneck before its attention; and the last of all.
    fn hidden_states(&self, attention: &[Attention]) -> Vec<Value> {
        let bottlenecks = self.bottlenecks();
        let mut states: Vec<Value> = Vec::new();
        for layer in attention {
            let place = self.makers.get(&layer.softmax).copied().unwrap_or(0);
            let before = bottlenecks.iter().rfind(|it| it.1 < place);
            let Some((state, _)) = before else { return Vec::new() };
            // Two attentions without a bottleneck between them belong to one layer.
            if states.last() != Some(state) {
                states.push(state.clone());
            }
        }
        // Decoders score every position: the last hidden state is not the last bottleneck, but the last as wide.
        let width = |it: &Value| self.fact(it).and_then(|it| it.shape.last().copied());
        let as_wide = |it: &&(Value, usize)| states.last().is_some_and(|state| width(&it.0) == width(state));
        if let Some((last, _)) =
            bottlenecks.iter().rev().find(as_wide).filter(|it| states.last() != Some(&it.0))
        {
            states.push(last.clone());
        }
        states
    }

    /// Values of shape [batch, sequence, width] that every path crosses, and the places of their makers.
    ///
    /// A value is crossed by all paths exactly if the number of paths through it is the number of all paths;
    /// paths are counted modulo a prime, in which an accident is as unlikely as a hash collision.
    fn bottlenecks(&self) -> Vec<(Value, usize)> {
        let Some((batch, sequence)) = self.sizes() else { return Vec::new() };
        let active = &self.activity.values;
        let mut from_start: HashMap<&str, u128> = HashMap::from([(EMBEDS, 1)]);
        for node in &self.activity.path {
            let paths = node.inputs.iter().filter_map(|it| from_start.get(&**it)).sum::<u128>() % PRIME;
            let made = node.outputs.iter().filter(|it| active.contains(*it));
            from_start.extend(made.map(|it| (&**it, paths)));
        }
        let mut to_end: HashMap<&str, u128> = HashMap::from([(LOGITS, 1)]);
        for node in self.activity.path.iter().rev() {
            let paths = node.outputs.iter().filter_map(|it| to_end.get(&**it)).sum::<u128>() % PRIME;
            for input in node.inputs.iter().filter(|it| active.contains(*it)) {
                let so_far = to_end.entry(input).or_insert(0);
                *so_far = (*so_far + paths) % PRIME;
            }
        }
        let all = to_end.get(EMBEDS).copied().unwrap_or(0);
        let mut found = Vec::new();
        for (place, node) in self.activity.path.iter().enumerate() {
            for value in &node.outputs {
                let through = from_start.get(&**value).zip(to_end.get(&**value));
                let crossed = through.is_some_and(|(a, b)| a * b % PRIME == all);
                let shaped = |it: &Fact| it.rank() == 3 && it.shape[..2] == [batch, sequence];
                if crossed && self.fact(value).is_some_and(shaped) {
                    found.push((value.clone(), place));
                }
            }
        }
        found
    }

    /// Operands of products with constant matrices that come from other such products through an activation.
    fn neurons(&self) -> Vec<Neurons> {
        let mut seen = HashSet::new();
        let of = |node: &Node| {
            let value = self.projected(node)?;
            let fact = self.fact(value)?;
            let width = fact.shape.last()?.constant()?;
            let (batch, sequence) = self.sizes()?;
            let rows = fact.shape[..fact.rank() - 1].iter();
            let rows = rows.fold(Length::ONE, |product, &it| product.zip(it, |p, q| p * q));
            let everywhere = rows == batch.zip(sequence, |p, q| p * q);
            (everywhere && self.is_activated(value)).then(|| Neurons { value: value.clone(), width })
        };
        self.activity.path.iter().filter_map(of).filter(|it| seen.insert(it.value.clone())).collect()
    }

    /// The active operand of a product with a constant matrix.
    fn projected<'n>(&self, node: &'n Node) -> Option<&'n Value> {
        if !node.is("MatMul") && !node.is("Gemm") {
            return None;
        }
        let constant = self.graph().initializers.get(&node.inputs[1])?;
        (constant.dims().len() == 2 && self.activity.values.contains(&node.inputs[0]))
            .then(|| &node.inputs[0])
    }

    /// Does the value come from products with constant matrices through at least one activation, and through
    /// nothing but pointwise operators and reshapes?
    fn is_activated(&self, value: &Value) -> bool {
        let (mut open, mut seen) = (vec![value], HashSet::new());
        let mut activated = false;
        while let Some(value) = open.pop() {
            if !self.activity.values.contains(value) || !seen.insert(value) {
                continue;
            }
            let Some(node) = self.makers.get(value).map(|&it| &self.activity.path[it]) else { return false };
            if self.projected(node).is_some() {
                continue;
            }
            match ops::find(node).map(|it| it.kind) {
                Some(kind) if kind.is_pointwise() => activated = true,
                Some(Kind::Product | Kind::Scale | Kind::Quotient | Kind::Accumulation | Kind::Sum)
                    if !self.is_matrix_product(node) => {}
                Some(Kind::Routing) if !node.is("Transpose") && !node.is("Gather") => {}
                _ => return false,
            }
            open.extend(&node.inputs);
        }
        activated
    }

    fn is_matrix_product(&self, node: &Node) -> bool {
        ["MatMul", "Gemm", "Conv", "Einsum"].iter().any(|it| node.is(it)) || node.op.starts_with("Reduce")
    }

    /// A position is certain where one is picked of the last hidden state itself, and nothing else is read of it.
    fn pooling(&self, last: &Value, attention: &[Attention]) -> Pooling {
        let place = |it: &Value| self.makers.get(it).copied();
        if attention.iter().any(|it| place(&it.softmax) >= place(last)) {
            return Pooling::Unknown;
        }
        let mut copies: HashSet<&Value> = HashSet::from([last]);
        let mut read = None;
        for node in &self.activity.path {
            if !node.reads().iter().any(|it| copies.contains(it)) {
                continue;
            }
            if ["Identity", "Dropout", "Cast"].iter().any(|it| node.is(it)) {
                copies.extend(node.outputs.first());
                continue;
            }
            match narrow::picked(node, &self.cut.facts) {
                Some((_, it)) if copies.contains(&node.inputs[0]) && *read.get_or_insert(it) == it => {}
                _ => return Pooling::ByText,
            }
        }
        read.map_or(Pooling::ByText, Pooling::Position)
    }
}

/// 2⁶¹ − 1
const PRIME: u128 = (1 << 61) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::derive;
    use crate::compile::facts::Facts;
    use crate::compile::graph::{Element, Tensor};

    /// The heads of the attention in a graph whose `q` holds two heads and `p` their probabilities.
    fn heads(text: &str) -> Vec<usize> {
        let (batch, tokens) = (Length([2, 3]), Length([7, 11]));
        let (double, width) = (Length([4, 6]), Length::fixed(4));
        let mut facts = Facts::default();
        let mut known = |name: &str, shape: &[Length]| {
            facts.insert(name.into(), Fact::new(Element::F32, shape.to_vec()));
        };
        known(EMBEDS, &[batch, tokens, width]);
        known("q", &[double, tokens, width]);
        known("s", &[double, tokens, tokens]);
        known("p", &[double, tokens, tokens]);
        known(LOGITS, &[batch, width]);
        let cut = Cut { graph: Graph::parse(text).unwrap(), facts };
        anatomy(&cut, &derive::activity(&cut)).attention.iter().map(|it| it.heads).collect()
    }

    #[test]
    fn heads_in_front_of_the_batch_are_not_taken_for_heads_behind_it() {
        let rest = "s = MatMul(q, k); p = Softmax(s); logits = ReduceSum(p)";
        assert_eq!(heads(&format!("q = Reshape(inputs_embeds, [-1, 7, 4]); {rest}")), [2]);
        let none: [usize; 0] = [];
        assert_eq!(heads(&format!("q = Concat(inputs_embeds, inputs_embeds) {{axis: 0}}; {rest}")), none);
    }

    /// What is read of the last hidden state, `h`, behind one layer of attention.
    fn pooling(head: &str) -> Pooling {
        let (batch, tokens, width) = (Length([2, 3]), Length([7, 11]), Length::fixed(4));
        let mut facts = Facts::default();
        let mut known = |name: &str, shape: &[Length]| {
            facts.insert(name.into(), Fact::new(Element::F32, shape.to_vec()));
        };
        for name in [EMBEDS, "x", "c", "h", "copy"] {
            known(name, &[batch, tokens, width]);
        }
        known("p", &[batch, Length::fixed(1), tokens, tokens]);
        known(LOGITS, &[batch, width]);
        for (name, value) in [("first", 0), ("last", -1)] {
            facts.insert(name.into(), Fact::of(&Tensor::from_i64(&[], &[value])));
        }
        let text = format!(
            "x = Tanh(inputs_embeds); s = MatMul(x, x); p = Softmax(s); c = MatMul(p, x); h = Add(x, c); {head}"
        );
        let cut = Cut { graph: Graph::parse(&text).unwrap(), facts };
        anatomy(&cut, &derive::activity(&cut)).pooling
    }

    #[test]
    fn a_position_is_told_where_nothing_else_is_read() {
        assert_eq!(pooling("logits = Gather(h, first) {axis: 1}"), Pooling::Position(0));
        assert_eq!(pooling("logits = Gather(h, last) {axis: -2}"), Pooling::Position(-1));
        assert_eq!(
            pooling("copy = Dropout(h); logits = Gather(copy, first) {axis: 1}"),
            Pooling::Position(0)
        );
    }

    #[test]
    fn positions_that_differ_or_depend_on_the_text_are_left_to_a_gradient() {
        let both = "a = Gather(h, first) {axis: 1}; b = Gather(h, last) {axis: 1}; logits = Sub(a, b)";
        for head in [both, "logits = ReduceMean(h)", "logits = Gather(h, found) {axis: 1}"] {
            assert_eq!(pooling(head), Pooling::ByText, "{head}");
        }
    }

    #[test]
    fn what_is_read_of_the_layers_before_the_last_is_not_known() {
        let head = "a = ReduceMean(h); b = ReduceMean(x); logits = Add(a, b)";
        assert_eq!(pooling(head), Pooling::Unknown);
    }
}
