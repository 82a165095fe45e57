//! This file is where a classifier that reads one position is spared the others, where they are of no use.
//!
//! Demand runs backwards: of a value that only one position is read of, only that position is computed, as long
//! as operators work position by position. Attention ends it for keys and values, not for queries; so the last
//! layer keeps its keys and values (which [`super::reassociate`] sees to), and everything else of it shrinks to one
//! row. The numbers are the same.

use std::collections::{HashMap, HashSet};

use super::cut::Cut;
use super::facts::{Fact, Facts, Length, Shape, reshape_target};
use super::graph::{Graph, Node, Tensor, Value};
use super::ops::{self, Kind};

/// What was spared.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Saving {
    /// The position that is read; negative from the end.
    pub position: i64,
    /// Part of the multiplications of matrix products that is left out, at the larger probe.
    pub part: f64,
}

/// The graph with less work, and how much less. `None` when nothing is spared.
pub fn narrow(cut: &Cut) -> Option<(Cut, Saving)> {
    let position = cut.graph.nodes.iter().rev().find_map(|it| Some(picked(it, &cut.facts)?.1))?;
    let measured = without_measuring(cut);
    let mut narrowed = Plan::new(&measured, position).apply(&measured);
    narrowed.graph.prune();
    let (before, after) = (multiplications(cut), multiplications(&narrowed));
    let part = 1.0 - after / before.max(1.0);
    (part > 0.0).then_some((narrowed, Saving { position, part }))
}

/// The same graph, lengths that never vary being constants: exporters read the width of a head from queries.
fn without_measuring(cut: &Cut) -> Cut {
    let Cut { mut graph, facts } = cut.clone();
    let shapes: HashSet<Value> =
        graph.nodes.iter().filter(|it| it.is("Shape")).map(|it| it.outputs[0].clone()).collect();
    let known: Vec<(Value, Tensor)> = graph
        .nodes
        .iter()
        .filter(|it| (it.is("Slice") || it.is("Gather")) && shapes.contains(&it.inputs[0]))
        .filter_map(|it| Some((it.outputs[0].clone(), facts.get(&it.outputs[0])?.constant.clone()?)))
        .collect();
    let names: HashSet<&Value> = known.iter().map(|it| &it.0).collect();
    graph.nodes.retain(|it| !it.outputs.first().is_some_and(|it| names.contains(it)));
    graph.initializers.extend(known.iter().cloned());
    graph.prune();
    Cut { graph, facts }
}

