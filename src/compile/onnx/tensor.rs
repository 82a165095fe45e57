//! This file is where `TensorProto` and our tensors meet, external data included.

use bytes::Bytes;

use super::proto::tensor_proto::DataLocation;
use super::proto::{StringStringEntryProto, TensorProto};
use super::read::{External, Fetch, ReadError};
use crate::compile::graph::{Element, Tensor};

/// Data of at most so many bytes is copied out of the file.
const COPIED_TO: usize = 4096;

/// Reads a tensor, whichever of the format's many fields holds its data.
pub(super) fn read(proto: TensorProto, fetch: Fetch<'_>) -> Result<Tensor, ReadError> {
    let name = proto.name.clone().unwrap_or_default();
    let form = |reason: &str| ReadError::Form { name: name.clone(), reason: reason.to_owned() };
    let element = proto.data_type.and_then(Element::from_code);
    let element = element.ok_or_else(|| form("its element type is unknown"))?;
    let dims: Result<Vec<usize>, _> = proto.dims.iter().map(|&it| usize::try_from(it)).collect();
    let dims = dims.map_err(|_| form("a dimension is negative"))?;
    if proto.segment.is_some() {
        return Err(form("it is stored in segments"));
    }
    let data = if proto.data_location() == DataLocation::External {
        external(&name, &proto.external_data, fetch)?
    } else {
        match proto.raw_data {
            // A slice keeps the whole file in memory, which is not worth it for a few numbers.
            Some(raw) if !raw.is_empty() && raw.len() <= COPIED_TO => Bytes::copy_from_slice(&raw),
            Some(raw) if !raw.is_empty() => raw,
            _ => typed(element, &proto),
        }
    };
    Tensor::new(element, dims, data).map_err(|reason| ReadError::Tensor { name, reason })
}

/// Data in the typed fields, as the bytes that `raw_data` would hold.
fn typed(element: Element, proto: &TensorProto) -> Bytes {
    let narrow = |width: usize| {
        let bytes = proto.int32_data.iter().flat_map(move |it| it.to_le_bytes().into_iter().take(width));
        bytes.collect::<Vec<u8>>()
    };
    let bytes: Vec<u8> = match element {
        Element::F32 | Element::C64 => proto.float_data.iter().flat_map(|it| it.to_le_bytes()).collect(),
        Element::F64 | Element::C128 => proto.double_data.iter().flat_map(|it| it.to_le_bytes()).collect(),
        Element::I64 => proto.int64_data.iter().flat_map(|it| it.to_le_bytes()).collect(),
        Element::U64 => proto.uint64_data.iter().flat_map(|it| it.to_le_bytes()).collect(),
        Element::U32 => {
            proto.uint64_data.iter().flat_map(|it| it.to_le_bytes().into_iter().take(4)).collect()
        }
        Element::I32 => narrow(4),
        Element::F16 | Element::BF16 | Element::I16 | Element::U16 => narrow(2),
        _ => narrow(1),
    };
    bytes.into()
}

fn external(name: &str, entries: &[StringStringEntryProto], fetch: Fetch<'_>) -> Result<Bytes, ReadError> {
    let error = |reason: String| ReadError::External { name: name.to_owned(), reason };
    let entry = |key: &str| {
        let found = entries.iter().find(|it| it.key.as_deref() == Some(key));
        found.and_then(|it| it.value.clone())
    };
    let number = |key: &str| match entry(key) {
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| error(format!("{key} is {text:?}"))),
        None => Ok(None),
    };
    let location = entry("location").ok_or_else(|| error("no location is given".into()))?;
    let leaves = location.starts_with(['/', '\\'])
        || location.contains(':')
        || location.split(['/', '\\']).any(|part| part == "..");
    if leaves || location.is_empty() {
        return Err(error(format!("{location:?} is not a file of the model's folder")));
    }
    let external = External { location, offset: number("offset")?.unwrap_or(0), length: number("length")? };
    fetch(&external).map_err(error)
}
