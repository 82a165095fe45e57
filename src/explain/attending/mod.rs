//! The attention family: what the model's attention probabilities say, alone or weighed by their gradients.
//!
//! Scores are those of the position that the classifier reads: how much of it comes from each token. Where it reads
//! several, as in a mean, their rows are added up, each by its part in the gradient.

pub mod attention;
pub mod attention_relevance;
pub mod attention_rollout;
mod reading;
mod weights;

pub use reading::Reading;
pub use weights::{Mixing, Square, Weights};
