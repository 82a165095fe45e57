//! This file is where a shallow decision tree is fitted around an input, and tested on rows that it has not seen.

use super::budget::{Ended, EstimateError, Run, evaluate};
use super::game::{Coalition, Game, Stop};
use super::presence::{self, Draw, WIDTH};

/// How a tree is sampled and grown.
#[derive(Debug, Clone)]
pub struct DecisionTree {
    /// Rows that the tree is grown on, the original included; at least 2.
    pub samples: usize,
    /// Fresh rows that its fidelity is measured on; at least 2.
    pub fresh: usize,
    /// Questions from the root to a leaf at most; at least 1.
    pub max_depth: usize,
    /// Whether the game tells decisions as well.
    pub decisions: bool,
    /// Which rows are drawn.
    pub seed: u64,
}

/// A node of the tree: a question, or an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeNode {
    /// The weighted mean of the output over the node's rows.
    pub value: f64,
    /// The weighted share of the node's texts whose decision is for the explained target, where there are decisions.
    pub share: Option<f64>,
    /// The sum of the node's row weights.
    pub weight: f64,
    /// The node's rows.
    pub samples: usize,
    /// The question, where the node is not a leaf.
    pub split: Option<Split>,
}

/// Whether a player is present.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// The player asked for.
    pub player: usize,
    /// Where to go if it is present.
    pub present: Box<TreeNode>,
    /// Where to go if it is absent.
    pub absent: Box<TreeNode>,
}

/// The tree that stands in for one output.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeSurrogate {
    /// The first question.
    pub root: TreeNode,
    /// The weighted share of variance that the tree explains on fresh rows, 1 - unexplained / spread. Where they do not
    /// vary: 1 if the tree tells their value, and none otherwise.
    pub r_squared: Option<f64>,
    /// The weighted share of fresh texts whose decision is that of most texts of their leaf, where there are decisions.
    pub accuracy: Option<f64>,
}

impl TreeNode {
    /// The node below, or this one, that answers for `row`.
    pub fn leaf(&self, row: &Coalition) -> &TreeNode {
        self.path(row).last().copied().unwrap_or(self)
    }

    /// From this node to the leaf that answers for `row`.
    pub fn path(&self, row: &Coalition) -> Vec<&TreeNode> {
        std::iter::successors(Some(self), |node| {
            let split = node.split.as_ref()?;
            Some(if row.contains(split.player) { &*split.present } else { &*split.absent })
        })
        .collect()
    }

    /// What each player's questions on the original's path add to the value: they sum to the leaf's value less
    /// the root's.
    pub fn contributions(&self, players: usize) -> Vec<f64> {
        let mut added = vec![0.0; players];
        for step in self.path(&Coalition::full(players)).windows(2) {
            if let Some(split) = &step[0].split {
                added[split.player] += step[1].value - step[0].value;
            }
        }
        added
    }
}

