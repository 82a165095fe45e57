//! This file is where a rule is searched that holds a decision whatever else is perturbed: an anchor.

mod search;

use self::search::{Outcomes, Search};
use super::bounds::Interval;
use super::budget::{Ended, EstimateError, Run};
use super::game::{Coalition, Game};
use super::random::Stream;

/// How a rule is searched.
#[derive(Debug, Clone)]
pub struct Anchors {
    /// The precision asked of a rule, between 0 and 1.
    pub threshold: f64,
    /// The probability with which the search may be wrong, between 0 and 1.
    pub delta: f64,
    /// How far apart the precisions of two rules may be and count as equal, between 0 and 1.
    pub epsilon: f64,
    /// Rules kept at each length; at least 1.
    pub beam: usize,
    /// Evaluations at most for one output, those that measure the rule found included.
    pub samples: usize,
    /// Whether the game draws at each evaluation: a coalition is then evaluated as often as it is drawn, and
    /// otherwise once.
    pub drawn: bool,
    /// Which rows are drawn.
    pub seed: u64,
}

/// A rule: while these players are present, the decision holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The players that must be present, in the order in which the search took them.
    pub players: Vec<usize>,
    /// The share of perturbations that respect the rule and keep the decision: of all where they are few, else on
    /// fresh rows.
    pub precision: Interval,
    /// The share of all perturbations that respect the rule.
    pub coverage: Interval,
    /// Each beginning of the rule, from the empty one on, with its precision as the search saw it.
    pub prefixes: Vec<(Vec<usize>, Interval)>,
    /// Whether the search found the precision to be at or above the threshold, and `precision` is at most [`SLACK`]
    /// below.
    pub met: bool,
    /// Perturbations that respect the rule and of which most keep the decision, with the share that does.
    pub holds: Vec<(Coalition, f64)>,
    /// The same for those of which most change it.
    pub fails: Vec<(Coalition, f64)>,
    /// What was evaluated for this output, in order.
    pub asked: Vec<Coalition>,
}

/// The probability with which a player that no rule holds stays present: the perturbation distribution.
pub const KEEP: f64 = 0.5;
/// How far below the threshold the lower bound of an accepted rule, and its precision on fresh rows, may lie.
pub const SLACK: f64 = 0.05;
/// Rows drawn for a rule at a time.
const BATCH: usize = 64;
/// Fresh rows on which the rule found is measured; a quarter of the samples where that is less.
const FRESH: usize = 500;
/// Perturbations over which coverage is counted; they cost no evaluation.
const COVERAGE: usize = 10_000;
const EXAMPLES: usize = 5;
/// The fewest samples that a search starts with.
pub const MIN_SAMPLES: usize = FRESH + 4 * BATCH;

const PURPOSE_SEARCH: u64 = 0x616e_6368;
const PURPOSE_FRESH: u64 = 0x6672_6573;
const PURPOSE_COVERAGE: u64 = 0x636f_7665;

/// Searches, for each output, the shortest rule whose precision is at least the threshold (Ribeiro et al. 2018):
/// beam search, the best rules of each length identified by KL-LUCB (Kaufmann & Kalyanakrishnan 2013) with exact
/// bounds. A rule with few perturbations is measured on all of them.
///
/// An output is the share of a coalition's texts that keep the decision, 0 to 1. Precision is its mean over
/// coalitions; the bounds hold for means of shares as for counts (Hoeffding 1963). Outputs share evaluations, and
/// the rule of one is that found without the others.
///
/// # Errors
/// No players, a parameter outside its limits, or the game stopped before the first rows were had.
pub fn anchors(game: &mut impl Game, options: &Anchors) -> Result<Vec<Run<Rule>>, EstimateError> {
    check(game.players(), options)?;
    let mut outcomes = Outcomes::default();
    (0..game.outputs()).map(|output| anchor(Search::new(game, &mut outcomes, output, options))).collect()
}

