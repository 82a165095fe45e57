//! This file is where activations are recognised in what exporters write for them.

use std::collections::BTreeSet;
use std::f64::consts::{FRAC_1_SQRT_2, PI};

use super::recognise::{Matcher, Patch, other, same};
use crate::compile::graph::{Node, Value};

/// `½·x·(1 + Erf(x/√2))` → `Gelu(x)`, in any order of the products.
pub(super) fn gelu_erf(m: &Matcher<'_>, place: usize) -> Option<Patch> {
    let spelling = gated(m, place, "Erf", true)?;
    let inner = spelling.inner.as_slice();
    (inner.len() == 2 && inner[0] == 0.0 && same(inner[1], FRAC_1_SQRT_2) && same(spelling.scale, 0.5))
        .then(|| spelling.group(Node::new("Gelu", &[], &[])))
}

/// `½·x·(1 + Tanh(√(2/π)·(x + 0.044715·x³)))` → `Gelu(x)` of the tanh form, in any order of the products.
pub(super) fn gelu_tanh(m: &Matcher<'_>, place: usize) -> Option<Patch> {
    let spelling = gated(m, place, "Tanh", true)?;
    let c = (2.0 / PI).sqrt();
    let &[zero, linear, square, cubic] = spelling.inner.as_slice() else { return None };
    let agrees = zero == 0.0 && square == 0.0 && close(linear, c) && close(cubic, 0.044715 * c);
    (agrees && same(spelling.scale, 0.5))
        .then(|| spelling.group(Node::new("Gelu", &[], &[]).with("approximate", "tanh")))
}

/// Exporters round `√(2/π)` to as many digits as `0.7978845608`, and multiply rounded numbers.
fn close(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= 3e-6 * wanted
}

/// `x·Sigmoid(α·x)` → `Swish(x)`.
pub(super) fn swish(m: &Matcher<'_>, place: usize) -> Option<Patch> {
    let spelling = gated(m, place, "Sigmoid", false)?;
    let &[zero, alpha] = spelling.inner.as_slice() else { return None };
    (zero == 0.0 && same(spelling.scale, 1.0))
        .then(|| spelling.group(Node::new("Swish", &[], &[]).with("alpha", alpha as f32)))
}

/// `Where(IsNaN(p), 0, p)`, `p = Softmax(x)` → `Softmax(x)` whose result is the cleaned one.
pub(super) fn guarded_softmax(m: &Matcher<'_>, place: usize) -> Option<Patch> {
    let softmax = m.node(place);
    if !softmax.is("Softmax") {
        return None;
    }
    let p = &softmax.outputs[0];
    let [(test_place, test)] = m.readers(p, "IsNaN")[..] else { return None };
    let (guard_place, guard) = m.reader(&test.outputs[0], "Where")?;
    let [condition, zero, kept] = &guard.inputs[..] else { return None };
    if *condition != test.outputs[0] || kept != p || m.number(zero) != Some(0.0) {
        return None;
    }
    let mut node = softmax.clone();
    node.outputs = guard.outputs.clone();
    let places = BTreeSet::from([place, test_place, guard_place]);
    Some(Patch { places, node, groups: true, constants: Vec::new() })
}

/// `scale·x·(f(inner(x)))`, or with `1 + f`.
struct Spelling {
    x: Value,
    y: Value,
    /// The coefficients of what the function is applied to, a polynomial in `x`, the constant first.
    inner: Vec<f64>,
    scale: f64,
    places: BTreeSet<usize>,
}

impl Spelling {
    fn group(self, node: Node) -> Patch {
        let node = Node { inputs: vec![self.x], outputs: vec![self.y], ..node };
        Patch { places: self.places, node, groups: true, constants: Vec::new() }
    }
}

