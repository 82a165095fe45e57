//! This file is where a model file is skimmed for the names of the data files that lie beside it, and for operators that
//! it may not hold.
//!
//! ONNX keeps large weights in other files, whose names only the protobuf tells. The skim seeks over
//! everything else, so that it costs no memory however large the weights are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read, Result};
use std::path::Path;

use crate::compile::builder::KERNELS;

/// The messages on the way from a model to the entries that name its data files.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Function,
    Graph,
    Node,
    Attribute,
    Sparse,
    Tensor,
    Entry,
}

/// Graphs nest in attributes of nodes; no exporter comes near this depth.
const MAX_DEPTH: usize = 64;

/// What a skim finds.
#[derive(Default)]
pub(super) struct Skimmed {
    /// `location` of every external tensor, with the name of one tensor that lies there.
    pub locations: BTreeMap<String, String>,
    /// Is there a node of the domain [`KERNELS`]?
    pub kernels: bool,
}

/// Skims a model file.
///
/// Fails with `InvalidData` on what is not an ONNX model with a graph.
pub(super) fn skim(model: &Path) -> Result<Skimmed> {
    let file = File::open(model)?;
    let length = file.metadata()?.len();
    let mut skim = Skim { input: BufReader::new(file), found: Skimmed::default(), graphs: 0 };
    skim.message(Message::Model, length, 0, &mut Tensor::default())?;
    if skim.graphs == 0 {
        return Err(Error::new(ErrorKind::InvalidData, "it holds no graph"));
    }
    Ok(skim.found)
}

#[derive(Default)]
struct Tensor {
    name: String,
    location: Option<String>,
    key: String,
    value: String,
}

struct Skim {
    input: BufReader<File>,
    found: Skimmed,
    graphs: usize,
}

impl Skim {
    /// Reads the fields of one message of `length` bytes.
    fn message(&mut self, kind: Message, length: u64, depth: usize, tensor: &mut Tensor) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidData, "its messages nest too deeply"));
        }
        let mut left = length;
        while left > 0 {
            let tag = self.varint(&mut left)?;
            match tag & 7 {
                0 => drop(self.varint(&mut left)?),
                1 => self.skip(8, &mut left)?,
                2 => {
                    let size = self.varint(&mut left)?;
                    if size > left {
                        return Err(Error::new(ErrorKind::InvalidData, "it is cut off"));
                    }
                    self.field(kind, tag >> 3, size, depth, tensor)?;
                    left -= size;
                }
                5 => self.skip(4, &mut left)?,
                _ => return Err(Error::new(ErrorKind::InvalidData, "it is not a protobuf message")),
            }
        }
        Ok(())
    }

    /// Descends into what may lead to a tensor, and passes over the rest. Numbers are those of `onnx.proto`.
    fn field(
        &mut self,
        kind: Message,
        number: u64,
        size: u64,
        depth: usize,
        outer: &mut Tensor,
    ) -> Result<()> {
        let inner = match (kind, number) {
            (Message::Model, 7) | (Message::Attribute, 6 | 11) => Message::Graph,
            (Message::Model, 25) => Message::Function,
            (Message::Graph, 1) | (Message::Function, 7) => Message::Node,
            (Message::Node, 5) => Message::Attribute,
            (Message::Graph, 5) | (Message::Attribute, 5 | 10) | (Message::Sparse, 1 | 2) => Message::Tensor,
            (Message::Graph, 15) | (Message::Attribute, 22 | 23) => Message::Sparse,
            (Message::Tensor, 13) => Message::Entry,
            (Message::Node, 7) => {
                return self.string(size).map(|domain| self.found.kernels |= domain == KERNELS);
            }
            (Message::Tensor, 8) => return self.string(size).map(|name| outer.name = name),
            (Message::Entry, 1) => return self.string(size).map(|key| outer.key = key),
            (Message::Entry, 2) => return self.string(size).map(|value| outer.value = value),
            _ => return self.skip(size, &mut { size }),
        };
        match inner {
            Message::Tensor => {
                let mut tensor = Tensor::default();
                self.message(inner, size, depth + 1, &mut tensor)?;
                if let Some(location) = tensor.location {
                    self.found.locations.entry(location).or_insert(tensor.name);
                }
                Ok(())
            }
            Message::Entry => {
                self.message(inner, size, depth + 1, outer)?;
                let (key, value) = (std::mem::take(&mut outer.key), std::mem::take(&mut outer.value));
                if key == "location" {
                    outer.location = Some(value);
                }
                Ok(())
            }
            Message::Graph => {
                self.graphs += 1;
                self.message(inner, size, depth + 1, outer)
            }
            Message::Model | Message::Function | Message::Node | Message::Attribute | Message::Sparse => {
                self.message(inner, size, depth + 1, outer)
            }
        }
    }

    fn varint(&mut self, left: &mut u64) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            if *left == 0 {
                return Err(Error::new(ErrorKind::InvalidData, "it is cut off"));
            }
            self.input.read_exact(&mut byte)?;
            *left -= 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::new(ErrorKind::InvalidData, "it is not a protobuf message"))
    }

    fn skip(&mut self, size: u64, left: &mut u64) -> Result<()> {
        let cut = || Error::new(ErrorKind::InvalidData, "it is cut off");
        *left = left.checked_sub(size).ok_or_else(cut)?;
        self.input.seek_relative(i64::try_from(size).map_err(|_| cut())?)
    }

    fn string(&mut self, size: u64) -> Result<String> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| Error::new(ErrorKind::InvalidData, "a name in it is not UTF-8"))
    }
}
