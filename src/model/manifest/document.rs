//! This file is where a JSON file of a model folder is read, and where a misfit gets its file and pointer.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{ManifestError, Misfit};

/// A JSON object and the file that it came from.
#[derive(Debug)]
pub(super) struct Document {
    file: PathBuf,
    root: Map<String, Value>,
}

impl Document {
    /// Reads `name` in `folder`. `None` if there is no such file.
    pub(super) fn read(folder: &Path, name: &str) -> Result<Option<Self>, ManifestError> {
        let file = folder.join(name);
        if !file.exists() {
            return Ok(None);
        }
        let root = match read_json(&file)? {
            Value::Object(root) => root,
            _ => return Err(ManifestError::field(&file, "", Misfit::Expected("an object"))),
        };
        Ok(Some(Self { file, root }))
    }

    /// Reads a file that the folder must hold.
    pub(super) fn require(folder: &Path, name: &str) -> Result<Self, ManifestError> {
        let missing = || ManifestError::Missing { file: folder.join(name), present: Vec::new() };
        Self::read(folder, name)?.ok_or_else(missing)
    }

    /// The value under `key`; JSON's null counts as absent, as it does for those who write these files.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.root.get(key).filter(|it| !it.is_null())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.root.keys().map(String::as_str)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ManifestError> {
        let expected = || self.misfit(&pointer(&[key]), Misfit::Expected("a string"));
        self.get(key).map(|it| it.as_str().ok_or_else(expected)).transpose()
    }

    /// A whole number of at least 1.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, ManifestError> {
        let expected = || self.misfit(&pointer(&[key]), Misfit::Expected("a whole number of at least 1"));
        let read = |it: &Value| it.as_u64().filter(|&n| n > 0).and_then(|n| usize::try_from(n).ok());
        self.get(key).map(|it| read(it).ok_or_else(expected)).transpose()
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ManifestError> {
        let expected = || self.misfit(&pointer(&[key]), Misfit::Expected("a number"));
        self.get(key).map(|it| it.as_f64().ok_or_else(expected)).transpose()
    }

    pub(super) fn misfit(&self, pointer: &str, misfit: Misfit) -> ManifestError {
        ManifestError::field(&self.file, pointer, misfit)
    }
}

/// Parses a whole file, telling "cannot read" from "not JSON" from "not of this shape".
pub(super) fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T, ManifestError> {
    let unreadable = |cause| ManifestError::Unreadable { file: file.to_owned(), cause };
    let bytes = std::fs::read(file).map_err(unreadable)?;
    serde_json::from_slice(&bytes).map_err(|cause| ManifestError::Json { file: file.to_owned(), cause })
}

/// The JSON pointer (RFC 6901) of a path of keys.
pub(super) fn pointer(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1"))).collect()
}
