//! This file is where Shapley values are estimated from as few coalitions as possible.

use std::collections::HashMap;

use faer::Mat;

use super::budget::{self, Ended, EstimateError, Run, check_tolerance, checkpoints, evaluate};
use super::design::Design;
use super::exact_shap;
use super::game::{Coalition, Game};
use super::interactions;
use super::linalg::solve_symmetric;
use super::shapley::Shapley;

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

/// Estimates the Shapley values of `game` by weighted regression over coalitions and their complements, drawn
/// without replacement, with the sum of values fixed (Lundberg & Lee 2017; Covert & Lee 2021 for pairs).
/// Exact, with standard errors of zero, when 2^n - 2 <= samples.
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
    let (wanted, population) = (options.samples / 2, Design::population(players));
    if options.tolerance.is_none() && population <= wanted as f64 && players < 63 || players == 1 {
        return exact_shap::enumerate(game, base, full);
    }

    let mut design = Design::new(players, options.seed);
    let mut seen = Seen { pairs: Vec::new(), halves: vec![Vec::new(); base.len()], base, full };
    let wanted = wanted.min(if population < usize::MAX as f64 { population as usize } else { usize::MAX });
    let mut latest = None;
    for mark in checkpoints(FIRST_LOOK.max(3 * players) / 2, wanted, options.tolerance) {
        let pairs = design.take(mark - seen.pairs.len());
        let both: Vec<_> = pairs.iter().flat_map(|pair| [pair.clone(), pair.complement()]).collect();
        let (rows, stop) = evaluate(game, &both);
        seen.add(pairs, &rows);
        let evaluations = 2 * seen.pairs.len() + 2;
        if let Some(stop) = stop {
            if seen.pairs.len() < players {
                return Err(stop.into());
            }
            return Ok(Run {
                estimate: seen.estimate(options.regression),
                evaluations,
                ended: Ended::Stopped(stop),
            });
        }
        let estimate = if seen.pairs.len() as f64 >= population {
            let estimate = seen.exact();
            return Ok(Run { estimate, evaluations, ended: Ended::Exhausted });
        } else {
            seen.estimate(options.regression)
        };
        if options.tolerance.is_some_and(|tolerance| estimate.largest_standard_error() <= tolerance) {
            return Ok(Run { estimate, evaluations, ended: Ended::Tolerance });
        }
        latest = Some(Run { estimate, evaluations, ended: Ended::Budget });
    }
    latest.ok_or(EstimateError::NoPlayers)
}

/// The coalitions evaluated so far.
struct Seen {
    pairs: Vec<Coalition>,
    /// Half the difference between a pair's coalition and its complement: `halves[output][pair]`.
    halves: Vec<Vec<f64>>,
    base: Vec<f64>,
    full: Vec<f64>,
}

impl Seen {
    /// Adds those of `pairs` of which both rows came back.
    fn add(&mut self, pairs: Vec<Coalition>, rows: &[Vec<f64>]) {
        for (pair, rows) in pairs.into_iter().zip(rows.chunks_exact(2)) {
            self.pairs.push(pair);
            for (output, halves) in self.halves.iter_mut().enumerate() {
                halves.push((rows[0][output] - rows[1][output]) / 2.0);
            }
        }
    }

    fn players(&self) -> usize {
        self.pairs[0].players()
    }

    /// Half the difference between everybody and nobody.
    fn full_half(&self, output: usize) -> f64 {
        (self.full[output] - self.base[output]) / 2.0
    }

    fn by_output(&self, estimate: impl Fn(usize) -> Linear) -> Shapley {
        let estimates: Vec<_> = (0..self.base.len()).map(estimate).collect();
        Shapley {
            values: estimates.iter().map(|estimate| estimate.values.clone()).collect(),
            standard_errors: estimates
                .iter()
                .map(|estimate| estimate.variances.iter().map(|variance| variance.sqrt()).collect())
                .collect(),
            base: self.base.clone(),
            full: self.full.clone(),
        }
    }

    /// The values once every pair was seen: then the linear regression has the Shapley values as solution.
    fn exact(&self) -> Shapley {
        self.by_output(|output| regress(&self.pairs, &self.halves[output], self.full_half(output)))
    }

    fn estimate(&self, regression: Regression) -> Shapley {
        self.by_output(|output| {
            let (halves, full) = (&self.halves[output], self.full_half(output));
            match regression {
                Regression::Linear => regress(&self.pairs, halves, full),
                Regression::Interactions => {
                    // On a game without structure, and near the end of the coalitions, the plain regression
                    // may know more.
                    let plain = regress(&self.pairs, halves, full);
                    match adjusted(self.players(), &self.pairs, halves, full) {
                        Some(adjusted) if adjusted.variance() < plain.variance() => adjusted,
                        _ => plain,
                    }
                }
            }
        })
    }
}

