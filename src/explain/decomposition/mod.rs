//! The decomposition family: the score handed back layer by layer to the word embeddings.
//!
//! Every method here runs a relevance graph once a target; they differ in the composite. LRP is patented in some
//! countries: the README of `lxt`, a peer, calls it free for personal and scientific use only. Whoever uses it in a
//! product should check.

pub mod deep_taylor;
pub mod lrp;
mod pass;

pub use pass::{Component, Parts, price, run};
