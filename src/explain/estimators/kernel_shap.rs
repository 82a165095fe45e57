//! This file is where Shapley values are estimated from as few coalitions as possible.

use std::time::{Duration, Instant};

use super::budget::{self, Ended, EstimateError, Run, check_tolerance, checkpoints, evaluate};
use super::design::Design;
use super::exact_shap;
use super::game::{Coalition, Game, Stop};
use super::interactions::{self, level};
use super::regression::{self, Linear, Plain, Worths};
use super::shapley::{self, Shapley};

/// What Kernel SHAP may spend, and when it may stop earlier.
#[derive(Debug, Clone)]
pub struct KernelShap {
    /// Coalitions evaluated at most, the empty and the full one not counted; at least twice the players.
    pub samples: usize,
    /// Stop once the largest standard error is at or below this.
    pub tolerance: Option<f64>,
    /// What interactions between players are taken for.
    pub regression: Regression,
    /// Which coalitions are drawn.
    pub seed: u64,
}

/// What Kernel SHAP's regression takes interactions between players for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Regression {
    /// A Gaussian process over interactions of odd order beside the values: several times less error on text
    /// classifiers at equal evaluations.
    Interactions,
    /// Noise, as in Lundberg & Lee (2017).
    Linear,
}

/// The most pairs that the process is fitted to; its time grows with their third power. Further pairs correct
/// it by a linear regression of what it leaves.
const PROCESS_PAIRS: usize = 1536;
/// Samples after which a run with a tolerance first looks at its standard errors.
const FIRST_LOOK: usize = 128;
/// How long an estimate of what was reached may take after the deadline.
const GRACE: Duration = Duration::from_millis(500);

/// Estimates the Shapley values of `game` by weighted regression over coalitions and their complements, drawn
/// without replacement, with the sum of values fixed (Lundberg & Lee 2017; Covert & Lee 2021 for pairs).
/// When 2^n - 2 <= samples only the draws of a game of drawn worths are left as error. Standard errors are not a
/// number while the pairs beyond size one are too few to tell them.
///
/// # Errors
/// No players, fewer than 2n samples, a tolerance of zero or less, or the game stopped before 2n samples were had.
pub fn kernel_shap(game: &mut impl Game, options: &KernelShap) -> Result<Run<Shapley>, EstimateError> {
    let players = game.players();
    check_tolerance(options.tolerance)?;
    if options.samples < 2 * players.max(1) {
        let limit = format!("must be at least {}, twice the number of features", 2 * players);
        return Err(EstimateError::parameter("samples", options.samples, limit));
    }
    let (base, full) = budget::ends(game)?;
    if players == 1 {
        return exact_shap::enumerate(game, base, full);
    }

    let population = Design::population(players);
    let mut design = Design::new(players, options.seed);
    let mut seen = Seen::new(game, base, full);
    let all = if population < usize::MAX as f64 { population as usize } else { usize::MAX };
    let wanted = (options.samples / 2).min(all);
    let mut latest = None;
    for mark in checkpoints(FIRST_LOOK.max(3 * players) / 2, wanted, options.tolerance) {
        let pairs = design.take(mark - seen.pairs.len());
        let both: Vec<_> = pairs.iter().flat_map(|pair| [pair.clone(), pair.complement()]).collect();
        let (rows, stop) = evaluate(game, &both);
        seen.add(game, pairs, &rows);
        let evaluations = 2 * seen.pairs.len() + 2;
        let (estimate, ended) = match stop {
            Some(Stop::Deadline) if seen.pairs.len() >= players => {
                let begun = Instant::now();
                let hurry = || if begun.elapsed() > GRACE { Err(Stop::Deadline) } else { Ok(()) };
                (seen.estimate(options.regression, &hurry).0, Ended::Stopped(Stop::Deadline))
            }
            Some(stop) => return Err(stop.into()),
            None if seen.pairs.len() == all => (seen.exact(), Ended::Exhausted),
            None => match seen.estimate(options.regression, &|| game.check()) {
                (estimate, Some(stop)) => (estimate, Ended::Stopped(stop)),
                (estimate, None) => {
                    let largest = estimate.largest_standard_error();
                    let kept = options.tolerance.is_some_and(|tolerance| largest <= tolerance);
                    (estimate, if kept { Ended::Tolerance } else { Ended::Budget })
                }
            },
        };
        let over = !matches!(ended, Ended::Budget);
        latest = Some(Run { estimate, evaluations, ended });
        if over {
            break;
        }
    }
    latest.ok_or(EstimateError::NoPlayers)
}

