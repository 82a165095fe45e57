//! This file is where logits get names and become probabilities and log-odds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The labels of one classifier, in the order of its logits, and how its logits become scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Labels {
    names: Vec<String>,
    named: bool,
    activation: Activation,
    temperature: f64,
}

/// In a request, the label that the model predicts. A label of this name is asked for by its index.
pub const PREDICTED: &str = "predicted";
/// In a request, every label. A label of this name is asked for by its index.
pub const ALL: &str = "all";

/// How a row of logits becomes a row of scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// One label is true: `softmax(z / T)`.
    Softmax,
    /// Each label is true or not: `sigmoid(z / T)`, label by label.
    Sigmoid,
    /// Regression: the logit is the answer, and there is no probability.
    Identity,
}

/// The scalar of a prediction that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The model's own number, before temperature and activation.
    Logit,
    /// The probability after temperature and activation.
    Probability,
    /// `ln(p / (1 - p))` of that probability, computed from the logits.
    LogOdds,
}

/// A label that a caller asked for and that this model does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No label has this name, and the model does have names.
    #[error("the model has no label `{label}`; its labels are {}", known.join(", "))]
    Unknown {
        /// What was asked for.
        label: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The folder names no labels, so that they can be asked for by index only.
    #[error("the model's labels have no names; ask for an index below {count} instead of `{label}`")]
    Unnamed {
        /// What was asked for.
        label: String,
        /// How many labels there are.
        count: usize,
    },
    /// Two labels share the name.
    #[error("the model has several labels named `{label}`; ask for one by its index")]
    Ambiguous {
        /// What was asked for.
        label: String,
    },
    /// The index is not below the number of labels.
    #[error("label index {index} is out of range; the model has {count} labels")]
    OutOfRange {
        /// What was asked for.
        index: usize,
        /// How many labels there are.
        count: usize,
    },
}

/// Logits from which no score can be computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoreError {
    /// The model returned a NaN or an infinity.
    #[error("the model returned {value} as the logit of label {index}")]
    NotFinite {
        /// Which label.
        index: usize,
        /// What the model returned.
        value: f32,
    },
    /// What follows from the model's answers is a NaN or an infinity.
    #[error("{what} came out as {value}")]
    NotANumber {
        /// Which number.
        what: &'static str,
        /// What it came out as.
        value: f64,
    },
    /// The row of logits is not as long as the list of labels.
    #[error("the model returned {found} logits for {expected} labels")]
    Width {
        /// How many labels there are.
        expected: usize,
        /// How many logits came.
        found: usize,
    },
    /// A regression has no probability.
    #[error("the model is a regression: it has no probability and no log-odds, only `logit`")]
    NoProbability,
}

impl Labels {
    /// Labels with names. `temperature` must be finite and positive.
    pub fn named(names: Vec<String>, activation: Activation, temperature: f64) -> Self {
        Self { names, named: true, activation, temperature }
    }

    /// `count` labels that the folder does not name: `LABEL_0`, `LABEL_1`, ...
    pub fn numbered(count: usize, activation: Activation, temperature: f64) -> Self {
        let names = (0..count).map(|index| format!("LABEL_{index}")).collect();
        Self { names, named: false, activation, temperature }
    }

