//! This file is where a local linear surrogate is fitted: LIME.

use faer::Mat;

use super::budget::{Ended, EstimateError, Run, check_tolerance, checkpoints, evaluate};
use super::game::{Coalition, Game};
use super::gram::Gram;
use super::kernel_shap::Regression;
use super::linalg::solve_symmetric;
use super::neighbourhood::{Belief, Neighbourhood};
pub use super::presence::WIDTH;
use super::presence::{self, Draw};
pub use super::selection::Selection;
use super::selection::{ridge, select};

/// How LIME samples and fits.
#[derive(Debug, Clone)]
pub struct Lime {
    /// Rows evaluated at most, the original included; at least 2.
    pub samples: usize,
    /// Stop once the largest standard error of a coefficient is at or below this.
    pub tolerance: Option<f64>,
    /// The kernel's width, above 0.
    pub width: f64,
    /// How features are selected, and how many.
    pub selection: Selection,
    /// Whether the fit is to the rows drawn, or to what they tell of all that could be drawn.
    pub regression: Regression,
    /// Features that may have a weight, where [`Lime::selection`] selects.
    pub features: usize,
    /// Which rows are drawn.
    pub seed: u64,
}

/// The ridge penalty of the last fit.
const ALPHA: f64 = 1.0;
/// Rows after which a run with a tolerance first looks at its standard errors.
const FIRST_LOOK: usize = 256;

/// The linear function that stands in for one output near the original.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSurrogate {
    /// What presence of each player adds; zero for those not selected.
    pub coefficients: Vec<f64>,
    /// Standard errors of the coefficients over draws of the sample (sandwich formula), or those of the process.
    pub standard_errors: Vec<f64>,
    /// Whether a process over interactions was fitted.
    pub interactions: bool,
    /// The surrogate's value where every player is absent.
    pub intercept: f64,
    /// The weighted share of variance that the surrogate explains.
    pub r_squared: f64,
    /// The surrogate's value at the original.
    pub local_prediction: f64,
}

/// One surrogate an output.
#[derive(Debug, Clone, PartialEq)]
pub struct LimeFit {
    /// In the game's order of outputs.
    pub outputs: Vec<LinearSurrogate>,
}

impl LimeFit {
    fn largest_standard_error(&self) -> f64 {
        self.outputs.iter().flat_map(|it| &it.standard_errors).fold(0.0, |most, error| most.max(*error))
    }
}

/// Fits a weighted ridge regression (penalty 1, intercept free) of `game` on presence (Ribeiro et al. 2016).
///
/// # Errors
/// No players, fewer than 2 samples, a tolerance or width of zero or less, or the game stopped before 2 rows were
/// had.
pub fn lime(game: &mut impl Game, options: &Lime) -> Result<Run<LimeFit>, EstimateError> {
    let players = game.players();
    check_tolerance(options.tolerance)?;
    if players == 0 {
        return Err(EstimateError::NoPlayers);
    }
    if options.samples < 2 {
        return Err(EstimateError::parameter("samples", options.samples, "must be at least 2"));
    }
    if options.width.is_nan() || options.width <= 0.0 {
        return Err(EstimateError::parameter("width", options.width, "must be above 0"));
    }
    let (mut rows, mut weights, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut latest = None;
    for mark in checkpoints(FIRST_LOOK, options.samples, options.tolerance) {
        let drawn = presence::rows(players, options.seed, Draw::Fit, rows.len(), mark);
        let (worths, stop) = evaluate(game, &drawn);
        rows.extend(drawn.into_iter().take(worths.len()));
        weights.extend(rows[weights.len()..].iter().map(|row| presence::weight(row, options.width)));
        values.extend(worths);
        if let Some(stop) = stop {
            if rows.len() < 2 {
                return Err(stop.into());
            }
            let estimate = fit(&rows, &weights, &values, options);
            return Ok(Run { estimate, evaluations: rows.len(), ended: Ended::Stopped(stop) });
        }
        let estimate = fit(&rows, &weights, &values, options);
        let met = options.tolerance.is_some_and(|tolerance| estimate.largest_standard_error() <= tolerance);
        let ended = if met { Ended::Tolerance } else { Ended::Budget };
        latest = Some(Run { estimate, evaluations: rows.len(), ended });
        if met {
            break;
        }
    }
    latest.ok_or(EstimateError::NoPlayers)
}

/// The fit on explicit rows: `values[row][output]`, at least one row.
pub fn fit(rows: &[Coalition], weights: &[f64], values: &[Vec<f64>], options: &Lime) -> LimeFit {
    let players = rows[0].players();
    let gram = Gram::of(players, rows.iter().zip(weights.iter().copied()));
    let centre: Vec<f64> = gram.sums.iter().map(|sum| sum / gram.total).collect();
    let centred = gram.centred(&centre);
    let neighbourhood = match options.regression {
        Regression::Interactions => Neighbourhood::of(rows, options.width),
        Regression::Linear => None,
    };
    let sample = Sample { rows, weights, total: gram.total, centre, centred, neighbourhood };
    let output = |output: usize| {
        let y: Vec<f64> = values.iter().map(|row| row[output]).collect();
        sample.fit(&y, options)
    };
    LimeFit { outputs: (0..values[0].len()).map(output).collect() }
}

/// What all outputs' fits share.
struct Sample<'a> {
    rows: &'a [Coalition],
    weights: &'a [f64],
    total: f64,
    /// Weighted mean of the rows.
    centre: Vec<f64>,
    /// Σ w (x - centre)(x - centre)ᵀ.
    centred: Mat<f64>,
    /// What the rows were drawn from, where interactions are to be told apart.
    neighbourhood: Option<Neighbourhood>,
}