fn check(players: usize, options: &Anchors) -> Result<(), EstimateError> {
    if players == 0 {
        return Err(EstimateError::NoPlayers);
    }
    for (name, value) in
        [("threshold", options.threshold), ("delta", options.delta), ("epsilon", options.epsilon)]
    {
        if !(value > 0.0 && value < 1.0) {
            return Err(EstimateError::parameter(name, value, "must lie between 0 and 1, both excluded"));
        }
    }
    for (name, value, least) in [("beam", options.beam, 1), ("samples", options.samples, MIN_SAMPLES)] {
        if value < least {
            return Err(EstimateError::parameter(name, value, format!("must be at least {least}")));
        }
    }
    Ok(())
}

fn anchor<G: Game>(mut search: Search<'_, G>) -> Result<Run<Rule>, EstimateError> {
    let found = search.run();
    let (players, seed) = (search.players(), search.options.seed);
    let rule = search.coalition(&found.order);
    let (mut holds, mut fails) = (Vec::new(), Vec::new());
    for (row, kept) in found.measured {
        let examples = if kept > 0.5 { &mut holds } else { &mut fails };
        if examples.len() < EXAMPLES && !examples.iter().any(|(other, _)| *other == row) {
            examples.push((row, kept));
        }
    }
    let covered = (0..COVERAGE)
        .filter(|&index| perturbed(players, seed, PURPOSE_COVERAGE, index).is_superset(&rule))
        .count();
    let prefixes: Vec<_> = (0..=found.order.len())
        .map(|length| {
            let prefix = found.order[..length].to_vec();
            let interval = search.arm(&search.coalition(&prefix)).interval();
            (prefix, interval)
        })
        .collect();
    let precision = found.precision.interval();
    let ended = match (found.stop, found.accepted) {
        (Some(stop), _) if precision.samples == 0 => return Err(stop.into()),
        (Some(stop), _) => Ended::Stopped(stop),
        (None, true) => Ended::Tolerance,
        (None, false) => Ended::Budget,
    };
    let coverage = Interval::of(covered as f64, COVERAGE);
    let (met, asked) = (found.met, search.asked);
    let evaluations = asked.len();
    let estimate = Rule { players: found.order, precision, coverage, prefixes, met, holds, fails, asked };
    Ok(Run { estimate, evaluations, ended })
}

