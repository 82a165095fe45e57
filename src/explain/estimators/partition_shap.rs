//! This file is where Owen values are computed down a hierarchy of the players.

use std::collections::BTreeMap;

use super::budget::{self, Ended, EstimateError, Run, evaluate};
use super::game::{Coalition, Game, Stop};
use super::hierarchy::Hierarchy;
use super::shapley::Shapley;

/// What partition SHAP came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Owen {
    /// The values. Standard errors of players reached one by one are those of drawn worths, zero where worths are
    /// certain; not a number for players that share a group's credit.
    pub shapley: Shapley,
    /// Whether every group was split down to single players.
    pub complete: bool,
}

/// Groups split in one round at least, so that a round is worth a batch.
const ROUND: usize = 32;

/// Computes the Owen values of `game` over `hierarchy` (Owen 1977; Lundberg's partition explainer): at each node
/// the two parts are players of a game of two, in every context that the nodes above left open. Groups whose
/// weighted worth is largest are split first; what the budget does not reach is shared evenly within its group.
///
/// # Errors
/// No players, fewer than 2 samples (without the empty and the full coalition), a hierarchy over other players,
/// or the game stopped before its two ends were had.
pub fn partition_shap(
    game: &mut impl Game,
    hierarchy: &Hierarchy,
    samples: usize,
) -> Result<Run<Owen>, EstimateError> {
    let players = game.players();
    if samples < 2 {
        return Err(EstimateError::parameter("samples", samples, "must be at least 2"));
    }
    if players == 0 || hierarchy.players() != players {
        return Err(EstimateError::NoPlayers);
    }
    let (base, full) = budget::ends(game)?;
    let members = hierarchy.members();
    let mut owen = Credit {
        values: vec![vec![0.0; players]; base.len()],
        shared: vec![false; players],
        steps: game.spread(&Coalition::empty(players)).map(|_| BTreeMap::new()),
        members: &members,
    };
    let root = Group {
        node: hierarchy.root(),
        context: Coalition::empty(players),
        low: base,
        high: full,
        weight: 1.0,
    };
    let (base, full) = (root.low.clone(), root.high.clone());
    let mut open = vec![];
    owen.put(hierarchy, root, &mut open);
    let (mut spent, mut stopped) = (0, None::<Stop>);
    while !open.is_empty() && stopped.is_none() && samples - spent >= 2 {
        // Stable, so that equal worths keep the order in which they arose.
        open.sort_by(|a, b| b.worth().total_cmp(&a.worth()));
        let count = open.len().div_ceil(2).max(ROUND).min(open.len()).min((samples - spent) / 2);
        let rest = open.split_off(count);
        let asked: Vec<_> = open
            .iter()
            .flat_map(|group| {
                let parts = hierarchy.parts(group.node).expect("a single player is credited at once");
                parts.map(|part| group.context.union(&members[part]))
            })
            .collect();
        let (rows, stop) = evaluate(game, &asked);
        let had = rows.len() / 2;
        spent += 2 * had;
        stopped = stop;
        let mut next: Vec<Group> = open.split_off(had);
        for (group, rows) in open.into_iter().zip(rows.chunks_exact(2)) {
            let [left, right] = hierarchy.parts(group.node).expect("a single player is credited at once");
            let child = |node: usize, context: Coalition, low: &[f64], high: &[f64]| Group {
                node,
                context,
                low: low.to_vec(),
                high: high.to_vec(),
                weight: group.weight / 2.0,
            };
            let (with_left, with_right) =
                (group.context.union(&members[left]), group.context.union(&members[right]));
            // Left first, then right; and right first, then left.
            for child in [
                child(left, group.context.clone(), &group.low, &rows[0]),
                child(right, with_left, &rows[0], &group.high),
                child(right, group.context.clone(), &group.low, &rows[1]),
                child(left, with_right, &rows[1], &group.high),
            ] {
                owen.put(hierarchy, child, &mut next);
            }
        }
        next.extend(rest);
        open = next;
    }
    let complete = open.is_empty();
    open.iter().for_each(|group| owen.share(group));
    let standard_errors = owen.errors(game);
    let ended = match stopped {
        Some(stop) => Ended::Stopped(stop),
        None if complete => Ended::Exhausted,
        None => Ended::Budget,
    };
    let shapley = Shapley { values: owen.values, standard_errors, base, full };
    Ok(Run { estimate: Owen { shapley, complete }, evaluations: spent + 2, ended })
}

/// The evaluations that a whole hierarchy needs beside the empty and the full coalition; saturating.
pub fn full_cost(hierarchy: &Hierarchy) -> usize {
    let mut contexts = vec![0usize; hierarchy.root() + 1];
    contexts[hierarchy.root()] = 1;
    let mut cost = 0usize;
    for node in (0..contexts.len()).rev() {
        if let Some(parts) = hierarchy.parts(node) {
            cost = cost.saturating_add(contexts[node].saturating_mul(2));
            parts.iter().for_each(|&part| contexts[part] = contexts[node].saturating_mul(2));
        }
    }
    cost
}

/// A node in one context, to be split.
struct Group {
    node: usize,
    context: Coalition,
    /// The worth of the context without and with the group.
    low: Vec<f64>,
    high: Vec<f64>,
    weight: f64,
}

impl Group {
    fn worth(&self) -> f64 {
        self.low.iter().zip(&self.high).fold(0.0f64, |most, (low, high)| most.max((high - low).abs()))
            * self.weight
    }
}

