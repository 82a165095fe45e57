//! Where the derived graphs that a model folder brings itself are read: whose they are, and what becomes of them.

use std::{collections::BTreeMap, io::ErrorKind};

use bytes::Bytes;

use super::{
    Manifest,
    relevance::{COMPOSITE_KEY, file_name},
};
use crate::compile::{self, composite::Composite, graph::Graph as Ir, onnx::note::notes};

/// The key under which a graph that was written to a file notes the digest of its model.
pub const DIGEST_KEY: &str = "explaind.model.sha256";

/// A derived graph in a model folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnGraph {
    /// Its file's name, such as `gradient.onnx`.
    pub file: String,
    /// Why it is not used, unless it is.
    pub unused: Option<String>,
}

impl OwnGraph {
    /// Of this file and this outcome; the log hears of a file that is not used.
    pub(super) fn of(manifest: &Manifest, file: &str, outcome: Result<(), String>) -> Self {
        if let Err(reason) = &outcome {
            tracing::warn!(file = %manifest.folder.join(file).display(), reason, "is not used");
        }
        Self { file: file.to_owned(), unused: outcome.err() }
    }
}

/// A file of the folder that notes this very model's digest.
pub(super) struct Noted {
    file: Bytes,
    /// All its notes.
    pub notes: BTreeMap<String, String>,
}

impl Noted {
    /// The folder's file of this name, or why it may not be used; `None` where there is none.
    pub fn read(manifest: &Manifest, name: &str) -> Option<Result<Self, String>> {
        let path = manifest.folder.join(name);
        let file: Bytes = match std::fs::read(path) {
            Ok(file) => file.into(),
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => return Some(Err(error.to_string())),
        };
        let noted = || {
            let notes = notes(&file).map_err(|error| format!("it is no whole ONNX file: {error}"))?;
            let digest = manifest.digest().map_err(|error| error.to_string())?;
            match notes.get(DIGEST_KEY) {
                Some(noted) if *noted == digest => Ok(Self { file: file.clone(), notes }),
                Some(_) => Err("it belongs to another model: it notes another digest".to_owned()),
                None => Err(format!("it does not say whose it is: there is no note `{DIGEST_KEY}`")),
            }
        };
        Some(noted())
    }

    /// As [`Noted::read`], of the relevance graph of a composite.
    pub fn relevance(manifest: &Manifest, composite: Composite) -> Option<Result<Self, String>> {
        let of_it = |it: Self| match it.notes.get(COMPOSITE_KEY).map(String::as_str) {
            Some(noted) if noted == composite.slug() => Ok(it),
            Some(noted) => Err(format!("it is the relevance graph of {noted}")),
            None => {
                Err(format!("it does not say of which composite it is: there is no note `{COMPOSITE_KEY}`"))
            }
        };
        Some(Self::read(manifest, &file_name(composite))?.and_then(of_it))
    }

    /// The graph itself.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn graph(&self) -> Result<Ir, String> {
        compile::read(self.file.clone(), &compile::no_external).map_err(|error| error.to_string())
    }
}
