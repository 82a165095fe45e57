//! The integration tests: one binary, one module a subject.

mod evaluate;
mod laws;
mod operators;
mod reader;
mod support;
mod zoo;
