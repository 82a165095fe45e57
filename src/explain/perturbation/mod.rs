//! The perturbation family: change the input, watch the score.

pub mod leave_one_out;
