//! The methods: a request and a model become attributions with evidence.
//!
//! [`explain`] is the path of every request: check, price, admit, run, wrap. A [`Method`] is one file and
//! one row of the [`registry`]; it knows no HTTP, no session and no other method.

mod answer;
pub mod attending;
mod case;
pub mod decomposition;
mod defaults;
pub mod distribution;
mod error;
pub mod estimators;
pub mod gradient;
mod house;
mod masking;
mod method;
pub mod perturbation;
mod predict;
pub mod random;
mod reading;
pub mod registry;
mod request;
mod run;
pub mod surrogate;
mod targets;

pub use answer::{
    Attribution, ExplainAnswer, Explanation, InputResult, LabelScore, ModelRef, Prediction, Target, Timing,
    Usage,
};
pub use case::{Case, Finding, Memo, Subject, attributions};
pub use defaults::works_by_default;
pub use error::{ExplainError, Limit, Misfit};
pub use house::{House, Limits};
pub use masking::{Effort, Masker, Operation, Removal};
pub use method::{About, Family, Method, Plan, Price, Typed, nothing_more};
pub use predict::{FunctionToApply, LabelOf, PredictParameters, PredictRequest, predict};
pub use request::{
    ExplainRequest, GranularitySpec, Input, InputFields, Inputs, MAX_TARGETS, OneTarget, SpanList,
    TargetSpec, Unit,
};
pub use run::{Arrival, explain, explain_within};
