//! Where a model's temperature is fitted: one number that makes its probabilities as sure as they are right
//! (Guo, Pleiss, Sun and Weinberger 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599).

use super::{Activation, Labels, Output, ScoreError};

/// The model's answer to a text, and the truth.
#[derive(Debug, Clone, PartialEq)]
pub struct Labelled {
    /// The model's logits.
    pub logits: Vec<f32>,
    /// Whether each label holds; exactly one does where one label is true.
    pub truth: Vec<bool>,
}

/// How good probabilities are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Mean negative log-likelihood of the truth, in nats: of the true label, or over all decisions.
    pub nll: f64,
    /// Expected calibration error over 15 bins of equal width: the mean distance of confidence and accuracy.
    pub ece: f64,
    /// Share of decisions that are right; no temperature changes it.
    pub accuracy: f64,
}

/// A temperature and what it does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// What logits are divided by.
    pub temperature: f64,
    /// Under the temperature that the labels had.
    pub before: Quality,
    /// Under the fitted one.
    pub after: Quality,
}

/// Why no temperature is best.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    /// A regression has no probability.
    #[error("the model is a regression: it has no probability to calibrate")]
    NoProbability,
    /// There is no labelled text.
    #[error("there is no labelled text")]
    Empty,
    /// The likelihood rises as the temperature falls to 0: the model is right about every text.
    #[error(
        "every text is on the right side, so that no temperature is too low; give texts that it gets wrong"
    )]
    AlwaysRight,
    /// The likelihood rises as the temperature grows without bound: the answers tell nothing about the labels.
    #[error("the model's answers have no bearing on the labels, so that no temperature is too high")]
    Unrelated,
    /// Logits that are not finite.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// Bins of the expected calibration error.
const BINS: usize = 15;
/// Temperatures between which the fit is looked for.
const BOUNDS: (f64, f64) = (1e-2, 1e2);

/// The temperature under which the truth is most likely.
///
/// The negative log-likelihood is convex in 1/T, so its slope changes sign once; bisection finds where.
///
/// # Errors
/// [`CalibrationError`].
pub fn fit(labels: &Labels, texts: &[Labelled]) -> Result<Fit, CalibrationError> {
    if labels.activation() == Activation::Identity {
        return Err(CalibrationError::NoProbability);
    }
    if texts.is_empty() {
        return Err(CalibrationError::Empty);
    }
    let (mut low, mut high) = (1.0 / BOUNDS.1, 1.0 / BOUNDS.0);
    if slope(labels, texts, high)? < 0.0 {
        return Err(CalibrationError::AlwaysRight);
    }
    if slope(labels, texts, low)? > 0.0 {
        return Err(CalibrationError::Unrelated);
    }
    for _ in 0..100 {
        let middle = f64::sqrt(low * high);
        *(if slope(labels, texts, middle)? < 0.0 { &mut low } else { &mut high }) = middle;
    }
    let temperature = 1.0 / f64::sqrt(low * high);
    let before = quality(labels, texts)?;
    let after = quality(&at(labels, temperature), texts)?;
    Ok(Fit { temperature, before, after })
}

/// How good the labels' probabilities are on labelled texts.
///
/// # Errors
/// Logits that are not finite, and a regression's.
pub fn quality(labels: &Labels, texts: &[Labelled]) -> Result<Quality, CalibrationError> {
    let mut nll = 0.0;
    let mut bins = [(0.0, 0.0, 0usize); BINS];
    let mut decisions = 0usize;
    let mut count = |confidence: f64, right: bool| {
        let bin = &mut bins[((confidence * BINS as f64).ceil() as usize).clamp(1, BINS) - 1];
        *bin = (bin.0 + confidence, bin.1 + f64::from(u8::from(right)), bin.2 + 1);
    };
    for text in texts {
        let odds = labels.values(Output::LogOdds, &text.logits)?;
        let scores = labels.values(Output::Probability, &text.logits)?;
        let unlikely = |(odds, holds): (&f64, &bool)| softplus(if *holds { -odds } else { *odds });
        if labels.activation() == Activation::Softmax {
            let predicted = labels.predicted(&text.logits)?;
            nll += odds.iter().zip(&text.truth).filter(|it| *it.1).map(unlikely).sum::<f64>();
            count(scores[predicted], text.truth[predicted]);
            decisions += 1;
        } else {
            nll += odds.iter().zip(&text.truth).map(unlikely).sum::<f64>();
            for (score, holds) in scores.iter().zip(&text.truth) {
                count(score.max(1.0 - score), (*score >= 0.5) == *holds);
            }
            decisions += scores.len();
        }
    }
    let all = decisions.max(1) as f64;
    Ok(Quality {
        nll: nll / all,
        ece: bins.iter().map(|(confidence, right, _)| (confidence - right).abs()).sum::<f64>() / all,
        accuracy: bins.iter().map(|it| it.1).sum::<f64>() / all,
    })
}

