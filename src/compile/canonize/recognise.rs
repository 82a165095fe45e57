//! This file is where exporters' spellings of one thing become one node.
//!
//! Activations and guarded softmaxes become groups: one node to the backward walk, with its members for the
//! file, so that a rule may use what they compute. Spelt-out LayerNormalizations are replaced, since the
//! operator exists in every dialect that graphs are raised to. Nothing is recognised by shape alone: every
//! constant is checked.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::activation;
use super::linear;
use super::norm;
use crate::compile::facts::Facts;
use crate::compile::graph::{Graph, Node, Tensor, Value};

/// What should change: the nodes at `places` become `node`.
pub(super) struct Patch {
    /// Indices of the nodes that one node will stand for.
    pub places: BTreeSet<usize>,
    /// That node. Its members are filled in when `groups` says so.
    pub node: Node,
    /// Do the nodes stay, as members of the new one?
    pub groups: bool,
    /// Constants that the new node needs.
    pub constants: Vec<(Value, Tensor)>,
}

/// Looks for one shape at the node of this index.
type Rewrite = fn(&Matcher<'_>, usize) -> Option<Patch>;

/// The rewrites, in the order in which they are tried.
static REWRITES: &[Rewrite] = &[
    activation::gelu_erf,
    activation::gelu_tanh,
    activation::swish,
    activation::guarded_softmax,
    norm::layer_norm,
    norm::rms_norm,
];

/// Brings every known spelling in `graph` into one. Names of values do not change.
pub fn recognise(graph: &mut Graph, facts: &Facts) {
    rewrite(graph, facts, REWRITES);
}

/// Puts products with weights and the biases behind them together: the linear layers that relevance rules speak
/// of. A gradient has no need of it.
pub fn recognise_layers(graph: &mut Graph, facts: &Facts) {
    rewrite(graph, facts, &[linear::biased]);
}

fn rewrite(graph: &mut Graph, facts: &Facts, rewrites: &[Rewrite]) {
    let matcher = Matcher::new(graph, facts);
    let mut taken: HashSet<usize> = HashSet::new();
    let mut patches: HashMap<usize, Patch> = HashMap::new();
    for rewrite in rewrites {
        for place in 0..graph.nodes.len() {
            let Some(mut patch) = rewrite(&matcher, place) else { continue };
            patch.node.name = graph.nodes[place].label().to_owned();
            if patch.places.iter().any(|it| taken.contains(it)) || !matcher.is_closed(&patch) {
                continue;
            }
            taken.extend(&patch.places);
            if let Some(&last) = patch.places.last() {
                patches.insert(last, patch);
            }
        }
    }
    let mut kept: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    for place in 0..kept.len() {
        if let Some(mut patch) = patches.remove(&place) {
            let members: Vec<Node> = patch.places.iter().filter_map(|&it| kept[it].take()).collect();
            if patch.groups {
                patch.node.members = members;
            }
            graph.initializers.extend(patch.constants);
            graph.nodes.push(patch.node);
        } else if !taken.contains(&place) {
            graph.nodes.extend(kept[place].take());
        }
    }
}

/// A graph to look for shapes in.
pub(super) struct Matcher<'a> {
    graph: &'a Graph,
    facts: &'a Facts,
    makers: HashMap<Value, usize>,
    readers: HashMap<Value, Vec<usize>>,
    outputs: HashSet<&'a Value>,
}

impl<'a> Matcher<'a> {
    fn new(graph: &'a Graph, facts: &'a Facts) -> Self {
        let outputs = graph.outputs.iter().map(|it| &it.value).collect();
        Self { graph, facts, makers: graph.producers(), readers: graph.consumers(), outputs }
    }

    /// May the nodes be put into one? Only if nothing else reads what they compute for each other, and everything
    /// that they read is there when the last of them runs.
    fn is_closed(&self, patch: &Patch) -> bool {
        let inner = patch.places.iter().flat_map(|&it| &self.graph.nodes[it].outputs);
        inner.filter(|it| !it.is_absent() && !patch.node.outputs.contains(it)).all(|it| {
            let readers = self.readers.get(it).map_or(&[][..], |it| it);
            !self.outputs.contains(it) && readers.iter().all(|it| patch.places.contains(it))
        })
    }

    pub(super) fn node(&self, place: usize) -> &'a Node {
        &self.graph.nodes[place]
    }

    pub(super) fn facts(&self) -> &'a Facts {
        self.facts
    }

    /// The node that makes a value, if it is this operator.
    pub(super) fn maker(&self, value: &Value, op: &str) -> Option<(usize, &'a Node)> {
        let place = *self.makers.get(value)?;
        let node = &self.graph.nodes[place];
        (node.is(op) && node.members.is_empty() && node.outputs.first() == Some(value))
            .then_some((place, node))
    }

    /// The only node that reads a value, if it is this operator.
    pub(super) fn reader(&self, value: &Value, op: &str) -> Option<(usize, &'a Node)> {
        match self.readers.get(value)?[..] {
            [place] if self.graph.nodes[place].is(op) => Some((place, &self.graph.nodes[place])),
            _ => None,
        }
    }

    /// The nodes of this operator that read a value.
    pub(super) fn readers(&self, value: &Value, op: &str) -> Vec<(usize, &'a Node)> {
        let places = self.readers.get(value).map_or(&[][..], |it| it);
        places.iter().map(|&it| (it, &self.graph.nodes[it])).filter(|it| it.1.is(op)).collect()
    }

    /// The one number that a value holds.
    pub(super) fn number(&self, value: &Value) -> Option<f64> {
        let tensor = self.facts.get(value)?.constant.as_ref()?;
        let int = || tensor.to_i64().filter(|it| it.len() == 1).map(|it| it[0] as f64);
        tensor.scalar().or_else(int)
    }
}