/// The axis and the position that a node picks of its first operand, if it picks one position of the sequence.
pub(super) fn picked(node: &Node, facts: &Facts) -> Option<(usize, i64)> {
    let fact = facts.get(node.inputs.first()?)?;
    let ints = |place: usize| facts.get(node.input(place)?)?.ints();
    let (axis, position) = match node.op.as_str() {
        _ if !node.domain.is_empty() => return None,
        "Gather" => match ints(1)?[..] {
            [position] => (fact.axis(node.int("axis").unwrap_or(0))?, position),
            _ => return None,
        },
        "Slice" => {
            let steps = if node.input(4).is_some() { ints(4)? } else { vec![1] };
            match (&ints(1)?[..], &ints(2)?[..], &ints(3)?[..], &steps[..]) {
                (&[start], &[end], &[axis], &[1])
                    if end == start + 1 && end != 0 || start == -1 && end > 0 =>
                {
                    (fact.axis(axis)?, start)
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    // Anything but a position of the sequence has a constant length.
    (axis == 1 && fact.rank() == 3 && fact.shape[1].constant().is_none()).then_some((axis, position))
}

/// Steps from a Shape to the Reshapes that read it.
const LONGEST: usize = 6;

/// Which operands of which nodes need one position only.
struct Plan {
    position: i64,
    /// The axis along which a value is computed at one position alone.
    values: HashMap<Value, usize>,
    /// The axis along which a node (by index) needs one position alone of an operand (by place).
    reads: HashMap<(usize, usize), usize>,
    /// The nodes that compute one position alone, with the axis of their first result.
    nodes: HashMap<usize, usize>,
}

impl Plan {
    fn new(cut: &Cut, position: i64) -> Self {
        let graph = &cut.graph;
        let mut plan =
            Self { position, values: HashMap::new(), reads: HashMap::new(), nodes: HashMap::new() };
        let outputs: HashSet<&Value> = graph.outputs.iter().map(|it| &it.value).collect();
        let readers = graph.consumers();
        for (index, node) in graph.nodes.iter().enumerate().rev() {
            if let Some((axis, place)) = picked(node, &cut.facts)
                && place == position
            {
                plan.reads.insert((index, 0), axis);
                continue;
            }
            let Some(value) = node.outputs.first() else { continue };
            let alone = node.outputs.iter().skip(1).all(Value::is_absent) && !outputs.contains(value);
            let Some(axis) = plan.demand(graph, value, &readers).filter(|_| alone) else { continue };
            let Some(operands) = operands(node, axis, &cut.facts) else { continue };
            plan.values.insert(value.clone(), axis);
            plan.nodes.insert(index, axis);
            for (place, axis) in operands.into_iter().enumerate() {
                if let Some(axis) = axis {
                    plan.reads.insert((index, place), axis);
                }
            }
        }
        plan
    }

    /// The axis along which every reader needs one position of a value alone, if they agree.
    fn demand(&self, graph: &Graph, value: &Value, readers: &HashMap<Value, Vec<usize>>) -> Option<usize> {
        let mut found = None;
        for &reader in readers.get(value)? {
            let node = &graph.nodes[reader];
            if node.subgraphs().next().is_some() {
                return None;
            }
            if node.is("Shape") && self.is_moot(graph, &node.outputs[0], readers, LONGEST) {
                continue;
            }
            for (place, operand) in node.inputs.iter().enumerate() {
                if operand == value {
                    let axis = *self.reads.get(&(reader, place))?;
                    if *found.get_or_insert(axis) != axis {
                        return None;
                    }
                }
            }
        }
        found
    }

    /// Is a list of lengths read by nothing but Reshapes whose targets are written anew?
    fn is_moot(
        &self,
        graph: &Graph,
        list: &Value,
        readers: &HashMap<Value, Vec<usize>>,
        depth: usize,
    ) -> bool {
        let places = readers.get(list).map_or(&[][..], |it| it);
        let moot = |&reader: &usize| {
            let node = &graph.nodes[reader];
            let lists = ["Gather", "Slice", "Unsqueeze", "Squeeze", "Concat", "Cast", "Identity"];
            if node.is("Reshape") {
                return self.nodes.contains_key(&reader) && node.inputs[0] != *list;
            }
            depth > 0
                && lists.iter().any(|it| node.is(it))
                && self.is_moot(graph, &node.outputs[0], readers, depth - 1)
        };
        graph.output(list).is_none() && places.iter().all(moot)
    }

    fn apply(&self, cut: &Cut) -> Cut {
        let mut facts = cut.facts.clone();
        let mut graph = cut.graph.clone();
        let mut writer = Writer { names: graph.names(), constants: Vec::new(), rows: HashMap::new() };
        for (value, &axis) in &self.values {
            if let Some(mut fact) = facts.get(value).cloned() {
                fact.shape[axis] = Length::ONE;
                fact.constant = None;
                facts.insert(value.clone(), fact);
            }
        }
        for (index, mut node) in std::mem::take(&mut graph.nodes).into_iter().enumerate() {
            let is_pick = !self.nodes.contains_key(&index) && self.reads.contains_key(&(index, 0));
            for place in 0..node.inputs.len() {
                let Some(&axis) = self.reads.get(&(index, place)) else { continue };
                if !self.values.contains_key(&node.inputs[place]) && !is_pick {
                    let row = writer.row(&mut graph, &mut facts, &node.inputs[place], axis, self.position);
                    node.inputs[place] = row;
                }
            }
            if is_pick && self.values.contains_key(&node.inputs[0]) {
                writer.pick_first(&mut node, &mut facts);
            }
            if node.is("Reshape") && self.nodes.contains_key(&index) {
                let (from, to) = (&node.inputs[0], &node.outputs[0]);
                let shapes = facts.get(from).zip(facts.get(to));
                if let Some(target) = shapes.and_then(|(from, to)| reshape_target(&from.shape, &to.shape)) {
                    let list = Tensor::from_i64(&[target.len()], &target);
                    node.inputs[1] = writer.constant(&mut facts, "narrow/shape", list);
                    node.attributes.remove("allowzero");
                }
            }
            graph.nodes.push(node);
        }
        graph.initializers.extend(writer.constants);
        Cut { graph, facts }
    }
}

struct Writer {
    names: super::graph::Names,
    constants: Vec<(Value, Tensor)>,
    rows: HashMap<(Value, usize), Value>,
}

impl Writer {
    fn constant(&mut self, facts: &mut Facts, base: &str, tensor: Tensor) -> Value {
        let value = self.names.fresh(base);
        facts.insert(value.clone(), Fact::of(&tensor));
        self.constants.push((value.clone(), tensor));
        value
    }

    fn ints(&mut self, facts: &mut Facts, value: i64) -> Value {
        self.constant(facts, "narrow/constant", Tensor::from_i64(&[1], &[value]))
    }

    /// One position of a value along an axis, which is kept with length one.
    fn row(
        &mut self,
        graph: &mut Graph,
        facts: &mut Facts,
        value: &Value,
        axis: usize,
        position: i64,
    ) -> Value {
        if let Some(known) = self.rows.get(&(value.clone(), axis)) {
            return known.clone();
        }
        let row = self.names.fresh(&format!("{value}/row"));
        let end = if position == -1 { i64::MAX } else { position + 1 };
        let bounds = [position, end, axis as i64].map(|it| self.ints(facts, it));
        let inputs = [std::slice::from_ref(value), &bounds[..]].concat();
        let mut node = Node::new("Slice", &inputs, std::slice::from_ref(&row));
        node.name = row.to_string();
        graph.nodes.push(node);
        if let Some(mut fact) = facts.get(value).cloned() {
            fact.shape[axis] = Length::ONE;
            fact.constant = None;
            facts.insert(row.clone(), fact);
        }
        self.rows.insert((value.clone(), axis), row.clone());
        row
    }

    /// Where one position is left, it is the first.
    fn pick_first(&mut self, node: &mut Node, facts: &mut Facts) {
        if node.is("Gather") {
            let dims = facts.get(&node.inputs[1]).map_or(0, Fact::rank);
            let first = Tensor::from_i64(&vec![1; dims], &[0]);
            node.inputs[1] = self.constant(facts, "narrow/constant", first);
        } else {
            node.inputs[1] = self.ints(facts, 0);
            node.inputs[2] = self.ints(facts, 1);
        }
    }
}

/// Reductions, which work position by position along axes that they do not reduce.
const REDUCTIONS: [&str; 8] = [
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
];

/// Operators of one result and any number of operands that work element by element, with broadcasting.
const POINTWISE: [&str; 14] = [
    "Add", "Sub", "Mul", "Div", "Sum", "Mean", "Max", "Min", "Neg", "Where", "Identity", "Cast", "IsNaN",
    "Not",
];

/// For each operand, the axis along which one position is enough for one position of the result along `axis`.
/// `None` when the operator mixes positions, or it is not known that it does not.
fn operands(node: &Node, axis: usize, facts: &Facts) -> Option<Vec<Option<usize>>> {
    let shape = |place: usize| Some(&facts.get(node.input(place)?)?.shape);
    let rank = facts.get(&node.outputs[0])?.rank();
    let row = ops::find(node);
    let kind = row.map(|it| it.kind);
    let first = |axis: usize| {
        let mut needs = vec![None; node.inputs.len()];
        needs[0] = Some(axis);
        Some(needs)
    };
    let own_axis = |default: i64| facts.get(&node.inputs[0])?.axis(node.int("axis").unwrap_or(default));
    match node.op.as_str() {
        _ if !node.domain.is_empty() => None,
        op if POINTWISE.contains(&op) || kind.is_some_and(Kind::is_pointwise) => {
            let need = |place: usize| {
                if node.inputs[place].is_absent() {
                    return Some(None);
                }
                let shape = shape(place)?;
                // Along axes that are broadcast, the operand stays as it is.
                let own = (axis + shape.len()).checked_sub(rank);
                Some(own.filter(|&it| shape[it] != Length::ONE))
            };
            (0..node.inputs.len()).map(need).collect()
        }
        "MatMul" => {
            let (left, right) = (shape(0)?, shape(1)?);
            if left.len() < 2 || right.len() < 2 {
                return None;
            }
            let from_end = rank - 1 - axis;
            match from_end {
                0 => Some(vec![None, Some(right.len() - 1)]),
                1 => Some(vec![Some(left.len() - 2), None]),
                _ => None,
            }
        }
        "Softmax" | "LogSoftmax" => first(axis).filter(|_| own_axis(-1).is_some_and(|it| it != axis)),
        "LayerNormalization" | "RMSNormalization" => {
            first(axis).filter(|_| own_axis(-1).is_some_and(|it| it > axis))
        }
        op if REDUCTIONS.contains(&op) => {
            let axes = match (node.ints("axes"), node.input(1)) {
                (Some(axes), _) => axes.to_vec(),
                (None, axes) => facts.get(axes?)?.ints()?,
            };
            let fact = facts.get(&node.inputs[0])?;
            let apart = axes.iter().all(|&it| fact.axis(it).is_some_and(|it| it != axis));
            (apart && !axes.is_empty() && node.int("keepdims").unwrap_or(1) != 0).then(|| first(axis))?
        }
        "Transpose" => {
            let reversed: Vec<i64> = (0..rank as i64).rev().collect();
            first(*node.ints("perm").unwrap_or(&reversed).get(axis)? as usize)
        }
        "Reshape" => {
            let (from, to) = (shape(0)?, &facts.get(&node.outputs[0])?.shape);
            let own = reshaped_axis(from, to, axis)?;
            let (mut from, mut to) = (from.clone(), to.clone());
            (from[own], to[axis]) = (Length::ONE, Length::ONE);
            reshape_target(&from, &to)?;
            first(own)
        }
        "Concat" => {
            let same = own_axis(0)? != axis;
            same.then(|| vec![Some(axis); node.inputs.len()])
        }
        "Slice" => {
            let axes = facts.get(node.input(3)?)?.ints()?;
            let fact = facts.get(&node.inputs[0])?;
            let apart = axes.iter().all(|&it| fact.axis(it).is_some_and(|it| it != axis));
            apart.then(|| first(axis))?
        }
        _ => None,
    }
}

/// The axis before a Reshape that is `axis` behind it: as long, with as many elements in front of it.
fn reshaped_axis(from: &Shape, to: &Shape, axis: usize) -> Option<usize> {
    let product = |shape: &[Length]| shape.iter().fold(Length::ONE, |all, &it| all.zip(it, |a, b| a * b));
    let before = product(&to[..axis]);
    (0..from.len()).find(|&it| from[it] == to[axis] && product(&from[..it]) == before)
}

/// How many numbers are multiplied in matrix products, at the larger probe.
pub(super) fn multiplications(cut: &Cut) -> f64 {
    let length = |it: &Length| it.0[it.0.len() - 1] as f64;
    let of = |node: &Node| {
        let (left, y) = (cut.facts.get(&node.inputs[0])?, cut.facts.get(&node.outputs[0])?);
        let inner = if node.int("transA").unwrap_or(0) != 0 { left.shape.first() } else { left.shape.last() };
        Some(y.shape.iter().map(length).product::<f64>() * length(inner?))
    };
    let products = cut.graph.nodes.iter().filter(|it| it.op == "MatMul" || it.op == "Gemm");
    products.filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::graph::Element;

    const TOKENS: Length = Length([7, 11]);

    /// Facts for [batch, tokens, 4] everywhere, but where `shapes` says otherwise.
    fn cut(text: &str, shapes: &[(&str, Vec<Length>)]) -> Cut {
        let mut graph = Graph::parse(text).unwrap();
        let mut facts = Facts::default();
        let hidden = vec![Length([2, 3]), TOKENS, Length::fixed(4)];
        for value in graph.nodes.iter().flat_map(|it| it.outputs.clone()).chain(["x".into()]) {
            let own = shapes.iter().find(|it| *it.0 == *value).map(|it| it.1.clone());
            facts.insert(value, Fact::new(Element::F32, own.unwrap_or_else(|| hidden.clone())));
        }
        for (value, tensor) in graph.initializers.iter_mut() {
            facts.insert(value.clone(), Fact::of(tensor));
        }
        let weight = Tensor::from_f32(&[4, 4], &[0.5; 16]);
        facts.insert("w".into(), Fact::of(&weight));
        graph.inputs.retain(|it| &*it.value != "w");
        graph.initializers.insert("w".into(), weight);
        Cut { graph, facts }
    }

    fn picked() -> (&'static str, Vec<Length>) {
        ("y", vec![Length([2, 3]), Length::fixed(4)])
    }

    #[test]
    fn positions_that_nothing_mixes_are_left_out() {
        let cut = cut("a = MatMul(x, w); b = Add(a, x); y = Gather(b, 0) {axis: 1}", &[picked()]);
        let (narrowed, saving) = narrow(&cut).unwrap();
        assert_eq!(narrowed.facts.get("b").unwrap().shape[1], Length::ONE);
        assert_eq!((saving.position, saving.part), (0, 1.0 - 1.0 / 11.0));
    }

    #[test]
    fn keys_and_values_stay_whole() {
        let square = vec![Length([2, 3]), TOKENS, TOKENS];
        let turned = vec![Length([2, 3]), Length::fixed(4), TOKENS];
        let text = "q = MatMul(x, w); k = MatMul(x, w); t = Transpose(k) {perm: [0, 2, 1]}; s = MatMul(q, t); \
                    p = Softmax(s); o = MatMul(p, k); y = Gather(o, 0) {axis: 1}";
        let cut = cut(text, &[("s", square.clone()), ("p", square), ("t", turned), picked()]);
        let (narrowed, _) = narrow(&cut).unwrap();
        let length = |it: &str| narrowed.facts.get(it).unwrap().shape[1];
        assert_eq!([length("q"), length("s"), length("o")], [Length::ONE; 3]);
        assert_eq!(length("k"), TOKENS);
    }

    #[test]
    fn a_softmax_over_positions_stays_whole() {
        let text = "a = MatMul(x, w); p = Softmax(a) {axis: 1}; y = Gather(p, 0) {axis: 1}";
        assert!(narrow(&cut(text, &[picked()])).is_none());
    }

    #[test]
    fn a_reshape_to_a_value_s_own_shape_does_not_hold_it_back() {
        let list = vec![Length::fixed(3)];
        let text = "a = MatMul(x, w); l = Shape(a); r = Reshape(a, l); y = Gather(r, 0) {axis: 1}";
        let (narrowed, saving) = narrow(&cut(text, &[("l", list), picked()])).unwrap();
        assert!(saving.part > 0.9 && !narrowed.graph.nodes.iter().any(|it| it.is("Shape")));
    }

    #[test]
    fn a_value_that_is_also_read_whole_stays_whole() {
        let text = "a = MatMul(x, w); y = Gather(a, 0) {axis: 1}; z = ReduceSum(a)";
        assert!(narrow(&cut(text, &[picked()])).is_none());
    }

    #[test]
    fn the_last_position_is_spared_for_too() {
        let cut = cut("a = MatMul(x, w); y = Gather(a, -1) {axis: 1}", &[picked()]);
        assert_eq!(narrow(&cut).unwrap().1.position, -1);
    }
}