/// The process where it can be fitted, corrected by the pairs that it has not seen.
fn adjusted(players: usize, pairs: &[Coalition], halves: &[f64], full: f64) -> Option<Linear> {
    let fitted = pairs.len().min(PROCESS_PAIRS.max(2 * players));
    let process = interactions::fit(players, &pairs[..fitted], &halves[..fitted], full)?;
    if fitted == pairs.len() {
        return Some(Linear { values: process.values, variances: process.variances });
    }
    // Size one is complete, so its rows stand beside the unseen ones.
    let places: Vec<usize> =
        (0..pairs.len()).filter(|&place| place >= fitted || pairs[place].len() == 1).collect();
    let held: Vec<_> = places.iter().map(|&place| pairs[place].clone()).collect();
    let left: Vec<f64> = places
        .iter()
        .zip(process.predict(&held))
        .map(|(&place, predicted)| halves[place] - predicted)
        .collect();
    let correction = regress(&held, &left, 0.0);
    let mut values = process.values;
    let mut variances = process.variances;
    for player in 0..players {
        // Of two independent errors the believed share of the correction is that which makes their sum least.
        let share =
            variances[player] / (variances[player] + correction.variances[player]).max(f64::MIN_POSITIVE);
        values[player] += share * correction.values[player];
        variances[player] = share * correction.variances[player];
    }
    let gap = (2.0 * full - values.iter().sum::<f64>()) / players as f64;
    values.iter_mut().for_each(|value| *value += gap);
    Some(Linear { values, variances })
}

/// Values and their variances.
struct Linear {
    values: Vec<f64>,
    variances: Vec<f64>,
}

impl Linear {
    fn variance(&self) -> f64 {
        self.variances.iter().sum()
    }
}

/// Least squares of the odd half on the players' signs, each size weighted by the Shapley kernel's mass, with
/// the sum of coefficients equal to `full`; variances by the sandwich formula with the finite-population
/// correction of each size.
fn regress(pairs: &[Coalition], halves: &[f64], full: f64) -> Linear {
    let players = pairs[0].players();
    let mut taken: HashMap<usize, usize> = HashMap::new();
    pairs.iter().for_each(|pair| *taken.entry(pair.len()).or_default() += 1);
    let weights: Vec<(f64, f64)> =
        pairs.iter().map(|pair| Design::weight(players, pair.len(), taken[&pair.len()])).collect();
    let sign = |row: usize, player: usize| if pairs[row].contains(player) { 1.0 } else { -1.0 };
    let signs = Mat::from_fn(pairs.len(), players, sign);
    let weighted = |weight: &dyn Fn(usize) -> f64| {
        let scaled = Mat::from_fn(pairs.len(), players, |row, player| signs[(row, player)] * weight(row));
        signs.transpose() * scaled
    };

    let gram = solve_symmetric(&weighted(&|row| weights[row].0));
    let right: Vec<f64> = (0..players)
        .map(|player| (0..pairs.len()).map(|row| signs[(row, player)] * weights[row].0 * halves[row]).sum())
        .collect();
    let free = gram.solve_vector(&right);
    let ones = gram.solve_vector(&vec![1.0; players]);
    let total: f64 = ones.iter().sum();
    let excess = (full - free.iter().sum::<f64>()) / total;
    let coefficients: Vec<f64> = free.iter().zip(&ones).map(|(b, one)| b + one * excess).collect();

    let residuals: Vec<f64> = (0..pairs.len())
        .map(|row| halves[row] - (0..players).map(|p| signs[(row, p)] * coefficients[p]).sum::<f64>())
        .collect();
    let meat = weighted(&|row| (weights[row].0 * residuals[row]).powi(2) * weights[row].1);
    let inverse = gram.inverse();
    let bread = Mat::from_fn(players, players, |a, b| inverse[(a, b)] - ones[a] * ones[b] / total);
    let spread = &bread * &meat * &bread;
    // Degrees of freedom that the coefficients used up.
    let count = pairs.len() as f64;
    let used = count / (count - players as f64).max(1.0);
    Linear {
        values: coefficients.iter().map(|b| 2.0 * b).collect(),
        variances: (0..players).map(|player| (4.0 * used * spread[(player, player)]).max(0.0)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::exact_shap::exact_shap;
    use crate::explain::estimators::game::Function;
    use crate::explain::estimators::golden::{self, Table};

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
            for samples in [128, 256, 512] {
                for regression in [Regression::Interactions, Regression::Linear] {
                    let (_, standardised) = errors(&table, samples, regression, 10);
                    assert!(
                        (0.05..4.0).contains(&standardised),
                        "{samples} {regression:?} {standardised:.2}"
                    );
                }
            }
        }
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
