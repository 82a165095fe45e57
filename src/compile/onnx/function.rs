//! This file is where model-local functions are inlined, so that nothing behind it knows them.

use std::collections::{BTreeMap, HashMap};

use super::proto::{AttributeProto, FunctionProto, NodeProto};
use super::read::{self, Fetch, ReadError};
use crate::compile::graph::{Attribute, Graph, Names, Node, Value};

/// Functions by domain and name.
type Functions = HashMap<(String, String), FunctionProto>;

/// Replaces every call of a function by the function's nodes, functions called by functions included.
pub(super) fn inline(
    graph: &mut Graph,
    functions: Vec<FunctionProto>,
    fetch: Fetch<'_>,
) -> Result<(), ReadError> {
    if functions.is_empty() {
        return Ok(());
    }
    let key = |it: FunctionProto| {
        let domain = it.domain.clone().unwrap_or_default();
        ((domain, it.name.clone().unwrap_or_default()), it)
    };
    for import in functions.iter().flat_map(|it| &it.opset_import) {
        let domain = import.domain.clone().unwrap_or_default();
        graph.opsets.entry(domain).or_insert(import.version.unwrap_or(1));
    }
    let count = functions.len();
    let functions: Functions = functions.into_iter().map(key).collect();
    if functions.len() < count {
        return Err(ReadError::Overloaded);
    }
    let mut inliner = Inliner { functions: &functions, names: graph.names(), fetch, left: MOST_NODES };
    inliner.graph(graph, &mut Vec::new())?;
    for (domain, _) in functions.keys() {
        let used = |node: &Node| node.domain == *domain;
        if !domain.is_empty() && !graph.nodes.iter().any(used) {
            graph.opsets.remove(domain);
        }
    }
    Ok(())
}

struct Inliner<'a> {
    functions: &'a Functions,
    names: Names,
    fetch: Fetch<'a>,
    /// Nodes that may still be inlined.
    left: usize,
}

/// Calls that call twice double the graph at each level; no exporter comes near this many nodes.
const MOST_NODES: usize = 1 << 20;
/// Functions that call each other are inlined to this depth, which is far from the end of a thread's stack.
const DEEPEST: usize = 256;

impl Inliner<'_> {
    fn graph(&mut self, graph: &mut Graph, calls: &mut Vec<String>) -> Result<(), ReadError> {
        let nodes = std::mem::take(&mut graph.nodes);
        for node in nodes {
            self.node(node, &mut graph.nodes, calls)?;
        }
        Ok(())
    }

    fn node(
        &mut self,
        mut node: Node,
        out: &mut Vec<Node>,
        calls: &mut Vec<String>,
    ) -> Result<(), ReadError> {
        for attribute in node.attributes.values_mut() {
            if let Attribute::Graph(graph) = attribute {
                self.graph(graph, calls)?;
            }
        }
        let functions = self.functions;
        let Some(function) = functions.get(&(node.domain.clone(), node.op.clone())) else {
            out.push(node);
            return Ok(());
        };
        let name = node.operator();
        self.left = self.left.saturating_sub(function.node.len());
        if calls.contains(&name) || self.left == 0 || calls.len() == DEEPEST {
            return Err(ReadError::Recursion(name));
        }
        calls.push(name);
        for inner in self.body(&node, function)? {
            self.node(inner, out, calls)?;
        }
        calls.pop();
        Ok(())
    }

    /// The function's nodes with the call's operands, results and attributes put in.
    fn body(&mut self, call: &Node, function: &FunctionProto) -> Result<Vec<Node>, ReadError> {
        let mut renaming: HashMap<Value, Value> = HashMap::new();
        for (index, formal) in function.input.iter().enumerate() {
            let actual = call.inputs.get(index).cloned().unwrap_or_else(Value::absent);
            renaming.insert(formal.as_str().into(), actual);
        }
        let mut copies = Vec::new();
        for (index, formal) in function.output.iter().enumerate() {
            let Some(actual) = call.output(index) else { continue };
            // A function may hand an input through, or one value out twice.
            if let Some(known) = renaming.get(formal.as_str()).cloned() {
                copies.push(Node::new("Identity", &[known], std::slice::from_ref(actual)));
            } else {
                renaming.insert(formal.as_str().into(), actual.clone());
            }
        }
        let defaults: BTreeMap<&str, &AttributeProto> =
            function.attribute_proto.iter().filter_map(|it| Some((it.name.as_deref()?, it))).collect();
        let mut nodes = Vec::new();
        for proto in &function.node {
            let proto = substitute(proto.clone(), call, &defaults);
            let mut node = read::node(proto, self.fetch, 0)?;
            self.bind(&mut node, call);
            node.name = format!("{}/{}", call.label(), node.label());
            self.rename(&mut node, &mut renaming, call.label());
            nodes.push(node);
        }
        nodes.extend(copies);
        Ok(nodes)
    }

    /// Attributes that refer to the call's take its value, or go when it has none.
    fn bind(&self, node: &mut Node, call: &Node) {
        let names: Vec<String> = node.attributes.keys().cloned().collect();
        for name in names {
            let Some(Attribute::Other(proto)) = node.attributes.get(&name) else { continue };
            let Some(source) = proto.ref_attr_name.clone().filter(|it| !it.is_empty()) else { continue };
            match call.attributes.get(&source).cloned() {
                Some(value) => node.attributes.insert(name, value),
                None => node.attributes.remove(&name),
            };
        }
        for attribute in node.attributes.values_mut() {
            if let Attribute::Graph(graph) = attribute {
                graph.nodes.iter_mut().for_each(|it| self.bind(it, call));
            }
        }
    }

    fn rename(&mut self, node: &mut Node, renaming: &mut HashMap<Value, Value>, prefix: &str) {
        for value in node.inputs.iter_mut().chain(&mut node.outputs).filter(|it| !it.is_absent()) {
            *value = self.renamed(value, renaming, prefix);
        }
        for attribute in node.attributes.values_mut() {
            let Attribute::Graph(graph) = attribute else { continue };
            let initializers = std::mem::take(&mut graph.initializers);
            let rename = |(it, tensor)| (self.renamed(&it, renaming, prefix), tensor);
            graph.initializers = initializers.into_iter().map(rename).collect();
            for port in graph.inputs.iter_mut().chain(&mut graph.outputs) {
                port.value = self.renamed(&port.value, renaming, prefix);
            }
            for inner in &mut graph.nodes {
                self.rename(inner, renaming, prefix);
            }
        }
    }

    fn renamed(&mut self, value: &Value, renaming: &mut HashMap<Value, Value>, prefix: &str) -> Value {
        let fresh = || self.names.fresh(&format!("{prefix}/{value}"));
        renaming.entry(value.clone()).or_insert_with(fresh).clone()
    }
}

/// Puts defaults in for references that the call leaves open.
fn substitute(mut proto: NodeProto, call: &Node, defaults: &BTreeMap<&str, &AttributeProto>) -> NodeProto {
    for attribute in &mut proto.attribute {
        let Some(source) = attribute.ref_attr_name.as_deref() else { continue };
        if call.attributes.contains_key(source) {
            continue;
        }
        if let Some(&default) = defaults.get(source) {
            let name = attribute.name.take();
            *attribute = AttributeProto { name, ..default.clone() };
        }
    }
    proto
}
