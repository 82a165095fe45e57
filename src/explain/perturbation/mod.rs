//! The perturbation family: change the input, watch the score.

mod edit;
pub mod input_reduction;
pub mod leave_one_out;
mod levels;
mod reduction;

pub use edit::Edit;
pub use levels::{UnitKind, Units};
