//! This file is where a graph is cut at the word embedding, so that embeddings can be given instead of looked up.

use std::collections::HashMap;

use super::facts::{Fact, Facts, Length};
use super::graph::{Axis, Graph, Node, Port, Tensor, Type, Value};
use super::locate::{Embedding, Layout, Logits};

/// The input that replaces the lookup: float32 [batch, sequence, hidden].
pub const EMBEDS: &str = "inputs_embeds";
/// The output with the scores before any final Softmax or Sigmoid.
pub const LOGITS: &str = "logits";

/// A graph that computes logits from embeddings.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Its inputs are the model's own and [`EMBEDS`]; its output is [`LOGITS`].
    pub graph: Graph,
    /// What is known of its values.
    pub facts: Facts,
}

/// Replaces the lookups by an input, keeping their results' names, so that subgraphs that read them keep working.
pub fn cut(graph: &Graph, facts: &Facts, embedding: &Embedding, logits: &Logits, ids: &Value) -> Cut {
    let mut graph = graph.clone();
    let mut facts = facts.clone();
    let embeds: Value = EMBEDS.into();
    let mut shape = facts.get(ids).map(|it| it.shape.clone()).unwrap_or_default();
    shape.push(Length::fixed(embedding.hidden));
    let element = facts.get(&embedding.lookups[0].value).map_or(super::graph::Element::F32, |it| it.element);
    facts.insert(embeds.clone(), Fact::new(element, shape));

    let mut axes =
        graph.input(ids).and_then(|it| it.dims()).unwrap_or(&[Axis::Unknown, Axis::Unknown]).to_vec();
    axes.push(Axis::Fixed(embedding.hidden));
    let mut names = graph.names();
    for lookup in &embedding.lookups {
        let Some(node) = graph.nodes.iter_mut().find(|it| it.outputs.first() == Some(&lookup.value)) else {
            continue;
        };
        let name = std::mem::take(&mut node.name);
        let (input, output) = (std::slice::from_ref(&embeds), std::slice::from_ref(&lookup.value));
        *node = match lookup.layout {
            Layout::Straight => Node::new("Identity", input, output),
            Layout::Transposed => Node::new("Transpose", input, output).with("perm", vec![1, 0, 2]),
            Layout::Flat => {
                let target = names.fresh("inputs_embeds/flat");
                let shape = Tensor::from_i64(&[2], &[-1, embedding.hidden as i64]);
                facts.insert(target.clone(), Fact::of(&shape));
                graph.initializers.insert(target.clone(), shape);
                Node::new("Reshape", &[embeds.clone(), target], output)
            }
        };
        node.name = name;
    }
    graph.inputs.push(Port { value: embeds, ty: Type::Tensor(element, Some(axes)) });

    let port = Port { value: LOGITS.into(), ty: port_type(&graph, &facts, logits) };
    if &*logits.value != LOGITS {
        if graph.names().is_taken(LOGITS) {
            let other = graph.names().fresh("logits/activation");
            rename(&mut graph, &mut facts, &LOGITS.into(), &other);
        }
        if graph.input(&logits.value).is_none() {
            rename(&mut graph, &mut facts, &logits.value, &LOGITS.into());
        }
    }
    graph.outputs = vec![port];
    graph.prune();
    Cut { graph, facts }
}

fn port_type(graph: &Graph, facts: &Facts, logits: &Logits) -> Type {
    let declared = logits.output.dims().unwrap_or_default();
    let Some(fact) = facts.get(&logits.value) else { return logits.output.ty.clone() };
    let ids = graph.inputs.first().and_then(|it| it.dims());
    let batch = ids.and_then(|it| it.first()).cloned().unwrap_or(Axis::Unknown);
    let axis = |(index, length): (usize, &Length)| match (length.constant(), declared.get(index)) {
        (_, Some(axis @ Axis::Named(_))) if length.constant().is_none() => axis.clone(),
        (Some(length), _) => Axis::Fixed(length),
        _ if index == 0 => batch.clone(),
        _ => Axis::Unknown,
    };
    Type::Tensor(fact.element, Some(fact.shape.iter().enumerate().map(axis).collect()))
}

/// Gives a value another name everywhere, in subgraphs too.
fn rename(graph: &mut Graph, facts: &mut Facts, from: &Value, to: &Value) {
    graph.rename(&HashMap::from([(from.clone(), to.clone())]));
    if let Some(fact) = facts.get(from).cloned() {
        facts.insert(to.clone(), fact);
    }
}