/// Draw `index` of the perturbation distribution.
fn perturbed(players: usize, seed: u64, purpose: u64, index: usize) -> Coalition {
    let mut stream = Stream::new(seed, purpose, index as u64);
    Coalition::of(players, (0..players).filter(|_| stream.fraction() < KEEP))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::explain::estimators::game::{Function, Over, Stop};

    fn options(seed: u64) -> Anchors {
        Anchors { threshold: 0.95, delta: 0.1, epsilon: 0.15, beam: 4, samples: 20_000, drawn: false, seed }
    }

    /// Holds with 1 and 4; without either, in one of eight cases: precision 1 for the rule {1, 4}.
    fn conjunction(row: &Coalition) -> f64 {
        let others = [0, 2, 3].iter().all(|&player| row.contains(player));
        f64::from(u8::from(row.contains(1) && row.contains(4) || others))
    }

    /// Holds with 2, but for the case that 5, 6, 7, 8 and 0 are all absent: precision 31/32 for the rule {2}.
    fn nearly(row: &Coalition) -> f64 {
        let exception = [0, 5, 6, 7, 8].iter().all(|&player| !row.contains(player));
        f64::from(u8::from(row.contains(2) && !exception))
    }

    /// The run of a game's only output.
    fn only(game: &mut impl Game, options: &Anchors) -> Run<Rule> {
        anchors(game, options).unwrap().remove(0)
    }

    #[test]
    fn the_best_rule_is_found_and_its_precision_lies_in_the_interval() {
        let (mut found, mut inside, mut covered) = (0, 0, 0);
        for seed in 0..100 {
            let run = only(&mut Function::new(8, conjunction), &options(seed));
            let mut rule = run.estimate.players.clone();
            rule.sort_unstable();
            found += usize::from(rule == [1, 4]);
            inside += usize::from(run.estimate.precision.low <= 1.0 && 1.0 <= run.estimate.precision.high);
            let coverage = run.estimate.coverage;
            covered += usize::from(coverage.low <= 0.25 && 0.25 <= coverage.high);
        }
        assert!(found >= 95 && inside >= 95 && covered >= 95, "{found} {inside} {covered}");
    }

    #[test]
    fn a_rule_with_exceptions_is_found_with_its_precision_in_the_interval() {
        let (mut found, mut inside) = (0, 0);
        for seed in 0..100 {
            let run = only(&mut Function::new(9, nearly), &options(seed));
            if run.estimate.players == [2] {
                found += 1;
                let precision = run.estimate.precision;
                inside += usize::from(precision.low <= 31.0 / 32.0 && 31.0 / 32.0 <= precision.high);
                assert!(run.estimate.holds.iter().all(|(row, _)| nearly(row) > 0.5 && row.contains(2)));
                assert!(run.estimate.fails.iter().all(|(row, _)| nearly(row) < 0.5 && row.contains(2)));
            }
        }
        assert!(found >= 90 && inside * 100 >= found * 95, "{found} {inside}");
    }

    #[test]
    fn a_decision_that_always_holds_has_the_empty_rule() {
        let run = only(&mut Function::new(5, |_| 1.0), &options(0));
        assert!(run.estimate.players.is_empty() && run.estimate.met);
        assert_eq!(run.estimate.coverage.share, 1.0);
    }

    #[test]
    fn prefixes_end_with_the_rule() {
        let run = only(&mut Function::new(8, conjunction), &options(1));
        let lengths: Vec<_> = run.estimate.prefixes.iter().map(|(prefix, _)| prefix.len()).collect();
        assert_eq!(lengths, [0, 1, 2]);
        assert!(run.estimate.prefixes.iter().all(|(_, interval)| interval.samples > 0));
    }

    #[test]
    fn a_decision_that_every_player_is_needed_for_has_the_full_rule() {
        let all = |row: &Coalition| f64::from(u8::from(row.len() == 4));
        let run = only(&mut Function::new(4, all), &Anchors { samples: 100_000, ..options(0) });
        assert_eq!(run.estimate.players.len(), 4);
        assert!((run.estimate.precision.share - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_budget_is_kept_and_its_end_is_said() {
        let mut game = Function::new(30, |row: &Coalition| f64::from(u8::from(row.len() > 25)));
        let run = only(&mut game, &Anchors { samples: 3_000, ..options(0) });
        assert!(game.asked <= 3_000 && !run.estimate.met);
        assert!(matches!(run.ended, Ended::Budget));
        assert_eq!(run.evaluations, game.asked);
    }

    #[test]
    fn a_stopped_game_gives_the_best_rule_so_far() {
        let mut game = Function { limit: 150, chunk: 64, ..Function::new(8, conjunction) };
        let run = only(&mut game, &options(0));
        assert!(matches!(run.ended, Ended::Stopped(_)) && !run.estimate.met);
    }

    #[test]
    fn a_search_ends_when_its_caller_has_left() {
        let stopped =
            anchors(&mut Over(Function::new(8, conjunction), || Stop::Cancelled), &options(0)).unwrap_err();
        assert!(matches!(stopped, EstimateError::Stopped(Stop::Cancelled)), "{stopped}");
    }

    #[test]
    fn a_threshold_outside_of_its_limits_is_refused() {
        for threshold in [0.0, 1.0, -0.5, f64::NAN] {
            let options = Anchors { threshold, ..options(0) };
            let refusal = anchors(&mut Function::new(8, conjunction), &options).unwrap_err();
            assert!(refusal.to_string().starts_with("threshold is"), "{refusal}");
        }
    }

    /// Four texts for the absence of the only player, one of which changes the decision.
    #[test]
    fn precision_is_a_mean_over_texts() {
        let quarter = |row: &Coalition| if row.len() == 1 { 1.0 } else { 0.75 };
        let run = only(&mut Function::new(1, quarter), &options(0));
        let shares: Vec<_> = run.estimate.prefixes.iter().map(|(_, it)| it.share).collect();
        assert_eq!((run.estimate.players, shares), (vec![0], vec![0.875, 1.0]));
    }

    #[test]
    fn rules_of_a_short_text_are_measured_exactly_however_sure_one_wants_to_be() {
        // Everybody but 0 and 8 is needed, or 3 alone is absent: nothing but the full enumeration tells them apart.
        let needed = |row: &Coalition| f64::from(u8::from((1..8).all(|it| it == 3 || row.contains(it))));
        for tight in [Anchors { epsilon: 0.01, ..options(0) }, Anchors { delta: 1e-300, ..options(0) }] {
            let run = only(&mut Function::new(9, needed), &Anchors { samples: 10_000, ..tight });
            let mut rule = run.estimate.players.clone();
            rule.sort_unstable();
            assert_eq!(rule, [1, 2, 4, 5, 6, 7]);
            assert!(run.estimate.met && matches!(run.ended, Ended::Tolerance) && run.evaluations <= 512);
            let Interval { share, low, high, samples, .. } = run.estimate.precision;
            assert_eq!((share, low, high, samples), (1.0, 1.0, 1.0, 8));
        }
    }

    #[test]
    fn the_full_rule_is_measured_on_the_one_text_that_respects_it() {
        let all = |row: &Coalition| f64::from(u8::from(row.len() == 4));
        let run = only(&mut Function::new(4, all), &options(0));
        let (_, last) = run.estimate.prefixes.last().unwrap();
        assert_eq!((last.samples, last.low, run.estimate.precision.samples), (1, 1.0, 1));
    }

    #[test]
    fn long_texts_are_searched_with_the_samples_there_are() {
        for (players, samples) in [(100, MIN_SAMPLES), (300, 10_000), (500, 10_000)] {
            let mut game = Function::new(players, |row: &Coalition| f64::from(u8::from(row.contains(7))));
            let run = only(&mut game, &Anchors { samples, ..options(0) });
            assert_eq!((run.estimate.players, run.estimate.met), (vec![7], true), "{players}");
            assert!(game.asked <= samples && run.estimate.precision.low > 0.9, "{players}");
        }
    }

    #[test]
    fn a_rule_that_met_the_threshold_is_not_measured_below_what_is_tolerated() {
        // Of 60 rules of one player each has precision 0.88, and some luck among its first rows.
        let unlucky = |row: &Coalition| {
            let mut stream = Stream::new(1, 2, row.members().fold(0, |code, it| code ^ 1 << it));
            f64::from(u8::from(row.len() == 60 || stream.fraction() < 0.88))
        };
        for seed in 0..20 {
            let run = only(&mut Function::new(60, unlucky), &Anchors { beam: 1, ..options(seed) });
            assert!(!run.estimate.met || run.estimate.precision.share >= 0.9, "{seed}");
            assert_eq!(run.estimate.met, matches!(run.ended, Ended::Tolerance));
        }
    }

    /// Two outputs of the same three players, and how often each coalition was asked for.
    struct Pair(HashMap<Coalition, usize>);

    impl Game for Pair {
        fn players(&self) -> usize {
            3
        }

        fn outputs(&self) -> usize {
            2
        }

        fn evaluate(&mut self, coalitions: &[Coalition]) -> Result<Vec<Vec<f64>>, Stop> {
            let number = |holds: bool| f64::from(u8::from(holds));
            coalitions.iter().for_each(|row| *self.0.entry(row.clone()).or_insert(0) += 1);
            Ok(coalitions.iter().map(|row| vec![number(row.contains(0)), number(row.contains(2))]).collect())
        }
    }

    #[test]
    fn outputs_share_their_evaluations() {
        let mut game = Pair(HashMap::new());
        let runs = anchors(&mut game, &options(0)).unwrap();
        assert_eq!((&runs[0].estimate.players[..], &runs[1].estimate.players[..]), (&[0][..], &[2][..]));
        assert_eq!((game.0.len(), game.0.values().sum::<usize>()), (8, 8));
    }

    #[test]
    fn a_game_that_draws_is_asked_for_every_row() {
        let mut stream = Stream::new(3, 1, 0);
        let luck = move |row: &Coalition| f64::from(u8::from(row.len() == 2 || stream.fraction() < 0.6));
        let mut game = Function::new(2, luck);
        let run = only(&mut game, &Anchors { drawn: true, ..options(0) });
        assert_eq!((run.evaluations, run.estimate.players.len()), (game.asked, 2));
        // The empty rule leaves all in one text of four.
        let (_, empty) = &run.estimate.prefixes[0];
        assert!(empty.low <= 0.7 && 0.7 <= empty.high && empty.samples >= 64, "{empty:?}");
    }
}
