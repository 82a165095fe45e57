//! This file is where normalizations are recognised in what exporters write for them.

use std::collections::BTreeSet;

use super::recognise::{Matcher, Patch, other};
use crate::compile::graph::{Node, Value};

/// `c/√(mean c² + ε)·γ + β`, `c = x − mean x`, over the last axis → `LayerNormalization(x, γ, β)`.
pub(super) fn layer_norm(m: &Matcher<'_>, place: usize) -> Option<Patch> {
    let deviation = Deviation::read(m, place)?;
    let mut places = deviation.places;
    let x = centred(m, &deviation.of, &mut places)?;
    let [(quotient_place, quotient)] = m.readers(&deviation.root, "Div")[..] else { return None };
    if quotient.inputs[1] != deviation.root || centred(m, &quotient.inputs[0], &mut places)? != x {
        return None;
    }
    places.insert(quotient_place);
    let (scaled_place, scaled) = m.reader(&quotient.outputs[0], "Mul")?;
    let gamma = weight(m, other(scaled, &quotient.outputs[0])?, &x)?;
    places.insert(scaled_place);
    let (shifted_place, shifted) = m.reader(&scaled.outputs[0], "Add")?;
    let beta = weight(m, other(shifted, &scaled.outputs[0])?, &x)?;
    places.insert(shifted_place);
    let node = Node::new("LayerNormalization", &[x, gamma, beta], &shifted.outputs)
        .with("axis", -1)
        .with("epsilon", deviation.epsilon as f32);
    Some(Patch { places, node, groups: false, constants: Vec::new() })
}

/// `x/√(mean x² + ε)·γ` over the last axis, also with a reciprocal → `RMSNormalization(x, γ)`.
pub(super) fn rms_norm(m: &Matcher<'_>, place: usize) -> Option<Patch> {
    let deviation = Deviation::read(m, place)?;
    let mut places = deviation.places;
    let x = deviation.of;
    let quotient = match m.readers(&deviation.root, "Div")[..] {
        [(place, node)] if node.inputs[0] == x => Some((place, node)),
        _ => None,
    };
    let normal = if let Some((quotient_place, quotient)) = quotient {
        places.insert(quotient_place);
        &quotient.outputs[0]
    } else {
        let one_over =
            || m.reader(&deviation.root, "Div").filter(|it| m.number(&it.1.inputs[0]) == Some(1.0));
        let (inverse_place, inverse) = m.reader(&deviation.root, "Reciprocal").or_else(one_over)?;
        let (product_place, product) = m.reader(&inverse.outputs[0], "Mul")?;
        if *other(product, &inverse.outputs[0])? != x {
            return None;
        }
        places.extend([inverse_place, product_place]);
        &product.outputs[0]
    };
    let (scaled_place, scaled) = m.reader(normal, "Mul")?;
    let gamma = weight(m, other(scaled, normal)?, &x)?;
    places.insert(scaled_place);
    let node = Node::new("RMSNormalization", &[x, gamma], &scaled.outputs)
        .with("axis", -1)
        .with("epsilon", deviation.epsilon as f32);
    Some(Patch { places, node, groups: true, constants: Vec::new() })
}

/// `√(mean v² + ε)` over the last axis.
struct Deviation {
    of: Value,
    root: Value,
    epsilon: f64,
    places: BTreeSet<usize>,
}

impl Deviation {
    fn read(m: &Matcher<'_>, place: usize) -> Option<Self> {
        let root = m.node(place);
        if !root.is("Sqrt") {
            return None;
        }
        let (sum_place, sum) = m.maker(&root.inputs[0], "Add")?;
        let [left, right] = &sum.inputs[..] else { return None };
        let (mean, epsilon) = match (m.number(left), m.number(right)) {
            (None, Some(epsilon)) => (left, epsilon),
            (Some(epsilon), None) => (right, epsilon),
            _ => return None,
        };
        let (mean_place, square) = mean_over_last(m, mean)?;
        let (square_place, of) = if let Some((place, power)) = m.maker(square, "Pow") {
            if m.number(&power.inputs[1]) != Some(2.0) {
                return None;
            }
            (place, &power.inputs[0])
        } else {
            let (place, product) = m.maker(square, "Mul")?;
            if product.inputs[0] != product.inputs[1] {
                return None;
            }
            (place, &product.inputs[0])
        };
        let places = BTreeSet::from([place, sum_place, mean_place, square_place]);
        Some(Self { of: of.clone(), root: root.outputs[0].clone(), epsilon, places })
    }
}

/// The operand of a mean over the last axis alone, which is kept with length one.
fn mean_over_last<'a>(m: &Matcher<'a>, value: &Value) -> Option<(usize, &'a Value)> {
    let (place, mean) = m.maker(value, "ReduceMean")?;
    let x = &mean.inputs[0];
    let constant = |it: &Value| m.facts().get(it)?.ints();
    let axes = mean.ints("axes").map(<[i64]>::to_vec).or_else(|| constant(mean.input(1)?))?;
    let fact = m.facts().get(x)?;
    let [axis] = axes[..] else { return None };
    let last = fact.axis(axis)? + 1 == fact.rank();
    (last && mean.int("keepdims").unwrap_or(1) != 0).then_some((place, x))
}

/// The `x` of `x − mean x`.
fn centred(m: &Matcher<'_>, value: &Value, places: &mut BTreeSet<usize>) -> Option<Value> {
    let (place, difference) = m.maker(value, "Sub")?;
    let [x, mean] = &difference.inputs[..] else { return None };
    let (mean_place, of) = mean_over_last(m, mean)?;
    places.extend([place, mean_place]);
    (of == x).then(|| x.clone())
}

/// A constant with one number for each element of the last axis of `x`.
fn weight(m: &Matcher<'_>, value: &Value, x: &Value) -> Option<Value> {
    let (fact, x) = (m.facts().get(value)?, m.facts().get(x)?);
    let fits = fact.constant.is_some() && fact.rank() == 1 && fact.shape.last() == x.shape.last();
    fits.then(|| value.clone())
}
