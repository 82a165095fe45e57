//! This file is where the intervention graph is derived: hidden states become outputs, and can be edited.
//!
//! The graph edits every hidden state `h` into `h·keep + add`, so one session evaluates any edit of any layer. A
//! graph that starts from one hidden state alone is cut from it, for many edits of one layer at the cost of the
//! layers behind it.

mod measure;

use std::collections::{HashMap, HashSet};

use indexmap::IndexMap;

use super::cut::{Cut, EMBEDS, LOGITS};
use super::derive;
use super::facts::{Fact, Length};
use super::graph::{Axis, Element, Graph, Names, Node, Port, Tensor, Type, Value};
use super::lean;
use super::probe::ids_input;
use super::refusal::{Code, Refusal};

pub use measure::{Replaced, measure};

/// The output with the hidden state of a layer, as edited: [batch, sequence, hidden].
pub fn state(layer: usize) -> Value {
    format!("hidden_state_{layer}").into()
}

/// The input that a layer's hidden state is multiplied with, broadcast; 1 leaves it as it is.
pub fn keep(layer: usize) -> Value {
    format!("keep_{layer}").into()
}

/// The input that is added to a layer's hidden state then, broadcast; 0 leaves it as it is.
pub fn add(layer: usize) -> Value {
    format!("add_{layer}").into()
}

/// Derives the graph with inputs as the cut graph's, [`keep`] and [`add`] for each of `states`; its outputs are
/// [`LOGITS`] and [`state`] for each.
///
/// # Errors
/// A hidden state whose shape or type could not be learned.
pub fn intervention(cut: &Cut, states: &[Value]) -> Result<Cut, Refusal> {
    let mut cut = with_lengths_of_ids(cut)?;
    let Cut { graph, facts } = &mut cut;
    for (layer, raw) in states.iter().enumerate() {
        let unknown = || Refusal::new(Code::Path, format!("the shape of {raw} could not be learned"));
        let fact = facts.get(raw).cloned().ok_or_else(unknown)?;
        let width = fact.shape.last().and_then(|it| it.constant()).ok_or_else(unknown)?;
        let own = graph.input(EMBEDS).and_then(|it| it.dims()).unwrap_or_default();
        let axes = own.iter().take(2).cloned().chain([Axis::Fixed(width)]).collect();
        edit(graph, raw, layer, &fact)?;
        graph.outputs.push(Port { value: state(layer), ty: Type::Tensor(fact.element, Some(axes)) });
        for input in [keep(layer), add(layer)] {
            facts.insert(input, Fact::new(fact.element, vec![Length::ONE; 3]));
        }
        facts.insert(state(layer), fact);
    }
    graph.prune();
    Ok(cut)
}

/// Puts `h' = h·keep + add` behind the node that makes `raw`; whoever read `h` reads `h'`.
///
/// # Errors
/// One of the new names is taken.
pub(super) fn edit(graph: &mut Graph, raw: &Value, layer: usize, fact: &Fact) -> Result<(), Refusal> {
    let edited = state(layer);
    let mut names = graph.names();
    if let Some(name) = [state(layer), keep(layer), add(layer)].iter().find(|it| names.is_taken(it)) {
        return Err(Refusal::new(Code::Output, format!("a value of the model is called {name}")));
    }
    for input in [keep(layer), add(layer)] {
        graph.inputs.push(Port::tensor(input, fact.element, vec![Axis::Unknown; fact.rank()]));
    }
    graph.rename(&HashMap::from([(raw.clone(), edited.clone())]));
    let made = |it: &Node| it.outputs.contains(&edited);
    let Some(place) = graph.nodes.iter().position(made) else { return Ok(()) };
    for output in graph.nodes[place].outputs.iter_mut().filter(|it| **it == edited) {
        *output = raw.clone();
    }
    let kept = names.fresh(&format!("{edited}/kept"));
    let mut product = Node::new("Mul", &[raw.clone(), keep(layer)], std::slice::from_ref(&kept));
    let mut sum = Node::new("Add", &[kept.clone(), add(layer)], std::slice::from_ref(&edited));
    (product.name, sum.name) = (kept.to_string(), edited.to_string());
    graph.nodes.splice(place + 1..place + 1, [product, sum]);
    Ok(())
}

/// The graph with every hidden state as an output and none edited. Inputs are the model's own and [`EMBEDS`].
pub fn states(intervention: &Cut, layers: usize) -> Cut {
    let mut cut = unedited(intervention, layers);
    cut.graph.prune();
    cut
}

