//! The surrogate family: games over features, and simple models fitted around the input.
//!
//! The mathematics is in [`estimators`](super::estimators); a method file here turns parameters into options, and
//! an estimate into findings.

pub mod anchors;
pub mod decision_tree;
pub mod exact_shap;
pub mod kernel_shap;
pub mod lime;
mod masked;
pub mod partition_shap;
pub mod permutation_shap;
mod shapley;
pub mod trans_shap;