/// The coalitions evaluated so far.
struct Seen {
    pairs: Vec<Coalition>,
    outputs: Vec<Output>,
    base: Vec<f64>,
    full: Vec<f64>,
}

/// One output of theirs; see [`Worths`].
struct Output {
    halves: Vec<f64>,
    spread: Vec<f64>,
    full: f64,
    full_spread: f64,
}

impl Output {
    fn worths(&self) -> Worths<'_> {
        let Self { halves, spread, full, full_spread } = self;
        Worths { halves, spread, full: *full, full_spread: *full_spread }
    }
}

impl Seen {
    fn new(game: &impl Game, base: Vec<f64>, full: Vec<f64>) -> Self {
        let spread = half_spread(game, &Coalition::empty(game.players()));
        let output = |output: usize| Output {
            halves: Vec::new(),
            spread: Vec::new(),
            full: (full[output] - base[output]) / 2.0,
            full_spread: spread[output],
        };
        let outputs = (0..base.len()).map(output).collect();
        Self { pairs: Vec::new(), outputs, base, full }
    }

    /// Adds those of `pairs` of which both rows came back.
    fn add(&mut self, game: &impl Game, pairs: Vec<Coalition>, rows: &[Vec<f64>]) {
        for (pair, rows) in pairs.into_iter().zip(rows.chunks_exact(2)) {
            let spread = half_spread(game, &pair);
            for (place, output) in self.outputs.iter_mut().enumerate() {
                output.halves.push((rows[0][place] - rows[1][place]) / 2.0);
                output.spread.push(spread[place]);
            }
            self.pairs.push(pair);
        }
    }

    fn gathered(&self, estimates: Vec<Linear>) -> Shapley {
        let errors = |it: &Linear| it.variances.iter().map(|variance| variance.sqrt()).collect();
        Shapley {
            standard_errors: estimates.iter().map(errors).collect(),
            values: estimates.into_iter().map(|it| it.values).collect(),
            base: self.base.clone(),
            full: self.full.clone(),
        }
    }

    /// The values once every pair was seen: 2/n of everybody's half, and of the half of each pair S
    /// 2 w(|S| - 1) for its members and -2 w(|S|) for the others, w being the Shapley weight.
    fn exact(&self) -> Shapley {
        let players = self.pairs[0].players();
        let weights: Vec<f64> = (0..players).map(|size| 2.0 * shapley::weight(players, size)).collect();
        let share = 2.0 / players as f64;
        let estimate = |output: &Output| {
            let mut values = vec![share * output.full; players];
            let mut variances = vec![share * share * output.full_spread; players];
            for (pair, (half, spread)) in self.pairs.iter().zip(output.halves.iter().zip(&output.spread)) {
                let size = pair.len();
                for player in 0..players {
                    let weight = if pair.contains(player) { weights[size - 1] } else { -weights[size] };
                    values[player] += weight * half;
                    variances[player] += weight * weight * spread;
                }
            }
            Linear { values, variances }
        };
        self.gathered(self.outputs.iter().map(estimate).collect())
    }

    /// Output by output the estimate that knows most; once `check` says stop, the plain regression's.
    fn estimate(
        &self,
        regression: Regression,
        check: &dyn Fn() -> Result<(), Stop>,
    ) -> (Shapley, Option<Stop>) {
        let regressor = Plain::new(&self.pairs);
        let mut stopped = None;
        let mut estimate = |output: &Output| {
            let plain = regressor.fit(output.worths());
            if regression == Regression::Linear || stopped.is_some() {
                return plain;
            }
            match adjusted(&self.pairs, output.worths(), check) {
                Ok(Some(adjusted)) => better(adjusted, plain),
                Ok(None) => plain,
                Err(stop) => {
                    stopped = Some(stop);
                    plain
                }
            }
        };
        let estimates = self.outputs.iter().map(&mut estimate).collect();
        (self.gathered(estimates), stopped)
    }
}

