//! This file is where Shapley values are estimated along random orders of the players.

use super::budget::{self, Ended, EstimateError, Run, check_tolerance, checkpoints, evaluate};
use super::game::{Coalition, Game};
use super::kernel_shap::{KernelShap, Regression, kernel_shap};
use super::random::Stream;
use super::shapley::Shapley;

/// What permutation SHAP may spend, and when it may stop earlier.
#[derive(Debug, Clone)]
pub struct PermutationShap {
    /// Coalitions evaluated at most, the empty and the full one not counted; at least one walk there and back.
    pub samples: usize,
    /// Stop once the largest standard error is at or below this.
    pub tolerance: Option<f64>,
    /// Which orders are drawn.
    pub seed: u64,
}

const PURPOSE: u64 = 0x7065_726d;
/// Pairs of walks after which a run with a tolerance first looks at its standard errors.
const FIRST_LOOK: usize = 8;
/// Pairs of walks from which their spread is told.
pub const FEW_WALKS: usize = 5;

/// Estimates the Shapley values of `game` as mean marginal contributions over random orders, each walked there
/// and back (antithetic; Mitchell et al. 2022), 2 (n - 1) evaluations a pair. Unbiased; the standard errors are
/// those of the mean over pairs, widened as Student's t is, and not a number below [`FEW_WALKS`] pairs. Over all
/// coalitions when 2^n - 2 <= samples.
///
/// # Errors
/// No players, too few samples for one pair of walks, a tolerance of zero or less, or the game stopped before one
/// pair was had.
pub fn permutation_shap(
    game: &mut impl Game,
    options: &PermutationShap,
) -> Result<Run<Shapley>, EstimateError> {
    let players = game.players();
    check_tolerance(options.tolerance)?;
    let pair = 2 * players.saturating_sub(1);
    if options.samples < pair.max(1) {
        let limit = format!("must be at least {}, one walk there and back over the features", pair.max(1));
        return Err(EstimateError::parameter("samples", options.samples, limit));
    }
    if players < 63 && (1usize << players) - 2 <= options.samples {
        let PermutationShap { samples, seed, .. } = *options;
        let samples = samples.max(2 * players);
        let all = KernelShap { samples, tolerance: None, regression: Regression::Interactions, seed };
        return kernel_shap(game, &all);
    }

    let (base, full) = budget::ends(game)?;
    let mut ends = vec![0.0; base.len()];
    for of in [Coalition::empty(players), Coalition::full(players)].iter().filter_map(|it| game.spread(it)) {
        ends.iter_mut().zip(of).for_each(|(sum, it)| *sum += it);
    }
    let moments = vec![vec![(0.0, 0.0); players]; base.len()];
    let mut walks = Walks { players, count: 0, moments, outer: vec![0; players], base, full, ends };
    for mark in checkpoints(FIRST_LOOK, options.samples / pair, options.tolerance) {
        let orders: Vec<_> = (walks.count..mark).map(|index| order(players, options.seed, index)).collect();
        // Whole pairs of walks in every chunk, so that a stop loses less than a chunk.
        let group = (game.chunk() / pair).max(1);
        for orders in orders.chunks(group) {
            let coalitions: Vec<_> = orders.iter().flat_map(|order| there_and_back(order)).collect();
            let (rows, stop) = evaluate(game, &coalitions);
            orders.iter().zip(rows.chunks_exact(pair)).for_each(|(order, rows)| walks.add(order, rows));
            if let Some(stop) = stop {
                return match walks.count {
                    0 => Err(stop.into()),
                    _ => Ok(walks.run(Ended::Stopped(stop))),
                };
            }
        }
        let estimate = walks.estimate();
        if options.tolerance.is_some_and(|tolerance| estimate.largest_standard_error() <= tolerance) {
            return Ok(walks.run(Ended::Tolerance));
        }
    }
    Ok(walks.run(Ended::Budget))
}

fn order(players: usize, seed: u64, index: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..players).collect();
    Stream::new(seed, PURPOSE, index as u64).shuffle(&mut order);
    order
}

/// The proper prefixes of `order`, then those of its reverse.
fn there_and_back(order: &[usize]) -> impl Iterator<Item = Coalition> + '_ {
    let players = order.len();
    let grow = move |present: &mut Coalition, &player: &usize| {
        present.insert(player);
        Some(present.clone())
    };
    let there = order[..players - 1].iter().scan(Coalition::empty(players), grow);
    there.chain(order[1..].iter().rev().scan(Coalition::empty(players), grow))
}

/// Running moments over pairs of walks.
struct Walks {
    players: usize,
    count: usize,
    /// Mean and sum of squared deviations of each player's mean contribution over a pair, by output.
    moments: Vec<Vec<(f64, f64)>>,
    /// How often each player stood at an end of an order.
    outer: Vec<usize>,
    base: Vec<f64>,
    full: Vec<f64>,
    /// The variance of the worths of nobody and everybody, which all walks share, by output.
    ends: Vec<f64>,
}

impl Walks {
    /// Adds the pair of walks over `order`, whose worths are `rows`.
    fn add(&mut self, order: &[usize], rows: &[Vec<f64>]) {
        self.count += 1;
        [order[0], order[self.players - 1]].iter().for_each(|&player| self.outer[player] += 1);
        let (there, back) = rows.split_at(self.players - 1);
        for (output, moments) in self.moments.iter_mut().enumerate() {
            let mut gains = vec![0.0; self.players];
            let mut walk = |rows: &[Vec<f64>], order: &mut dyn Iterator<Item = &usize>| {
                let mut before = self.base[output];
                for (step, &player) in order.enumerate() {
                    let after = rows.get(step).map_or(self.full[output], |row| row[output]);
                    gains[player] += (after - before) / 2.0;
                    before = after;
                }
            };
            walk(there, &mut order.iter());
            walk(back, &mut order.iter().rev());
            // Welford's update.
            for ((mean, squares), gain) in moments.iter_mut().zip(gains) {
                let deviation = gain - *mean;
                *mean += deviation / self.count as f64;
                *squares += deviation * (gain - *mean);
            }
        }
    }

