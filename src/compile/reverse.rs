//! This file is where cotangents travel from results to operands: the one backward walk.
//!
//! It names no operator. What happens at a node is the business of the function `local` that it is given: an
//! operator's own gradient rule, or a rule that a relevance composite bends. Gradient and relevance differ in
//! that function and in nothing else. Un-broadcasting and accumulation happen here, once, so that no rule can
//! forget them.

use std::collections::HashMap;

use super::builder::Builder;
use super::graph::{Element, Node, Value};
use super::ops::{Cotangents, Misfit};

/// Node and cotangents of its results in, cotangents of its operands out.
pub type Local<'a> = &'a dyn Fn(&mut Builder, &Node, &[Option<Value>]) -> Result<Cotangents, Misfit>;

/// A node that stands in the way of a derived graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The node's label.
    pub node: String,
    /// Its operator, with the domain.
    pub operator: String,
    /// What is missing.
    pub reason: String,
}

/// Walks `path` (active nodes in topological order) backwards from `seeds`, pairs of a value and its cotangent,
/// and answers with the cotangent of every active value that was reached.
///
/// When nodes stand in the way, all of them are told: the walk goes on behind a gap with a placeholder of the
/// right shape.
pub fn reverse(
    b: &mut Builder,
    path: &[Node],
    seeds: &[(Value, Value)],
    local: Local<'_>,
) -> Result<HashMap<Value, Value>, Vec<Gap>> {
    let mut cotangents: HashMap<Value, Value> = seeds.iter().cloned().collect();
    let mut gaps = Vec::new();
    for node in path.iter().rev() {
        let dys: Vec<Option<Value>> = node.outputs.iter().map(|it| cotangents.get(it).cloned()).collect();
        if dys.iter().all(Option::is_none) {
            continue;
        }
        let answers = at(b, node, &dys, local).unwrap_or_else(|misfit| {
            gaps.push(Gap { node: node.label().into(), operator: node.operator(), reason: misfit.0 });
            node.inputs.iter().map(|it| b.wants(it).then(|| it.clone())).collect()
        });
        for (operand, dx) in node.inputs.iter().zip(answers) {
            let Some(dx) = dx.filter(|_| b.wants(operand)) else { continue };
            let shape = b.known(operand).map(|it| it.shape.clone()).unwrap_or_default();
            let dx = if b.known(&dx).is_some() { b.sum_to(&dx, &shape) } else { dx };
            let total = match cotangents.get(operand).cloned() {
                Some(so_far) if b.known(&dx).is_some() => b.add(&so_far, &dx),
                _ => dx,
            };
            cotangents.insert(operand.clone(), total);
        }
    }
    if gaps.is_empty() { Ok(cotangents) } else { Err(gaps) }
}

/// Calls `local` at a node, unless something that rules may ask for is unknown.
fn at(b: &mut Builder, node: &Node, dys: &[Option<Value>], local: Local<'_>) -> Result<Cotangents, Misfit> {
    let values = node.inputs.iter().chain(&node.outputs).filter(|it| !it.is_absent());
    for value in values {
        if b.known(value).is_none() {
            return Err(Misfit(format!("the shape of {value} could not be learned")));
        }
    }
    let element = node.outputs.first().and_then(|it| b.known(it)).map_or(Element::F32, |it| it.element);
    b.attribute_to(node.label(), element);
    local(b, node, dys)
}
