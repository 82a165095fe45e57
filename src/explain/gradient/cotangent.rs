//! Where the derivative of the explained scalar with respect to the logits is written down.

use crate::{
    explain::ExplainError,
    model::{Activation, Labels, Output},
};

/// `∂v/∂z` for the scalar `v` of one target at the logits `z`: what a backward pass starts from.
///
/// With temperature `T` and `p` the probabilities: a logit gives the unit vector; a softmax probability
/// `p_t(δ − p)/T`, its log-odds `(δ − p)/(T(1 − p_t))`; a sigmoid probability `p_t(1 − p_t)/T` and its log-odds
/// `1/T`, at the target alone.
///
/// # Errors
/// Logits that are not finite, and a regression's probability.
pub fn cotangent(
    labels: &Labels,
    output: Output,
    logits: &[f32],
    target: usize,
) -> Result<Vec<f32>, ExplainError> {
    let mut unit = vec![0.0f32; labels.len()];
    let temperature = labels.temperature();
    let slope = match (output, labels.activation()) {
        (Output::Logit, _) | (_, Activation::Identity) => 1.0,
        (Output::Probability, Activation::Sigmoid) => {
            let p = labels.values(Output::Probability, logits)?[target];
            p * (1.0 - p) / temperature
        }
        (Output::LogOdds, Activation::Sigmoid) => 1.0 / temperature,
        (Output::Probability | Output::LogOdds, Activation::Softmax) => {
            return softmax_cotangent(labels, output, logits, target);
        }
    };
    unit[target] = slope as f32;
    Ok(unit)
}

fn softmax_cotangent(
    labels: &Labels,
    output: Output,
    logits: &[f32],
    target: usize,
) -> Result<Vec<f32>, ExplainError> {
    let p = labels.values(Output::Probability, logits)?;
    // 1 − p_t from the other labels' probabilities: exact where p_t rounds to 1.
    let others: f64 = p.iter().enumerate().filter(|(label, _)| *label != target).map(|(_, p)| p).sum();
    let scale = match output {
        Output::LogOdds => 1.0 / labels.temperature(),
        Output::Probability | Output::Logit => p[target] * others / labels.temperature(),
    };
    let share = |label: usize| match label == target {
        true => 1.0,
        false if others > 0.0 => -p[label] / others,
        false => 0.0,
    };
    Ok((0..p.len()).map(|label| (scale * share(label)) as f32).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_the_derivative_of_the_scalar(
            logits in prop::collection::vec(-3.0f32..3.0, 2..5), temperature in 0.5f64..2.0, sigmoid: bool,
        ) {
            let activation = if sigmoid { Activation::Sigmoid } else { Activation::Softmax };
            let labels = Labels::numbered(logits.len(), activation, temperature);
            for output in [Output::Logit, Output::Probability, Output::LogOdds] {
                let slope = cotangent(&labels, output, &logits, 1).unwrap();
                for label in 0..logits.len() {
                    let at = |step: f32| {
                        let mut moved = logits.clone();
                        moved[label] += step;
                        labels.value(output, &moved, 1).unwrap()
                    };
                    let central = (at(1e-2) - at(-1e-2)) / 2e-2;
                    prop_assert!((central - f64::from(slope[label])).abs() < 2e-3, "{output:?} {label}");
                }
            }
        }
    }
}