    fn estimate(&self) -> Shapley {
        let count = self.count as f64;
        // Variance of the mean, times that of Student's t with count - 1 degrees of freedom.
        let widened = if self.count < FEW_WALKS { f64::NAN } else { 1.0 / (count - 3.0) / count };
        let errors = |(moments, ends): (&Vec<(f64, f64)>, &f64)| {
            let error = |((_, squares), outer): (&(f64, f64), &usize)| {
                (squares * widened + (*outer as f64 / (2.0 * count)).powi(2) * ends).sqrt()
            };
            moments.iter().zip(&self.outer).map(error).collect()
        };
        Shapley {
            values: self.moments.iter().map(|of| of.iter().map(|(mean, _)| *mean).collect()).collect(),
            standard_errors: self.moments.iter().zip(&self.ends).map(errors).collect(),
            base: self.base.clone(),
            full: self.full.clone(),
        }
    }

    fn run(&self, ended: Ended) -> Run<Shapley> {
        let evaluations = 2 + self.count * 2 * (self.players - 1);
        Run { estimate: self.estimate(), evaluations, ended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::exact_shap::exact_shap;
    use crate::explain::estimators::game::Function;
    use crate::explain::estimators::golden;

    fn options(samples: usize, seed: u64) -> PermutationShap {
        PermutationShap { samples, tolerance: None, seed }
    }

    #[test]
    fn the_error_falls_at_the_rate_of_one_over_n() {
        let exact = exact_shap(&mut Function::new(12, golden::rough)).unwrap().estimate;
        let mean_squared = |samples| {
            let error = |seed| {
                let run =
                    permutation_shap(&mut Function::new(12, golden::rough), &options(samples, seed)).unwrap();
                let pairs = run.estimate.values[0].iter().zip(&exact.values[0]);
                pairs.map(|(a, b)| (a - b).powi(2)).sum::<f64>()
            };
            (0..60).map(error).sum::<f64>() / 60.0
        };
        // 5 and 80 pairs of walks: sixteen times less, within the noise of 60 x 12 squared errors.
        let ratio = mean_squared(110) / mean_squared(1_760);
        assert!((12.0..21.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn nineteen_in_twenty_values_lie_within_two_standard_errors() {
        let exact = exact_shap(&mut Function::new(12, golden::rough)).unwrap().estimate;
        let within: usize = (0..60)
            .map(|seed| {
                let run =
                    permutation_shap(&mut Function::new(12, golden::rough), &options(880, seed)).unwrap();
                (0..12)
                    .filter(|&player| {
                        let error = run.estimate.values[0][player] - exact.values[0][player];
                        error.abs() <= 2.0 * run.estimate.standard_errors[0][player]
                    })
                    .count()
            })
            .sum();
        assert!((0.92..0.98).contains(&(within as f64 / 720.0)), "{within} of 720");
    }

    #[test]
    fn a_walk_spends_what_it_says_and_adds_up() {
        let mut game = Function::new(12, golden::rough);
        let run = permutation_shap(&mut game, &options(100, 1)).unwrap();
        assert_eq!((run.evaluations, game.asked), (90, 90));
        assert!(run.estimate.efficiency_gap(0).abs() < 1e-12);
        assert!(matches!(run.ended, Ended::Budget));
    }

    #[test]
    fn chunks_change_nothing() {
        let run = |chunk| {
            let mut game = Function { chunk, ..Function::new(12, golden::rough) };
            permutation_shap(&mut game, &options(500, 4)).unwrap().estimate
        };
        assert_eq!(run(50), run(1024));
    }

    #[test]
    fn a_stopped_game_gives_the_walks_so_far() {
        let mut game = Function { limit: 100, chunk: 44, ..Function::new(12, golden::rough) };
        let run = permutation_shap(&mut game, &options(1_000, 0)).unwrap();
        assert!(matches!(run.ended, Ended::Stopped(_)));
        assert_eq!(run.evaluations, 90);
    }

    #[test]
    fn a_tolerance_ends_the_run() {
        let options = PermutationShap { tolerance: Some(0.03), ..options(4_000, 0) };
        let run = permutation_shap(&mut Function::new(12, golden::rough), &options).unwrap();
        assert!(matches!(run.ended, Ended::Tolerance));
        assert!(run.estimate.largest_standard_error() <= 0.03 && run.evaluations < 4_000);
    }

    #[test]
    fn a_budget_below_one_pair_of_walks_is_refused() {
        let refusal = permutation_shap(&mut Function::new(12, golden::rough), &options(21, 0)).unwrap_err();
        assert!(refusal.to_string().starts_with("samples is 21, must be at least 22"));
    }

    #[test]
    fn the_spread_of_fewer_than_five_walks_is_unknown() {
        let largest = |pairs: usize| {
            let run =
                permutation_shap(&mut Function::new(12, golden::rough), &options(22 * pairs, 0)).unwrap();
            run.estimate.largest_standard_error()
        };
        assert!(largest(4).is_nan() && largest(5) > 0.0);
    }

    #[test]
    fn a_stop_before_all_coalitions_were_seen_leaves_an_estimate() {
        let mut game = Function { limit: 400, chunk: 50, ..Function::new(10, golden::rough) };
        let run = permutation_shap(&mut game, &options(1022, 0)).unwrap();
        assert!(matches!(run.ended, Ended::Stopped(_)));
        assert!(run.estimate.efficiency_gap(0).abs() < 1e-9);
    }
}