/// The variance of half the difference between a coalition and its complement, by output.
fn half_spread(game: &impl Game, coalition: &Coalition) -> Vec<f64> {
    let mut sum = vec![0.0; game.outputs()];
    for of in [game.spread(coalition), game.spread(&coalition.complement())].into_iter().flatten() {
        sum.iter_mut().zip(of).for_each(|(sum, it)| *sum += it / 4.0);
    }
    sum
}

/// The plain regression where it is known to err less: on a game without structure, and near the end of the
/// coalitions. Where neither knows, the process errs less.
fn better(process: Linear, plain: Linear) -> Linear {
    let (of_process, of_plain) = (process.variance(), plain.variance());
    let plainly = of_plain <= of_process || of_process.is_nan() && !of_plain.is_nan();
    if plainly { plain } else { process }
}

/// The process where it can be fitted, corrected by the pairs that it has not seen where those are enough.
fn adjusted(
    pairs: &[Coalition],
    worths: Worths<'_>,
    check: &dyn Fn() -> Result<(), Stop>,
) -> Result<Option<Linear>, Stop> {
    let players = pairs[0].players();
    let fitted = pairs.len().min(PROCESS_PAIRS.max(2 * players));
    let of_fitted = Worths { halves: &worths.halves[..fitted], spread: &worths.spread[..fitted], ..worths };
    let Some(process) = interactions::fit(&pairs[..fitted], of_fitted, check)? else { return Ok(None) };
    let (mut values, mut variances) = (process.values.clone(), process.variances.clone());
    // A trend of as many parameters as players is left free by fewer pairs than a quarter of that.
    let drawn = regression::drawn(&pairs[..fitted]);
    let known = if drawn < players / 4 { f64::NAN } else { regression::inflation(drawn) };
    variances.iter_mut().for_each(|it| *it *= known);

    let unseen = &pairs[fitted..];
    if regression::inflation(regression::drawn(unseen).saturating_sub(players)).is_nan() {
        return Ok(Some(Linear { values, variances }));
    }
    check()?;
    // Size one is complete, so its rows stand beside the unseen ones.
    let places: Vec<usize> =
        (0..pairs.len()).filter(|&place| place >= fitted || pairs[place].len() == 1).collect();
    let held: Vec<_> = places.iter().map(|&place| pairs[place].clone()).collect();
    let left: Vec<f64> = places
        .iter()
        .zip(process.predict(&held))
        .map(|(&place, predicted)| worths.halves[place] - predicted)
        .collect();
    let spread: Vec<f64> = places.iter().map(|&place| worths.spread[place]).collect();
    let of_held = Worths { halves: &left, spread: &spread, full: 0.0, full_spread: 0.0 };
    let correction = Plain::new(&held).fit(of_held);
    for player in 0..players {
        // Of two independent errors the believed share of the correction is that which makes their sum least.
        let sum = (variances[player] + correction.variances[player]).max(f64::MIN_POSITIVE);
        let share = variances[player] / sum;
        values[player] += share * correction.values[player];
        variances[player] = share * correction.variances[player];
    }
    level(&mut values, 2.0 * worths.full);
    Ok(Some(Linear { values, variances }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::exact_shap::exact_shap;
    use crate::explain::estimators::game::{Function, Over};
    use crate::explain::estimators::golden::{self, Groups, Table};

    fn options(samples: usize) -> KernelShap {
        KernelShap { samples, tolerance: None, regression: Regression::Interactions, seed: 0 }
    }

    /// Mean squared error over players and seeds, and the same of the error over its standard error.
    fn errors(table: &Table, samples: usize, regression: Regression, seeds: u64) -> (f64, f64) {
        let (mut squared, mut standardised) = (0.0, 0.0);
        for seed in 0..seeds {
            let options = KernelShap { samples, tolerance: None, regression, seed };
            let run = kernel_shap(&mut Function::new(table.players, |c| table.worth(c)), &options).unwrap();
            assert_eq!(run.evaluations, samples + 2);
            assert!(run.estimate.efficiency_gap(0).abs() < 1e-9);
            for (player, exact) in table.exact.iter().enumerate() {
                let error = run.estimate.values[0][player] - exact;
                squared += error * error;
                standardised += (error / run.estimate.standard_errors[0][player]).powi(2);
            }
        }
        let count = (seeds as usize * table.players) as f64;
        (squared / count, standardised / count)
    }

    #[test]
    fn all_coalitions_give_the_exact_values() {
        let mut game = Function::new(7, golden::stand_in);
        let run = kernel_shap(&mut game, &options(126)).unwrap();
        assert!(matches!(run.ended, Ended::Exhausted));
        assert_eq!((run.evaluations, game.asked), (128, 128));
        let exact = exact_shap(&mut Function::new(7, golden::stand_in)).unwrap();
        for (value, exact) in run.estimate.values[0].iter().zip(&exact.estimate.values[0]) {
            assert!((value - exact).abs() < 1e-12);
        }
        assert_eq!(run.estimate.largest_standard_error(), 0.0);
    }

    #[test]
    fn the_regression_over_all_pairs_is_exact() {
        let options = KernelShap { tolerance: Some(1e-12), ..options(5_000) };
        let run = kernel_shap(&mut Function::new(9, golden::rough), &options).unwrap();
        let exact = exact_shap(&mut Function::new(9, golden::rough)).unwrap();
        assert!(matches!(run.ended, Ended::Exhausted));
        for (value, exact) in run.estimate.values[0].iter().zip(&exact.estimate.values[0]) {
            assert!((value - exact).abs() < 1e-9, "{value} {exact}");
        }
    }

    #[test]
    fn the_error_on_text_classifiers_is_less_than_half_of_the_peers() {
        let tables = golden::tables();
        for samples in [128, 256, 512, 1024] {
            let peers: f64 = tables.iter().map(|table| table.peer_error[&samples]).sum();
            let ours: f64 =
                tables.iter().map(|table| errors(table, samples, Regression::Interactions, 10).0).sum();
            assert!(ours < 0.5 * peers, "{samples}: {ours:.3e} of {peers:.3e}");
        }
    }

    #[test]
    fn standard_errors_are_the_size_of_the_errors() {
        for table in golden::tables() {
            for samples in [48, 64, 128, 256, 512] {
                for regression in [Regression::Interactions, Regression::Linear] {
                    let (_, standardised) = errors(&table, samples, regression, 10);
                    let sure = regression == Regression::Interactions || samples >= 72;
                    assert!(
                        if sure { (0.4..2.6).contains(&standardised) } else { standardised.is_nan() },
                        "{samples} {regression:?} {standardised:.2}"
                    );
                }
            }
        }
    }

    #[test]
    fn standard_errors_are_honest_as_soon_as_they_are_told() {
        // By players and samples: root mean square of error over standard error, over functions and seeds.
        for (players, samples, seeds) in
            [(12, 48, 8), (12, 96, 8), (12, 512, 4), (50, 124, 4), (50, 200, 4), (50, 300, 4), (300, 900, 1)]
        {
            for regression in [Regression::Interactions, Regression::Linear] {
                let (mut squares, mut count) = (0.0, 0.0);
                for words in Groups::several(players) {
                    let exact = words.exact();
                    for seed in 0..seeds {
                        let options = KernelShap { samples, tolerance: None, regression, seed };
                        let mut game = Function::new(players, |c| words.worth(c));
                        let found = kernel_shap(&mut game, &options).unwrap().estimate;
                        for (player, exact) in exact.iter().enumerate() {
                            let error = found.values[0][player] - exact;
                            squares += (error / found.standard_errors[0][player]).powi(2);
                            count += 1.0;
                        }
                    }
                }
                let z = f64::sqrt(squares / count);
                let told = regression == Regression::Interactions || samples >= 4 * players + 24;
                let fits = if told { (0.7..1.35).contains(&z) } else { z.is_nan() };
                assert!(fits, "{players} players, {samples} samples, {regression:?}: {z:.2}");
            }
        }
    }

    #[test]
    fn no_tolerance_is_met_while_the_standard_errors_are_unknown() {
        let [words, ..] = Groups::several(20);
        for samples in [40, 44, 60] {
            let options = KernelShap { tolerance: Some(1e-9), ..options(samples) };
            let run = kernel_shap(&mut Function::new(20, |c| words.worth(c)), &options).unwrap();
            assert!(matches!(run.ended, Ended::Budget), "{samples}: {:?}", run.ended);
            assert!(run.estimate.largest_standard_error().is_nan());
        }
    }

    #[test]
    fn a_stop_before_all_coalitions_were_seen_leaves_an_estimate() {
        let [words, ..] = Groups::several(10);
        let mut game =
            Function { limit: 402, chunk: 50, ..Function::new(10, |c: &Coalition| words.worth(c)) };
        let run = kernel_shap(&mut game, &options(1022)).unwrap();
        assert!(matches!(run.ended, Ended::Stopped(Stop::Deadline)));
        for (value, exact) in run.estimate.values[0].iter().zip(words.exact()) {
            assert!((value - exact).abs() < 0.05, "{value} {exact}");
        }
    }

    #[test]
    fn a_deadline_that_passes_in_the_regression_ends_it() {
        let run = kernel_shap(&mut Over(Function::new(12, golden::rough), || Stop::Deadline), &options(300))
            .unwrap();
        assert!(matches!(run.ended, Ended::Stopped(Stop::Deadline)));
        assert!(run.estimate.efficiency_gap(0).abs() < 1e-9);
    }

    #[test]
    fn a_tolerance_ends_the_run_and_is_kept() {
        let table = &golden::tables()[0];
        let options = KernelShap { tolerance: Some(0.002), ..options(4_000) };
        let run = kernel_shap(&mut Function::new(12, |c| table.worth(c)), &options).unwrap();
        assert!(matches!(run.ended, Ended::Tolerance), "{:?}", run.ended);
        assert!(run.evaluations < 4_000 && run.estimate.largest_standard_error() <= 0.002);
    }

    #[test]
    fn chunks_change_nothing() {
        let run = |chunk| {
            let mut game = Function { chunk, ..Function::new(12, golden::rough) };
            kernel_shap(&mut game, &options(300)).unwrap().estimate
        };
        assert_eq!(run(7), run(1024));
    }

    #[test]
    fn a_stopped_game_gives_the_estimate_so_far_or_the_reason() {
        let stopped = |limit| {
            let mut game = Function { limit, chunk: 64, ..Function::new(12, golden::rough) };
            kernel_shap(&mut game, &options(512))
        };
        let run = stopped(200).unwrap();
        assert!(matches!(run.ended, Ended::Stopped(_)));
        assert_eq!(run.evaluations, 2 + 192);
        assert!(run.estimate.efficiency_gap(0).abs() < 1e-9);
        assert!(matches!(stopped(20), Err(EstimateError::Stopped(_))));
    }

    #[test]
    fn a_long_text_is_estimated_and_adds_up() {
        let worth =
            |c: &Coalition| (c.members().take(40).map(|m| 0.1 * (m % 7) as f64 - 0.2).sum::<f64>()).tanh();
        for (players, samples) in [(150, 700), (300, 600)] {
            let run = kernel_shap(&mut Function::new(players, worth), &options(samples)).unwrap();
            assert!(run.estimate.efficiency_gap(0).abs() < 1e-9);
            assert!(run.estimate.values[0].iter().all(|value| value.is_finite()));
        }
    }

    #[test]
    fn a_budget_below_twice_the_players_is_refused() {
        let refusal = kernel_shap(&mut Function::new(12, golden::rough), &options(23)).unwrap_err();
        assert_eq!(refusal.to_string(), "samples is 23, must be at least 24, twice the number of features");
    }

    #[test]
    fn pairs_beyond_the_process_correct_it() {
        let exact = exact_shap(&mut Function::new(14, golden::rough)).unwrap().estimate;
        let squared = |samples| -> f64 {
            let error = |seed| {
                let options = KernelShap { seed, ..options(samples) };
                let found = kernel_shap(&mut Function::new(14, golden::rough), &options).unwrap().estimate;
                assert!(found.efficiency_gap(0).abs() < 1e-9);
                found.values[0].iter().zip(&exact.values[0]).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
            };
            (0..4).map(error).sum()
        };
        let (few, many) = (squared(3_000), squared(12_000));
        assert!(many < 0.5 * few, "{many} {few}");
    }
}
