//! This file is where derived graphs grow: nodes are appended, named after the node that caused them, and
//! their shapes known.
//!
//! Two appended nodes that compute the same are one. Helpers know the two dialects of ONNX that graphs are
//! raised to (opset 17, where most reductions carry their axes as an attribute, and 18 and later).

mod helpers;
mod lengths;
mod products;

use std::collections::{HashMap, HashSet};

use super::facts::{Fact, Facts, Shape};
use super::graph::{Attribute, Element, Graph, Names, Node, Tensor, Value};

/// A graph under construction: a forward graph, to whose end nodes are appended.
pub struct Builder {
    graph: Graph,
    facts: Facts,
    active: HashSet<Value>,
    names: Names,
    seen: HashMap<String, Vec<Value>>,
    constants: HashMap<(Element, Vec<usize>, Vec<u8>), Value>,
    origin: String,
    element: Element,
    /// How many nodes the forward graph has.
    start: usize,
    /// May operators stand in the graph that only this process has?
    kernels: bool,
}

impl Builder {
    /// Starts from a forward graph of which everything that will be asked is known.
    ///
    /// `active` are the values that cotangents are wanted for.
    pub fn new(graph: Graph, facts: Facts, active: HashSet<Value>) -> Self {
        let names = graph.names();
        let (seen, constants) = (HashMap::new(), HashMap::new());
        let (origin, element, start) = ("graph".into(), Element::F32, graph.nodes.len());
        let kernels = false;
        Self { graph, facts, active, names, seen, constants, origin, element, start, kernels }
    }

    /// Lets operators into the graph that only this process has; see [`Self::kernel`].
    pub fn with_kernels(self, kernels: bool) -> Self {
        Self { kernels, ..self }
    }

    /// The graph as it stands.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The graph, finished; and what is known of its values.
    pub fn finish(self) -> (Graph, Facts) {
        (self.graph, self.facts)
    }

    /// Names what follows after `label`, and gives constants that follow the type `element`.
    pub fn attribute_to(&mut self, label: &str, element: Element) {
        self.origin = label.to_owned();
        self.element = element;
    }

    /// Is a cotangent of this operand wanted?
    pub fn wants(&self, value: &str) -> bool {
        self.active.contains(value)
    }

    /// Asks a rule for the cotangents of `wanted` instead.
    pub fn asking<T>(&mut self, wanted: HashSet<Value>, ask: impl FnOnce(&mut Self) -> T) -> T {
        let active = std::mem::replace(&mut self.active, wanted);
        let answer = ask(self);
        self.active = active;
        answer
    }

    /// What is known of a value, if anything is.
    pub fn known(&self, value: &str) -> Option<&Fact> {
        self.facts.get(value)
    }

    /// What is known of a value that rules may ask about: an operand or a result of the node they are called
    /// for, or a value that the builder made.
    pub fn fact(&self, value: &str) -> &Fact {
        self.facts.get(value).expect("the walk checks its nodes' values, and the builder knows its own")
    }

    /// The shape of a value; see [`Self::fact`].
    pub fn shape(&self, value: &str) -> Shape {
        self.fact(value).shape.clone()
    }

    /// Number of axes of a value; see [`Self::fact`].
    pub fn rank(&self, value: &str) -> usize {
        self.fact(value).rank()
    }

    /// The constant integers of an operand, if it is constant.
    pub fn ints_of(&self, value: &str) -> Option<Vec<i64>> {
        self.fact(value).ints()
    }

    /// The operator version in force.
    pub fn opset(&self) -> i64 {
        self.graph.opset()
    }

    /// Declares that operators of `domain` are used.
    pub fn import(&mut self, domain: &str) {
        if !self.graph.opsets.contains_key(domain) {
            self.graph.opsets.insert(domain.to_owned(), 1);
        }
    }

    /// Appends a node with one result. `fact` says what is known of the result.
    pub fn emit(&mut self, op: &str, inputs: &[&Value], attributes: Attributes<'_>, fact: Fact) -> Value {
        self.emit_in("", op, inputs, attributes, vec![fact]).swap_remove(0)
    }

