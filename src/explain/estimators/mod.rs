//! The surrogate family's mathematics: estimators over a [`Game`], knowing no model, no text and no HTTP.
//!
//! Every estimator takes `&mut impl Game` and returns a [`Run`]: its estimate, how many coalitions it asked
//! for, and why it ended. All of them reduce in f64, draw from keyed [`random::Stream`]s, and hand coalitions
//! over in chunks whose size changes no result.

mod budget;
mod design;
pub mod exact_shap;
pub mod game;
mod interactions;
pub mod kernel_shap;
mod linalg;
pub mod permutation_shap;
pub mod random;
mod shapley;

pub use budget::{Ended, EstimateError, Run};
pub use game::{Coalition, Game, Stop};
pub use shapley::Shapley;

#[cfg(test)]
mod golden;
