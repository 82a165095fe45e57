//! This file is where nodes are: an operator with its operands, results and attributes.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::{Graph, Tensor};
use crate::compile::onnx::proto::AttributeProto;

/// A value's name and identity. The empty name stands for an operand that is left out.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(Arc<str>);

impl Value {
    /// An operand that is left out.
    pub fn absent() -> Self {
        Self(Arc::from(""))
    }

    /// Is this an operand that is left out?
    pub fn is_absent(&self) -> bool {
        self.0.is_empty()
    }
}

/// One application of an operator.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its name; may be empty.
    pub name: String,
    /// The operator's domain; empty for ONNX itself.
    pub domain: String,
    /// The operator.
    pub op: String,
    /// Operands by position; see [`Value::absent`].
    pub inputs: Vec<Value>,
    /// Results by position.
    pub outputs: Vec<Value>,
    /// Attributes by name.
    pub attributes: BTreeMap<String, Attribute>,
    /// For a group: the nodes that it stands for, in order. They are what is written to files; the
    /// backward walk sees the group as one node whose operands and results are listed above.
    pub members: Vec<Node>,
}

/// A constant given with the node.
#[derive(Debug, Clone)]
pub enum Attribute {
    /// `INT`
    Int(i64),
    /// `FLOAT`
    Float(f32),
    /// `STRING`
    Text(Vec<u8>),
    /// `TENSOR`
    Tensor(Tensor),
    /// `GRAPH`: a branch or a loop's body. It may read values of the graphs around it.
    Graph(Box<Graph>),
    /// `INTS`
    Ints(Vec<i64>),
    /// `FLOATS`
    Floats(Vec<f32>),
    /// `STRINGS`
    Texts(Vec<Vec<u8>>),
    /// Anything else: kept as it is, understood by nobody here.
    Other(Box<AttributeProto>),
}

impl Node {
    /// A node without attributes.
    pub fn new(op: &str, inputs: &[Value], outputs: &[Value]) -> Self {
        Self { op: op.into(), inputs: inputs.into(), outputs: outputs.into(), ..Self::default() }
    }

    /// The same node with an attribute more.
    pub fn with(mut self, name: &str, attribute: impl Into<Attribute>) -> Self {
        self.attributes.insert(name.into(), attribute.into());
        self
    }

    /// Is it this operator of ONNX's own domain?
    pub fn is(&self, op: &str) -> bool {
        self.op == op && self.domain.is_empty()
    }

    /// The operand at `index`, if it is there.
    pub fn input(&self, index: usize) -> Option<&Value> {
        self.inputs.get(index).filter(|it| !it.is_absent())
    }

    /// The result at `index`, if it is asked for.
    pub fn output(&self, index: usize) -> Option<&Value> {
        self.outputs.get(index).filter(|it| !it.is_absent())
    }

    /// What people should call the node: its name, else its first result.
    pub fn label(&self) -> &str {
        if self.name.is_empty() { self.outputs.first().map_or("", |it| it) } else { &self.name }
    }

    /// `domain::Operator`, without the default domain.
    pub fn operator(&self) -> String {
        if self.domain.is_empty() { self.op.clone() } else { format!("{}::{}", self.domain, self.op) }
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(it)) => Some(*it),
            _ => None,
        }
    }

    /// A list attribute of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(it)) => Some(it),
            _ => None,
        }
    }

    /// A floating attribute.
    pub fn float(&self, name: &str) -> Option<f64> {
        match self.attributes.get(name) {
            Some(Attribute::Float(it)) => Some(f64::from(*it)),
            _ => None,
        }
    }

    /// A text attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Attribute::Text(it)) => std::str::from_utf8(it).ok(),
            _ => None,
        }
    }

    /// The branches or the body.
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.values().filter_map(|it| match it {
            Attribute::Graph(graph) => Some(&**graph),
            _ => None,
        })
    }

    /// Every value that the node reads: its operands and what its subgraphs read from around them.
    pub fn reads(&self) -> Vec<Value> {
        let mut reads: Vec<Value> = self.inputs.iter().filter(|it| !it.is_absent()).cloned().collect();
        for graph in self.subgraphs() {
            reads.extend(graph.captures());
        }
        reads
    }
}

impl Graph {
    /// What this graph reads without defining it: the values that a subgraph takes from around it.
    pub fn captures(&self) -> Vec<Value> {
        let mut own: HashSet<&Value> = self.inputs.iter().map(|it| &it.value).collect();
        own.extend(self.initializers.keys());
        own.extend(self.nodes.iter().flat_map(|it| &it.outputs));
        let reads = self.nodes.iter().flat_map(Node::reads);
        let outputs = self.outputs.iter().map(|it| it.value.clone());
        reads.chain(outputs).filter(|it| !own.contains(it)).collect()
    }
}

impl From<i64> for Attribute {
    fn from(it: i64) -> Self {
        Self::Int(it)
    }
}

impl From<f32> for Attribute {
    fn from(it: f32) -> Self {
        Self::Float(it)
    }
}

impl From<&str> for Attribute {
    fn from(it: &str) -> Self {
        Self::Text(it.as_bytes().to_vec())
    }
}

impl From<Vec<i64>> for Attribute {
    fn from(it: Vec<i64>) -> Self {
        Self::Ints(it)
    }
}

impl From<&[i64]> for Attribute {
    fn from(it: &[i64]) -> Self {
        Self::Ints(it.to_vec())
    }
}

impl From<Tensor> for Attribute {
    fn from(it: Tensor) -> Self {
        Self::Tensor(it)
    }
}

impl From<&str> for Value {
    fn from(name: &str) -> Self {
        Self(Arc::from(name))
    }
}

impl From<String> for Value {
    fn from(name: String) -> Self {
        Self(Arc::from(name))
    }
}

impl Deref for Value {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Value {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
