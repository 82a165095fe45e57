//! This file is where LIME's weighted ridge regression is solved, and where its errors are told.

use faer::Mat;

use super::super::game::{Coalition, Stop};
use super::super::gram::Gram;
use super::super::kernel_shap::Regression;
use super::super::linalg::solve_symmetric;
use super::super::neighbourhood::{Belief, Neighbourhood};
use super::super::selection::{Selection, ridge, select};
use super::{Lime, LimeFit, LinearSurrogate};

/// The ridge penalty of the last fit.
const ALPHA: f64 = 1.0;
/// The fit on explicit rows: `values[row][output]`, at least one row.
pub fn fit(rows: &[Coalition], weights: &[f64], values: &[Vec<f64>], options: &Lime) -> LimeFit {
    let sample = Sample::of(rows, weights, options);
    let outputs = (0..values[0].len()).map(|output| sample.fit(&column(values, output), options)).collect();
    LimeFit { outputs, effective_samples: sample.effective }
}

/// The same, unless `check` stops it between outputs.
pub(super) fn fit_while(
    rows: &[Coalition],
    weights: &[f64],
    values: &[Vec<f64>],
    options: &Lime,
    check: impl Fn() -> Result<(), Stop>,
) -> Result<LimeFit, Stop> {
    check()?;
    let sample = Sample::of(rows, weights, options);
    let output = |output| {
        check()?;
        Ok(sample.fit(&column(values, output), options))
    };
    let outputs = (0..values[0].len()).map(output).collect::<Result<_, Stop>>()?;
    Ok(LimeFit { outputs, effective_samples: sample.effective })
}

fn column(values: &[Vec<f64>], output: usize) -> Vec<f64> {
    values.iter().map(|row| row[output]).collect()
}

/// What all outputs' fits share.
struct Sample<'a> {
    rows: &'a [Coalition],
    weights: &'a [f64],
    total: f64,
    /// Kish's effective sample size.
    effective: f64,
    /// Weighted mean of the rows.
    centre: Vec<f64>,
    /// Σ w (x - centre)(x - centre)ᵀ.
    centred: Mat<f64>,
    /// What the rows were drawn from, where interactions are to be told apart.
    neighbourhood: Option<Neighbourhood>,
}

impl<'a> Sample<'a> {
    fn of(rows: &'a [Coalition], weights: &'a [f64], options: &Lime) -> Self {
        let gram = Gram::of(rows[0].players(), rows.iter().zip(weights.iter().copied()));
        let centre: Vec<f64> = gram.sums.iter().map(|sum| sum / gram.total).collect();
        let centred = gram.centred(&centre);
        let neighbourhood = match options.regression {
            Regression::Interactions => Neighbourhood::of(rows, options.width),
            Regression::Linear => None,
        };
        let effective = gram.total * gram.total / weights.iter().map(|weight| weight * weight).sum::<f64>();
        Self { rows, weights, total: gram.total, effective, centre, centred, neighbourhood }
    }

    fn fit(&self, y: &[f64], options: &Lime) -> LinearSurrogate {
        let players = self.centre.len();
        let weighted =
            |of: &dyn Fn(usize) -> f64| -> f64 { (0..y.len()).map(|row| self.weights[row] * of(row)).sum() };
        let mean = weighted(&|row| y[row]) / self.total;
        let mut right = vec![0.0; players];
        for (row, (coalition, weight)) in self.rows.iter().zip(self.weights).enumerate() {
            let share = weight * (y[row] - mean);
            coalition.members().for_each(|player| right[player] += share);
        }
        let believed = self.neighbourhood.as_ref().and_then(|it| Some((it, it.believe(y)?)));
        let (centred, right) = match &believed {
            Some((neighbourhood, belief)) => (&neighbourhood.centred, &belief.right),
            None => (&self.centred, &right),
        };
        let chosen = match options.selection {
            Selection::None => (0..players).collect(),
            how => select(how, options.features, centred, right),
        };

        let inner = Mat::from_fn(chosen.len(), chosen.len(), |a, b| centred[(chosen[a], chosen[b])]);
        let inner_right: Vec<f64> = chosen.iter().map(|&player| right[player]).collect();
        let mut coefficients = vec![0.0; players];
        let solved = ridge(&inner, &inner_right, ALPHA);
        chosen.iter().zip(solved).for_each(|(&player, coefficient)| coefficients[player] = coefficient);
        let slope: f64 = coefficients.iter().zip(&self.centre).map(|(b, x)| b * x).sum();
        let intercept = mean - slope;

        let residuals: Vec<f64> = self
            .rows
            .iter()
            .zip(y)
            .map(|(row, y)| y - intercept - row.members().map(|player| coefficients[player]).sum::<f64>())
            .collect();
        let unexplained = weighted(&|row| residuals[row] * residuals[row]);
        let spread = weighted(&|row| (y[row] - mean).powi(2));
        // A constant output, whose spread is rounding, is explained by its constant.
        let constant = || y.iter().all(|it| (it - mean).abs() <= 1e-12 * mean.abs());
        let r_squared = match spread > 1e-24 * self.total * mean * mean {
            true => Some(1.0 - unexplained / spread),
            false => constant().then_some(1.0),
        };
        LinearSurrogate {
            standard_errors: self.standard_errors(
                &chosen,
                &inner,
                &residuals,
                believed.as_ref().map(|it| &it.1),
            ),
            interactions: believed.is_some(),
            local_prediction: intercept + coefficients.iter().sum::<f64>(),
            coefficients,
            intercept,
            r_squared,
        }
    }

    /// The roots of the diagonal of A⁻¹ B A⁻¹, A the penalised gram matrix and B the variance of its right-hand side:
    /// what is believed of it, or n / (n - p) Σ w² r² (x - centre)(x - centre)ᵀ (HC1, MacKinnon & White 1985) with n the
    /// effective samples and p the weights and the intercept. Infinite unless n is above p.
    fn standard_errors(
        &self,
        chosen: &[usize],
        inner: &Mat<f64>,
        residuals: &[f64],
        belief: Option<&Belief>,
    ) -> Vec<f64> {
        let (players, fitted) = (self.centre.len(), (chosen.len() + 1) as f64);
        let mut errors = vec![0.0; players];
        if self.effective < fitted + 1.0 {
            chosen.iter().for_each(|&player| errors[player] = f64::INFINITY);
            return errors;
        }
        let freedom = self.effective / (self.effective - fitted);
        let meat_weights = self
            .weights
            .iter()
            .zip(residuals)
            .map(|(weight, residual)| freedom * (weight * residual).powi(2));
        let meat = match belief {
            Some(belief) => belief.spread.clone(),
            None => Gram::of(players, self.rows.iter().zip(meat_weights)).centred(&self.centre),
        };
        let meat = Mat::from_fn(chosen.len(), chosen.len(), |a, b| meat[(chosen[a], chosen[b])]);
        let penalised =
            Mat::from_fn(chosen.len(), chosen.len(), |a, b| inner[(a, b)] + if a == b { ALPHA } else { 0.0 });
        let bread = solve_symmetric(&penalised).inverse();
        let spread = &bread * &meat * &bread;
        chosen
            .iter()
            .enumerate()
            .for_each(|(place, &player)| errors[player] = spread[(place, place)].max(0.0).sqrt());
        errors
    }
}
