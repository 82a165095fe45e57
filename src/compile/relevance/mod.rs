//! This file is where the relevance graph is derived: forward from embeddings, then backward from a cotangent with
//! the gradient bent by a composite, and the parts of the model read off on the way.

pub mod audit;
mod components;
mod ledger;
mod linear;
mod local;

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};

use super::activity::Activity;
use super::anatomy::Anatomy;
use super::builder::Builder;
use super::canonize;
use super::composite::{Bend, Composite, Role};
use super::cut::{Cut, EMBEDS, LOGITS};
use super::derive::{self, COTANGENT, path_through};
use super::fuse;
use super::graph::{Axis, Element, Graph, Node, Port, Type, Value};
use super::narrow;
use super::ops::{self, Kind, Misfit};
use super::refusal::{Code, Refusal};
use super::reverse::{Gap, reverse};
use components::Components;
use ledger::Ledger;
use local::Rules;

/// The output with each token's relevance: [batch, sequence].
pub const RELEVANCE: &str = "relevance";
/// The output with what was absorbed: [batch, segments], before the first hidden state, between any two, and after
/// the last.
pub const ABSORBED: &str = "absorbed";
/// The output with each token's relevance at every hidden state: [batch, hidden states, sequence].
pub const LAYERS: &str = "layer_relevance";
/// The output with the relevance of attention heads: [batch, layers, heads].
pub const HEADS: &str = "head_relevance";
/// The output with the relevance of feed-forward neurons: [batch, layers, neurons].
pub const NEURONS: &str = "neuron_relevance";

/// A relevance graph.
#[derive(Debug, Clone)]
pub struct Relevance {
    /// Its inputs are the cut graph's and [`COTANGENT`]; its outputs [`LOGITS`], [`RELEVANCE`], [`ABSORBED`] and those
    /// of [`LAYERS`], [`HEADS`] and [`NEURONS`] that the model's structure allows.
    pub graph: Graph,
    /// Operators whose rule the composite's paper does not have, and what stands in.
    pub substitutions: Vec<String>,
}

/// Derives the graph. `range` bounds the components of the word embedding.
///
/// # Errors
/// Every node that has no rule, whose form its rule does not cover, or whose role the composite does not decide.
pub fn derive(
    cut: &Cut,
    anatomy: &Anatomy,
    composite: Composite,
    range: (f64, f64),
) -> Result<Relevance, Refusal> {
    derive_with(cut, anatomy, composite, range, false)
}

/// As [`derive`]; with `kernels`, it may hold operators that only this process has, which take less time.
///
/// # Errors
/// As [`derive`].
pub fn derive_with(
    cut: &Cut,
    anatomy: &Anatomy,
    composite: Composite,
    range: (f64, f64),
    kernels: bool,
) -> Result<Relevance, Refusal> {
    let narrowed = narrow::narrow(cut).filter(|it| matches!(it.1.position, 0 | -1));
    let last_in_front = narrowed.as_ref().is_some_and(|it| it.1.position == -1);
    let mut cut = narrowed.map_or_else(|| cut.clone(), |it| it.0);
    canonize::recognise(&mut cut.graph, &cut.facts);
    canonize::recognise_layers(&mut cut.graph, &cut.facts);

    let constant =
        |kind: Kind| kind == Kind::Softmax && composite.bend(Role::Softmax) == Some(Bend::Constant);
    let flows = |node: &Node| ops::find(node).is_none_or(|it| it.flows() && !constant(it.kind));
    let logits: Value = LOGITS.into();
    let ends = std::slice::from_ref(&logits);
    let activity = path_through(&cut, ends, &flows).map_err(|refusal| match derive::path(&cut, ends) {
        Ok(_) if refusal.code == Code::Path => held(composite),
        _ => refusal,
    })?;
    let states: Vec<Value> = anatomy.hidden_states.clone();
    let rules = Rules {
        composite,
        range,
        entries: entries(&activity),
        segments: segments(&activity, &states),
        ledger: RefCell::new(Ledger::default()),
        borrowed: RefCell::new(BTreeSet::new()),
        entered: RefCell::new(false),
    };

    let Activity { values, path } = activity;
    let cotangent: Value = COTANGENT.into();
    let Cut { mut graph, mut facts } = cut;
    let ty = graph.output(LOGITS).map_or(Type::Other(Box::default()), |it| it.ty.clone());
    graph.inputs.push(Port { value: cotangent.clone(), ty });
    if let Some(fact) = facts.get(&logits).cloned() {
        facts.insert(cotangent.clone(), fact);
    }
    let mut b = Builder::new(graph, facts, values).with_kernels(kernels);
    let local = |b: &mut Builder, node: &Node, dys: &[Option<Value>]| rules.local(b, node, dys);
    let cotangents = reverse(&mut b, &path, &[(logits, cotangent)], &local).map_err(Refusal::for_gaps)?;

    b.attribute_to("relevance", Element::F32);
    let found = Components { anatomy, cotangents: &cotangents, last_in_front };
    let found = found.read(&mut b)?;
    let Rules { ledger, borrowed, entered, .. } = rules;
    let absorbed = ledger.into_inner().close(&mut b, states.len() + 1).map_err(refused)?;
    let mut outputs = vec![(RELEVANCE, found.tokens), (ABSORBED, absorbed)];
    outputs.extend(found.layers.map(|it| (LAYERS, it)));
    outputs.extend(found.heads.map(|it| (HEADS, it)));
    outputs.extend(found.neurons.map(|it| (NEURONS, it)));
    let outputs: Vec<Value> = outputs.iter().map(|(name, it)| b.named("Identity", it, name)).collect();
    let (mut graph, facts) = b.finish();
    let axes = graph.input(EMBEDS).and_then(Port::dims).unwrap_or_default().to_vec();
    for value in outputs {
        let Some(fact) = facts.get(&value) else { continue };
        let sequence = facts.get(EMBEDS).map(|it| it.shape[1]);
        let axis = |(place, length): (usize, &super::facts::Length)| match length.constant() {
            _ if place == 0 => axes.first().cloned().unwrap_or(Axis::Unknown),
            Some(length) => Axis::Fixed(length),
            None if Some(*length) == sequence => axes.get(1).cloned().unwrap_or(Axis::Unknown),
            None => Axis::Unknown,
        };
        let dims = fact.shape.iter().enumerate().map(axis).collect();
        graph.outputs.push(Port { value, ty: Type::Tensor(fact.element, Some(dims)) });
    }
    graph.prune();
    if kernels {
        fuse::fuse(&mut graph, &facts);
    }
    let substitutions = substitutions(composite, borrowed.into_inner(), entered.into_inner());
    Ok(Relevance { graph, substitutions })
}

