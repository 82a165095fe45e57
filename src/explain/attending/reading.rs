//! Which positions the classifier reads: one in every text, or those of this text that have a gradient.

use serde_json::{Map, Value, json};

use super::{Square, weights::seeded};
use crate::{
    explain::{Case, ExplainError, Subject},
    model::{Reads, Unavailable},
    runtime::Extra,
};

/// The positions of the last hidden state that the classifier reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// One.
    Position(usize),
    /// All alike.
    Mean,
    /// Several; each by its part, in sum one.
    Several(Vec<f64>),
    /// It is not known.
    Unknown,
}

/// Gradients that are smaller than this, in parts of the largest, are none.
const NOTHING: f64 = 1e-6;
/// Positions whose parts differ by less, in parts of their mean, are read alike.
const ALIKE: f64 = 1e-3;

impl Reading {
    /// The positions that are read of the case's text.
    ///
    /// # Errors
    /// It cannot be told; deadline, cancellation, a failed run.
    pub fn of(case: &Case<'_>) -> Result<Self, ExplainError> {
        let (tokens, labels) = (case.row.len(), case.logits.len());
        let program = match case.subject.model.attention()?.reads()? {
            Reads::Gradient(program) => program.get().map_err(|it| unknown(&it.to_string()))?,
            Reads::Position(place) => {
                let place = if *place < 0 { place + tokens as i64 } else { *place };
                let place = usize::try_from(place).ok().filter(|&it| it < tokens);
                return Ok(Self::Position(place.ok_or_else(|| unknown("the text has no such position"))?));
            }
        };
        // A sum of the logits in which no two cancel each other.
        let seed = (1..=labels).map(|it| 1.0 / it as f32).collect::<Vec<_>>();
        let rows = seeded(case, vec![vec![Extra::Values(seed.into())]])?;
        let out = case.run(&program, rows)?.pop();
        let slopes = out.and_then(|it| it.values.into_iter().nth(1)).unwrap_or_default();
        let norm = |it: &[f32]| it.iter().map(|&it| f64::from(it).powi(2)).sum::<f64>().sqrt();
        let norms: Vec<f64> = slopes.chunks((slopes.len() / tokens.max(1)).max(1)).map(norm).collect();
        Self::from_norms(norms).ok_or_else(|| unknown("no position has a gradient").into())
    }

    /// As [`Reading::of`]; [`Reading::Unknown`] where it cannot be told.
    ///
    /// # Errors
    /// Deadline, cancellation, a failed run.
    pub fn if_known(case: &Case<'_>) -> Result<Self, ExplainError> {
        match Self::of(case) {
            Err(ExplainError::Unavailable(_)) => Ok(Self::Unknown),
            other => other,
        }
    }

    /// Gradients that it takes.
    ///
    /// # Errors
    /// The model has no attention.
    pub fn gradients(subject: &Subject<'_>) -> Result<u64, ExplainError> {
        Ok(u64::from(matches!(subject.model.attention()?.reads(), Ok(Reads::Gradient(_)))))
    }

    fn from_norms(norms: Vec<f64>) -> Option<Self> {
        let largest = norms.iter().copied().fold(0.0, f64::max);
        if !(largest > 0.0 && norms.iter().all(|it| it.is_finite())) {
            return None;
        }
        let norms: Vec<f64> =
            norms.into_iter().map(|it| if it < NOTHING * largest { 0.0 } else { it }).collect();
        let sum: f64 = norms.iter().sum();
        let parts: Vec<f64> = norms.iter().map(|it| it / sum).collect();
        let alike = |it: &f64| (it * parts.len() as f64 - 1.0).abs() < ALIKE;
        Some(match parts.iter().filter(|&&it| it > 0.0).count() {
            1 => Self::Position(parts.iter().position(|&it| it > 0.0)?),
            _ if parts.iter().all(alike) => Self::Mean,
            _ => Self::Several(parts),
        })
    }

    /// What the rows of the positions that are read say; the mean of all rows where it is not known.
    pub fn of_rows(&self, square: &Square) -> Vec<f64> {
        let parts = match self {
            Self::Position(place) => return square.row(*place).to_vec(),
            Self::Mean | Self::Unknown => vec![1.0 / square.size as f64; square.size],
            Self::Several(parts) => parts.clone(),
        };
        let mut scores = vec![0.0; square.size];
        for (row, part) in parts.iter().enumerate() {
            scores.iter_mut().zip(square.row(row)).for_each(|(sum, it)| *sum += part * it);
        }
        scores
    }

    /// `read_position` and, where it is several, `read_parts`.
    pub fn evidence(&self) -> Map<String, Value> {
        let mut evidence = Map::new();
        let told = match self {
            Self::Position(place) => json!(place),
            Self::Mean => json!("mean"),
            Self::Several(_) => json!("several"),
            Self::Unknown => json!("unknown"),
        };
        evidence.insert("read_position".into(), told);
        if let Self::Several(parts) = self {
            evidence.insert("read_parts".into(), json!(parts));
        }
        evidence
    }
}

fn unknown(reason: &str) -> Unavailable {
    Unavailable {
        method: None,
        code: "attention".into(),
        reason: format!("it is not known which positions of this text the classifier reads: {reason}"),
        operators: Vec::new(),
        advice: "take a method of another family".into(),
    }
}
