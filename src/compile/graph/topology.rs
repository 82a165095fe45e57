//! This file is where a graph's order is: producers, consumers, sorting, pruning.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{Graph, Node, Value};

/// Nodes that wait for each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the nodes {} depend on each other in a circle", .nodes.join(", "))]
pub struct Cycle {
    /// Their labels.
    pub nodes: Vec<String>,
}

impl Graph {
    /// The index of the node that makes each value.
    pub fn producers(&self) -> HashMap<Value, usize> {
        let made = |(index, node): (usize, &Node)| {
            let outputs = node.outputs.iter().filter(|it| !it.is_absent()).cloned();
            outputs.map(|it| (it, index)).collect::<Vec<_>>()
        };
        self.nodes.iter().enumerate().flat_map(made).collect()
    }

    /// The indices of the nodes that read each value, subgraphs included.
    pub fn consumers(&self) -> HashMap<Value, Vec<usize>> {
        let mut consumers: HashMap<Value, Vec<usize>> = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            for value in node.reads() {
                let readers = consumers.entry(value).or_default();
                if readers.last() != Some(&index) {
                    readers.push(index);
                }
            }
        }
        consumers
    }

    /// Brings the nodes into topological order, keeping the given order where it is one.
    pub fn sort(&mut self) -> Result<(), Cycle> {
        let producers = self.producers();
        let mut waits: Vec<usize> = vec![0; self.nodes.len()];
        let mut readers: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        let mut sorted_already = true;
        for (index, node) in self.nodes.iter().enumerate() {
            let sources: HashSet<usize> =
                node.reads().iter().filter_map(|it| producers.get(it).copied()).collect();
            waits[index] = sources.len();
            for source in sources {
                readers[source].push(index);
                sorted_already &= source < index;
            }
        }
        if sorted_already {
            return Ok(());
        }
        let mut ready: VecDeque<usize> = (0..waits.len()).filter(|&it| waits[it] == 0).collect();
        let mut order = Vec::with_capacity(waits.len());
        while let Some(index) = ready.pop_front() {
            order.push(index);
            for &reader in &readers[index] {
                waits[reader] -= 1;
                if waits[reader] == 0 {
                    ready.push_back(reader);
                }
            }
        }
        if order.len() < self.nodes.len() {
            let stuck = (0..waits.len()).filter(|&it| waits[it] > 0);
            return Err(Cycle { nodes: stuck.map(|it| self.nodes[it].label().to_owned()).collect() });
        }
        self.nodes = order.iter().map(|&it| std::mem::take(&mut self.nodes[it])).collect();
        Ok(())
    }

    /// Drops the nodes and initializers that no output depends on. Inputs stay.
    pub fn prune(&mut self) {
        let mut needed: HashSet<Value> = self.outputs.iter().map(|it| it.value.clone()).collect();
        let mut keep = vec![false; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().rev() {
            let made = node.outputs.iter().chain(node.members.iter().flat_map(|it| &it.outputs));
            keep[index] = made.into_iter().any(|it| needed.contains(it));
            if keep[index] {
                needed.extend(node.reads());
                needed.extend(node.members.iter().flat_map(Node::reads));
            }
        }
        let mut keep = keep.into_iter();
        self.nodes.retain(|_| keep.next().unwrap_or(true));
        self.initializers.retain(|name, _| needed.contains(name));
        self.types.retain(|name, _| needed.contains(name));
    }

    /// Puts the members of groups into the place of their group.
    pub fn flatten(&mut self) {
        let flat = std::mem::take(&mut self.nodes).into_iter().flat_map(|mut node| {
            if node.members.is_empty() { vec![node] } else { std::mem::take(&mut node.members) }
        });
        self.nodes = flat.collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(text: &str) -> Graph {
        Graph::parse(text).unwrap()
    }

    #[test]
    fn nodes_are_sorted_behind_what_they_read() {
        let mut it = graph("c = Exp(b); b = Exp(a); a = Exp(x)");
        it.sort().unwrap();
        let order: Vec<&str> = it.nodes.iter().map(|node| &*node.outputs[0]).collect();
        assert_eq!(order, ["a", "b", "c"]);
    }

    #[test]
    fn a_circle_is_named() {
        let mut it = graph("a = Exp(x); b = Add(a, c); c = Exp(b)");
        assert_eq!(it.sort().unwrap_err().nodes, ["b", "c"]);
    }

    #[test]
    fn pruning_drops_what_no_output_needs() {
        let mut it = graph("a = Exp(x); b = Mul(a, 2.0); c = Add(a, 3.0)");
        it.outputs.retain(|port| &*port.value == "b");
        it.prune();
        assert_eq!((it.nodes.len(), it.initializers.len()), (2, 1));
    }
}