struct Credit<'a> {
    values: Vec<Vec<f64>>,
    /// Players that share a group's credit.
    shared: Vec<bool>,
    /// How often each coalition's worth counts in each player's value, where worths are drawn.
    steps: Option<BTreeMap<(Coalition, usize), f64>>,
    members: &'a [Coalition],
}

impl Credit<'_> {
    /// Credits a single player; leaves a group to be split.
    fn put(&mut self, hierarchy: &Hierarchy, group: Group, open: &mut Vec<Group>) {
        match hierarchy.parts(group.node) {
            Some(_) => open.push(group),
            None => {
                for (values, (low, high)) in self.values.iter_mut().zip(group.low.iter().zip(&group.high)) {
                    values[group.node] += group.weight * (high - low);
                }
                if let Some(steps) = &mut self.steps {
                    let high = group.context.union(&self.members[group.node]);
                    *steps.entry((high, group.node)).or_default() += group.weight;
                    *steps.entry((group.context, group.node)).or_default() -= group.weight;
                }
            }
        }
    }

    /// Standard errors: Var φ_i = Σ_S c_i(S)² σ²(S) over drawn worths.
    fn errors(&self, game: &impl Game) -> Vec<Vec<f64>> {
        let unknown = |&shared: &bool| if shared { f64::NAN } else { 0.0 };
        let mut errors = vec![self.shared.iter().map(unknown).collect::<Vec<f64>>(); self.values.len()];
        for ((coalition, player), share) in self.steps.iter().flatten() {
            let spread = game.spread(coalition);
            for (errors, spread) in errors.iter_mut().zip(spread.iter().flatten()) {
                errors[*player] += share * share * spread;
            }
        }
        errors.iter_mut().flatten().for_each(|it| *it = it.sqrt());
        errors
    }

    /// Shares a group's credit evenly.
    fn share(&mut self, group: &Group) {
        let members = &self.members[group.node];
        let part = group.weight / members.len() as f64;
        for player in members.members() {
            self.shared[player] = true;
            for (values, (low, high)) in self.values.iter_mut().zip(group.low.iter().zip(&group.high)) {
                values[player] += part * (high - low);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::game::Function;
    use crate::explain::estimators::golden;
    use crate::explain::estimators::hierarchy::{Begins, Piece, text_hierarchy};

    fn positions() -> Hierarchy {
        let texts = ["not", "a", "good", "movie ,", "but", "not", "bad", "either"];
        let pieces = texts.map(|text| Piece { text, begins: Begins::Word, segment: 0 });
        text_hierarchy(&pieces).unwrap()
    }

    /// The stand-in classifier over the eight positions; "not" stands at two of them.
    fn by_position(present: &Coalition) -> f64 {
        let word = [0, 1, 2, 3, 4, 0, 5, 6];
        golden::stand_in(&Coalition::of(7, present.members().map(|position| word[position])))
    }

    #[test]
    fn the_whole_tree_gives_the_published_values() {
        // shap 0.51.0: base .5; not -.0266418, a 0, good .2451251, movie .0990912, ..., bad -.3175745.
        let expected = [-0.0266418, 0.0, 0.2451251, 0.0990912, 0.0, 0.0, -0.3175745, 0.0];
        let run = partition_shap(&mut Function::new(8, by_position), &positions(), 500).unwrap();
        assert!(matches!(run.ended, Ended::Exhausted) && run.estimate.complete);
        assert_eq!(run.evaluations, full_cost(&positions()) + 2);
        assert_eq!(run.estimate.shapley.base, [0.5]);
        for (value, expected) in run.estimate.shapley.values[0].iter().zip(expected) {
            assert!((value - expected).abs() < 1e-7, "{value} {expected}");
        }
    }

    #[test]
    fn a_budget_that_ends_early_still_adds_up() {
        for samples in [2, 3, 9, 20, 31] {
            let mut game = Function::new(8, by_position);
            let run = partition_shap(&mut game, &positions(), samples).unwrap();
            assert!(matches!(run.ended, Ended::Budget) && !run.estimate.complete);
            assert_eq!(run.evaluations, game.asked);
            assert!(run.evaluations <= samples + 2);
            assert!(run.estimate.shapley.efficiency_gap(0).abs() < 1e-12);
        }
    }

    #[test]
    fn a_stopped_game_shares_what_was_not_reached() {
        let mut game = Function { limit: 13, chunk: 4, ..Function::new(8, by_position) };
        let run = partition_shap(&mut game, &positions(), 500).unwrap();
        assert!(matches!(run.ended, Ended::Stopped(_)));
        assert!(run.estimate.shapley.efficiency_gap(0).abs() < 1e-12);
    }

    #[test]
    fn two_players_get_their_shapley_values() {
        let hierarchy = Hierarchy::new(2, vec![[0, 1]]).unwrap();
        let worth = |c: &Coalition| [0.0, 3.0, 5.0, 10.0][c.members().map(|m| 1 << m).sum::<usize>()];
        let run = partition_shap(&mut Function::new(2, worth), &hierarchy, 2).unwrap();
        assert_eq!(run.estimate.shapley.values, [[4.0, 6.0]]);
    }

    #[test]
    fn a_group_that_shares_its_credit_leaves_the_largest_standard_error_unknown() {
        let run = partition_shap(&mut Function::new(8, by_position), &positions(), 9).unwrap();
        let errors = &run.estimate.shapley.standard_errors[0];
        assert!(errors.iter().any(|it| it.is_nan()) && errors.contains(&0.0), "{errors:?}");
        assert!(run.estimate.shapley.largest_standard_error().is_nan());
    }
}
