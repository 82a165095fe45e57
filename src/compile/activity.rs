//! This file is where the path is found: what lies between the embeddings and the logits.

use std::collections::HashSet;

use super::facts::Facts;
use super::graph::{Graph, Node, Value};

/// The part of a graph that derivatives flow through.
#[derive(Debug, Clone, Default)]
pub struct Activity {
    /// Values that depend on the start, and that the end depends on, through floating-point numbers.
    pub values: HashSet<Value>,
    /// The nodes between them, in topological order.
    pub path: Vec<Node>,
}

/// Finds what lies between `start` and any of `ends`. `flows` says whether derivatives pass a node at all.
///
/// Nodes whose subgraphs read an active value count as active: they have no rule, and shall be told.
pub fn between(
    graph: &Graph,
    facts: &Facts,
    start: &Value,
    ends: &[Value],
    flows: &dyn Fn(&Node) -> bool,
) -> Activity {
    let floating = |it: &Value| facts.get(it).is_none_or(|fact| fact.element.is_floating());
    let mut reached: HashSet<Value> = HashSet::from([start.clone()]);
    let mut path = Vec::new();
    for node in &graph.nodes {
        if flows(node) && node.reads().iter().any(|it| reached.contains(it)) {
            let made = node.outputs.iter().filter(|it| !it.is_absent() && floating(it));
            reached.extend(made.cloned());
            path.push(node);
        }
    }
    let mut needed: HashSet<Value> = ends.iter().cloned().collect();
    path.reverse();
    path.retain(|node| {
        let needs = node.outputs.iter().any(|it| needed.contains(it) && reached.contains(it));
        if needs {
            needed.extend(node.reads());
        }
        needs
    });
    let path = path.into_iter().rev().cloned().collect();
    Activity { values: reached.intersection(&needed).cloned().collect(), path }
}
