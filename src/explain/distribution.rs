//! Where perturbed rows are compared with the input: how far out of the model's distribution they lie.

use serde::Serialize;

use super::ExplainError;
use crate::model::Labels;

/// Confidence and energy of perturbed rows against the input's own.
///
/// Confidence is the maximum softmax probability (Hendrycks and Gimpel 2017); energy is `−ln Σ exp z`
/// (Liu et al. 2020), of the logits as they are. Rows that nobody would write tend to have a lower confidence and a higher energy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shift {
    /// Mean maximum probability of the perturbed rows.
    pub confidence: f64,
    /// Maximum probability of the input.
    pub confidence_of_input: f64,
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
        self.confidence += weight * confidence(labels, logits)?;
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
            confidence: mean(self.confidence, confidence_of_input),
            confidence_of_input,
            energy: mean(self.energy, energy_of_input),
            energy_of_input,
        })
    }
}

fn confidence(labels: &Labels, logits: &[f32]) -> Result<f64, ExplainError> {
    Ok(labels.scores(logits)?.into_iter().fold(f64::NEG_INFINITY, f64::max))
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
    use crate::model::Activation;

    #[test]
    fn two_equal_logits_have_confidence_one_half_and_energy_minus_ln_two() {
        let labels = Labels::numbered(2, Activation::Softmax, 1.0);
        let mut drift = Drift::default();
        drift.add(&labels, &[1000.0, 0.0], 0.5).unwrap();
        let shift = drift.against(&labels, &[0.0, 0.0]).unwrap();
        assert!((shift.confidence_of_input - 0.5).abs() < 1e-12);
        assert!((shift.energy_of_input + std::f64::consts::LN_2).abs() < 1e-12);
        assert!((shift.energy + 1000.0).abs() < 1e-9 && (shift.confidence - 1.0).abs() < 1e-12);
    }
}