/// Grows a regression tree (CART, Breiman et al. 1984) on LIME's weighted neighbourhood, one an explained
/// output.
///
/// With [`DecisionTree::decisions`] the game's outputs come in two halves: the explained scalars, and for each of them
/// the share of a row's texts whose decision is for its target.
///
/// # Errors
/// No players, fewer than 2 samples or fresh rows, depth 0, or the game stopped before 2 rows of each were had.
pub fn decision_tree(
    game: &mut impl Game,
    options: &DecisionTree,
) -> Result<Run<Vec<TreeSurrogate>>, EstimateError> {
    let (players, outputs) = (game.players(), game.outputs() / if options.decisions { 2 } else { 1 });
    if players == 0 {
        return Err(EstimateError::NoPlayers);
    }
    for (name, value, least) in
        [("samples", options.samples, 2), ("fresh", options.fresh, 2), ("max_depth", options.max_depth, 1)]
    {
        if value < least {
            return Err(EstimateError::parameter(name, value, format!("must be at least {least}")));
        }
    }
    // The fresh rows come first: without them no tree could be judged, with too few rows one is only coarser.
    let fresh = presence::rows(players, options.seed, Draw::Fresh, 0, options.fresh);
    let grown = presence::rows(players, options.seed, Draw::Fit, 0, options.samples);
    let asked: Vec<_> = fresh.iter().chain(&grown).cloned().collect();
    let (rows, stop) = evaluate(game, &asked);
    let mut ended = match stop {
        Some(stop) if rows.len() < fresh.len() + 2 => return Err(stop.into()),
        Some(stop) => Ended::Stopped(stop),
        None => Ended::Budget,
    };
    // A tree of the rows had before a deadline is grown to its end.
    let late = matches!(ended, Ended::Stopped(Stop::Deadline));
    let mut go_on = || match game.check() {
        Ok(()) => true,
        Err(Stop::Deadline) if late => true,
        Err(stop) => {
            ended = Ended::Stopped(stop);
            false
        }
    };
    let (fresh_worths, grown_worths) = rows.split_at(fresh.len());
    let estimate = (0..outputs)
        .map(|output| {
            let decision = options.decisions.then_some(outputs + output);
            let sample = Sample::of(&grown[..grown_worths.len()], grown_worths, output, decision);
            let places: Vec<usize> = (0..grown_worths.len()).collect();
            let root = sample.grow(&places, options.max_depth, &mut go_on);
            let (r_squared, accuracy) = Sample::of(&fresh, fresh_worths, output, decision).fidelity(&root);
            TreeSurrogate { root, r_squared, accuracy }
        })
        .collect();
    Ok(Run { estimate, evaluations: rows.len(), ended })
}

/// One output's rows.
struct Sample<'a> {
    rows: &'a [Coalition],
    weights: Vec<f64>,
    values: Vec<f64>,
    /// The share of each row's texts whose decision is for the target.
    decisions: Option<Vec<f64>>,
}

impl<'a> Sample<'a> {
    fn of(rows: &'a [Coalition], worths: &[Vec<f64>], output: usize, decision: Option<usize>) -> Self {
        Self {
            rows,
            weights: rows.iter().map(|row| presence::weight(row, WIDTH)).collect(),
            values: worths.iter().map(|row| row[output]).collect(),
            decisions: decision.map(|at| worths.iter().map(|row| row[at]).collect()),
        }
    }

    /// Weighted sum of `of` over the rows at `places`.
    fn sum(&self, places: &[usize], of: impl Fn(usize) -> f64) -> f64 {
        places.iter().map(|&row| self.weights[row] * of(row)).sum()
    }

    /// A node and those below it; it asks no question once `go_on` says no.
    fn grow(&self, places: &[usize], depth: usize, go_on: &mut impl FnMut() -> bool) -> TreeNode {
        let weight = self.sum(places, |_| 1.0);
        let value = self.sum(places, |row| self.values[row]) / weight;
        let share = self.decisions.as_ref().map(|it| self.sum(places, |row| it[row]) / weight);
        let spread = self.sum(places, |row| (self.values[row] - value).powi(2));
        // A split that gains only rounding is none.
        let worth = |gain: f64| gain > 1e-12 * (spread + weight * value * value);
        let split = (depth > 0 && go_on())
            .then(|| self.best_split(places, weight, value))
            .flatten()
            .filter(|&(gain, _)| worth(gain))
            .map(|(_, player)| {
                let (present, absent): (Vec<usize>, Vec<usize>) =
                    places.iter().partition(|&&row| self.rows[row].contains(player));
                let present = Box::new(self.grow(&present, depth - 1, go_on));
                Split { player, present, absent: Box::new(self.grow(&absent, depth - 1, go_on)) }
            });
        TreeNode { value, share, weight, samples: places.len(), split }
    }