    /// Appends a node of any domain with any number of results.
    pub fn emit_in(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&Value],
        attributes: Attributes<'_>,
        facts: Vec<Fact>,
    ) -> Vec<Value> {
        let key = format!("{domain}::{op}/{}{inputs:?}{attributes:?}", facts.len());
        if let Some(known) = self.seen.get(&key) {
            return known.clone();
        }
        let base = format!("{}/grad/{}", self.origin, op.to_lowercase());
        let outputs: Vec<Value> = facts.iter().map(|_| self.names.fresh(&base)).collect();
        let mut node = Node::new(op, &inputs.iter().map(|&it| it.clone()).collect::<Vec<_>>(), &outputs);
        node.domain = domain.to_owned();
        node.name = outputs[0].to_string();
        for (name, attribute) in attributes {
            node = node.with(name, attribute.clone());
        }
        self.graph.nodes.push(node);
        for (output, fact) in outputs.iter().zip(facts) {
            self.facts.insert(output.clone(), fact);
        }
        self.seen.insert(key, outputs.clone());
        outputs
    }

    /// Appends an operator that only this process has, in single precision; `operands` begins with a cotangent, whose
    /// shape the result has. `None` where such operators may not stand.
    pub fn kernel(&mut self, op: &str, operands: &[&Value]) -> Option<Value> {
        let shape = self.shape(operands[0]);
        let single = operands.iter().all(|it| self.fact(it).element == Element::F32);
        if !self.kernels || !single {
            return None;
        }
        self.import(KERNELS);
        self.emit_in(KERNELS, op, operands, &[], vec![Fact::new(Element::F32, shape)]).pop()
    }

    /// Appends a pointwise operator of one operand whose result gets a given name, which must be free.
    pub fn named(&mut self, op: &str, x: &Value, name: &str) -> Value {
        let value = self.names.fresh(name);
        let fact = Fact::new(self.fact(x).element, self.shape(x));
        let mut node = Node::new(op, std::slice::from_ref(x), std::slice::from_ref(&value));
        node.name = value.to_string();
        self.graph.nodes.push(node);
        self.facts.insert(value.clone(), fact);
        value
    }

    /// A constant; equal ones are stored once.
    pub fn constant(&mut self, tensor: Tensor) -> Value {
        let key = (tensor.element(), tensor.dims().to_vec(), tensor.data().to_vec());
        if let Some(known) = self.constants.get(&key) {
            return known.clone();
        }
        let value = self.names.fresh(&format!("constant/{}", constant_name(&tensor)));
        self.facts.insert(value.clone(), Fact::of(&tensor));
        self.graph.initializers.insert(value.clone(), tensor);
        self.constants.insert(key, value.clone());
        value
    }

    /// A floating scalar of the type that the current node computes in.
    pub fn scalar(&mut self, value: f64) -> Value {
        self.constant(Tensor::from_f64(self.element, &[], &[value]))
    }

    /// A list of integers.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        self.constant(Tensor::from_i64(&[values.len()], values))
    }

    /// A further result of a node of the forward graph, asked for by position: LayerNormalization's mean, the
    /// positions of a maximum. `None` when no such node makes `first`.
    pub fn further_output(&mut self, first: &Value, index: usize, fact: Fact) -> Option<Value> {
        let node = self.graph.nodes.iter_mut().find(|it| it.outputs.first() == Some(first))?;
        while node.outputs.len() <= index {
            node.outputs.push(Value::absent());
        }
        if node.outputs[index].is_absent() {
            node.outputs[index] = self.names.fresh(&format!("{first}/{index}"));
        }
        let value = node.outputs[index].clone();
        self.facts.insert(value.clone(), fact);
        Some(value)
    }
}

/// The domain of operators that only this process has. No file may hold them.
pub const KERNELS: &str = "explaind";

/// Attributes of a node to append.
pub type Attributes<'a> = &'a [(&'a str, Attribute)];

/// FNV-1a over dimensions and bytes.
fn fingerprint(tensor: &Tensor) -> u64 {
    let dims = tensor.dims().iter().flat_map(|it| it.to_le_bytes());
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    dims.chain(tensor.data().iter().copied()).fold(0xcbf2_9ce4_8422_2325, mix)
}

fn constant_name(tensor: &Tensor) -> String {
    let words: Vec<String> = match (tensor.len(), tensor.to_i64(), tensor.to_f64()) {
        (0..=4, Some(ints), _) => ints.iter().map(i64::to_string).collect(),
        (0..=4, _, Some(floats)) => floats.iter().map(f64::to_string).collect(),
        // Sessions share large constants by name, so the name follows the contents.
        _ => vec![format!("{}-{:016x}", tensor.element(), fingerprint(tensor))],
    };
    words.join(",")
}
