//! What is loaded: one classifier, ready to be asked.

pub mod labels;
pub mod manifest;
