//! This file is where composite operators are taken apart, each exactly, into operators that have rules; and
//! where, in [`recognise`], exporters' spellings of one thing become one.
//!
//! A lowering is given one node. It answers with nodes that compute the same under the same names, or declines;
//! a node that no lowering takes stays, and is told as a gap when a graph is derived. To add one, write a row in
//! its family's file, with examples.

mod activation;
mod attention;
mod draft;
mod fused;
mod linear;
mod norm;
mod recognise;
mod rotary;

use super::facts::Facts;
use super::graph::{Graph, Node};
use super::ops::Misfit;
use draft::Draft;

pub use recognise::{recognise, recognise_layers};

/// The tables.
static FAMILIES: &[&[Lowering]] = &[attention::LOWERINGS, fused::LOWERINGS, rotary::LOWERINGS];

/// How one operator is taken apart.
struct Lowering {
    /// Its name in ONNX.
    name: &'static str,
    /// Its domain; empty for ONNX itself.
    domain: &'static str,
    /// Must shapes and types be known?
    measured: bool,
    /// Appends the nodes that stand for a node.
    lower: fn(&mut Draft<'_>, &Node) -> Result<(), Misfit>,
    /// Graphs in text form that show its uses. Each is tested to compute the same before and after.
    examples: &'static [&'static str],
}

/// The examples of all lowerings.
pub fn examples() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().copied().flatten().flat_map(|it| it.examples).copied()
}

/// ONNX Runtime's own domain.
pub const MICROSOFT: &str = "com.microsoft";

/// Takes apart what can be taken apart without knowing shapes, and declares the domains in use. Answers whether
/// there was something.
pub fn lower(graph: &mut Graph) -> bool {
    if graph.nodes.iter().any(|it| it.domain == MICROSOFT) {
        graph.opsets.entry(MICROSOFT.into()).or_insert(1);
    }
    apply(graph, &Facts::default(), false)
}

/// Takes apart the operators whose shapes had to be learned first. Answers whether there was one; the graph's
/// facts are then incomplete.
pub fn lower_measured(graph: &mut Graph, facts: &Facts) -> bool {
    apply(graph, facts, true)
}

fn apply(graph: &mut Graph, facts: &Facts, measured: bool) -> bool {
    let find = |node: &Node| {
        let fits = |it: &&Lowering| it.name == node.op && it.domain == node.domain && it.measured == measured;
        FAMILIES.iter().copied().flatten().find(fits)
    };
    if !graph.nodes.iter().any(|it| find(it).is_some()) {
        return false;
    }
    let (mut names, opset) = (graph.names(), graph.opset());
    let types = graph.declared();
    let mut changed = false;
    for node in std::mem::take(&mut graph.nodes) {
        let mut draft = Draft::new(&mut names, opset, (facts, &types), &node);
        match find(&node).map(|it| (it.lower)(&mut draft, &node)) {
            Some(Ok(())) => {
                changed = true;
                let (nodes, constants) = draft.finish();
                graph.nodes.extend(nodes);
                graph.initializers.extend(constants);
            }
            _ => graph.nodes.push(node),
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn a_fused_sum_and_normalization_come_apart() {
        let mut graph =
            Graph::parse("y = com.microsoft::SkipLayerNormalization(x, s, g[4], b[4], c[4]) {epsilon: 0.5}")
                .unwrap();
        lower(&mut graph);
        assert_snapshot!(graph, @r"
        in  x: float32
        in  s: float32
        in  g: float32[4]
        in  b: float32[4]
        in  c: float32[4]
        y/add = Add(x, c)
        y/add_1 = Add(y/add, s)
        y = LayerNormalization(y/add_1, g, b) {axis: -1, epsilon: 0.5}
        out y: float32
        ");
    }

    #[test]
    fn a_form_that_is_not_covered_stays() {
        let mut graph =
            Graph::parse("y = com.microsoft::FusedGemm(x, w[4, 2]) {activation: \"Mystery\"}").unwrap();
        lower(&mut graph);
        assert_eq!(graph.nodes[0].operator(), "com.microsoft::FusedGemm");
    }
}