/// The derivative of the summed negative log-likelihood with respect to 1/T.
fn slope(labels: &Labels, texts: &[Labelled], inverse: f64) -> Result<f64, CalibrationError> {
    let labels = at(labels, 1.0 / inverse);
    let mut sum = 0.0;
    for text in texts {
        let scores = labels.values(Output::Probability, &text.logits)?;
        let parts = scores.iter().zip(&text.truth).zip(&text.logits);
        sum += parts.map(|((p, holds), z)| (p - f64::from(u8::from(*holds))) * f64::from(*z)).sum::<f64>();
    }
    Ok(sum)
}

fn at(labels: &Labels, temperature: f64) -> Labels {
    Labels::named(labels.names().to_vec(), labels.activation(), temperature)
}

/// `ln(1 + exp x)`, without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(logit: f32, second: bool) -> Labelled {
        Labelled { logits: vec![0.0, logit], truth: vec![!second, second] }
    }

    fn softmax() -> Labels {
        Labels::numbered(2, Activation::Softmax, 1.0)
    }

    #[test]
    fn three_of_four_right_at_one_logit_ask_for_that_logits_odds() {
        // One answer, z = 3, right in 3 of 4: the likeliest probability is 3/4, so 3/T = ln 3.
        let texts = [text(3.0, true), text(3.0, true), text(3.0, true), text(3.0, false)];
        let fit = fit(&softmax(), &texts).unwrap();
        assert!((fit.temperature - 3.0 / 3f64.ln()).abs() < 1e-9, "{fit:?}");
        let entropy = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        assert!((fit.after.nll - entropy).abs() < 1e-9 && fit.after.ece < 1e-9, "{fit:?}");
        let sure = 1.0 / (1.0 + (-3f64).exp());
        assert!((fit.before.ece - (sure - 0.75)).abs() < 1e-9, "{fit:?}");
        assert!((fit.before.accuracy, fit.after.accuracy) == (0.75, 0.75));
    }

    #[test]
    fn several_labels_that_may_hold_are_calibrated_label_by_label() {
        let labels = Labels::numbered(2, Activation::Sigmoid, 1.0);
        let texts: Vec<Labelled> =
            (0..4).map(|it| Labelled { logits: vec![2.0, -2.0], truth: vec![it != 0, it == 0] }).collect();
        let fit = fit(&labels, &texts).unwrap();
        assert!((fit.temperature - 2.0 / 3f64.ln()).abs() < 1e-9, "{fit:?}");
        assert!(fit.after.ece < 1e-9 && fit.after.accuracy == 0.75);
    }

    #[test]
    fn what_no_temperature_fits_is_refused() {
        let right = [text(3.0, true), text(-1.0, false)];
        assert_eq!(fit(&softmax(), &right), Err(CalibrationError::AlwaysRight));
        let wrong = [text(3.0, false), text(-1.0, true)];
        assert_eq!(fit(&softmax(), &wrong), Err(CalibrationError::Unrelated));
        assert_eq!(fit(&softmax(), &[]), Err(CalibrationError::Empty));
        let regression = Labels::numbered(1, Activation::Identity, 1.0);
        assert_eq!(fit(&regression, &right), Err(CalibrationError::NoProbability));
    }

    proptest! {
        #[test]
        fn no_other_temperature_is_likelier(
            texts in prop::collection::vec((-4f32..4.0, any::<bool>()), 8..40), other in 0.1f64..10.0,
        ) {
            let texts: Vec<Labelled> = texts.into_iter().map(|(logit, second)| text(logit, second)).collect();
            if let Ok(fit) = fit(&softmax(), &texts) {
                let at_other = quality(&at(&softmax(), other), &texts).unwrap();
                prop_assert!(fit.after.nll <= at_other.nll + 1e-9);
                prop_assert!(fit.after.nll <= fit.before.nll + 1e-9);
            }
        }
    }
}
