//! This file is where linear layers are recognised in what exporters write for them.

use std::collections::BTreeSet;

use super::recognise::{Matcher, Patch, other};
use crate::compile::graph::Node;

/// `MatMul(x, W) + b` with constant `W` and one number for each column in `b` → a product of three operands.
pub(super) fn biased(m: &Matcher<'_>, place: usize) -> Option<Patch> {
    let product = m.node(place);
    if !product.is("MatMul") || product.inputs.len() != 2 {
        return None;
    }
    let weights = m.facts().get(&product.inputs[1])?;
    let (sum_place, sum) = m.reader(&product.outputs[0], "Add")?;
    let bias = other(sum, &product.outputs[0])?;
    let fact = m.facts().get(bias)?;
    let fits = weights.constant.is_some()
        && weights.rank() == 2
        && fact.constant.is_some()
        && fact.rank() == 1
        && fact.shape.last() == weights.shape.last();
    let inputs = [product.inputs[0].clone(), product.inputs[1].clone(), bias.clone()];
    let node = Node::new("MatMul", &inputs, &sum.outputs);
    let places = BTreeSet::from([place, sum_place]);
    fits.then_some(Patch { places, node, groups: true, constants: Vec::new() })
}