/// The graph from the hidden state of a layer, given as an input of its name, to the logits, with positions spared
/// that the classifier does not read. Inputs beside it are the model's own, and [`EMBEDS`] only if something behind
/// the hidden state still reads it.
pub fn from_state(intervention: &Cut, layers: usize, layer: usize) -> Cut {
    let Cut { mut graph, facts } = unedited(intervention, layers);
    let given = state(layer);
    let port = graph.output(&given).cloned();
    graph.outputs.retain(|it| &*it.value == LOGITS);
    let unread = graph.names().fresh(&format!("{given}/computed"));
    let makers = graph.nodes.iter_mut().flat_map(|it| &mut it.outputs);
    makers.filter(|it| **it == given).for_each(|it| *it = unread.clone());
    graph.inputs.extend(port);
    graph.prune();
    if !graph.nodes.iter().flat_map(Node::reads).any(|it| &*it == EMBEDS) {
        graph.inputs.retain(|it| &*it.value != EMBEDS);
    }
    let cut = Cut { graph, facts };
    lean::lean(&cut).map_or(cut, |it| it.0)
}

/// The graph with constants for all that edits: sessions drop what multiplies with 1 and adds 0.
fn unedited(intervention: &Cut, layers: usize) -> Cut {
    let Cut { mut graph, mut facts } = intervention.clone();
    for layer in 0..layers {
        for (input, neutral) in [(keep(layer), 1.0), (add(layer), 0.0)] {
            let element = graph.input(&input).and_then(Port::element).unwrap_or(Element::F32);
            graph.inputs.retain(|it| it.value != input);
            let constant = Tensor::from_f64(element, &[], &[neutral]);
            facts.insert(input.clone(), Fact::of(&constant));
            graph.initializers.insert(input, constant);
        }
    }
    Cut { graph, facts }
}

/// The same graph, its `Shape`s of values behind the embeddings made from the token ids instead: what lies
/// behind a hidden state shall not need what lies before it only for its lengths.
fn with_lengths_of_ids(cut: &Cut) -> Result<Cut, Refusal> {
    let Cut { mut graph, mut facts } = cut.clone();
    let ids = ids_input(&graph)?.value.clone();
    let behind = derive::activity(cut).values;
    let Some(&[batch, sequence]) = facts.get(EMBEDS).map(|it| &it.shape[..2]).and_then(|it| it.first_chunk())
    else {
        return Ok(Cut { graph, facts });
    };
    let mut writer = Lengths { names: graph.names(), nodes: Vec::new(), known: HashMap::new() };
    let mut done: HashSet<Value> = HashSet::new();
    for node in graph.nodes.iter().filter(|it| it.is("Shape") && behind.contains(&it.inputs[0])) {
        let Some(fact) = facts.get(&node.inputs[0]) else { continue };
        let bound = |name: &str, default: usize| match node.int(name) {
            None => default,
            Some(it) if it < 0 => (it + fact.rank() as i64).max(0) as usize,
            Some(it) => (it as usize).min(fact.rank()),
        };
        let (start, end) = (bound("start", 0), bound("end", fact.rank()));
        let Some(lengths) = fact.shape.get(start..end) else { continue };
        let told = |it: &Length| it.constant().is_some() || *it == batch || *it == sequence;
        if !lengths.iter().all(told) {
            continue;
        }
        let pieces: Vec<Value> = lengths
            .iter()
            .map(|length| match length.constant() {
                Some(constant) => writer.constant(&mut graph.initializers, constant as i64),
                None => writer.axis(&ids, usize::from(*length != batch)),
            })
            .collect();
        let mut concat = Node::new("Concat", &pieces, &node.outputs).with("axis", 0);
        concat.name = node.label().to_owned();
        writer.nodes.push(concat);
        done.insert(node.outputs[0].clone());
    }
    graph.nodes.retain(|it| !it.outputs.first().is_some_and(|it| done.contains(it)));
    graph.nodes.splice(0..0, writer.nodes);
    for (name, constant) in &graph.initializers {
        if facts.get(name).is_none() {
            facts.insert(name.clone(), Fact::of(constant));
        }
    }
    Ok(Cut { graph, facts })
}

struct Lengths {
    names: Names,
    nodes: Vec<Node>,
    known: HashMap<(Option<usize>, i64), Value>,
}

impl Lengths {
    fn constant(&mut self, initializers: &mut IndexMap<Value, Tensor>, length: i64) -> Value {
        let names = &mut self.names;
        let value =
            self.known.entry((None, length)).or_insert_with(|| names.fresh(&format!("length/{length}")));
        initializers.insert(value.clone(), Tensor::from_i64(&[1], &[length]));
        value.clone()
    }

    /// The length of an axis of the token ids, as a list of one.
    fn axis(&mut self, ids: &Value, axis: usize) -> Value {
        if let Some(known) = self.known.get(&(Some(axis), 0)) {
            return known.clone();
        }
        let value = self.names.fresh(&format!("length/axis/{axis}"));
        let mut node = Node::new("Shape", std::slice::from_ref(ids), std::slice::from_ref(&value))
            .with("start", axis as i64)
            .with("end", axis as i64 + 1);
        node.name = value.to_string();
        self.nodes.push(node);
        self.known.insert((Some(axis), 0), value.clone());
        value
    }
}
