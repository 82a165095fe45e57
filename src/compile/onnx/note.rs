//! This file is where notes are put into model files and read again: whose graph a derived graph is.

use bytes::Bytes;
use prost::Message;

use super::proto::{ModelProto, StringStringEntryProto};

/// The file with a note added to its metadata; the file as it is when it is no model.
pub fn with_note(file: Vec<u8>, key: &str, value: &str) -> Vec<u8> {
    let Ok(mut model) = ModelProto::decode(file.as_slice()) else { return file };
    model.metadata_props.retain(|it| it.key.as_deref() != Some(key));
    model
        .metadata_props
        .push(StringStringEntryProto { key: Some(key.to_owned()), value: Some(value.to_owned()) });
    model.encode_to_vec()
}

/// The note of that key in a file's metadata.
pub fn note(file: &Bytes, key: &str) -> Option<String> {
    let model = ModelProto::decode(file.clone()).ok()?;
    model.metadata_props.into_iter().find(|it| it.key.as_deref() == Some(key)).and_then(|it| it.value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{graph::Graph, write};

    #[test]
    fn a_note_is_read_as_it_was_put_in_and_replaced_by_the_next() {
        let graph = Graph::parse("y = Tanh(x[2,3])").unwrap();
        let once = with_note(write(&graph), "digest", "abc");
        let twice = with_note(once.clone(), "digest", "def");
        assert_eq!(note(&once.into(), "digest").as_deref(), Some("abc"));
        assert_eq!(note(&twice.into(), "digest").as_deref(), Some("def"));
        assert_eq!(note(&write(&graph).into(), "digest"), None);
    }
}