/// Where the gradient has a path, and the composite none.
fn held(composite: Composite) -> Refusal {
    let reason = format!(
        "every path from the embeddings to the logits goes through a Softmax, which {} holds constant",
        composite.slug()
    );
    Refusal::new(Code::Composite, reason)
}

fn refused(misfit: Misfit) -> Refusal {
    let gap = Gap { node: "the books".into(), operator: "relevance".into(), reason: misfit.0 };
    Refusal { gaps: vec![gap], ..Refusal::new(Code::Rule, "what was absorbed cannot be told row by row") }
}

/// The embeddings, and what is nothing but elements of them.
fn entries(activity: &Activity) -> HashSet<Value> {
    let mut entries: HashSet<Value> = HashSet::from([EMBEDS.into()]);
    for node in &activity.path {
        let moves = ops::find(node).is_some_and(|it| it.kind == Kind::Routing);
        if moves && node.inputs.iter().any(|it| entries.contains(it)) {
            entries.extend(node.outputs.iter().cloned());
        }
    }
    entries
}

/// How many hidden states lie before each node, by its first result.
///
/// All paths cross all hidden states, so that what one operand says of them every active operand says.
fn segments(activity: &Activity, states: &[Value]) -> HashMap<Value, usize> {
    let mut levels: HashMap<Value, usize> = HashMap::from([(EMBEDS.into(), 0)]);
    let mut segments = HashMap::new();
    for node in &activity.path {
        let level = node.inputs.iter().filter_map(|it| levels.get(it)).max().copied().unwrap_or(0);
        for value in &node.outputs {
            let state = states.iter().position(|it| it == value);
            levels.insert(value.clone(), state.map_or(level, |it| it + 1));
        }
        if let Some(first) = node.outputs.first() {
            segments.insert(first.clone(), level);
        }
    }
    segments
}

fn substitutions(composite: Composite, borrowed: BTreeSet<(Role, String)>, entered: bool) -> Vec<String> {
    let mut by_role: Vec<(Role, Vec<String>)> = Vec::new();
    for (role, operator) in borrowed {
        match by_role.last_mut().filter(|it| it.0 == role) {
            Some((_, operators)) => operators.push(operator),
            None => by_role.push((role, vec![operator])),
        }
    }
    let say = |(role, operators): &(Role, Vec<String>)| {
        format!("{} ({}): {}, as attn-lrp", role.name(), operators.join(", "), role.borrowed())
    };
    let mut said: Vec<String> = by_role.iter().map(say).collect();
    if composite.wants_entry() && !entered {
        said.push("no weights read the embeddings themselves: z+ from the first weights on".to_owned());
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::facts::Facts;

    #[test]
    fn a_composite_that_holds_the_only_path_constant_says_so() {
        let graph = Graph::parse("p = Softmax(inputs_embeds); y = Mul(p, w); logits = ReduceSum(y)").unwrap();
        let cut = Cut { graph, facts: Facts::default() };
        let refusal = derive(&cut, &Anatomy::default(), Composite::CpLrp, (-1.0, 1.0)).unwrap_err();
        assert_eq!(refusal.code, Code::Composite);
        assert!(refusal.reason.ends_with("goes through a Softmax, which cp-lrp holds constant"), "{refusal}");
    }
}