    /// The same labels, their logits becoming scores in another way.
    #[must_use]
    pub fn activated(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// The names in the order of the logits.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many labels, and so logits, there are.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no label at all.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether the folder names its labels; otherwise they are `LABEL_0`, `LABEL_1`, ...
    pub fn are_named(&self) -> bool {
        self.named
    }

    /// How logits become scores.
    pub fn activation(&self) -> Activation {
        self.activation
    }

    /// What logits are divided by before the activation.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// The index of a label by its exact name.
    pub fn find(&self, label: &str) -> Result<usize, TargetError> {
        let mut found = (0..self.names.len()).filter(|&index| self.names[index] == label);
        let label = label.to_owned();
        match (found.next(), found.next()) {
            (Some(index), None) => Ok(index),
            (Some(_), Some(_)) => Err(TargetError::Ambiguous { label }),
            (None, _) if self.named => Err(TargetError::Unknown { label, known: self.names.clone() }),
            (None, _) => Err(TargetError::Unnamed { label, count: self.len() }),
        }
    }

    /// `index` itself, if the model has such a label.
    pub fn check(&self, index: usize) -> Result<usize, TargetError> {
        let count = self.len();
        if index < count { Ok(index) } else { Err(TargetError::OutOfRange { index, count }) }
    }

    /// The label with the highest logit; the first of them on a tie.
    pub fn predicted(&self, logits: &[f32]) -> Result<usize, ScoreError> {
        let logits = self.checked(logits)?;
        Ok((1..logits.len()).fold(0, |best, it| if logits[it] > logits[best] { it } else { best }))
    }

    /// Which labels the model decides for: the predicted one, or each whose probability is above one half where labels
    /// are true or not one by one.
    ///
    /// # Errors
    /// Logits that are not finite; a regression, which decides nothing.
    pub fn decisions(&self, logits: &[f32]) -> Result<Vec<bool>, ScoreError> {
        match self.activation {
            Activation::Softmax => {
                let predicted = self.predicted(logits)?;
                Ok((0..logits.len()).map(|it| it == predicted).collect())
            }
            Activation::Sigmoid => Ok(self.checked(logits)?.into_iter().map(|logit| logit > 0.0).collect()),
            Activation::Identity => Err(ScoreError::NoProbability),
        }
    }

    /// What `/predict` shows: probabilities, or the logits themselves for a regression.
    pub fn scores(&self, logits: &[f32]) -> Result<Vec<f64>, ScoreError> {
        let output = match self.activation {
            Activation::Identity => Output::Logit,
            Activation::Softmax | Activation::Sigmoid => Output::Probability,
        };
        self.values(output, logits)
    }

    /// One scalar of every label, from one row of logits, in the order of the labels.
    pub fn values(&self, output: Output, logits: &[f32]) -> Result<Vec<f64>, ScoreError> {
        let logits = self.checked(logits)?;
        if output == Output::Logit {
            return Ok(logits);
        }
        let z: Vec<f64> = logits.iter().map(|logit| logit / self.temperature).collect();
        match (self.activation, output) {
            (Activation::Identity, _) => Err(ScoreError::NoProbability),
            (Activation::Softmax, Output::Probability) => Ok(softmax(&z)),
            (Activation::Sigmoid, Output::Probability) => Ok(z.into_iter().map(sigmoid).collect()),
            (Activation::Softmax, _) => Ok(softmax_log_odds(&z)),
            (Activation::Sigmoid, _) => Ok(z),
        }
    }

    /// One scalar of one label. `index` must be below [`Labels::len`].
    pub fn value(&self, output: Output, logits: &[f32], index: usize) -> Result<f64, ScoreError> {
        self.values(output, logits).map(|values| values[index])
    }

    fn checked(&self, logits: &[f32]) -> Result<Vec<f64>, ScoreError> {
        if logits.len() != self.len() {
            return Err(ScoreError::Width { expected: self.len(), found: logits.len() });
        }
        match logits.iter().position(|logit| !logit.is_finite()) {
            Some(index) => Err(ScoreError::NotFinite { index, value: logits[index] }),
            None => Ok(logits.iter().copied().map(f64::from).collect()),
        }
    }
}

fn softmax(z: &[f64]) -> Vec<f64> {
    let norm = log_sum_exp(z.iter().copied());
    z.iter().map(|it| (it - norm).exp()).collect()
}

/// `ln(p / (1 - p)) = z_i - ln Σ_{j≠i} exp(z_j)`: exact where `1 - p` would round to 0.
fn softmax_log_odds(z: &[f64]) -> Vec<f64> {
    let others = |i: usize| z.iter().enumerate().filter(move |&(j, _)| j != i).map(|(_, &it)| it);
    (0..z.len()).map(|i| z[i] - log_sum_exp(others(i))).collect()
}

fn log_sum_exp(z: impl Iterator<Item = f64> + Clone) -> f64 {
    let top = z.clone().fold(f64::NEG_INFINITY, f64::max);
    top + z.map(|it| (it - top).exp()).sum::<f64>().ln()
}

/// Never forms `exp` of a positive number, so that it cannot overflow.
fn sigmoid(z: f64) -> f64 {
    let e = (-z.abs()).exp();
    if z >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use proptest::prelude::*;

    fn three(activation: Activation, temperature: f64) -> Labels {
        Labels::named(vec!["a".into(), "b".into(), "c".into()], activation, temperature)
    }

    #[test]
    fn softmax_of_logarithms_gives_back_the_shares() {
        let logits = [1f32.ln(), 2f32.ln(), 5f32.ln()];
        let labels = three(Activation::Softmax, 1.0);
        let p = labels.values(Output::Probability, &logits).unwrap();
        for (got, want) in p.iter().zip([0.125, 0.25, 0.625]) {
            assert_relative_eq!(*got, want, epsilon = 1e-7);
        }
        let odds = labels.values(Output::LogOdds, &logits).unwrap();
        for (got, want) in odds.iter().zip([1.0 / 7.0, 2.0 / 6.0, 5.0 / 3.0f64]) {
            assert_relative_eq!(*got, want.ln(), epsilon = 1e-6);
        }
    }

    #[test]
    fn a_temperature_divides_the_logits_but_leaves_the_logit_output_alone() {
        let (hot, cold) = (three(Activation::Softmax, 2.0), three(Activation::Softmax, 1.0));
        let halved = cold.values(Output::Probability, &[0.5, -1.0, 2.0]).unwrap();
        assert_eq!(hot.values(Output::Probability, &[1.0, -2.0, 4.0]).unwrap(), halved);
        assert_eq!(hot.values(Output::Logit, &[1.0, -2.0, 4.0]).unwrap(), [1.0, -2.0, 4.0]);
    }

    #[test]
    fn log_odds_stay_exact_where_the_probability_has_saturated() {
        let labels = three(Activation::Softmax, 1.0);
        let logits = [100.0, 0.0, 0.0];
        assert_eq!(labels.value(Output::Probability, &logits, 0).unwrap(), 1.0);
        assert_relative_eq!(labels.value(Output::LogOdds, &logits, 0).unwrap(), 100.0 - 2f64.ln());
        assert_eq!(labels.value(Output::Probability, &[3e38, -3e38, 0.0], 1).unwrap(), 0.0);
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error_and_not_a_score() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for activation in [Activation::Softmax, Activation::Sigmoid, Activation::Identity] {
                let error = three(activation, 1.0).scores(&[0.0, bad, 0.0]).unwrap_err();
                assert!(matches!(error, ScoreError::NotFinite { index: 1, .. }), "{error}");
            }
        }
    }