/// Reads `x` gated by the function `op` at `place`.
fn gated(m: &Matcher<'_>, place: usize, op: &str, plus_one: bool) -> Option<Spelling> {
    let function = m.node(place);
    if !function.is(op) {
        return None;
    }
    let mut places = BTreeSet::from([place]);
    let mut gate = function.outputs[0].clone();
    if plus_one {
        let (sum_place, sum) = m.reader(&gate, "Add")?;
        if m.number(other(sum, &gate)?)? != 1.0 {
            return None;
        }
        places.insert(sum_place);
        gate = sum.outputs[0].clone();
    }
    let mut scale = 1.0;
    // Numbers may be multiplied to the gate before x is, and after.
    let factor = loop {
        let (product_place, product) = m.reader(&gate, "Mul")?;
        places.insert(product_place);
        let factor = other(product, &gate)?;
        gate = product.outputs[0].clone();
        match m.number(factor) {
            Some(number) => scale *= number,
            None => break factor.clone(),
        }
    };
    let mut candidates = vec![(factor.clone(), 1.0, None)];
    if let Some((scaled_place, scaled)) = m.maker(&factor, "Mul").or_else(|| m.maker(&factor, "Div")) {
        let number = |it: &Value| m.number(it);
        let [a, b] = &scaled.inputs[..] else { return None };
        let share = match (number(a), number(b)) {
            (None, Some(k)) => Some((a, if scaled.is("Mul") { k } else { 1.0 / k })),
            (Some(k), None) if scaled.is("Mul") => Some((b, k)),
            _ => None,
        };
        candidates.extend(share.map(|(x, k)| (x.clone(), k, Some(scaled_place))));
    }
    let found = candidates.into_iter().find_map(|(x, k, extra)| {
        let mut inner_places = BTreeSet::new();
        let inner = polynomial(m, &function.inputs[0], &x, &mut inner_places, 8)?;
        (inner.len() > 1).then_some((x, k, extra, inner, inner_places))
    });
    let (x, k, extra, inner, inner_places) = found?;
    scale *= k;
    places.extend(inner_places);
    places.extend(extra);
    // What is left of the scale.
    while plus_one && !same(scale, 0.5) {
        let (place, factor) = match (m.reader(&gate, "Mul"), m.reader(&gate, "Div")) {
            (Some((place, product)), _) => (place, m.number(other(product, &gate)?)?),
            (_, Some((place, share))) if share.inputs[0] == gate => {
                (place, 1.0 / m.number(&share.inputs[1])?)
            }
            _ => return None,
        };
        scale *= factor;
        places.insert(place);
        gate = m.node(place).outputs[0].clone();
    }
    Some(Spelling { x, y: gate, inner, scale, places })
}

/// The coefficients of `value` as a polynomial in `x`, the constant first; the nodes that compute it are
/// collected.
fn polynomial(
    m: &Matcher<'_>,
    value: &Value,
    x: &Value,
    places: &mut BTreeSet<usize>,
    depth: usize,
) -> Option<Vec<f64>> {
    if value == x {
        return Some(vec![0.0, 1.0]);
    }
    if let Some(number) = m.number(value) {
        return Some(vec![number]);
    }
    let depth = depth.checked_sub(1)?;
    for op in ["Add", "Sub", "Mul", "Div", "Pow"] {
        let Some((place, node)) = m.maker(value, op) else { continue };
        let [left, right] = &node.inputs[..] else { return None };
        let left = polynomial(m, left, x, places, depth)?;
        let right = polynomial(m, right, x, places, depth)?;
        places.insert(place);
        return match (op, &right[..]) {
            ("Add", _) => Some(sum(&left, &right, 1.0)),
            ("Sub", _) => Some(sum(&left, &right, -1.0)),
            ("Mul", _) => product(&left, &right),
            ("Div", [number]) => product(&left, &[1.0 / number]),
            ("Pow", [number]) if *number == 2.0 => product(&left, &left),
            ("Pow", [number]) if *number == 3.0 => product(&product(&left, &left)?, &left),
            _ => None,
        };
    }
    None
}

fn sum(left: &[f64], right: &[f64], sign: f64) -> Vec<f64> {
    let at = |list: &[f64], power: usize| list.get(power).copied().unwrap_or(0.0);
    (0..left.len().max(right.len())).map(|it| at(left, it) + sign * at(right, it)).collect()
}

/// `None` beyond the fifth power.
fn product(left: &[f64], right: &[f64]) -> Option<Vec<f64>> {
    let mut result = vec![0.0; left.len() + right.len() - 1];
    for (p, a) in left.iter().enumerate() {
        for (q, b) in right.iter().enumerate() {
            result[p + q] += a * b;
        }
    }
    (result.len() <= 6).then_some(result)
}
