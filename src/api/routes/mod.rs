//! One file a route.

pub mod docs;
pub mod explain;
pub mod health;
pub mod home;
pub mod methods;
pub mod metrics;
pub mod models;
pub mod predict;
pub mod problems;

use sha2::{Digest, Sha256};
use tracing::Span;

use crate::explain::Inputs;

/// Notes in the request's span how much text there is, and a hash by which equal texts can be told: all that
/// a log may know of it.
fn record_texts(inputs: &Inputs) {
    let span = Span::current();
    if span.is_disabled() {
        return;
    }
    let (mut chars, mut hash) = (0, Sha256::new());
    for input in inputs.list() {
        let (text, pair) = input.texts();
        for part in std::iter::once(text).chain(pair) {
            chars += part.chars().count();
            hash.update(part.as_bytes());
            hash.update([0]);
        }
    }
    span.record("inputs", inputs.list().len());
    span.record("chars", chars);
    span.record("text_hash", hex::encode(&hash.finalize()[..8]));
}
