//! This file is where the gradient graph is derived: forward from embeddings, then backward from a cotangent.

use super::activity::{self, Activity};
use super::builder::Builder;
use super::canonize;
use super::cut::{Cut, EMBEDS, LOGITS};
use super::facts::Facts;
use super::fuse;
use super::gradient;
use super::graph::{Graph, Node, Port, Type, Value};
use super::lean;
use super::ops;
use super::refusal::{Code, Refusal};
use super::reverse::{Gap, reverse};

/// The input that weighs the logits: float32, shaped like them.
pub const COTANGENT: &str = "cotangent";
/// The output with the gradient of the weighted logits, shaped like the embeddings.
pub const EMBEDS_GRAD: &str = "inputs_embeds_grad";

/// Derives the graph with inputs as the cut graph's and [`COTANGENT`], outputs [`LOGITS`] and [`EMBEDS_GRAD`].
///
/// Refused with every node that has no rule, or whose form its rule does not cover.
pub fn gradient(cut: &Cut) -> Result<(Graph, Facts), Refusal> {
    gradient_with(cut, false)
}

/// As [`gradient`]; with `kernels`, it may hold operators that only this process has, which take less time.
///
/// # Errors
/// As [`gradient`].
pub fn gradient_with(cut: &Cut, kernels: bool) -> Result<(Graph, Facts), Refusal> {
    let (embeds, logits): (Value, Value) = (EMBEDS.into(), LOGITS.into());
    let mut cut = lean::lean(cut).map_or_else(|| cut.clone(), |it| it.0);
    canonize::recognise(&mut cut.graph, &cut.facts);
    let Activity { values, path } = path(&cut, std::slice::from_ref(&logits))?;
    let cotangent: Value = COTANGENT.into();
    let Cut { mut graph, mut facts } = cut;
    let ty = graph.output(LOGITS).map_or(Type::Other(Box::default()), |it| it.ty.clone());
    graph.inputs.push(Port { value: cotangent.clone(), ty });
    if let Some(fact) = facts.get(&logits).cloned() {
        facts.insert(cotangent.clone(), fact);
    }
    let mut builder = Builder::new(graph, facts, values).with_kernels(kernels);
    let cotangents = reverse(&mut builder, &path, &[(logits, cotangent)], &gradient::local);
    let cotangents = cotangents.map_err(Refusal::for_gaps)?;
    let Some(total) = cotangents.get(&embeds).cloned() else {
        return Err(Refusal::new(Code::Path, "no gradient reaches the embeddings"));
    };
    let grad = builder.named("Identity", &total, EMBEDS_GRAD);
    let (mut graph, facts) = builder.finish();
    let ty = graph.input(EMBEDS).map_or(Type::Other(Box::default()), |it| it.ty.clone());
    graph.outputs.push(Port { value: grad, ty });
    graph.prune();
    if kernels {
        fuse::fuse(&mut graph, &facts);
    }
    Ok((graph, facts))
}

/// What lies between the embeddings and the logits, with or without rules.
pub fn activity(cut: &Cut) -> Activity {
    between(cut, &[LOGITS.into()])
}

fn between(cut: &Cut, ends: &[Value]) -> Activity {
    activity::between(&cut.graph, &cut.facts, &EMBEDS.into(), ends, &flows)
}

fn flows(node: &Node) -> bool {
    ops::find(node).is_none_or(ops::Operator::flows)
}

/// What lies between the embeddings and `ends`; refused when nothing does, or when nodes have no rule at all.
pub fn path(cut: &Cut, ends: &[Value]) -> Result<Activity, Refusal> {
    path_through(cut, ends, &flows)
}

/// As [`path`], through those nodes alone that `flows` holds for.
///
/// # Errors
/// As [`path`].
pub fn path_through(cut: &Cut, ends: &[Value], flows: &dyn Fn(&Node) -> bool) -> Result<Activity, Refusal> {
    let activity = activity::between(&cut.graph, &cut.facts, &EMBEDS.into(), ends, flows);
    if !activity.values.contains(EMBEDS) {
        let reason = "the output does not depend on the embeddings through floating-point operators";
        return Err(Refusal::new(Code::Path, reason));
    }
    ruled(activity)
}

/// What lies between `start`, which all ends depend on, and `ends`; refused when nodes have no rule at all.
///
/// # Errors
/// Every node without a rule.
pub fn path_from(cut: &Cut, start: &Value, ends: &[Value]) -> Result<Activity, Refusal> {
    ruled(activity::between(&cut.graph, &cut.facts, start, ends, &flows))
}

fn ruled(activity: Activity) -> Result<Activity, Refusal> {
    let missing = activity.path.iter().filter(|it| ops::find(it).is_none());
    let gaps: Vec<Gap> = missing
        .map(|it| Gap { node: it.label().into(), operator: it.operator(), reason: gradient::NO_RULE.into() })
        .collect();
    if gaps.is_empty() { Ok(activity) } else { Err(Refusal::for_gaps(gaps)) }
}
