//! This file is where the nodes of a lowering are collected.

use std::collections::HashMap;

use crate::compile::facts::{Fact, Facts};
use crate::compile::graph::{Attribute, Element, Names, Node, Tensor, Type, Value};
use crate::compile::ops::Misfit;

/// Nodes that will stand for one node, named after it.
pub(super) struct Draft<'a> {
    names: &'a mut Names,
    opset: i64,
    facts: &'a Facts,
    types: &'a HashMap<Value, Type>,
    origin: String,
    nodes: Vec<Node>,
    constants: Vec<(Value, Tensor)>,
}

/// Attributes of a node.
type Attributes<'a> = &'a [(&'a str, Attribute)];

impl<'a> Draft<'a> {
    pub(super) fn new(
        names: &'a mut Names,
        opset: i64,
        (facts, types): (&'a Facts, &'a HashMap<Value, Type>),
        node: &Node,
    ) -> Self {
        let origin = node.label().to_owned();
        Self { names, opset, facts, types, origin, nodes: Vec::new(), constants: Vec::new() }
    }

    pub(super) fn finish(self) -> (Vec<Node>, Vec<(Value, Tensor)>) {
        (self.nodes, self.constants)
    }

    /// What is known of an operand of the node.
    pub(super) fn fact(&self, value: &Value) -> Result<&'a Fact, Misfit> {
        self.facts.get(value).ok_or_else(|| Misfit(format!("the shape of {value} could not be learned")))
    }

    /// The number of an operand's axes, if it was learned or the file declares it.
    pub(super) fn rank(&self, value: &Value) -> Option<usize> {
        let declared = || match self.types.get(value)? {
            Type::Tensor(_, dims) => dims.as_ref().map(Vec::len),
            Type::Other(_) => None,
        };
        self.facts.get(value).map(Fact::rank).or_else(declared)
    }

    /// The length of an operand's axis, which must not vary.
    pub(super) fn length(&self, value: &Value, axis: usize) -> Result<usize, Misfit> {
        let length = self.fact(value)?.shape.get(axis).and_then(|it| it.constant());
        length.ok_or_else(|| Misfit(format!("axis {axis} of {value} varies")))
    }

    pub(super) fn constant(&mut self, tensor: Tensor) -> Value {
        let value = self.names.fresh(&format!("{}/constant", self.origin));
        self.constants.push((value.clone(), tensor));
        value
    }

    pub(super) fn ints(&mut self, values: &[i64]) -> Value {
        self.constant(Tensor::from_i64(&[values.len()], values))
    }

    pub(super) fn int(&mut self, value: i64) -> Value {
        self.constant(Tensor::from_i64(&[], &[value]))
    }

    pub(super) fn scalar(&mut self, value: f64) -> Value {
        self.constant(Tensor::from_f64(Element::F32, &[], &[value]))
    }

    /// Appends a node with one result.
    pub(super) fn emit(&mut self, op: &str, inputs: &[&Value], attributes: Attributes<'_>) -> Value {
        let value = self.names.fresh(&format!("{}/{}", self.origin, op.to_lowercase()));
        self.end(op, inputs, attributes, std::slice::from_ref(&value));
        value
    }

    /// Appends a node whose results have given names.
    pub(super) fn end(&mut self, op: &str, inputs: &[&Value], attributes: Attributes<'_>, outputs: &[Value]) {
        let inputs: Vec<Value> = inputs.iter().map(|&it| it.clone()).collect();
        let mut node = Node::new(op, &inputs, outputs);
        node.name = self.names.fresh(&format!("{}/{op}", self.origin)).to_string();
        for (name, attribute) in attributes {
            node.attributes.insert((*name).to_owned(), attribute.clone());
        }
        self.nodes.push(node);
    }

    /// Says of which domain the operator of the last node is.
    pub(super) fn of_domain(&mut self, domain: &str) {
        if let Some(node) = self.nodes.last_mut() {
            node.domain = domain.to_owned();
        }
    }

    pub(super) fn transpose(&mut self, x: &Value, perm: &[i64]) -> Value {
        self.emit("Transpose", &[x], &[("perm", perm.into())])
    }

    pub(super) fn reshape(&mut self, x: &Value, target: &[i64]) -> Value {
        let target = self.ints(target);
        self.emit("Reshape", &[x, &target], &[])
    }

    pub(super) fn unsqueeze(&mut self, x: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.emit("Unsqueeze", &[x, &axes], &[])
    }

    /// `x` from `start` to `end` along `axis`.
    pub(super) fn slice(&mut self, x: &Value, start: i64, end: i64, axis: i64) -> Value {
        let (start, end, axis) = (self.ints(&[start]), self.ints(&[end]), self.ints(&[axis]));
        self.emit("Slice", &[x, &start, &end, &axis], &[])
    }

    /// The length of an axis, computed when the graph runs, as a list of one.
    pub(super) fn measured(&mut self, x: &Value, axis: i64) -> Value {
        let shape = self.emit("Shape", &[x], &[]);
        let axis = self.ints(&[axis]);
        self.emit("Gather", &[&shape, &axis], &[("axis", 0.into())])
    }

    /// 0, 1, 2 … as many as an axis is long.
    pub(super) fn range(&mut self, x: &Value, axis: i64) -> Value {
        let shape = self.emit("Shape", &[x], &[]);
        let (axis, zero, one) = (self.int(axis), self.int(0), self.int(1));
        let length = self.emit("Gather", &[&shape, &axis], &[("axis", 0.into())]);
        self.emit("Range", &[&zero, &length, &one], &[])
    }

    pub(super) fn reduce(&mut self, op: &str, x: &Value, axis: i64, keep: bool) -> Value {
        let keepdims = ("keepdims", i64::from(keep).into());
        if op == "ReduceSum" || self.opset >= 18 {
            let axes = self.ints(&[axis]);
            return self.emit(op, &[x, &axes], &[keepdims]);
        }
        self.emit(op, &[x], &[("axes", vec![axis].into()), keepdims])
    }
}
