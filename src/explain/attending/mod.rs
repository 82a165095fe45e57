//! The attention family: what the model's attention probabilities say, alone or weighed by their gradients.
//!
//! Scores are those of the position that the classifier reads: how much of it comes from each token.

pub mod attention;
pub mod attention_relevance;
pub mod attention_rollout;
mod weights;

pub use weights::{Mixing, Square, Weights, reader};
