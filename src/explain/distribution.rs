//! Where perturbed rows are compared with the input: how far out of the model's distribution they lie.

use serde::Serialize;

use super::ExplainError;
use crate::model::Labels;

/// Confidence and energy of perturbed rows against the input's own.
///
/// Confidence is the maximum softmax probability (Hendrycks and Gimpel 2017); energy is `−ln Σ exp z`
/// (Liu et al. 2020). Rows that nobody would write tend to have a lower confidence and a higher energy.
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

impl Shift {
    /// Measures `rows` of logits against the input's own.
    ///
    /// # Errors
    /// Logits that are not finite.
    pub fn measure(labels: &Labels, input: &[f32], rows: &[impl AsRef<[f32]>]) -> Result<Self, ExplainError> {
        let confidence = |logits: &[f32]| -> Result<f64, ExplainError> {
            Ok(labels.scores(logits)?.into_iter().fold(f64::NEG_INFINITY, f64::max))
        };
        let count = rows.len().max(1) as f64;
        let (mut confidences, mut energies) = (0.0, 0.0);
        for row in rows {
            confidences += confidence(row.as_ref())?;
            energies += energy(row.as_ref());
        }
        Ok(Self {
            confidence: confidences / count,
            confidence_of_input: confidence(input)?,
            energy: energies / count,
            energy_of_input: energy(input),
        })
    }
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
        let shift = Shift::measure(&labels, &[0.0, 0.0], &[[1000.0f32, 0.0]]).unwrap();
        assert!((shift.confidence_of_input - 0.5).abs() < 1e-12);
        assert!((shift.energy_of_input + std::f64::consts::LN_2).abs() < 1e-12);
        assert!((shift.energy + 1000.0).abs() < 1e-9 && (shift.confidence - 1.0).abs() < 1e-12);
    }
}
