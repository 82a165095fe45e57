//! This file is where branches that are always the same are taken for good.

use std::collections::HashMap;

use super::facts::Facts;
use super::graph::{Attribute, Graph, Node, Value};

/// Replaces every `If` whose condition depends on nothing but lengths, and was the same at every probe, by the
/// branch taken. Answers whether there was one; the graph's facts are then incomplete.
pub fn branches(graph: &mut Graph, facts: &Facts) -> bool {
    let mut names = graph.names();
    let mut changed = false;
    for mut node in std::mem::take(&mut graph.nodes) {
        let Some(branch) = taken(&mut node, facts) else {
            graph.nodes.push(node);
            continue;
        };
        changed = true;
        let mut renamed: HashMap<Value, Value> = HashMap::new();
        for value in branch.nodes.iter().flat_map(|it| &it.outputs).chain(branch.initializers.keys()) {
            if !value.is_absent() {
                renamed.insert(value.clone(), names.fresh(&format!("{}/{value}", node.label())));
            }
        }
        let name = |it: &Value| renamed.get(it).cloned().unwrap_or_else(|| it.clone());
        graph.initializers.extend(branch.initializers.iter().map(|(it, tensor)| (name(it), tensor.clone())));
        for mut inner in branch.nodes {
            rename(&mut inner, &renamed);
            graph.nodes.push(inner);
        }
        for (port, output) in branch.outputs.iter().zip(&node.outputs) {
            graph.nodes.push(Node::new("Identity", &[name(&port.value)], std::slice::from_ref(output)));
        }
    }
    changed
}

fn taken(node: &mut Node, facts: &Facts) -> Option<Graph> {
    if !node.is("If") {
        return None;
    }
    let condition = facts.get(node.inputs.first()?)?.ints()?;
    let name = if *condition.first()? != 0 { "then_branch" } else { "else_branch" };
    match node.attributes.remove(name)? {
        Attribute::Graph(graph) => Some(*graph),
        other => {
            node.attributes.insert(name.into(), other);
            None
        }
    }
}

/// Operands and results, and what nested branches read.
fn rename(node: &mut Node, names: &HashMap<Value, Value>) {
    for value in node.inputs.iter_mut().chain(&mut node.outputs) {
        if let Some(name) = names.get(value) {
            *value = name.clone();
        }
    }
    for attribute in node.attributes.values_mut() {
        if let Attribute::Graph(graph) = attribute {
            graph.nodes.iter_mut().for_each(|it| rename(it, names));
            for port in &mut graph.outputs {
                if let Some(name) = names.get(&port.value) {
                    port.value = name.clone();
                }
            }
        }
    }
}
