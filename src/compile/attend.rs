//! This file is where the attention graph is derived: attention probabilities become outputs, and, where rules allow
//! it, so do the gradients of the weighted logits with respect to them.

mod chain;
mod measure;
mod reads;

use super::Compiled;
use super::activity::Activity;
use super::anatomy::Attention;
use super::builder::Builder;
use super::canonize;
use super::cut::{Cut, EMBEDS, LOGITS};
use super::derive::{self, COTANGENT};
use super::gradient;
use super::graph::{Axis, Graph, Names, Node, Port, Tensor, Type, Value};
use super::measure::Known;
use super::narrow;
use super::probe::Evaluate;
use super::refusal::{Code, Refusal};
use super::reverse::{Gap, reverse};

pub use measure::{Attended, measure};
pub use reads::{STATE_GRAD, reads};

/// The output with a layer's attention probabilities: [batch, heads, sequence, sequence], row-major, the first two
/// axes in one where the model has them so. The row is the position that attends.
pub fn probabilities(layer: usize) -> Value {
    format!("attention_{layer}").into()
}

/// The output with the gradient of the weighted logits with respect to [`probabilities`], shaped like them.
pub fn slope(layer: usize) -> Value {
    format!("attention_{layer}_grad").into()
}

/// An attention graph that was measured and admitted.
#[derive(Debug, Clone)]
pub struct AttentionDerived {
    /// The graph; see [`attention`], or [`reading`] where there are no gradients, for its inputs and outputs.
    pub graph: Graph,
    /// What the measurement said.
    pub measures: Attended,
    /// Why there are no gradients, unless there are.
    pub gradient: Result<(), Refusal>,
}

impl AttentionDerived {
    /// Derives and measures the graph of `compiled`. Probabilities alone need no rule, and are read where no gradient can
    /// be had.
    ///
    /// # Errors
    /// There is no attention, or not that of one stream, or what was measured of the probabilities.
    pub fn of(compiled: &Compiled, known: &Known, evaluate: Evaluate<'_>) -> Result<Self, Refusal> {
        let layers = &compiled.anatomy.attention;
        chain::check(compiled)?;
        let whole = attention(&compiled.forward, layers);
        whole.and_then(|graph| Self::measured(compiled, graph, Ok(()), known, evaluate)).or_else(|refusal| {
            let graph = reading(&compiled.forward, layers)?;
            Self::measured(compiled, graph, Err(refusal), known, evaluate)
        })
    }

    /// Measures a graph of `compiled` that was made elsewhere; one without gradients will do where none can be had.
    ///
    /// # Errors
    /// As [`AttentionDerived::of`], or that gradients are missing.
    pub fn given(
        compiled: &Compiled,
        graph: Graph,
        known: &Known,
        evaluate: Evaluate<'_>,
    ) -> Result<Self, Refusal> {
        chain::check(compiled)?;
        let gradient = match graph.input(COTANGENT) {
            Some(_) => Ok(()),
            None => match attention(&compiled.forward, &compiled.anatomy.attention) {
                Ok(_) => return Err(Refusal::new(Code::Output, "it has no gradients, which can be derived")),
                Err(refusal) => Err(refusal),
            },
        };
        Self::measured(compiled, graph, gradient, known, evaluate)
    }

    fn measured(
        compiled: &Compiled,
        graph: Graph,
        gradient: Result<(), Refusal>,
        known: &Known,
        evaluate: Evaluate<'_>,
    ) -> Result<Self, Refusal> {
        let layers = compiled.anatomy.attention.len();
        let measures = measure(known, compiled, (&graph, layers, gradient.is_ok()), evaluate)?;
        Ok(Self { graph, measures, gradient })
    }
}

/// The cut graph, the probabilities of all layers among its outputs, without what neither they nor the logits need.
fn read(cut: &Cut, attention: &[Attention]) -> Result<Cut, Refusal> {
    if attention.is_empty() {
        return Err(absent(&cut.graph));
    }
    let mut cut = cut.clone();
    for it in attention {
        let ty = probabilities_type(&cut, it);
        cut.graph.outputs.push(Port { value: it.probabilities.clone(), ty });
    }
    Ok(narrow::narrow(&cut).map_or(cut, |it| it.0))
}

