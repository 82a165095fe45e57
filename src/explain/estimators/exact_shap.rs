//! This file is where Shapley values are computed from all coalitions.

use super::budget::{self, Ended, EstimateError, Run, evaluate};
use super::game::{Coalition, Game};
use super::shapley::{self, Shapley};

/// The most players for which all coalitions are evaluated.
pub const MAX_PLAYERS: usize = 16;

/// The Shapley values of `game`, from its 2^n coalitions (Shapley 1953).
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
    let weights: Vec<f64> = (0..players).map(|size| shapley::weight(players, size)).collect();
    // Everybody's last step and nobody's first one.
    let mut values: Vec<Vec<f64>> = base
        .iter()
        .zip(&full)
        .map(|(base, full)| vec![weights[players - 1] * full - weights[0] * base; players])
        .collect();
    let codes: Vec<u64> = (1..(1u64 << players) - 1).collect();
    for part in codes.chunks(game.chunk().max(1)) {
        let coalitions: Vec<_> = part.iter().map(|&code| Coalition::from_code(players, code)).collect();
        let (rows, stop) = evaluate(game, &coalitions);
        if let Some(stop) = stop {
            return Err(stop.into());
        }
        for (&code, row) in part.iter().zip(&rows) {
            let size = code.count_ones() as usize;
            for (values, worth) in values.iter_mut().zip(row) {
                for (player, value) in values.iter_mut().enumerate() {
                    // The coalition ends a step of its members and starts one of everybody else.
                    *value += match code >> player & 1 {
                        1 => weights[size - 1] * worth,
                        _ => -weights[size] * worth,
                    };
                }
            }
        }
    }
    let evaluations = codes.len() + 2;
    Ok(Run { estimate: Shapley::exact(values, base, full), evaluations, ended: Ended::Exhausted })
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
