//! This file is where an estimator's budget is spent, and where it says why it ended.

use super::game::{Coalition, Game, Stop};

/// What an estimator came to.
#[derive(Debug)]
pub struct Run<T> {
    /// The estimate, made of all evaluations that were had.
    pub estimate: T,
    /// Coalitions asked for, the empty and the full one included.
    pub evaluations: usize,
    /// Why it asked for no more.
    pub ended: Ended,
}

/// Why an estimator asked for no more evaluations.
#[derive(Debug)]
pub enum Ended {
    /// Every coalition that matters was evaluated: the estimate is exact.
    Exhausted,
    /// The largest standard error is at or below the tolerance asked for.
    Tolerance,
    /// The samples allowed are spent.
    Budget,
    /// The game stopped; the estimate is of what was reached by then.
    Stopped(Stop),
}

impl Ended {
    /// The word that answers use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Tolerance => "tolerance",
            Self::Budget => "budget",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// Why there is no estimate.
#[derive(Debug, thiserror::Error)]
pub enum EstimateError {
    /// A parameter lies outside its limits.
    #[error("{parameter} is {value}, {limit}")]
    Parameter {
        /// Its name in a request.
        parameter: &'static str,
        /// The value it had.
        value: String,
        /// The limit, as the rest of the sentence: "must be at least 2".
        limit: String,
    },
    /// The text has no feature that may be perturbed.
    #[error("the text has no feature that may be perturbed")]
    NoPlayers,
    /// The method cannot take this many features.
    #[error("{method} takes at most {limit} features and this text has {players}: use {instead}")]
    TooManyPlayers {
        /// The method's slug.
        method: &'static str,
        /// Features of the text.
        players: usize,
        /// Features allowed.
        limit: usize,
        /// The slug of the method to take.
        instead: &'static str,
    },
    /// The game stopped before an estimate was possible.
    #[error(transparent)]
    Stopped(#[from] Stop),
}

impl EstimateError {
    /// A parameter that lies outside its limits; `limit` completes "samples is 0, ...".
    pub(super) fn parameter(parameter: &'static str, value: impl ToString, limit: impl Into<String>) -> Self {
        Self::Parameter { parameter, value: value.to_string(), limit: limit.into() }
    }
}

/// Evaluates `coalitions` chunk by chunk; on [`Stop`] the rows so far come back with it.
pub(super) fn evaluate(game: &mut impl Game, coalitions: &[Coalition]) -> (Vec<Vec<f64>>, Option<Stop>) {
    let mut rows = Vec::with_capacity(coalitions.len());
    for chunk in coalitions.chunks(game.chunk().max(1)) {
        match game.evaluate(chunk) {
            Ok(worths) => {
                debug_assert_eq!(worths.len(), chunk.len());
                rows.extend(worths);
            }
            Err(stop) => return (rows, Some(stop)),
        }
    }
    (rows, None)
}

/// The worths of the empty and of the full coalition, without which nothing can be estimated.
pub(super) fn ends(game: &mut impl Game) -> Result<(Vec<f64>, Vec<f64>), EstimateError> {
    let players = game.players();
    if players == 0 {
        return Err(EstimateError::NoPlayers);
    }
    let mut rows = game.evaluate(&[Coalition::empty(players), Coalition::full(players)])?;
    let full = rows.pop().unwrap_or_default();
    Ok((rows.pop().unwrap_or_default(), full))
}

/// The sample counts at which a run looks at its standard errors: doubling from `first` up to `last`, or only
/// `last` where no tolerance asks for a look.
pub(super) fn checkpoints(first: usize, last: usize, tolerance: Option<f64>) -> Vec<usize> {
    if tolerance.is_none() {
        return vec![last];
    }
    let mut marks: Vec<usize> = std::iter::successors(Some(first.max(1)), |mark| mark.checked_mul(2))
        .take_while(|&mark| mark < last)
        .collect();
    marks.push(last);
    marks
}

/// Refuses a tolerance that no run can meet.
pub(super) fn check_tolerance(tolerance: Option<f64>) -> Result<(), EstimateError> {
    match tolerance {
        Some(value) if !(value > 0.0 && value.is_finite()) => {
            Err(EstimateError::parameter("tolerance", value, "must be above 0"))
        }
        _ => Ok(()),
    }
}