/// Derives the graph without gradients, for which no operator needs a rule: inputs as the cut graph's; outputs
/// [`LOGITS`] and [`probabilities`] for each layer.
///
/// # Errors
/// There is no attention.
pub fn reading(cut: &Cut, attention: &[Attention]) -> Result<Graph, Refusal> {
    let Cut { mut graph, .. } = read(cut, attention)?;
    let own = std::mem::take(&mut graph.outputs);
    let mut names = graph.names();
    for port in own {
        let layer = attention.iter().position(|it| it.probabilities == port.value);
        let Some(to) = layer.map(probabilities) else {
            graph.outputs.push(port);
            continue;
        };
        if names.fresh(&to) != to {
            return Err(taken(&to));
        }
        graph.nodes.push(Node::new("Identity", &[port.value], std::slice::from_ref(&to)));
        graph.outputs.push(Port { value: to, ty: port.ty });
    }
    graph.prune();
    Ok(graph)
}

fn taken(name: &Value) -> Refusal {
    Refusal::new(Code::Output, format!("a value of the model is called {name}"))
}

/// Derives the graph with inputs as the cut graph's and [`COTANGENT`]; outputs [`LOGITS`], [`probabilities`] and
/// [`slope`] for each layer.
///
/// # Errors
/// There is no attention, or no gradient reaches it: every node that stands in the way.
pub fn attention(cut: &Cut, attention: &[Attention]) -> Result<Graph, Refusal> {
    let logits: Value = LOGITS.into();
    let mut cut = read(cut, attention)?;
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
                return Err(taken(&to));
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

/// The output of [`rollout`] and [`relevance`] for a layer: [batch, sequence, sequence].
pub fn mixed(layer: usize) -> Value {
    format!("attention_{layer}_mixed").into()
}

/// The forward graph with each layer's probabilities averaged over heads, as [`mixed`], in place of themselves.
/// `None` where the model keeps rows and heads in one axis.
pub fn rollout(attention: &Graph) -> Option<Graph> {
    mean_over_heads(&forward(attention), &|_, layer| (probabilities(layer), Vec::new()))
}

/// The graph with `mean_h (∇A ⊙ A)⁺` of each layer, as [`mixed`], in place of probabilities and gradients, which it
/// must have. `None` as for [`rollout`].
pub fn relevance(attention: &Graph) -> Option<Graph> {
    mean_over_heads(attention, &|names, layer| {
        let [product, positive] =
            ["product", "positive"].map(|it| names.fresh(&format!("{}/{it}", mixed(layer))));
        let mul = Node::new("Mul", &[probabilities(layer), slope(layer)], std::slice::from_ref(&product));
        let relu = Node::new("Relu", &[product], std::slice::from_ref(&positive));
        (positive, vec![mul, relu])
    })
}

/// What is averaged for a layer, and the nodes that make it.
type Averaged<'a> = &'a dyn Fn(&mut Names, usize) -> (Value, Vec<Node>);

fn mean_over_heads(graph: &Graph, averaged: Averaged<'_>) -> Option<Graph> {
    let mut graph = graph.clone();
    let mut names = graph.names();
    let layers = (0..).take_while(|&it| graph.output(&probabilities(it)).is_some()).count();
    let axes = names.fresh("axis/heads");
    let mut outputs: Vec<Port> = graph.outputs.iter().filter(|it| *it.value == *LOGITS).cloned().collect();
    for layer in 0..layers {
        let port = graph.output(&probabilities(layer))?;
        let (element, [batch, _, rows, columns]) = (port.element()?, port.dims()?) else { return None };
        let dims = vec![batch.clone(), rows.clone(), columns.clone()];
        let (value, nodes) = averaged(&mut names, layer);
        let mean = Node::new("ReduceMean", &[value], &[mixed(layer)]).with("keepdims", 0);
        graph.nodes.extend(nodes);
        graph.nodes.push(match graph.opset() < 18 {
            true => mean.with("axes", vec![1]),
            false => Node { inputs: [&mean.inputs[..], std::slice::from_ref(&axes)].concat(), ..mean },
        });
        outputs.push(Port::tensor(mixed(layer), element, dims));
    }
    graph.initializers.insert(axes, Tensor::from_i64(&[1], &[1]));
    graph.outputs = outputs;
    graph.prune();
    Some(graph)
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
    Refusal::new(Code::Attention, reason)
}
