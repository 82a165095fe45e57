//! This file is where a local linear surrogate is fitted: LIME.

mod fit;

pub use self::fit::fit;
use self::fit::fit_while;
use super::budget::{Ended, EstimateError, Run, check_tolerance, checkpoints, evaluate};
use super::game::{Coalition, Game, Stop};
use super::kernel_shap::Regression;
pub use super::presence::WIDTH;
use super::presence::{self, Draw};
pub use super::selection::Selection;

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

/// Rows after which a run with a tolerance first looks at its standard errors, and the same for each player.
const FIRST_LOOK: usize = 256;
const FIRST_LOOK_PER_PLAYER: usize = 3;

/// The linear function that stands in for one output near the original.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearSurrogate {
    /// What presence of each player adds; zero for those not selected.
    pub coefficients: Vec<f64>,
    /// Standard errors of the coefficients over draws of the sample (sandwich formula), or those of the process; infinite
    /// where the sample is too small to tell.
    pub standard_errors: Vec<f64>,
    /// Whether a process over interactions was fitted.
    pub interactions: bool,
    /// The surrogate's value where every player is absent.
    pub intercept: f64,
    /// The weighted share of variance that the surrogate explains; none where the output varies and no weight sees it.
    pub r_squared: Option<f64>,
    /// The surrogate's value at the original.
    pub local_prediction: f64,
}

/// One surrogate an output.
#[derive(Debug, Clone, PartialEq)]
pub struct LimeFit {
    /// In the game's order of outputs.
    pub outputs: Vec<LinearSurrogate>,
    /// Rows of equal weight that would be as many: (Σ w)² / Σ w² (Kish 1965).
    pub effective_samples: f64,
}

impl LimeFit {
    fn largest_standard_error(&self) -> f64 {
        self.outputs.iter().flat_map(|it| &it.standard_errors).fold(0.0, |most, error| most.max(*error))
    }
}

