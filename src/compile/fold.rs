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
        let mut branch = branch;
        branch.rename(&renamed);
        graph.initializers.extend(branch.initializers);
        graph.nodes.extend(branch.nodes);
        for (port, output) in branch.outputs.iter().zip(&node.outputs) {
            let copied = std::slice::from_ref(&port.value);
            graph.nodes.push(Node::new("Identity", copied, std::slice::from_ref(output)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::facts::Fact;
    use crate::compile::graph::Tensor;

    #[test]
    fn the_branch_of_a_constant_condition_is_taken() {
        let mut graph = Graph::parse("a = Exp(x); y = If(c: bool)").unwrap();
        let mut branch = Graph::parse("b = Mul(a, 2.0); r = Tanh(b)").unwrap();
        branch.inputs.clear();
        graph.nodes[1].attributes.insert("then_branch".into(), Attribute::Graph(Box::new(branch)));
        let mut facts = Facts::default();
        facts.insert("c".into(), Fact::of(&Tensor::from_bool(&[], &[true])));
        assert!(branches(&mut graph, &facts));
        let lines: Vec<String> = graph.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines[2..6], ["a = Exp(x)", "y/b = Mul(a, 2.0)", "y/r = Tanh(y/b)", "y = Identity(y/r)"]);
        assert!(!branches(&mut graph, &facts));
    }
}
