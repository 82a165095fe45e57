//! This file is where branches that are always the same are taken for good, and steps that change nothing left out.

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

/// Leaves out every `Identity`, and every `Cast` to the type that its operand has already; what read the result
/// reads the operand. Outputs of the graph stay.
pub fn idle(graph: &mut Graph, facts: &Facts) {
    let mut operands: HashMap<Value, Value> = HashMap::new();
    for node in std::mem::take(&mut graph.nodes) {
        let kept = match (&node.inputs[..], &node.outputs[..]) {
            ([x], [y]) if graph.output(y).is_none() => {
                let own = || facts.get(x).map(|it| i64::from(it.element.code()));
                let idle = node.is("Identity") || node.is("Cast") && node.int("to") == own();
                idle.then(|| (y.clone(), operands.get(x).unwrap_or(x).clone()))
            }
            _ => None,
        };
        match kept {
            Some((result, operand)) => drop(operands.insert(result, operand)),
            None => graph.nodes.push(node),
        }
    }
    if !operands.is_empty() {
        graph.rename(&operands);
    }
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
    use crate::compile::facts::Length;
    use crate::compile::graph::{Element, Tensor};

    #[test]
    fn casts_that_change_nothing_are_left_out_and_others_stay() {
        let mut graph = Graph::parse(
            "a = Cast(x) {to: 1}; b = Cast(a) {to: 1}; c = Cast(b) {to: 11}; d = Cast(c) {to: 1}; y = Mul(b, d)",
        )
        .unwrap();
        let mut facts = Facts::default();
        for (value, element) in [
            ("x", Element::F32),
            ("a", Element::F32),
            ("b", Element::F32),
            ("c", Element::F64),
            ("d", Element::F32),
        ] {
            facts.insert(value.into(), Fact::new(element, vec![Length::fixed(2)]));
        }
        idle(&mut graph, &facts);
        let lines: Vec<String> = graph.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines[1..4], ["c = Cast(x) {to: 11}", "d = Cast(c) {to: 1}", "y = Mul(x, d)"]);
    }

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