/// The operand of a node of two that is not `value`; `value` itself if it stands twice.
pub(super) fn other<'a>(node: &'a Node, value: &Value) -> Option<&'a Value> {
    match &node.inputs[..] {
        [a, b] if a == value => Some(b),
        [a, b] if b == value => Some(a),
        _ => None,
    }
}

/// Are the numbers the same but for the rounding of single precision?
pub(super) fn same(found: f64, wanted: f64) -> bool {
    (found - wanted).abs() <= 1e-6 * wanted.abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::facts::{Fact, Length};
    use crate::compile::graph::Element;

    /// The operators left after recognition, `x` being [2, 4].
    fn recognised(text: &str) -> Vec<String> {
        let mut graph = Graph::parse(text).unwrap();
        let mut facts = Facts::default();
        for (value, tensor) in &graph.initializers {
            facts.insert(value.clone(), Fact::of(tensor));
        }
        let row = vec![Length([2, 3]), Length::fixed(4)];
        for value in graph.nodes.iter().flat_map(|it| it.outputs.clone()).chain(["x".into()]) {
            facts.insert(value, Fact::new(Element::F32, row.clone()));
        }
        recognise(&mut graph, &facts);
        graph.nodes.iter().map(|it| it.op.clone()).collect()
    }

    #[test]
    fn both_orders_of_the_products_of_a_gelu_are_known() {
        let front = "e = Erf(u); s = Add(e, 1.0);";
        let late = format!("u = Div(x, 1.41421356); {front} p = Mul(x, s); y = Mul(p, 0.5)");
        let early = format!("h = Mul(x, 0.5); u = Mul(x, 0.70710678); {front} y = Mul(h, s)");
        assert_eq!(recognised(&late), ["Gelu"]);
        assert_eq!(recognised(&early), ["Gelu"]);
    }

    #[test]
    fn a_wrong_constant_is_no_gelu() {
        let text = "u = Div(x, 1.5); e = Erf(u); s = Add(e, 1.0); p = Mul(x, s); y = Mul(p, 0.5)";
        assert_eq!(recognised(text).len(), 5);
    }

    #[test]
    fn a_value_that_is_read_elsewhere_stays() {
        let text =
            "u = Div(x, 1.41421356); e = Erf(u); s = Add(e, 1.0); p = Mul(x, s); y = Mul(p, 0.5); z = Exp(s)";
        assert_eq!(recognised(text).len(), 6);
    }

    #[test]
    fn the_cubic_of_a_gelu_is_known_however_it_is_multiplied_out() {
        let back = "t = Tanh(v); s = Add(t, 1.0); h = Mul(x, 0.5); y = Mul(h, s)";
        let powers =
            format!("k = Pow(x, 3.0); l = Mul(k, 0.044715); i = Add(x, l); v = Mul(i, 0.7978845608); {back}");
        let factored = format!(
            "a = Mul(x, 0.7978845608); b = Mul(x, x); c = Mul(b, 0.044715); d = Add(c, 1.0); v = Mul(a, d); {back}"
        );
        assert_eq!(recognised(&powers), ["Gelu"]);
        assert_eq!(recognised(&factored), ["Gelu"]);
    }

    #[test]
    fn a_sigmoid_that_gates_its_operand_is_a_swish() {
        assert_eq!(recognised("s = Sigmoid(x); y = Mul(x, s)"), ["Swish"]);
        assert_eq!(recognised("u = Mul(x, 1.702); s = Sigmoid(u); y = Mul(x, s)"), ["Swish"]);
    }

    #[test]
    fn a_spelt_out_normalization_is_replaced() {
        let text = "m = ReduceMean(x) {axes: [-1]}; c = Sub(x, m); q = Pow(c, 2.0); v = ReduceMean(q) {axes: [-1]}; \
                    w = Add(v, 0.1); r = Sqrt(w); n = Div(c, r); o = Mul(n, [1.0, 2.0, 3.0, 4.0]); \
                    y = Add(o, [0.1, 0.2, 0.3, 0.4])";
        assert_eq!(recognised(text), ["LayerNormalization"]);
    }

    #[test]
    fn a_root_that_one_is_divided_by_scales_as_a_reciprocal_does() {
        let inverses = ["d = Reciprocal(r)", "d = Div(1.0, r)"];
        for inverse in inverses {
            let text = format!(
                "q = Pow(x, 2.0); v = ReduceMean(q) {{axes: [-1]}}; w = Add(v, 0.1); r = Sqrt(w); {inverse}; \
                 n = Mul(x, d); y = Mul(n, [1.0, 2.0, 3.0, 4.0])"
            );
            assert_eq!(recognised(&text), ["RMSNormalization"]);
        }
        let other = "q = Pow(x, 2.0); v = ReduceMean(q) {axes: [-1]}; w = Add(v, 0.1); r = Sqrt(w); \
                     d = Div(2.0, r); n = Mul(x, d); y = Mul(n, [1.0, 2.0, 3.0, 4.0])";
        assert_eq!(recognised(other).len(), 7);
    }

    #[test]
    fn a_guarded_softmax_is_one() {
        assert_eq!(recognised("p = Softmax(x); n = IsNaN(p); y = Where(n, 0.0, p)"), ["Softmax"]);
    }
}
