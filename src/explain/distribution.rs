//! Where perturbed rows are compared with the input: how far out of the model's distribution they lie.

use serde::Serialize;

use super::ExplainError;
use crate::model::{Activation, Labels};

/// Confidence and energy of perturbed rows against the input's own.
///
/// Confidence is the maximum softmax probability (Hendrycks and Gimpel 2017): of a model with a single label, that of the
/// decision whether it holds; a regression has none. Energy is `−ln Σ exp z`
/// (Liu et al. 2020), of the logits as they are. Rows that nobody would write tend to have a lower confidence and a higher energy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shift {
    /// Mean maximum probability of the perturbed rows.
    pub confidence: Option<f64>,
    /// Maximum probability of the input.
    pub confidence_of_input: Option<f64>,
    /// Mean energy of the perturbed rows.
    pub energy: f64,
    /// Energy of the input.
    pub energy_of_input: f64,
}

/// Sums over perturbed rows, while they come.
#[derive(Debug, Clone, Copy, Default)]
pub struct Drift {
    confidence: f64,
    energy: f64,
    weight: f64,
}

impl Drift {
    /// Counts one row of logits with a weight.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn add(&mut self, labels: &Labels, logits: &[f32], weight: f64) -> Result<(), ExplainError> {
        self.confidence += weight * confidence(labels, logits)?.unwrap_or(0.0);
        self.energy += weight * energy(logits);
        self.weight += weight;
        Ok(())
    }

    /// Counts the rows of another.
    pub fn join(&mut self, other: &Self) {
        self.confidence += other.confidence;
        self.energy += other.energy;
        self.weight += other.weight;
    }

    /// The rows so far against the input's own logits; the input itself, where there was no row.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn against(&self, labels: &Labels, input: &[f32]) -> Result<Shift, ExplainError> {
        let (confidence_of_input, energy_of_input) = (confidence(labels, input)?, energy(input));
        let mean = |sum: f64, otherwise: f64| if self.weight > 0.0 { sum / self.weight } else { otherwise };
        Ok(Shift {
            confidence: confidence_of_input.map(|it| mean(self.confidence, it)),
            confidence_of_input,
            energy: mean(self.energy, energy_of_input),
            energy_of_input,
        })
    }
}

/// How sure the model is of its answer; `None` for a regression.
///
/// # Errors
/// Logits that are not finite.
pub(super) fn confidence(labels: &Labels, logits: &[f32]) -> Result<Option<f64>, ExplainError> {
    let scores = labels.scores(logits)?;
    Ok(match (labels.activation(), &scores[..]) {
        (Activation::Identity, _) => None,
        (Activation::Sigmoid, [only]) => Some(only.max(1.0 - only)),
        (Activation::Sigmoid | Activation::Softmax, all) => {
            Some(all.iter().copied().fold(f64::NEG_INFINITY, f64::max))
        }
    })
}

/// `−ln Σ exp z`, without overflow.
fn energy(logits: &[f32]) -> f64 {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&z| f64::from(z - highest).exp()).sum();
    -(f64::from(highest) + sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_equal_logits_have_confidence_one_half_and_energy_minus_ln_two() {
        let labels = Labels::numbered(2, Activation::Softmax, 1.0);
        let mut drift = Drift::default();
        drift.add(&labels, &[1000.0, 0.0], 0.5).unwrap();
        let shift = drift.against(&labels, &[0.0, 0.0]).unwrap();
        assert!((shift.confidence_of_input.unwrap() - 0.5).abs() < 1e-12);
        assert!((shift.energy_of_input + std::f64::consts::LN_2).abs() < 1e-12);
        assert!((shift.energy + 1000.0).abs() < 1e-9 && (shift.confidence.unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_single_label_is_as_sure_of_no_as_of_yes_and_a_regression_of_nothing() {
        let labels = Labels::numbered(1, Activation::Sigmoid, 1.0);
        let sure = |logit: f32| confidence(&labels, &[logit]).unwrap().unwrap();
        assert!((sure(3.0) - sure(-3.0)).abs() < 1e-12 && sure(-3.0) > 0.95);
        let regression = Labels::numbered(1, Activation::Identity, 1.0);
        let mut drift = Drift::default();
        drift.add(&regression, &[2.0], 1.0).unwrap();
        let shift = drift.against(&regression, &[1.0]).unwrap();
        assert_eq!((shift.confidence, shift.confidence_of_input), (None, None));
    }
}
