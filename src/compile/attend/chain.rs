//! This file is where attention is refused that is not one chain: what one layer attends to is what the layer before
//! it made of the same positions. Elsewhere, as where a decoder reads an encoder, a row of one layer and a row of
//! another say nothing of the same position.

use std::collections::{HashMap, HashSet};

use crate::compile::Compiled;
use crate::compile::activity::Activity;
use crate::compile::anatomy::Anatomy;
use crate::compile::cut::Cut;
use crate::compile::derive;
use crate::compile::graph::{Node, Value};
use crate::compile::ops::{self, Kind};
use crate::compile::refusal::{Code, Refusal};

/// Refuses attention that is not a chain, or that token ids pass by.
///
/// # Errors
/// The first layer that breaks the chain.
pub fn check(compiled: &Compiled) -> Result<(), Refusal> {
    chained(&compiled.forward, &compiled.anatomy, compiled.embedding.partial)
}

fn chained(cut: &Cut, anatomy: &Anatomy, partial: bool) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::new(Code::Attention, reason));
    if partial {
        return refuse(
            "token ids reach the logits by a second way, as in a decoder that reads an encoder: attention does not \
             lead from layer to layer in one stream"
                .to_owned(),
        );
    }
    let (states, layers) = (&anatomy.hidden_states, &anatomy.attention);
    if states.len() == layers.len() + 1 {
        // Every path crosses a hidden state between any two.
        return Ok(());
    }
    let activity = derive::activity(cut);
    let streams = Streams::of(&activity);
    let mut before: Option<&Value> = None;
    for (layer, it) in layers.iter().enumerate() {
        let sources = streams.sources(&it.softmax);
        let &[source] = &sources[..] else {
            return refuse(format!(
                "the queries and keys of attention {layer} do not come from one value: attention does not lead from \
                 layer to layer in one stream"
            ));
        };
        if before.is_some_and(|before| !streams.reaches(before, source)) {
            return refuse(format!(
                "attention {layer} does not read what the attention before it made: attention does not lead from \
                 layer to layer in one stream"
            ));
        }
        before = Some(&it.softmax);
    }
    Ok(())
}

struct Streams<'a> {
    activity: &'a Activity,
    makers: HashMap<&'a Value, &'a Node>,
}

impl<'a> Streams<'a> {
    fn of(activity: &'a Activity) -> Self {
        let made = activity.path.iter().flat_map(|node| node.outputs.iter().map(move |it| (it, node)));
        Self { activity, makers: made.collect() }
    }

