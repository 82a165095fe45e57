//! This file is where notes are put into model files and read again: whose graph a derived graph is.

use std::collections::BTreeMap;

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

/// The notes in a file's metadata, by key.
///
/// # Errors
/// The file is no model, or broken off.
pub fn notes(file: &Bytes) -> Result<BTreeMap<String, String>, String> {
    let model = ModelProto::decode(file.clone()).map_err(|error| error.to_string())?;
    let notes = model.metadata_props.into_iter();
    Ok(notes.filter_map(|it| Some((it.key?, it.value?))).collect())
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
        let digest = |file: Vec<u8>| notes(&file.into()).unwrap().remove("digest");
        assert_eq!(digest(once.clone()).as_deref(), Some("abc"));
        assert_eq!(digest(twice).as_deref(), Some("def"));
        assert_eq!(digest(write(&graph)), None);
        assert!(notes(&once[..once.len() / 2].to_vec().into()).is_err());
    }
}
