//! This file is where graphs that this process serves take operators of its own: products of what was computed read their
//! operands, and write their result, in the order of axes that it has, instead of having it turned before and after.
//!
//! A product with a weight stays, since ONNX Runtime packs a weight once and for all.

use std::collections::{HashMap, HashSet};

use super::builder::KERNELS;
use super::canonize::MICROSOFT;
use super::facts::Facts;
use super::graph::{Element, Graph, Node, Value};

/// Puts our own operators into `graph`, which can then be served by this process alone. Names of values do not change.
pub fn fuse(graph: &mut Graph, facts: &Facts) {
    let finder = Finder::new(graph, facts);
    let found: Vec<(usize, Target)> =
        (0..graph.nodes.len()).filter_map(|place| Some((place, finder.target(place)?))).collect();
    if found.is_empty() {
        return;
    }
    let gone: HashSet<usize> = found.iter().flat_map(|it| it.1.gone.clone()).collect();
    let products = found.into_iter().map(|(place, target)| (place, finder.product(place, target, &gone)));
    for (place, product) in products.collect::<Vec<_>>() {
        graph.nodes[place] = product;
    }
    let mut place = 0..;
    graph.nodes.retain(|_| place.next().is_none_or(|it| !gone.contains(&it)));
    graph.opsets.entry(KERNELS.to_owned()).or_insert(1);
    graph.prune();
}

/// Graphs in text form that show what is fused. Each is tested to change, and to compute the same before and after.
pub fn examples() -> &'static [&'static str] {
    &[
        "q = Transpose(x[2, 3, 4, 5]) {perm: [0, 2, 1, 3]}; k = Transpose(z[2, 6, 4, 5]) {perm: [0, 2, 3, 1]}; \
         y = MatMul(q, k)",
        "c = com.microsoft::FusedMatMul(x[2, 3, 4, 5], z[2, 3, 4, 6]) {transA: 1, alpha: 0.5}; \
         y = Transpose(c) {perm: [0, 3, 1, 2]}",
        "k = Transpose(z[2, 3, 4, 6]) {perm: [0, 1, 3, 2]}; \
         c = com.microsoft::FusedMatMul(x[2, 3, 4, 5], k) {transA: 1, transB: 1}; y = Transpose(c) {perm: [0, 2, 1, 3]}",
        "c = MatMul(x[2, 3, 4, 5], z[2, 1, 5, 6]); s = Div(c, 8.0); y = Transpose(s) {perm: [0, 2, 1, 3]}",
        "c = MatMul(x[3, 4, 5], z[3, 5, 1]); y = Mul([0.125], c)",
        "s = Mul(x[2, 3, 4, 5], 0.5); q = Transpose(s) {perm: [0, 2, 1, 3]}; k = Transpose(z[2, 6, 4, 5]) {perm: [0, 2, 3, 1]}; \
         t = Div(k, 4.0); y = MatMul(q, t)",
        "c = MatMul(x[3, 4, 5], z[3, 5, 6]); s = Mul(c, 0.5); t = Transpose(s) {perm: [0, 2, 1]}; y = MatMul(t, u[3, 4, 2])",
        "a = Transpose(z[2, 3, 4, 6]) {perm: [0, 2, 1, 3]}; b = Transpose(a) {perm: [0, 1, 3, 2]}; \
         y = MatMul(x[2, 4, 5, 6], b)",
    ]
}

/// A graph in which products are looked for.
struct Finder<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    makers: HashMap<Value, usize>,
    /// How often each value is read, the graph's caller included.
    reads: HashMap<Value, usize>,
    readers: HashMap<Value, Vec<usize>>,
}

impl<'a> Finder<'a> {
    fn new(graph: &'a Graph, facts: &'a Facts) -> Self {
        let mut reads: HashMap<Value, usize> = HashMap::new();
        let inner = graph.nodes.iter().flat_map(|it| std::iter::once(it).chain(&it.members));
        let outputs = graph.outputs.iter().map(|it| it.value.clone());
        inner.flat_map(Node::reads).chain(outputs).for_each(|it| *reads.entry(it).or_default() += 1);
        Self { graph, facts, makers: graph.producers(), reads, readers: graph.consumers() }
    }

