//! Where everything that can end a request without an answer is named. Nothing here knows HTTP.

use std::time::Duration;

use crate::{
    model::{FindError, ScoreError, Unavailable},
    runtime::{RuntimeError, Stop},
};

/// Why a request got no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No method has this name.
    #[error("there is no method `{0}`")]
    UnknownMethod(String),
    /// No model has this name.
    #[error("there is no model `{0}`")]
    UnknownModel(String),
    /// The model is listed and did not open.
    #[error("the model `{name}` did not open: {reason}")]
    ModelFailed {
        /// Its name.
        name: String,
        /// Why it did not open.
        reason: String,
    },
    /// Fields that the schema or the model refuses, all of them.
    #[error("{} field(s) do not fit", .0.len())]
    Misfits(Vec<Misfit>),
    /// The model's graph does not allow the method.
    #[error("{0}")]
    Unavailable(#[from] Unavailable),
    /// The queue's cost is full.
    #[error("the queue is full")]
    Overloaded {
        /// When there should be room again.
        retry_after: Duration,
    },
    /// The deadline passed.
    #[error("the deadline passed")]
    Deadline,
    /// The caller went away.
    #[error("cancelled")]
    Cancelled,
    /// The model answered with something that is not a score.
    #[error("{0}")]
    Score(#[from] ScoreError),
    /// ONNX Runtime failed; the text is for the log only.
    #[error("a run failed: {0}")]
    Backend(String),
    /// A bug of ours; the text is for the log only.
    #[error("internal: {0}")]
    Internal(String),
}

/// One field that does not fit.
#[derive(Debug, Clone, PartialEq)]
pub struct Misfit {
    /// JSON pointer into the request's body.
    pub pointer: String,
    /// What is wrong with the field, for the caller.
    pub detail: String,
    /// The limit that was hit, if it was a limit.
    pub limit: Option<Limit>,
}

/// A limit by the name of its setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    /// The setting or parameter.
    pub name: &'static str,
    /// Its value.
    pub value: u64,
}

impl Misfit {
    /// A field that does not fit.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into(), limit: None }
    }

    /// A field that passes a limit.
    pub fn over(
        pointer: impl Into<String>,
        detail: impl Into<String>,
        name: &'static str,
        value: u64,
    ) -> Self {
        Self { limit: Some(Limit { name, value }), ..Self::new(pointer, detail) }
    }

    /// A method's parameter that does not fit.
    pub fn parameter(name: &str, detail: impl Into<String>) -> Self {
        Self::new(format!("/parameters/{name}"), detail)
    }
}

/// Misfits that are told at once, when everything was looked at.
#[derive(Debug, Default)]
pub(super) struct Gathered(Vec<Misfit>);

impl Gathered {
    /// The value, or `None` for misfits, which are kept.
    ///
    /// # Errors
    /// What is no misfit ends the request.
    pub fn keep<T>(&mut self, result: Result<T, ExplainError>) -> Result<Option<T>, ExplainError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(ExplainError::Misfits(more)) => {
                self.0.extend(more);
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// Two values that were looked at.
    ///
    /// # Errors
    /// Every misfit that was kept.
    pub fn both<A, B>(self, one: Option<A>, other: Option<B>) -> Result<(A, B), ExplainError> {
        match one.zip(other) {
            Some(both) if self.0.is_empty() => Ok(both),
            _ => Err(ExplainError::Misfits(self.0)),
        }
    }

    /// Every value.
    ///
    /// # Errors
    /// The misfits of all values; the first error that is no misfit.
    pub fn all<T>(results: impl Iterator<Item = Result<T, ExplainError>>) -> Result<Vec<T>, ExplainError> {
        let (mut misfits, mut values) = (Self::default(), Vec::new());
        for result in results {
            values.extend(misfits.keep(result)?);
        }
        if misfits.0.is_empty() { Ok(values) } else { Err(ExplainError::Misfits(misfits.0)) }
    }
}

impl From<Misfit> for ExplainError {
    fn from(misfit: Misfit) -> Self {
        Self::Misfits(vec![misfit])
    }
}

impl From<FindError> for ExplainError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Unknown(name) => Self::UnknownModel(name),
            FindError::Failed { name, reason } => Self::ModelFailed { name, reason },
        }
    }
}

impl From<Stop> for ExplainError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Deadline => Self::Deadline,
            Stop::Cancelled => Self::Cancelled,
            Stop::TooShort { tokens, least } => {
                let detail = format!(
                    "a text, or what the method makes of it, has {tokens} tokens; the model runs on {least} or more"
                );
                Misfit::new("/inputs", detail).into()
            }
            Stop::Failed(cause) => Self::Backend(cause),
        }
    }
}

impl From<RuntimeError> for ExplainError {
    fn from(error: RuntimeError) -> Self {
        Self::Backend(error.to_string())
    }
}