impl Sample<'_> {
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
        let r_squared =
            if spread > 1e-24 * self.total * mean * mean { 1.0 - unexplained / spread } else { 1.0 };
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
    /// what is believed of it, or Σ w² r² (x - centre)(x - centre)ᵀ.
    fn standard_errors(
        &self,
        chosen: &[usize],
        inner: &Mat<f64>,
        residuals: &[f64],
        belief: Option<&Belief>,
    ) -> Vec<f64> {
        let players = self.centre.len();
        let meat_weights =
            self.weights.iter().zip(residuals).map(|(weight, residual)| (weight * residual).powi(2));
        let meat = match belief {
            Some(belief) => belief.spread.clone(),
            None => Gram::of(players, self.rows.iter().zip(meat_weights)).centred(&self.centre),
        };
        let meat = Mat::from_fn(chosen.len(), chosen.len(), |a, b| meat[(chosen[a], chosen[b])]);
        let penalised =
            Mat::from_fn(chosen.len(), chosen.len(), |a, b| inner[(a, b)] + if a == b { ALPHA } else { 0.0 });
        let bread = solve_symmetric(&penalised).inverse();
        let spread = &bread * &meat * &bread;
        let mut errors = vec![0.0; players];
        chosen
            .iter()
            .enumerate()
            .for_each(|(place, &player)| errors[player] = spread[(place, place)].max(0.0).sqrt());
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::game::Function;
    use crate::explain::estimators::golden::{self, BAD, GOOD, MOVIE, NOT};

    fn options(samples: usize, seed: u64) -> Lime {
        Lime {
            samples,
            tolerance: None,
            width: WIDTH,
            selection: Selection::None,
            regression: Regression::Linear,
            features: 10,
            seed,
        }
    }

    /// LIME of every subset of a game, in the proportions in which it is drawn: the limit of many samples.
    fn limit_of(table: &golden::Table, samples: usize) -> Vec<f64> {
        let players = table.players;
        let rows: Vec<_> = (0..1u64 << players).map(|code| Coalition::from_code(players, code)).collect();
        let mut sizes = vec![0.0; players + 1];
        rows.iter().for_each(|row| sizes[row.len()] += 1.0);
        let each = (samples - 1) as f64 / players as f64;
        let drawn = |row: &Coalition| if row.len() == players { 1.0 } else { each / sizes[row.len()] };
        let weights: Vec<_> = rows.iter().map(|row| drawn(row) * presence::weight(row, WIDTH)).collect();
        let values: Vec<_> = rows.iter().map(|row| vec![table.worth(row)]).collect();
        fit(&rows, &weights, &values, &options(samples, 0)).outputs.remove(0).coefficients
    }

    /// Mean squared error on text classifiers, and the same of the error over its standard error.
    fn errors(samples: usize, regression: Regression) -> (f64, f64) {
        let (mut squared, mut standardised, mut count) = (0.0, 0.0, 0.0);
        for table in golden::tables() {
            let limit = limit_of(&table, samples);
            for seed in 0..8 {
                let options = Lime { regression, ..options(samples, seed) };
                let mut game = Function::new(table.players, |c| table.worth(c));
                let found = lime(&mut game, &options).unwrap().estimate.outputs.remove(0);
                assert_eq!(found.interactions, regression == Regression::Interactions);
                for (player, limit) in limit.iter().enumerate() {
                    let error = found.coefficients[player] - limit;
                    squared += error * error;
                    standardised += (error / found.standard_errors[player]).powi(2);
                    count += 1.0;
                }
            }
        }
        (squared / count, standardised / count)
    }

    #[test]
    fn interactions_halve_the_error_of_a_sample_on_text_classifiers() {
        for samples in [250, 500, 1_000] {
            let (linear, _) = errors(samples, Regression::Linear);
            let (process, standardised) = errors(samples, Regression::Interactions);
            assert!(process < 0.5 * linear, "{samples}: {process:.2e} of {linear:.2e}");
            assert!((0.1..4.0).contains(&standardised), "{samples}: {standardised}");
        }
    }

    /// lime 0.2.0.1's sampling distribution at 5,000 samples, enumerated: the limit that its answers scatter
    /// around.
    fn limit() -> LinearSurrogate {
        let rows: Vec<_> = (0..1u64 << 7).map(|code| Coalition::from_code(7, code)).collect();
        let binomial = [1.0, 7.0, 21.0, 35.0, 35.0, 21.0, 7.0, 1.0];
        let weights: Vec<f64> = rows
            .iter()
            .map(|row| {
                let removed = 7 - row.len();
                let count = if removed == 0 { 1.0 } else { 4_999.0 / (7.0 * binomial[removed]) };
                count * presence::weight(row, WIDTH)
            })
            .collect();
        let values: Vec<_> = rows.iter().map(|row| vec![golden::stand_in(row)]).collect();
        fit(&rows, &weights, &values, &options(5_000, 0)).outputs.remove(0)
    }

    const LIMIT: [f64; 7] = [-0.132187, 0.003831, 0.282508, 0.106802, 0.003831, -0.304678, 0.003831];

    #[test]
    fn the_infinite_sample_limit_is_that_of_lime() {
        let limit = limit();
        for (found, expected) in limit.coefficients.iter().zip(LIMIT) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        assert!((limit.intercept - 0.565170).abs() < 1e-6);
        assert!((limit.r_squared - 0.945523).abs() < 1e-6);
        assert!((limit.local_prediction - 0.529108).abs() < 1e-6);
    }

    #[test]
    fn five_thousand_samples_are_within_a_hundredth_of_the_limit() {
        for seed in 0..10 {
            let run = lime(&mut Function::new(7, golden::stand_in), &options(5_000, seed)).unwrap();
            assert_eq!(run.evaluations, 5_000);
            for (found, expected) in run.estimate.outputs[0].coefficients.iter().zip(LIMIT) {
                assert!((found - expected).abs() < 0.01, "{seed}: {found} {expected}");
            }
        }
    }

    #[test]
    fn standard_errors_are_the_scatter_over_seeds() {
        let seeds = 200;
        let runs: Vec<_> = (0..seeds)
            .map(|seed| {
                lime(&mut Function::new(7, golden::stand_in), &options(1_000, seed)).unwrap().estimate
            })
            .collect();
        for player in [NOT, GOOD, MOVIE, BAD] {
            let mean_of = |of: &dyn Fn(&LinearSurrogate) -> f64| {
                runs.iter().map(|run| of(&run.outputs[0])).sum::<f64>() / seeds as f64
            };
            let mean = mean_of(&|it| it.coefficients[player]);
            let scatter = mean_of(&|it| (it.coefficients[player] - mean).powi(2)).sqrt();
            let stated = mean_of(&|it| it.standard_errors[player]);
            assert!((0.8..1.25).contains(&(stated / scatter)), "{player}: {stated} {scatter}");
        }
    }

    #[test]
    fn a_selection_leaves_the_others_at_zero() {
        for selection in [Selection::HighestWeights, Selection::Forward, Selection::LassoPath] {
            let options = Lime { selection, features: 3, ..options(2_000, 0) };
            let run = lime(&mut Function::new(7, golden::stand_in), &options).unwrap();
            let kept: Vec<_> = (0..7).filter(|&k| run.estimate.outputs[0].coefficients[k] != 0.0).collect();
            assert_eq!(kept, [NOT, GOOD, BAD], "{selection:?}");
        }
    }

    #[test]
    fn a_tolerance_ends_the_run_and_is_kept() {
        let options = Lime { tolerance: Some(0.004), ..options(100_000, 0) };
        let run = lime(&mut Function::new(7, golden::stand_in), &options).unwrap();
        assert!(matches!(run.ended, Ended::Tolerance) && run.evaluations < 100_000);
        assert!(run.estimate.largest_standard_error() <= 0.004);
    }

    #[test]
    fn chunks_change_nothing_and_a_stop_keeps_what_was_had() {
        let run = |chunk, limit| {
            let mut game = Function { chunk, limit, ..Function::new(7, golden::stand_in) };
            lime(&mut game, &options(500, 3)).unwrap()
        };
        assert_eq!(run(13, usize::MAX).estimate, run(1024, usize::MAX).estimate);
        let stopped = run(64, 200);
        assert!(matches!(stopped.ended, Ended::Stopped(_)));
        assert_eq!(stopped.evaluations, 192);
    }

    #[test]
    fn a_constant_model_has_no_weights_and_a_perfect_fit() {
        let run = lime(&mut Function::new(4, |_| 0.3), &options(100, 0)).unwrap();
        let surrogate = &run.estimate.outputs[0];
        assert!(surrogate.coefficients.iter().all(|b| b.abs() < 1e-12));
        assert!((surrogate.intercept - 0.3).abs() < 1e-12 && surrogate.r_squared > 0.99);
    }

    #[test]
    fn no_samples_are_refused() {
        let refusal = lime(&mut Function::new(4, |_| 0.3), &options(0, 0)).unwrap_err();
        assert_eq!(refusal.to_string(), "samples is 0, must be at least 2");
    }
}