    /// What becomes of the result of the node at `place`, if that is a product of what was computed: as long as nothing else
    /// reads it, it may be scaled, and then turned once.
    fn target(&self, place: usize) -> Option<Target> {
        let node = &self.graph.nodes[place];
        let flag = |name: &str| node.int(name).unwrap_or(0) != 0;
        if !node.is("MatMul") && !is_fused(node) || flag("transBatchA") || flag("transBatchB") {
            return None;
        }
        let [a, b] = &node.inputs[..] else { return None };
        let rank = self.computed(a).filter(|&it| it >= 3 && self.computed(b) == Some(it))?;
        let value = node.outputs.first()?.clone();
        let mut target = Target { value, order: (0..rank).collect(), factor: 1.0, gone: Vec::new() };
        let scaling = |place: usize| Some((place, self.scaled(&self.graph.nodes[place])?.1));
        if let Some((place, factor)) = self.only_reader(&target.value).and_then(scaling) {
            target.follow(self.graph, place);
            target.factor = factor;
        }
        let turning = |place: usize| Some((place, permutation(&self.graph.nodes[place], rank)?));
        let turned = self.only_reader(&target.value).and_then(turning);
        if let Some((place, order)) = turned.filter(|it| it.1[rank - 1] + 2 >= rank) {
            target.follow(self.graph, place);
            target.order = order;
        }
        Some(target)
    }

    /// The product at `place` that makes its target itself. The nodes at `gone` will not be there.
    fn product(&self, place: usize, target: Target, gone: &HashSet<usize>) -> Node {
        let node = &self.graph.nodes[place];
        let flag = |name: &str| is_fused(node) && node.int(name).unwrap_or(0) != 0;
        let rank = target.order.len();
        let (a, left, by_left) = self.source(&node.inputs[0], rank, flag("transA"), gone);
        let (b, right, by_right) = self.source(&node.inputs[1], rank, flag("transB"), gone);
        let own = node.float("alpha").filter(|_| is_fused(node)).unwrap_or(1.0);
        let ints = |it: &[usize]| it.iter().map(|&it| it as i64).collect::<Vec<_>>();
        let product = Node::new("Product", &[a, b], &[target.value])
            .with("left", ints(&left))
            .with("right", ints(&right))
            .with("result", ints(&target.order))
            .with("alpha", (own * by_left * by_right * target.factor) as f32);
        Node { domain: KERNELS.to_owned(), name: node.name.clone(), ..product }
    }

    /// The number of axes of a value in single precision that is no constant.
    fn computed(&self, value: &Value) -> Option<usize> {
        let fact = self.facts.get(value).filter(|it| it.element == Element::F32 && it.constant.is_none())?;
        (!self.graph.initializers.contains_key(value)).then(|| fact.rank())
    }

    /// What an operand was before it was turned and scaled, the order of axes in which the product sees that, and the factor.
    /// Nodes at `gone` are not gone behind: a product makes their result itself.
    fn source(
        &self,
        operand: &Value,
        rank: usize,
        transposed: bool,
        gone: &HashSet<usize>,
    ) -> (Value, Vec<usize>, f64) {
        let (mut value, mut order, mut factor) = (operand.clone(), (0..rank).collect::<Vec<_>>(), 1.0);
        if transposed {
            order.swap(rank - 2, rank - 1);
        }
        let mut best = (value.clone(), order.clone(), factor);
        while let Some(place) = self.makers.get(&value).filter(|it| !gone.contains(it)) {
            let node = &self.graph.nodes[*place];
            value = if let Some(perm) = permutation(node, rank) {
                order = order.iter().map(|&it| perm[it]).collect();
                node.inputs[0].clone()
            } else if let Some((scaled, by)) =
                self.scaled(node).filter(|it| self.computed(it.0) == Some(rank))
            {
                factor *= by;
                scaled.clone()
            } else {
                break;
            };
            // Rows or columns must be dense.
            if order[rank - 2..].contains(&(rank - 1)) {
                best = (value.clone(), order.clone(), factor);
            }
        }
        best
    }

    /// The node that alone reads a value.
    fn only_reader(&self, value: &Value) -> Option<usize> {
        match self.readers.get(value)?[..] {
            [reader] if self.reads.get(value) == Some(&1) => Some(reader),
            _ => None,
        }
    }

    /// What a node multiplies by a number, and that number.
    fn scaled<'n>(&self, node: &'n Node) -> Option<(&'n Value, f64)> {
        let number = |it: &Value| {
            let tensor = self.facts.get(it)?.constant.as_ref()?;
            tensor.scalar().filter(|_| tensor.dims().len() <= 1)
        };
        let [a, b] = &node.inputs[..] else { return None };
        let scaled = match (number(a), number(b)) {
            (None, Some(by)) if node.is("Mul") => (a, by),
            (Some(by), None) if node.is("Mul") => (b, by),
            (None, Some(by)) if node.is("Div") => (a, 1.0 / by),
            _ => return None,
        };
        (scaled.1.is_finite() && node.members.is_empty()).then_some(scaled)
    }
}

