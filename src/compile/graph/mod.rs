//! This file is where the intermediate representation is: an ONNX graph whose values are names.
//!
//! A value has one producer: a graph input, an initializer, or an output of a node. Clones of a graph
//! share the bytes of their initializers. [`text`] gives every graph a form that people read.

mod element;
mod node;
mod tensor;
pub mod text;
mod topology;

use std::collections::{BTreeMap, HashMap, HashSet};

use indexmap::IndexMap;

pub use element::Element;
pub use node::{Attribute, Node, Value};
pub use tensor::{Tensor, TensorError};
pub use topology::Cycle;

use super::onnx::proto;

/// A computation from named inputs to named outputs.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// The graph's own name; of no consequence.
    pub name: String,
    /// What the caller gives; initializers are not among them.
    pub inputs: Vec<Port>,
    /// What the caller gets.
    pub outputs: Vec<Port>,
    /// In topological order.
    pub nodes: Vec<Node>,
    /// Constants by name.
    pub initializers: IndexMap<Value, Tensor>,
    /// Types that the file declares for inner values; a hint only.
    pub types: HashMap<Value, Type>,
    /// Version by operator domain; the default domain is the empty string. Empty in subgraphs.
    pub opsets: BTreeMap<String, i64>,
    /// The file format's version.
    pub ir_version: i64,
}

/// An input or output.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Its name.
    pub value: Value,
    /// Its type.
    pub ty: Type,
}

/// The type of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// A dense tensor; `None` for an unknown rank.
    Tensor(Element, Option<Vec<Axis>>),
    /// Sequences, maps, optional values: kept as they are, understood by nobody here.
    Other(Box<proto::TypeProto>),
}

/// One dimension of a declared type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Axis {
    /// Always this long.
    Fixed(usize),
    /// Named, such as `batch`.
    Named(String),
    /// Nothing is said.
    Unknown,
}

impl Port {
    /// A tensor port.
    pub fn tensor(value: impl Into<Value>, element: Element, dims: Vec<Axis>) -> Self {
        Self { value: value.into(), ty: Type::Tensor(element, Some(dims)) }
    }

    /// The element type, if it is a tensor.
    pub fn element(&self) -> Option<Element> {
        match self.ty {
            Type::Tensor(element, _) => Some(element),
            Type::Other(_) => None,
        }
    }

    /// The dimensions, if it is a tensor of known rank.
    pub fn dims(&self) -> Option<&[Axis]> {
        match &self.ty {
            Type::Tensor(_, dims) => dims.as_deref(),
            Type::Other(_) => None,
        }
    }
}

impl Graph {
    /// The version of the default operator domain.
    pub fn opset(&self) -> i64 {
        self.opsets.get("").copied().unwrap_or(0)
    }

    /// Types that the file declares: of inputs, outputs and inner values.
    pub fn declared(&self) -> HashMap<Value, Type> {
        let ports = self.inputs.iter().chain(&self.outputs).map(|it| (it.value.clone(), it.ty.clone()));
        self.types.clone().into_iter().chain(ports).collect()
    }

    /// The input of this name.
    pub fn input(&self, name: &str) -> Option<&Port> {
        self.inputs.iter().find(|it| &*it.value == name)
    }

    /// The output of this name.
    pub fn output(&self, name: &str) -> Option<&Port> {
        self.outputs.iter().find(|it| &*it.value == name)
    }

    /// Gives values other names: initializers, operands and results of nodes, outputs, in subgraphs too.
    pub fn rename(&mut self, names: &HashMap<Value, Value>) {
        let swap = |value: &mut Value| {
            if let Some(name) = names.get(value) {
                *value = name.clone();
            }
        };
        let initializers = std::mem::take(&mut self.initializers);
        let named = |(name, tensor)| (names.get(&name).cloned().unwrap_or(name), tensor);
        self.initializers = initializers.into_iter().map(named).collect();
        self.outputs.iter_mut().for_each(|it| swap(&mut it.value));
        for node in &mut self.nodes {
            node.inputs.iter_mut().chain(&mut node.outputs).for_each(swap);
            for attribute in node.attributes.values_mut() {
                if let Attribute::Graph(inner) = attribute {
                    inner.rename(names);
                }
            }
        }
    }

    /// Every name in use, in this graph and in its subgraphs, of values and of nodes.
    pub fn names(&self) -> Names {
        let mut taken = HashSet::new();
        self.collect_names(&mut taken);
        Names { taken }
    }

    fn collect_names(&self, taken: &mut HashSet<String>) {
        taken.extend(self.inputs.iter().map(|it| it.value.to_string()));
        taken.extend(self.initializers.keys().map(|it| it.to_string()));
        for node in &self.nodes {
            taken.insert(node.name.to_string());
            taken.extend(node.outputs.iter().map(|it| it.to_string()));
            taken.extend(node.members.iter().flat_map(|it| &it.outputs).map(|it| it.to_string()));
            for graph in node.subgraphs() {
                graph.collect_names(taken);
            }
        }
    }
}

/// The names in use, so that new ones differ from them.
#[derive(Debug, Clone, Default)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Is the name in use?
    pub fn is_taken(&self, name: &str) -> bool {
        self.taken.contains(name)
    }

    /// `base`, or `base_1`, `base_2` and so on if that is taken; the answer is taken from now on.
    pub fn fresh(&mut self, base: &str) -> Value {
        let numbered = (1..).map(|n| format!("{base}_{n}"));
        let free = std::iter::once(base.to_owned())
            .chain(numbered)
            .find(|it| !it.is_empty() && !self.taken.contains(it))
            .expect("the numbers do not end");
        self.taken.insert(free.clone());
        free.into()
    }
}