/// Fits a weighted ridge regression (penalty 1, intercept free) of `game` on presence (Ribeiro et al. 2016).
///
/// # Errors
/// No players, fewer than 2 samples, a tolerance of zero or less, a width under which no row but the original has
/// weight, or the game stopped before 2 rows were had. [`Stop::Deadline`] ends with the fit of what was had before, every
/// other stop without any.
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
        return Err(EstimateError::parameter("kernel_width", options.width, "must be above 0"));
    }
    if presence::weight(&Coalition::of(players, 1..players), options.width) == 0.0 {
        let limit = format!("under which not even a text without one of its {players} features has weight");
        return Err(EstimateError::parameter("kernel_width", options.width, limit));
    }
    let (mut rows, mut weights, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let mut latest: Option<Run<LimeFit>> = None;
    let first = FIRST_LOOK.max(FIRST_LOOK_PER_PLAYER * players);
    for mark in checkpoints(first, options.samples, options.tolerance) {
        let drawn = presence::rows(players, options.seed, Draw::Fit, rows.len(), mark);
        let (worths, stop) = evaluate(game, &drawn);
        rows.extend(drawn.into_iter().take(worths.len()));
        weights.extend(rows[weights.len()..].iter().map(|row| presence::weight(row, options.width)));
        values.extend(worths);
        let fitted = match stop {
            Some(stop) => Err(stop),
            None => fit_while(&rows, &weights, &values, options, || game.check()),
        };
        let estimate = match (fitted, latest.take()) {
            (Ok(estimate), _) => estimate,
            (Err(stop @ Stop::Deadline), Some(run)) => return Ok(Run { ended: Ended::Stopped(stop), ..run }),
            (Err(stop @ Stop::Deadline), None) if rows.len() >= 2 => {
                let estimate = fit(&rows, &weights, &values, options);
                return Ok(Run { estimate, evaluations: rows.len(), ended: Ended::Stopped(stop) });
            }
            (Err(stop), _) => return Err(stop.into()),
        };
        let met = options.tolerance.is_some_and(|tolerance| estimate.largest_standard_error() <= tolerance);
        let ended = if met { Ended::Tolerance } else { Ended::Budget };
        latest = Some(Run { estimate, evaluations: rows.len(), ended });
        if met {
            break;
        }
    }
    latest.ok_or(EstimateError::NoPlayers)
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
        assert!((limit.r_squared.unwrap() - 0.945523).abs() < 1e-6);
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
        assert!((surrogate.intercept - 0.3).abs() < 1e-12 && surrogate.r_squared == Some(1.0));
    }

    #[test]
    fn no_samples_are_refused() {
        let refusal = lime(&mut Function::new(4, |_| 0.3), &options(0, 0)).unwrap_err();
        assert_eq!(refusal.to_string(), "samples is 0, must be at least 2");
    }

    #[test]
    fn a_kernel_that_sees_next_to_nothing_is_no_certainty() {
        for regression in [Regression::Linear, Regression::Interactions] {
            let narrow = Lime { width: 0.5, tolerance: Some(1e-4), regression, ..options(1_000, 0) };
            let run = lime(&mut Function::new(7, golden::stand_in), &narrow).unwrap();
            assert!(matches!(run.ended, Ended::Budget) && run.estimate.effective_samples < 1.1);
            let surrogate = &run.estimate.outputs[0];
            assert_eq!((surrogate.r_squared, run.estimate.largest_standard_error()), (None, f64::INFINITY));
        }
    }

    #[test]
    fn a_width_under_which_only_the_original_has_weight_is_refused() {
        for width in [1e-200, 0.1] {
            let narrow = Lime { width, ..options(100, 0) };
            let refusal = lime(&mut Function::new(7, golden::stand_in), &narrow).unwrap_err();
            assert!(refusal.to_string().starts_with("kernel_width is"), "{refusal}");
        }
    }

    #[test]
    fn errors_over_their_standard_errors_are_of_size_one_where_features_are_half_the_samples() {
        // A sigmoid of a sum: its curvature is the noise.
        let weight = |player: usize| [0.6, -0.4, 0.2, -0.7, 0.3][player % 5];
        let curved = |row: &Coalition| 1.0 / (1.0 + (-row.members().map(weight).sum::<f64>()).exp());
        let (players, samples) = (60, 200);
        let many = lime(&mut Function::new(players, curved), &options(60_000, 99)).unwrap();
        let long = &many.estimate.outputs[0].coefficients;
        let (mut standardised, mut count) = (0.0, 0.0);
        for seed in 0..10 {
            let run = lime(&mut Function::new(players, curved), &options(samples, seed)).unwrap();
            for (player, long) in long.iter().enumerate() {
                let surrogate = &run.estimate.outputs[0];
                let error = (surrogate.coefficients[player] - long) / surrogate.standard_errors[player];
                standardised += error * error;
                count += 1.0;
            }
        }
        let size = f64::sqrt(standardised / count);
        assert!((0.7..1.3).contains(&size), "{size}");
    }

    #[test]
    fn a_tolerance_is_not_looked_at_before_there_are_rows_for_the_features() {
        let options = Lime { tolerance: Some(10.0), ..options(5_000, 0) };
        let run = lime(&mut Function::new(300, |row| row.len() as f64 / 300.0), &options).unwrap();
        assert!(matches!(run.ended, Ended::Tolerance) && run.evaluations == 900);
    }

    /// A game whose time is over once as many rows were asked for.
    struct Late<G>(G, usize);

    impl<F: FnMut(&Coalition) -> f64> Game for Late<Function<F>> {
        fn players(&self) -> usize {
            self.0.players
        }

        fn outputs(&self) -> usize {
            1
        }

        fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
            self.0.evaluate(coalitions)
        }

        fn check(&self) -> Result<(), Stop> {
            if self.0.asked < self.1 { Ok(()) } else { Err(Stop::Deadline) }
        }

        fn chunk(&self) -> usize {
            self.0.chunk
        }
    }

    #[test]
    fn nothing_is_fitted_after_the_deadline_where_a_fit_is_had() {
        let options = Lime { tolerance: Some(1e-9), ..options(5_000, 0) };
        let run = lime(&mut Late(Function::new(7, golden::stand_in), 1_000), &options).unwrap();
        assert_eq!((run.evaluations, run.ended.name()), (512, "stopped"));
        let failed = Function { limit: 700, chunk: 64, ..Function::new(7, golden::stand_in) };
        assert_eq!(lime(&mut Late(failed, 9_999), &options).unwrap().evaluations, 512);
    }
}