    /// The player whose presence explains most of the weighted variance, and how much of it; the first of equals.
    fn best_split(&self, places: &[usize], weight: f64, value: f64) -> Option<(f64, usize)> {
        let players = self.rows[0].players();
        let mut present = vec![(0.0, 0.0, 0usize); players];
        for &row in places {
            let share = self.weights[row] * (self.values[row] - value);
            for player in self.rows[row].members() {
                let (weights, sums, count) = &mut present[player];
                *weights += self.weights[row];
                *sums += share;
                *count += 1;
            }
        }
        present
            .iter()
            .enumerate()
            .filter(|(_, (_, _, count))| (1..places.len()).contains(count))
            // With the mean taken out, the two sides' sums are opposite.
            .map(|(player, (inside, sum, _))| (sum * sum * (1.0 / inside + 1.0 / (weight - inside)), player))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))
    }

    /// Weighted R² and accuracy of `root` on these rows.
    fn fidelity(&self, root: &TreeNode) -> (Option<f64>, Option<f64>) {
        let all: Vec<usize> = (0..self.rows.len()).collect();
        let weight = self.sum(&all, |_| 1.0);
        let mean = self.sum(&all, |row| self.values[row]) / weight;
        let spread = self.sum(&all, |row| (self.values[row] - mean).powi(2));
        let unexplained = self.sum(&all, |row| (self.values[row] - root.leaf(&self.rows[row]).value).powi(2));
        let rounding = 1e-24 * weight * mean * mean;
        let r_squared = match (spread <= rounding, unexplained <= rounding) {
            (false, _) => Some(1.0 - unexplained / spread),
            (true, told) => told.then_some(1.0),
        };
        let accuracy = self.decisions.as_ref().map(|decisions| {
            let agreed = |row: usize| match root.leaf(&self.rows[row]).share {
                Some(share) if share > 0.5 => decisions[row],
                _ => 1.0 - decisions[row],
            };
            self.sum(&all, agreed) / weight
        });
        (r_squared, accuracy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::game::Over;

    /// If 1 is present: 0.9 with 4, 0.6 without; otherwise 0.3 with 0, 0.1 without.
    fn truth(row: &Coalition) -> f64 {
        match (row.contains(1), row.contains(4), row.contains(0)) {
            (true, true, _) => 0.9,
            (true, false, _) => 0.6,
            (false, _, true) => 0.3,
            (false, _, false) => 0.1,
        }
    }

    struct Both<F>(usize, F);

    impl<F: Fn(&Coalition) -> f64> Game for Both<F> {
        fn players(&self) -> usize {
            self.0
        }

        fn outputs(&self) -> usize {
            2
        }

        fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
            let row = |coalition| vec![self.1(coalition), f64::from(u8::from(self.1(coalition) > 0.5))];
            Ok(coalitions.iter().map(row).collect())
        }
    }

    fn options(max_depth: usize) -> DecisionTree {
        DecisionTree { samples: 1_000, fresh: 500, max_depth, decisions: true, seed: 0 }
    }

    #[test]
    fn a_tree_of_depth_two_comes_back_with_fidelity_one() {
        for max_depth in [2, 3] {
            let run = decision_tree(&mut Both(6, truth), &options(max_depth)).unwrap();
            assert_eq!(run.evaluations, 1_500);
            let tree = &run.estimate[0];
            assert!((tree.r_squared.unwrap() - 1.0).abs() < 1e-12 && tree.accuracy == Some(1.0));
            let root = tree.root.split.as_ref().unwrap();
            let (present, absent) =
                (root.present.split.as_ref().unwrap(), root.absent.split.as_ref().unwrap());
            assert_eq!((root.player, present.player, absent.player), (1, 4, 0));
            let leaves = [&present.present, &present.absent, &absent.present, &absent.absent];
            for (leaf, value) in leaves.iter().zip([0.9, 0.6, 0.3, 0.1]) {
                assert!(leaf.split.is_none() && (leaf.value - value).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_tree_does_not_grow_for_a_caller_who_has_left() {
        let run = decision_tree(&mut Over(Both(6, truth), || Stop::Cancelled), &options(3)).unwrap();
        assert!(matches!(run.ended, Ended::Stopped(Stop::Cancelled)), "{:?}", run.ended);
        assert!(run.estimate.iter().all(|tree| tree.root.split.is_none()));
    }

    #[test]
    fn contributions_go_from_the_root_to_the_leaf_of_the_input() {
        let run = decision_tree(&mut Both(6, truth), &options(3)).unwrap();
        let root = &run.estimate[0].root;
        let sum: f64 = root.contributions(6).iter().sum();
        assert!((root.value + sum - 0.9).abs() < 1e-12);
    }

    #[test]
    fn a_node_holds_the_rows_of_its_children() {
        fn check(node: &TreeNode) {
            if let Some(split) = &node.split {
                assert_eq!(node.samples, split.present.samples + split.absent.samples);
                assert!((node.weight - split.present.weight - split.absent.weight).abs() < 1e-9);
                check(&split.present);
                check(&split.absent);
            }
        }
        let noise = |row: &Coalition| crate::explain::estimators::golden::rough(row);
        let run = decision_tree(&mut Both(6, noise), &options(4)).unwrap();
        check(&run.estimate[0].root);
        assert!(run.estimate[0].r_squared.unwrap() < 0.9);
    }

    #[test]
    fn depth_zero_is_refused() {
        let refusal = decision_tree(&mut Both(6, truth), &options(0)).unwrap_err();
        assert_eq!(refusal.to_string(), "max_depth is 0, must be at least 1");
    }

    #[test]
    fn shares_are_of_texts_where_a_row_stands_for_several() {
        let mut game = Both(1, |row: &Coalition| if row.is_empty() { 0.75 } else { 1.0 });
        let tree = decision_tree(&mut Shares(&mut game), &options(1)).unwrap().estimate.remove(0);
        let split = tree.root.split.as_ref().unwrap();
        let absent = split.absent.share.unwrap();
        assert!(split.present.share == Some(1.0) && (absent - 0.75).abs() < 1e-12);
        // Every fresh row lacks the only player.
        assert!((tree.accuracy.unwrap() - 0.75).abs() < 1e-12);
    }

    /// The worth of a row is also the share of its texts that are decided for.
    struct Shares<'a, F>(&'a mut Both<F>);

    impl<F: Fn(&Coalition) -> f64> Game for Shares<'_, F> {
        fn players(&self) -> usize {
            self.0.players()
        }

        fn outputs(&self) -> usize {
            2
        }

        fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
            Ok(self.0.evaluate(coalitions)?.into_iter().map(|row| vec![row[0], row[0]]).collect())
        }
    }

    #[test]
    fn fresh_rows_that_do_not_vary_have_an_r_squared_only_if_they_are_told() {
        // Without the only player 0.2, with it 0.9; every fresh row lacks it.
        let told = |row: &Coalition| if row.is_empty() { 0.2 } else { 0.9 };
        assert_eq!(decision_tree(&mut Both(1, told), &options(1)).unwrap().estimate[0].r_squared, Some(1.0));
        // The two rows that it grows on are one and the same text, and the fresh ones others.
        let fresh = presence::rows(20, 0, Draw::Fresh, 0, 2);
        let missed = move |row: &Coalition| if fresh.contains(row) { 0.2 } else { 0.9 };
        let options = DecisionTree { samples: 2, fresh: 2, ..options(1) };
        assert_eq!(decision_tree(&mut Both(20, missed), &options).unwrap().estimate[0].r_squared, None);
    }

    #[test]
    fn a_game_without_decisions_has_no_accuracy() {
        let mut game = crate::explain::estimators::game::Function::new(6, truth);
        let tree = decision_tree(&mut game, &DecisionTree { decisions: false, ..options(2) });
        let tree = tree.unwrap().estimate.remove(0);
        assert_eq!((tree.accuracy, tree.root.share), (None, None));
        assert!((tree.r_squared.unwrap() - 1.0).abs() < 1e-12);
    }
}
