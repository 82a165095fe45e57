//! Where a model file becomes graphs that ONNX Runtime opens with their weights in memory once.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use bytes::Bytes;

use crate::{
    compile::{
        self,
        graph::{Element as Stored, Tensor},
    },
    runtime::{Element, Graph, SharedWeights, Source, Weight},
};

/// Initializers of more bytes than this are shared between sessions; smaller ones stay in the graph, where
/// the optimiser may fold them.
const SHARED_FROM: usize = 4096;

/// Reads a model file and the data files beside it.
///
/// # Errors
/// What is wrong with the file, in a sentence.
pub fn read(path: &Path) -> Result<compile::graph::Graph, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let fetch = |external: &compile::onnx::read::External| -> Result<Bytes, String> {
        let mut file = File::open(folder.join(&external.location)).map_err(|error| error.to_string())?;
        file.seek(SeekFrom::Start(external.offset)).map_err(|error| error.to_string())?;
        let mut data = Vec::new();
        match external.length {
            Some(length) => file.take(length).read_to_end(&mut data),
            None => file.read_to_end(&mut data),
        }
        .map_err(|error| error.to_string())?;
        Ok(data.into())
    };
    let mut graph = compile::onnx::read::read(bytes.into(), &fetch).map_err(|error| error.to_string())?;
    compile::normalise::weights(&mut graph);
    Ok(graph)
}

/// As [`read`], the large weights among those that sessions share: graph and sessions hold them in memory once.
///
/// # Errors
/// As [`read`]; ONNX Runtime's words.
pub fn read_shared(path: &Path, weights: &SharedWeights) -> Result<compile::graph::Graph, String> {
    let mut graph = read(path)?;
    for (name, tensor) in &mut graph.initializers {
        if let Some(weight) = weight(name, tensor).filter(|_| is_large(tensor)) {
            let held = weights.hold(&weight).map_err(|error| error.to_string())?;
            *tensor = Tensor::new(tensor.element(), weight.dims, held).map_err(|error| error.to_string())?;
        }
    }
    Ok(graph)
}

fn is_large(tensor: &Tensor) -> bool {
    tensor.data().len() > SHARED_FROM
}

/// `None` for a type that no tensor of the runtime's has.
fn weight(name: &str, tensor: &Tensor) -> Option<Weight> {
    let (element, dims) = (element(tensor.element())?, tensor.dims().to_vec());
    Some(Weight { name: name.to_owned(), element, dims, bytes: tensor.data().clone() })
}

/// The graph for ONNX Runtime, its large weights apart; those of types that no tensor of the runtime's has stay in it.
pub fn runnable(graph: &compile::graph::Graph) -> Graph {
    let apart = |it: &Tensor| is_large(it) && element(it.element()).is_some();
    let split = compile::onnx::write::write_split(graph, &apart);
    let weights = split.weights.iter().filter_map(|(name, tensor)| weight(name, tensor)).collect();
    Graph { model: Source::Bytes(split.model.into()), weights }
}

/// Does a node of the graph itself, not of a branch, compute the value?
pub fn computes(graph: &compile::graph::Graph, value: &compile::graph::Value) -> bool {
    graph.nodes.iter().any(|it| it.outputs.contains(value))
}

/// The graph with one value as its only output, and nothing that it does not need.
pub fn ending_in(graph: &compile::graph::Graph, value: &compile::graph::Value) -> compile::graph::Graph {
    let mut cut = graph.clone();
    let ty = compile::graph::Type::Other(Box::default());
    cut.outputs = vec![compile::graph::Port { value: value.clone(), ty }];
    cut.prune();
    cut
}

fn element(stored: Stored) -> Option<Element> {
    Some(match stored {
        Stored::F32 => Element::F32,
        Stored::F16 => Element::F16,
        Stored::F64 => Element::F64,
        Stored::I64 => Element::I64,
        Stored::I32 => Element::I32,
        Stored::I8 => Element::I8,
        Stored::U8 => Element::U8,
        Stored::Bool => Element::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_a_type_that_sessions_do_not_share_stay_in_the_graph() {
        let mut graph = compile::graph::Graph::parse("y = Mul(x, w)").unwrap();
        graph.inputs.retain(|it| &*it.value == "x");
        for (stored, apart) in [(Stored::F32, 1), (Stored::BF16, 0)] {
            let tensor = Tensor::from_f64(stored, &[SHARED_FROM], &vec![0.5; SHARED_FROM]);
            graph.initializers.insert("w".into(), tensor.clone());
            let runnable = runnable(&graph);
            assert_eq!(runnable.weights.len(), apart);
            let Source::Bytes(bytes) = runnable.model else { panic!("not in memory") };
            assert_eq!(bytes.len() > tensor.data().len(), apart == 0);
        }
    }
}
