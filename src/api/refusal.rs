//! Which problem each domain error is told as.

use crate::explain::{ExplainError, Misfit};

use super::problem::{Kind, Pointed, Problem};

impl From<ExplainError> for Problem {
    fn from(error: ExplainError) -> Self {
        let words = error.to_string();
        match error {
            ExplainError::UnknownMethod(_) => Self::new(Kind::UnknownMethod, words),
            ExplainError::UnknownModel(_) => Self::new(Kind::UnknownModel, words),
            ExplainError::ModelFailed { .. } => Self::new(Kind::ModelFailed, words),
            ExplainError::Misfits(misfits) => of_misfits(&misfits),
            ExplainError::Unavailable(missing) => {
                let detail = match &missing.method {
                    Some(method) => format!("{method}: {}", missing.reason),
                    None => missing.reason.clone(),
                };
                Self::new(Kind::MethodUnavailable, detail).missing(missing)
            }
            ExplainError::Overloaded { retry_after } => {
                Self::new(Kind::Overloaded, words).retry_after(retry_after)
            }
            ExplainError::Deadline => Self::new(Kind::DeadlineExceeded, words),
            // The caller is gone and reads nothing, unless the service is what cancelled: then it is leaving.
            ExplainError::Cancelled => Self::new(Kind::Draining, "this instance is leaving"),
            ExplainError::Score(_) => Self::new(Kind::NonFiniteScores, words),
            ExplainError::Backend(_) | ExplainError::Internal(_) => Self::internal(words),
        }
    }
}

/// A limit outranks other misfits, since its value is what the client needs.
fn of_misfits(misfits: &[Misfit]) -> Problem {
    let detail = match misfits {
        [one] => format!("{}: {}", one.pointer, one.detail),
        _ => format!("{} fields do not fit", misfits.len()),
    };
    let pointed = misfits.iter().map(|it| Pointed::new(it.pointer.clone(), it.detail.clone())).collect();
    match misfits.iter().find_map(|it| it.limit) {
        Some(limit) if limit.name == "max_length" => {
            Problem::new(Kind::InputTooLong, detail).pointing(pointed).limited(limit.name, limit.value)
        }
        Some(limit) => {
            Problem::new(Kind::LimitExceeded, detail).pointing(pointed).limited(limit.name, limit.value)
        }
        None => Problem::new(Kind::InvalidInput, detail).pointing(pointed),
    }
}
