//! This file is where Shapley values are computed from all coalitions.

use super::budget::{self, Ended, EstimateError, Run, evaluate};
use super::game::{Coalition, Game};
use super::shapley::{self, Shapley};

/// The most players for which all coalitions are evaluated.
pub const MAX_PLAYERS: usize = 16;

/// The Shapley values of `game`, from its 2^n coalitions (Shapley 1953). Their standard errors are those of drawn
/// worths, Var φ_i = Σ_S c_i(S)² σ²(S), and zero where worths are certain.
///
/// # Errors
/// No players, more than [`MAX_PLAYERS`], or the game stopped: there is no partial answer.
pub fn exact_shap(game: &mut impl Game) -> Result<Run<Shapley>, EstimateError> {
    let players = game.players();
    if players > MAX_PLAYERS {
        return Err(EstimateError::TooManyPlayers {
            method: "exact-shap",
            players,
            limit: MAX_PLAYERS,
            instead: "kernel-shap",
        });
    }
    let (base, full) = budget::ends(game)?;
    enumerate(game, base, full)
}

/// The exact values of a game whose two ends are known already.
pub(super) fn enumerate(
    game: &mut impl Game,
    base: Vec<f64>,
    full: Vec<f64>,
) -> Result<Run<Shapley>, EstimateError> {
    let players = game.players();
    let mut sums = Sums {
        weights: (0..players).map(|size| shapley::weight(players, size)).collect(),
        values: vec![vec![0.0; players]; base.len()],
        variances: vec![vec![0.0; players]; base.len()],
    };
    let (nobody, everybody) = (Coalition::empty(players), Coalition::full(players));
    sums.add(&nobody, &base, game.spread(&nobody));
    sums.add(&everybody, &full, game.spread(&everybody));
    let codes: Vec<u64> = (1..(1u64 << players) - 1).collect();
    for part in codes.chunks(game.chunk().max(1)) {
        let coalitions: Vec<_> = part.iter().map(|&code| Coalition::from_code(players, code)).collect();
        let (rows, stop) = evaluate(game, &coalitions);
        if let Some(stop) = stop {
            return Err(stop.into());
        }
        coalitions.iter().zip(&rows).for_each(|(it, row)| sums.add(it, row, game.spread(it)));
    }
    let evaluations = codes.len() + 2;
    let errors = |row: &Vec<f64>| row.iter().map(|variance| variance.sqrt()).collect();
    let standard_errors = sums.variances.iter().map(errors).collect();
    let estimate = Shapley { values: sums.values, standard_errors, base, full };
    Ok(Run { estimate, evaluations, ended: Ended::Exhausted })
}

/// Values and their variances, as far as coalitions were added: `[output][player]`.
struct Sums {
    weights: Vec<f64>,
    values: Vec<Vec<f64>>,
    variances: Vec<Vec<f64>>,
}

impl Sums {
    fn add(&mut self, coalition: &Coalition, worths: &[f64], spread: Option<Vec<f64>>) {
        let (players, size) = (coalition.players(), coalition.len());
        for player in 0..players {
            // The coalition ends a step of its members and starts one of everybody else.
            let weight =
                if coalition.contains(player) { self.weights[size - 1] } else { -self.weights[size] };
            self.values.iter_mut().zip(worths).for_each(|(values, worth)| values[player] += weight * worth);
            for (variances, spread) in self.variances.iter_mut().zip(spread.iter().flatten()) {
                variances[player] += weight * weight * spread;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::game::Function;
    use crate::explain::estimators::golden;

    #[test]
    fn the_stand_in_classifier_has_its_published_values() {
        let run = exact_shap(&mut Function::new(7, golden::stand_in)).unwrap();
        for (value, expected) in run.estimate.values[0].iter().zip(golden::EXACT_SHAPLEY) {
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert!(run.estimate.efficiency_gap(0).abs() < 1e-12);
        assert_eq!(run.evaluations, 128);
    }

    #[test]
    fn the_stand_in_classifier_matches_the_sum_over_orders_to_nine_digits() {
        let run = exact_shap(&mut Function::new(7, golden::stand_in)).unwrap();
        let by_orders = golden::mean_over_orders(7, golden::stand_in);
        for (value, expected) in run.estimate.values[0].iter().zip(by_orders) {
            assert!((value - expected).abs() < 1e-9);
        }
    }

    #[test]
    fn seventeen_players_are_refused_with_the_method_to_take() {
        let refusal = exact_shap(&mut Function::new(17, |_| 0.0)).unwrap_err().to_string();
        assert_eq!(refusal, "exact-shap takes at most 16 features and this text has 17: use kernel-shap");
    }

    #[test]
    fn one_player_gets_everything() {
        let run = exact_shap(&mut Function::new(1, |c| c.len() as f64 * 2.5)).unwrap();
        assert_eq!(run.estimate.values, [[2.5]]);
    }
}
