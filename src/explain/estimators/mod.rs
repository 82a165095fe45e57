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
mod neighbourhood;
pub mod partition_shap;
pub mod permutation_shap;
mod presence;
pub mod random;
mod regression;
mod selection;
mod shapley;
pub mod tree;

pub use anchors::{Anchors, KEEP as ANCHORS_KEEP, Rule, anchors};
pub use bounds::Interval;
pub use budget::{Ended, EstimateError, Run};
pub use exact_shap::{MAX_PLAYERS as MAX_EXACT_PLAYERS, exact_shap};
pub use game::{Coalition, Game, Stop, mean_and_variance};
pub use hierarchy::{Begins, Hierarchy, Piece, text_hierarchy};
pub use kernel_shap::{KernelShap, Regression, kernel_shap};
pub use lime::{Lime, LimeFit, LinearSurrogate, Selection, WIDTH as LIME_WIDTH, lime};
pub use partition_shap::{Owen, full_cost as partition_cost, partition_shap};
pub use permutation_shap::{FEW_WALKS, PermutationShap, permutation_shap};
pub use shapley::{Shapley, largest as largest_standard_error};
pub use tree::{DecisionTree, TreeNode, TreeSurrogate, decision_tree};

#[cfg(test)]
mod golden;
#[cfg(test)]
mod laws;
