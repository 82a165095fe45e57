//! The surrogate family's mathematics: estimators over a [`Game`], knowing no model, no text and no HTTP.
//!
//! Every estimator takes `&mut impl Game` and returns a [`Run`]: its estimate, how many coalitions it asked
//! for, and why it ended. All of them reduce in f64, draw from keyed [`random::Stream`]s, and hand coalitions
//! over in chunks whose size changes no result.

pub mod anchors;
mod bounds;
mod budget;
mod design;
pub mod exact_shap;
pub mod game;
mod gram;
pub mod hierarchy;
mod interactions;
pub mod kernel_shap;
pub mod lime;
mod linalg;
pub mod partition_shap;
pub mod permutation_shap;
mod presence;
pub mod random;
mod selection;
mod shapley;
pub mod tree;

pub use bounds::Interval;
pub use budget::{Ended, EstimateError, Run};
pub use game::{Coalition, Game, Stop};
pub use shapley::Shapley;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod laws;
