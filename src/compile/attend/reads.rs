//! This file is where a graph is derived that tells, text by text, which positions the classifier reads: those of the
//! last hidden state that have a gradient.

use crate::compile::activity::Activity;
use crate::compile::builder::Builder;
use crate::compile::canonize;
use crate::compile::cut::{Cut, LOGITS};
use crate::compile::derive::{self, COTANGENT};
use crate::compile::gradient;
use crate::compile::graph::{Axis, Graph, Port, Type, Value};
use crate::compile::refusal::{Code, Refusal};
use crate::compile::reverse::reverse;

/// The output with the gradient of the weighted logits with respect to the last hidden state: [batch, sequence, width].
pub const STATE_GRAD: &str = "last_state_grad";

/// Derives the graph with inputs as the cut graph's and [`COTANGENT`], outputs [`LOGITS`] and [`STATE_GRAD`]. `state` is
/// the last hidden state.
///
/// # Errors
/// Every node behind the state that has no rule, or whose form its rule does not cover.
pub fn reads(cut: &Cut, state: &Value) -> Result<Graph, Refusal> {
    let logits: Value = LOGITS.into();
    let state = &unmasked(cut, state);
    let mut cut = cut.clone();
    let own = cut.graph.outputs.clone();
    let element = cut.facts.get(state).map(|it| it.element);
    let axes = cut.facts.get(state).map(|it| vec![Axis::Unknown; it.rank()]);
    let ty = element.map_or(Type::Other(Box::default()), |it| Type::Tensor(it, axes));
    // As an output, it is not lost where operators are put together.
    cut.graph.outputs.push(Port { value: state.clone(), ty: ty.clone() });
    canonize::recognise(&mut cut.graph, &cut.facts);
    let Activity { values, path } = derive::path_from(&cut, state, std::slice::from_ref(&logits))?;
    let cotangent: Value = COTANGENT.into();
    let Cut { mut graph, mut facts } = cut;
    graph.outputs = own;
    let weighs = graph.output(LOGITS).map_or(Type::Other(Box::default()), |it| it.ty.clone());
    graph.inputs.push(Port { value: cotangent.clone(), ty: weighs });
    if let Some(fact) = facts.get(&logits).cloned() {
        facts.insert(cotangent.clone(), fact);
    }
    let mut builder = Builder::new(graph, facts, values);
    let cotangents = reverse(&mut builder, &path, &[(logits, cotangent)], &gradient::local);
    let cotangents = cotangents.map_err(Refusal::for_gaps)?;
    let Some(total) = cotangents.get(state) else {
        return Err(Refusal::new(Code::Path, "no gradient reaches the last hidden state"));
    };
    let value = builder.named("Identity", total, STATE_GRAD);
    let (mut graph, _) = builder.finish();
    graph.outputs.push(Port { value, ty });
    graph.prune();
    Ok(graph)
}

/// What masks are laid on to make `state`: the one operand of its shape that the embeddings reach, beside which stands
/// something that only the text tells. A position that is masked has a gradient behind the mask, and is not read.
fn unmasked(cut: &Cut, state: &Value) -> Value {
    let activity = derive::activity(cut);
    let shape = |it: &Value| cut.facts.get(it).map(|it| &it.shape);
    let is_told = |it: &Value| {
        let constant = cut.graph.initializers.contains_key(it)
            || cut.facts.get(it).is_some_and(|it| it.constant.is_some());
        !it.is_absent() && !constant && !activity.values.contains(it)
    };
    let mut state = state;
    while let Some(node) = activity.path.iter().find(|it| it.outputs.first() == Some(state)) {
        let by_element = ["Mul", "Div", "Add", "Sub", "Where"].iter().any(|it| node.is(it));
        let active: Vec<&Value> = node.inputs.iter().filter(|it| activity.values.contains(*it)).collect();
        match active[..] {
            [below] if by_element && shape(below) == shape(state) && node.inputs.iter().any(is_told) => {
                state = below;
            }
            _ => break,
        }
    }
    state.clone()
}
