//! The perturbation family: change the input, watch the score.

mod edit;
pub mod leave_one_out;
mod levels;

pub use edit::Edit;
pub use levels::{UnitKind, Units};
