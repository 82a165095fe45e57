//! The gradient family: derivatives of the score with respect to the word embeddings.
//!
//! Every method here asks [`Embedded`] for gradients at points of embedding space; positions, segments and
//! the attention mask stay those of the input. Special tokens keep their own embedding on every path.

mod baseline;
mod cotangent;
pub mod discretized_integrated_gradients;
mod embedded;
pub mod gradient_shap;
pub mod gradient_x_input;
pub mod integrated_gradients;
mod quadrature;
pub mod saliency;
pub mod sequential_integrated_gradients;
pub mod smooth_grad;
mod start;

pub use baseline::{Baseline, BaselineKind};
pub use cotangent::cotangent;
pub use embedded::{Embedded, Gradient, Point, price_of};
pub use quadrature::{Nodes, Rule};
pub use start::Start;

use serde_json::{Map, Value, json};

use super::{Case, Finding};

/// A finding from one score a token. The evidence gains what the special tokens hold, and what tokens
/// outside of the caller's spans hold.
pub fn token_finding(
    case: &Case<'_>,
    value: f64,
    base_value: Option<f64>,
    scores: &[f64],
    mut evidence: Map<String, Value>,
) -> Finding {
    let (attributions, outside) = case.token_attributions(scores);
    let special: f64 = attributions.iter().filter(|it| it.special).map(|it| it.score).sum();
    evidence.insert("special_tokens".into(), json!(special));
    evidence.insert("outside_features".into(), json!(outside));
    Finding { value, base_value, attributions, evidence, details: None }
}
