//! Where what every request shares is kept: the models, the scheduler, the limits.

use std::time::Duration;

use super::{ExplainError, Misfit};
use crate::{model::Shelf, runtime::Scheduler};

/// What every request shares.
pub struct House {
    /// The models by name.
    pub models: Shelf,
    /// The only queue.
    pub scheduler: Scheduler,
    /// What a request may ask for.
    pub limits: Limits,
}

/// What a request may ask for. Each is a setting of the same name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Inputs in one request.
    pub max_inputs: usize,
    /// Code points in one text.
    pub max_text_chars: usize,
    /// Code points between two places where a tokenizer may break.
    pub max_run_chars: usize,
    /// Forward and gradient passes of one request, all inputs together.
    pub max_passes: u64,
    /// Milliseconds for a request that names none.
    pub default_timeout_ms: u64,
    /// The most milliseconds that a request may name.
    pub max_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_inputs: 32,
            max_text_chars: 100_000,
            max_run_chars: 20_000,
            max_passes: 20_000,
            default_timeout_ms: 10_000,
            max_timeout_ms: 60_000,
        }
    }
}

impl Limits {
    /// Refuses a request with no input or too many.
    ///
    /// # Errors
    /// A misfit of `/inputs`.
    pub fn check_inputs(&self, count: usize) -> Result<(), ExplainError> {
        let most = self.max_inputs;
        if (1..=most).contains(&count) {
            return Ok(());
        }
        let detail = format!("holds {count} inputs; at least 1 and at most {most} are read");
        Err(Misfit::over("/inputs", detail, "max_inputs", most as u64).into())
    }

    /// How long a request may take, from its arrival.
    ///
    /// # Errors
    /// A misfit of `/timeout_ms` for 0.
    pub fn timeout(&self, asked: Option<u64>) -> Result<Duration, ExplainError> {
        if asked == Some(0) {
            return Err(Misfit::new("/timeout_ms", "must be at least 1").into());
        }
        let asked = asked.unwrap_or(self.default_timeout_ms);
        Ok(Duration::from_millis(asked.min(self.max_timeout_ms)))
    }
}
