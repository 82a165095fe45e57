//! This file is where the attention graph is derived: attention probabilities become outputs, and so do the
//! gradients of the weighted logits with respect to them.

mod measure;

use super::activity::Activity;
use super::anatomy::Attention;
use super::builder::Builder;
use super::canonize;
use super::cut::{Cut, EMBEDS, LOGITS};
use super::derive::{self, COTANGENT};
use super::gradient;
use super::graph::{Axis, Graph, Port, Type, Value};
use super::narrow;
use super::refusal::{Code, Refusal};
use super::reverse::{Gap, reverse};

pub use measure::{Attended, measure};

/// The output with a layer's attention probabilities: [batch, heads, sequence, sequence], row-major, the first two
/// axes in one where the model has them so. The row is the position that attends.
pub fn probabilities(layer: usize) -> Value {
    format!("attention_{layer}").into()
}

/// The output with the gradient of the weighted logits with respect to [`probabilities`], shaped like them.
pub fn slope(layer: usize) -> Value {
    format!("attention_{layer}_grad").into()
}

/// Derives the graph with inputs as the cut graph's and [`COTANGENT`]; outputs [`LOGITS`], [`probabilities`] and
/// [`slope`] for each layer.
///
/// # Errors
/// There is no attention, or no gradient reaches it: every node that stands in the way.
pub fn attention(cut: &Cut, attention: &[Attention]) -> Result<Graph, Refusal> {
    if attention.is_empty() {
        return Err(absent(&cut.graph));
    }
    let logits: Value = LOGITS.into();
    let mut cut = cut.clone();
    for it in attention {
        let ty = probabilities_type(&cut, it);
        cut.graph.outputs.push(Port { value: it.probabilities.clone(), ty });
    }
    let mut cut = narrow::narrow(&cut).map_or(cut, |it| it.0);
    canonize::recognise(&mut cut.graph, &cut.facts);
    let Activity { values, path } = derive::path(&cut, std::slice::from_ref(&logits))?;
    let cotangent: Value = COTANGENT.into();
    let Cut { mut graph, mut facts } = cut;
    let ty = graph.output(LOGITS).map_or(Type::Other(Box::default()), |it| it.ty.clone());
    graph.inputs.push(Port { value: cotangent.clone(), ty });
    if let Some(fact) = facts.get(&logits).cloned() {
        facts.insert(cotangent.clone(), fact);
    }
    let own = std::mem::take(&mut graph.outputs);
    graph.outputs = own.iter().filter(|it| it.value == logits).cloned().collect();
    let mut builder = Builder::new(graph, facts, values);
    let cotangents = reverse(&mut builder, &path, &[(logits, cotangent)], &gradient::local);
    let cotangents = cotangents.map_err(Refusal::for_gaps)?;
    let mut outputs = Vec::new();
    for (layer, it) in attention.iter().enumerate() {
        let Some(reached) = cotangents.get(&it.probabilities) else {
            let reason = format!("no gradient reaches the attention probabilities of layer {layer}");
            return Err(Refusal::new(Code::Path, reason));
        };
        let ty = own.iter().find(|port| port.value == it.probabilities).map(|it| it.ty.clone());
        let ty = ty.unwrap_or(Type::Other(Box::default()));
        for (from, to) in [(&it.probabilities, probabilities(layer)), (reached, slope(layer))] {
            let value = builder.named("Identity", from, &to);
            if value != to {
                return Err(Refusal::new(Code::Output, format!("a value of the model is called {to}")));
            }
            outputs.push(Port { value, ty: ty.clone() });
        }
    }
    let (mut graph, _) = builder.finish();
    // Probabilities of all layers first.
    graph.outputs.extend(outputs.iter().step_by(2).cloned());
    graph.outputs.extend(outputs.iter().skip(1).step_by(2).cloned());
    graph.prune();
    Ok(graph)
}

/// The same graph without gradients: outputs [`LOGITS`] and [`probabilities`] of each layer.
pub fn forward(attention: &Graph) -> Graph {
    let mut graph = attention.clone();
    let layers = (0..).take_while(|&it| graph.output(&probabilities(it)).is_some()).count();
    let kept = |name: &Value| **name == *LOGITS || (0..layers).any(|it| *name == probabilities(it));
    graph.outputs.retain(|it| kept(&it.value));
    graph.inputs.retain(|it| &*it.value != COTANGENT);
    graph.prune();
    graph
}

fn probabilities_type(cut: &Cut, attention: &Attention) -> Type {
    let Some(fact) = cut.facts.get(&attention.probabilities) else { return Type::Other(Box::default()) };
    let own = cut.graph.input(EMBEDS).and_then(|it| it.dims()).unwrap_or_default();
    let axes = match (fact.rank(), own) {
        (4, [batch, sequence, ..]) => {
            vec![batch.clone(), Axis::Fixed(attention.heads), sequence.clone(), sequence.clone()]
        }
        (rank, _) => vec![Axis::Unknown; rank],
    };
    Type::Tensor(fact.element, Some(axes))
}

/// Why no attention was found: fused operators that hide it, or none at all.
fn absent(graph: &Graph) -> Refusal {
    let hides = |op: &str| op.contains("Attention") && op != "AttentionMask";
    let fused: Vec<Gap> = graph
        .nodes
        .iter()
        .filter(|it| hides(&it.op))
        .map(|it| Gap {
            node: it.label().into(),
            operator: it.operator(),
            reason: "it keeps its attention probabilities to itself and has a form that is not taken apart"
                .into(),
        })
        .collect();
    if !fused.is_empty() {
        let names: Vec<String> = fused.iter().map(|it| it.operator.clone()).collect();
        return Refusal { code: Code::Fused, reason: names.join(", "), gaps: fused };
    }
    let reason = "the graph has no attention: no Softmax over [batch, heads, sequence, sequence] lies between the \
                  embeddings and the logits";
    Refusal::new(Code::Path, reason)
}