    fn active(&self, node: &'a Node) -> Vec<&'a Value> {
        node.inputs.iter().filter(|it| self.activity.values.contains(*it)).collect()
    }

    /// What products with weights make queries and keys of.
    fn sources(&self, softmax: &'a Value) -> Vec<&'a Value> {
        let (mut open, mut seen, mut sources) = (vec![softmax], HashSet::new(), Vec::new());
        while let Some(value) = open.pop() {
            if !seen.insert(value) {
                continue;
            }
            let Some(node) = self.makers.get(value) else {
                sources.push(value);
                continue;
            };
            match (ops::find(node).map(|it| it.kind), &self.active(node)[..]) {
                (Some(Kind::Product), &[operand]) => sources.push(self.unmoved(operand)),
                (_, operands) => open.extend(operands),
            }
        }
        sources.sort();
        sources.dedup();
        let of_another = |it: &&Value| sources.iter().any(|other| other != it && self.is_of(it, other));
        sources.iter().filter(|it| !of_another(it)).copied().collect()
    }

    /// Is `value` made of `source` and nothing else that the embeddings reach? A query that meets positions that the
    /// graph itself makes, as XLNet's do, is one more source beside that of keys, and no other stream.
    fn is_of(&self, mut value: &'a Value, source: &Value) -> bool {
        while let Some(node) = self.makers.get(value) {
            match self.active(node)[..] {
                [operand] if operand == source => return true,
                [operand] => value = operand,
                _ => return false,
            }
        }
        false
    }

    /// The value that `value` holds the elements of, in another arrangement.
    fn unmoved(&self, mut value: &'a Value) -> &'a Value {
        let moves = ["Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten"];
        while let Some(node) = self.makers.get(value).filter(|it| moves.iter().any(|op| it.is(op))) {
            value = &node.inputs[0];
        }
        value
    }

    fn reaches(&self, from: &Value, to: &Value) -> bool {
        let mut reached: HashSet<&Value> = HashSet::from([from]);
        for node in &self.activity.path {
            if node.inputs.iter().any(|it| reached.contains(it)) {
                reached.extend(&node.outputs);
            }
        }
        reached.contains(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::anatomy::{Attention, Pooling};
    use crate::compile::facts::Facts;
    use crate::compile::graph::Graph;

    /// Is the attention of a graph, whose probabilities are `p0` and `p1`, a chain? Hidden states are not told.
    fn is_chain(text: &str) -> Result<(), String> {
        let attention = |it: &str| Attention { probabilities: it.into(), softmax: it.into(), heads: 1 };
        let anatomy = Anatomy {
            attention: vec![attention("p0"), attention("p1")],
            pooling: Pooling::ByText,
            ..Anatomy::default()
        };
        let cut = Cut { graph: Graph::parse(text).unwrap(), facts: Facts::default() };
        chained(&cut, &anatomy, false).map_err(|it| it.reason)
    }

    const FIRST: &str = "q0 = MatMul(inputs_embeds, w); k0 = MatMul(inputs_embeds, w); s0 = MatMul(q0, k0); \
                         p0 = Softmax(s0); c0 = MatMul(p0, inputs_embeds); x = Add(inputs_embeds, c0)";
    const LAST: &str = "s1 = MatMul(q1, k1); p1 = Softmax(s1); c1 = MatMul(p1, x); y = Add(x, c1); \
                        logits = ReduceSum(y)";

    #[test]
    fn layers_that_read_each_other_are_a_chain() {
        let second = "q1 = MatMul(x, w); turned = Transpose(x); k1 = MatMul(turned, w)";
        assert_eq!(is_chain(&format!("{FIRST}; {second}; {LAST}")), Ok(()));
    }

    #[test]
    fn queries_that_meet_positions_of_the_graph_s_own_are_of_their_stream() {
        let second = "q = MatMul(x, w); q1 = Add(q, bias); k1 = MatMul(x, w); a = MatMul(q1, k1); \
                      b = MatMul(q1, positions); s1 = Add(a, b); p1 = Softmax(s1); c1 = MatMul(p1, x); \
                      logits = ReduceSum(c1)";
        assert_eq!(is_chain(&format!("{FIRST}; {second}")), Ok(()));
    }

    #[test]
    fn a_second_way_for_token_ids_is_no_chain() {
        let cut = Cut {
            graph: Graph::parse("logits = ReduceSum(inputs_embeds)").unwrap(),
            facts: Facts::default(),
        };
        let reason = chained(&cut, &Anatomy::default(), true).unwrap_err().reason;
        assert!(reason.starts_with("token ids reach the logits by a second way"), "{reason}");
    }

    #[test]
    fn keys_of_another_stream_and_towers_side_by_side_are_no_chain() {
        let cross = "q1 = MatMul(x, w); k1 = MatMul(inputs_embeds, w)";
        let tower = "q1 = MatMul(inputs_embeds, w); k1 = MatMul(inputs_embeds, w)";
        for (second, words) in [
            (cross, "the queries and keys of attention 1 do not come from one value"),
            (tower, "attention 1 does not read what the attention before it made"),
        ] {
            let reason = is_chain(&format!("{FIRST}; {second}; {LAST}")).unwrap_err();
            assert!(reason.starts_with(words), "{reason}");
        }
    }
}
