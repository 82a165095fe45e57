//! This file is where the ONNX file format meets the graph: which opsets are read, which messages exist.

mod function;
pub mod note;
pub mod proto;
pub mod read;
mod tensor;
pub mod write;

/// Oldest opset of the default domain that can be differentiated.
pub const OLDEST_OPSET: i64 = 11;
/// Newest opset of the default domain whose operators the tables were checked against.
pub const NEWEST_OPSET: i64 = 23;