/// What becomes of a product's result.
struct Target {
    value: Value,
    order: Vec<usize>,
    factor: f64,
    /// The nodes that do what the product then does itself.
    gone: Vec<usize>,
}

impl Target {
    fn follow(&mut self, graph: &Graph, place: usize) {
        self.value = graph.nodes[place].outputs[0].clone();
        self.gone.push(place);
    }
}

/// Is it ONNX Runtime's product with flags and a factor?
fn is_fused(node: &Node) -> bool {
    node.op == "FusedMatMul" && node.domain == MICROSOFT
}

/// The order in which a Transpose puts so many axes.
fn permutation(node: &Node, rank: usize) -> Option<Vec<usize>> {
    if !node.is("Transpose") || !node.members.is_empty() {
        return None;
    }
    let Some(perm) = node.ints("perm") else { return Some((0..rank).rev().collect()) };
    let perm: Option<Vec<usize>> = perm.iter().map(|&it| usize::try_from(it).ok()).collect();
    perm.filter(|it| it.len() == rank && it.iter().all(|&axis| axis < rank))
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;
    use crate::compile::facts::{Fact, Length};
    use crate::compile::graph::Tensor;

    /// The graph with our own operators; values are [2, 3, 4, 4], but `v` is a vector and `w` a constant.
    fn fused(text: &str) -> Graph {
        let mut graph = Graph::parse(text).unwrap();
        let mut facts = Facts::default();
        let ports = graph.inputs.iter().map(|it| it.value.clone());
        for value in ports.chain(graph.nodes.iter().flat_map(|it| it.outputs.clone())) {
            let lengths: &[usize] = if &*value == "v" { &[4] } else { &[2, 3, 4, 4] };
            let shape = lengths.iter().map(|&it| Length::fixed(it)).collect();
            let constant = (&*value == "w").then(|| Tensor::from_f32(lengths, &[0.5; 96]));
            facts.insert(value, Fact { constant, ..Fact::new(Element::F32, shape) });
        }
        for (value, tensor) in &graph.initializers {
            facts.insert(value.clone(), Fact::of(tensor));
        }
        fuse(&mut graph, &facts);
        graph
    }

    #[test]
    fn transposes_and_factors_go_into_the_product() {
        let it = fused(
            "q = Transpose(x) {perm: [0, 2, 1, 3]}; k = Transpose(z) {perm: [0, 2, 3, 1]}; p = MatMul(q, k); \
             s = Div(p, 2.0); y = Transpose(s) {perm: [0, 2, 1, 3]}",
        );
        assert_snapshot!(it, @r"
        in  x: float32
        in  z: float32
        y = explaind::Product(x, z) {alpha: 0.5, left: [0, 2, 1, 3], result: [0, 2, 1, 3], right: [0, 2, 3, 1]}
        out y: float32
        ");
    }

    #[test]
    fn what_others_read_stays() {
        let it = fused("p = MatMul(x, z); y = Transpose(p) {perm: [0, 2, 1, 3]}; n = Neg(p)");
        assert_snapshot!(it, @r"
        in  x: float32
        in  z: float32
        p = explaind::Product(x, z) {alpha: 1.0, left: [0, 1, 2, 3], result: [0, 1, 2, 3], right: [0, 1, 2, 3]}
        y = Transpose(p) {perm: [0, 2, 1, 3]}
        n = Neg(p)
        out y: float32
        out n: float32
        ");
    }

    #[test]
    fn an_order_without_a_dense_axis_stays() {
        let it = fused(
            "q = Transpose(x) {perm: [0, 3, 1, 2]}; p = MatMul(q, z); y = Transpose(p) {perm: [2, 3, 0, 1]}",
        );
        assert_snapshot!(it, @r"
        in  x: float32
        in  z: float32
        q = Transpose(x) {perm: [0, 3, 1, 2]}
        p = explaind::Product(q, z) {alpha: 1.0, left: [0, 1, 2, 3], result: [0, 1, 2, 3], right: [0, 1, 2, 3]}
        y = Transpose(p) {perm: [2, 3, 0, 1]}
        out y: float32
        ");
    }

    #[test]
    fn products_with_weights_and_vectors_stay() {
        for text in ["y = MatMul(x, w)", "y = MatMul(w, x)", "y = MatMul(x, v)"] {
            let kept = fused(text);
            assert!(kept.nodes.iter().all(|it| it.domain.is_empty()), "{kept}");
        }
    }
}