    #[test]
    fn a_regression_serves_its_logit_and_refuses_a_probability() {
        let labels = Labels::numbered(1, Activation::Identity, 1.0);
        assert_eq!(labels.scores(&[2.5]).unwrap(), [2.5]);
        assert_eq!(labels.values(Output::Probability, &[2.5]), Err(ScoreError::NoProbability));
        assert_eq!(labels.values(Output::LogOdds, &[2.5]), Err(ScoreError::NoProbability));
    }

    #[test]
    fn a_row_of_the_wrong_width_is_refused() {
        let error = three(Activation::Softmax, 1.0).scores(&[1.0]).unwrap_err();
        assert_eq!(error, ScoreError::Width { expected: 3, found: 1 });
    }

    #[test]
    fn targets_are_found_by_name_and_index_and_refused_by_kind() {
        let labels = three(Activation::Softmax, 1.0);
        assert_eq!(labels.find("b"), Ok(1));
        assert!(matches!(labels.find("B"), Err(TargetError::Unknown { .. })));
        assert_eq!(labels.check(2), Ok(2));
        assert_eq!(labels.check(3), Err(TargetError::OutOfRange { index: 3, count: 3 }));
        let numbered = Labels::numbered(2, Activation::Softmax, 1.0);
        assert_eq!(numbered.find("LABEL_1"), Ok(1));
        assert!(matches!(numbered.find("positive"), Err(TargetError::Unnamed { count: 2, .. })));
        let twins = Labels::named(vec!["x".into(), "x".into()], Activation::Softmax, 1.0);
        assert!(matches!(twins.find("x"), Err(TargetError::Ambiguous { .. })));
    }

    #[test]
    fn the_predicted_label_is_the_first_of_the_highest() {
        assert_eq!(three(Activation::Sigmoid, 1.0).predicted(&[-1.0, 3.0, 3.0]), Ok(1));
    }

    proptest! {
        #[test]
        fn probabilities_are_those_of_the_log_odds(
            logits in proptest::collection::vec(-30f32..30.0, 3),
            temperature in 0.25f64..8.0,
        ) {
            for activation in [Activation::Softmax, Activation::Sigmoid] {
                let labels = three(activation, temperature);
                let p = labels.values(Output::Probability, &logits).unwrap();
                let odds = labels.values(Output::LogOdds, &logits).unwrap();
                for (p, odds) in p.iter().zip(&odds) {
                    prop_assert!((p - 1.0 / (1.0 + (-odds).exp())).abs() < 1e-12);
                }
                if activation == Activation::Softmax {
                    prop_assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12);
                }
            }
        }
    }
}
