//! This file is where a rule is searched that holds a decision whatever else is perturbed: an anchor.

use std::collections::{HashMap, HashSet};

use super::bounds::{self, Interval};
use super::budget::{Ended, EstimateError, Run, evaluate};
use super::game::{Coalition, Game, Stop};
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
    /// Distinct rows evaluated at most, those that measure the rule found included.
    pub samples: usize,
    /// Which rows are drawn.
    pub seed: u64,
}

/// A rule: while these players are present, the decision holds.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The players that must be present, in the order in which the search took them.
    pub players: Vec<usize>,
    /// The share of perturbations that respect the rule and keep the decision, on fresh rows.
    pub precision: Interval,
    /// The share of all perturbations that respect the rule.
    pub coverage: Interval,
    /// Each beginning of the rule, from the empty one on, with its precision as the search saw it.
    pub prefixes: Vec<(Vec<usize>, Interval)>,
    /// Whether the search found the precision to be at or above the threshold.
    pub met: bool,
    /// Perturbations that respect the rule and keep the decision.
    pub holds: Vec<Coalition>,
    /// Perturbations that respect the rule and change the decision.
    pub fails: Vec<Coalition>,
}

/// The probability with which a player that no rule holds stays present: the perturbation distribution.
pub const KEEP: f64 = 0.5;
/// How far below the threshold the lower bound of an accepted rule may lie.
const SLACK: f64 = 0.05;
/// Rows drawn for a rule at a time.
const BATCH: usize = 64;
/// Fresh rows on which the rule found is measured.
const FRESH: usize = 500;
/// Perturbations over which coverage is counted; they cost no evaluation.
const COVERAGE: usize = 10_000;
/// Rows drawn for each sample allowed at most; few features have few distinct rows, and repeats are free.
const DRAWN_PER_SAMPLE: usize = 20;
const EXAMPLES: usize = 5;
/// The fewest samples that a search starts with.
pub const MIN_SAMPLES: usize = FRESH + 4 * BATCH;

const PURPOSE_SEARCH: u64 = 0x616e_6368;
const PURPOSE_FRESH: u64 = 0x6672_6573;
const PURPOSE_COVERAGE: u64 = 0x636f_7665;

/// Searches the shortest rule whose precision is at least the threshold (Ribeiro et al. 2018): beam search,
/// the best rules of each length identified by KL-LUCB (Kaufmann & Kalyanakrishnan 2013) with exact bounds.
///
/// `output` of the game says whether the decision holds (above one half: it does).
///
/// # Errors
/// No players, a parameter outside its limits, or the game stopped before the first rows were had.
pub fn anchors(game: &mut impl Game, output: usize, options: &Anchors) -> Result<Run<Rule>, EstimateError> {
    let players = game.players();
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
    if options.beam < 1 {
        return Err(EstimateError::parameter("beam", options.beam, "must be at least 1"));
    }
    if options.samples < MIN_SAMPLES {
        return Err(EstimateError::parameter(
            "samples",
            options.samples,
            format!("must be at least {MIN_SAMPLES}"),
        ));
    }
    let mut search =
        Search { game, output, options, players, arms: HashMap::new(), seen: HashMap::new(), drawn: 0 };
    let found = search.run();
    let rule = Coalition::of(players, found.order.iter().copied());
    let draws =
        |purpose, count| (0..count).map(move |index| perturbed(players, options.seed, purpose, index));

    let fresh: Vec<_> = match found.stop {
        Some(_) => Vec::new(),
        None => draws(PURPOSE_FRESH, FRESH).map(|row| row.union(&rule)).collect(),
    };
    let (kept, late_stop) = search.decide(&fresh);
    let evaluations = search.seen.len();
    let (mut holds, mut fails) = (Vec::new(), Vec::new());
    for (row, &kept) in fresh.into_iter().zip(&kept) {
        let examples = if kept { &mut holds } else { &mut fails };
        if examples.len() < EXAMPLES && !examples.contains(&row) {
            examples.push(row);
        }
    }
    let hits = kept.iter().filter(|&&kept| kept).count();
    let covered = draws(PURPOSE_COVERAGE, COVERAGE).filter(|row| row.is_superset(&rule)).count();
    let prefixes: Vec<_> = (0..=found.order.len())
        .map(|length| {
            let prefix = found.order[..length].to_vec();
            let interval = search.arm(&Coalition::of(players, prefix.iter().copied())).interval();
            (prefix, interval)
        })
        .collect();
    let precision = match (kept.len(), prefixes.last()) {
        (0, Some((_, seen))) => *seen,
        _ => Interval::of(hits, kept.len()),
    };
    let ended = match (found.stop.or(late_stop), found.met) {
        (Some(stop), _) if precision.samples == 0 => return Err(stop.into()),
        (Some(stop), _) => Ended::Stopped(stop),
        (None, true) => Ended::Tolerance,
        (None, false) => Ended::Budget,
    };
    let coverage = Interval::of(covered, COVERAGE);
    let estimate = Rule { players: found.order, precision, coverage, prefixes, met: found.met, holds, fails };
    Ok(Run { estimate, evaluations, ended })
}

/// Draw `index` of the perturbation distribution.
fn perturbed(players: usize, seed: u64, purpose: u64, index: usize) -> Coalition {
    let mut stream = Stream::new(seed, purpose, index as u64);
    Coalition::of(players, (0..players).filter(|_| stream.fraction() < KEEP))
}

/// What is known of a rule's precision.
#[derive(Debug, Clone, Copy, Default)]
struct Arm {
    hits: usize,
    samples: usize,
}

impl Arm {
    fn share(self) -> f64 {
        if self.samples == 0 { 0.0 } else { self.hits as f64 / self.samples as f64 }
    }

    fn lower(self, rate: f64) -> f64 {
        if self.samples == 0 { 0.0 } else { bounds::lower(self.share(), rate / self.samples as f64) }
    }

    fn upper(self, rate: f64) -> f64 {
        if self.samples == 0 { 1.0 } else { bounds::upper(self.share(), rate / self.samples as f64) }
    }

    fn interval(self) -> Interval {
        Interval::of(self.hits, self.samples)
    }
}

/// A rule under construction: its players in the order taken.
type Order = Vec<usize>;

struct Found {
    order: Order,
    met: bool,
    stop: Option<Stop>,
}

struct Search<'a, G> {
    game: &'a mut G,
    output: usize,
    options: &'a Anchors,
    players: usize,
    arms: HashMap<Coalition, Arm>,
    /// Whether the decision holds for each row evaluated: an equal row is not evaluated again.
    seen: HashMap<Coalition, bool>,
    /// Rows drawn, equal ones counted each.
    drawn: usize,
}

/// Why a step of the search could not be made.
enum Halt {
    Spent,
    Stopped(Stop),
}

impl<G: Game> Search<'_, G> {
    /// The shortest rule that meets the threshold; the most precise one seen where the budget or the game ended.
    fn run(&mut self) -> Found {
        let mut tried: Vec<Order> = vec![Vec::new()];
        let mut beam: Vec<Order> = vec![Vec::new()];
        loop {
            let accepted = match self.accept(&beam) {
                Ok(accepted) => accepted,
                Err(halt) => return halt.found(self.best(tried)),
            };
            if let Some(order) = accepted {
                return Found { order, met: true, stop: None };
            }
            let mut longer: Vec<Order> = Vec::new();
            for order in &beam {
                for player in (0..self.players).filter(|player| !order.contains(player)) {
                    let extended: Order = order.iter().copied().chain([player]).collect();
                    let same = |other: &Order| extended.iter().all(|player| other.contains(player));
                    if !longer.iter().any(same) {
                        longer.push(extended);
                    }
                }
            }
            if longer.is_empty() {
                return Found { order: self.best(tried), met: false, stop: None };
            }
            tried.extend(longer.iter().cloned());
            beam = match self.identify(longer) {
                Ok(beam) => beam,
                Err(halt) => return halt.found(self.best(tried)),
            };
        }
    }

    /// The rule whose lower bound is highest, the first of equals.
    fn best(&self, tried: Vec<Order>) -> Order {
        let low = |order: &Order| self.arm(&self.coalition(order)).lower(self.rate());
        let best = tried.iter().map(|order| (low(order), order)).reduce(|a, b| if b.0 > a.0 { b } else { a });
        best.map(|(_, order)| order.clone()).unwrap_or_default()
    }

    fn coalition(&self, order: &Order) -> Coalition {
        Coalition::of(self.players, order.iter().copied())
    }

    fn arm(&self, rule: &Coalition) -> Arm {
        self.arms.get(rule).copied().unwrap_or_default()
    }

    /// Whether the decision holds for each row; fewer answers come with the reason.
    fn decide(&mut self, rows: &[Coalition]) -> (Vec<bool>, Option<Stop>) {
        let mut asked = HashSet::new();
        let fresh: Vec<_> =
            rows.iter().filter(|row| !self.seen.contains_key(*row) && asked.insert(*row)).cloned().collect();
        let (worths, stop) = evaluate(self.game, &fresh);
        let decisions = worths.iter().map(|row| row[self.output] > 0.5);
        self.seen.extend(fresh.into_iter().zip(decisions));
        (rows.iter().map_while(|row| self.seen.get(row).copied()).collect(), stop)
    }

    /// Draws [`BATCH`] more rows for each of `rules`.
    fn draw(&mut self, rules: &[Coalition]) -> Result<(), Halt> {
        let Anchors { seed, samples, .. } = *self.options;
        let draw = |(rule, from): (&Coalition, usize)| {
            // All rules share the distribution's draws, which is why equal rows are frequent.
            let row = |index| perturbed(self.players, seed, PURPOSE_SEARCH, index).union(rule);
            (from..from + BATCH).map(row).collect::<Vec<_>>()
        };
        let rows: Vec<Coalition> =
            rules.iter().flat_map(|rule| draw((rule, self.arm(rule).samples))).collect();
        let fresh = rows.iter().filter(|row| !self.seen.contains_key(*row)).count();
        self.drawn += rows.len();
        if self.seen.len() + fresh + FRESH > samples || self.drawn > DRAWN_PER_SAMPLE * samples {
            return Err(Halt::Spent);
        }
        let (decisions, stop) = self.decide(&rows);
        for (rule, decisions) in rules.iter().zip(decisions.chunks(BATCH)) {
            let arm = self.arms.entry(rule.clone()).or_default();
            arm.samples += decisions.len();
            arm.hits += decisions.iter().filter(|&&kept| kept).count();
        }
        stop.map_or(Ok(()), |stop| Err(Halt::Stopped(stop)))
    }

    /// ln of one over the probability with which a single rule may be misjudged.
    fn rate(&self) -> f64 {
        ((1 + (self.options.beam - 1) * self.players) as f64 / self.options.delta).ln()
    }

    /// Whether a rule's precision is known to be good enough.
    fn certain(&self, arm: Arm) -> bool {
        let threshold = self.options.threshold;
        arm.samples > 0 && arm.share() >= threshold && arm.lower(self.rate()) > threshold - SLACK
    }

    /// The most precise rule of the beam that is found to meet the threshold, each one sampled until that is
    /// decided.
    fn accept(&mut self, beam: &[Order]) -> Result<Option<Order>, Halt> {
        let (threshold, rate) = (self.options.threshold, self.rate());
        let mut accepted: Option<(f64, &Order)> = None;
        for order in beam {
            let rule = self.coalition(order);
            // With everybody present nothing is perturbed.
            if order.len() == self.players {
                self.arms.insert(rule, Arm { hits: BATCH, samples: BATCH });
                return Ok(Some(order.clone()));
            }
            loop {
                let arm = self.arm(&rule);
                let above = arm.share() >= threshold;
                let undecided = match above {
                    true => !self.certain(arm),
                    false => arm.upper(rate) >= threshold + SLACK.min((1.0 - threshold) / 2.0),
                };
                if arm.samples > 0 && !undecided {
                    if above && accepted.is_none_or(|(share, _)| arm.share() > share) {
                        accepted = Some((arm.share(), order));
                    }
                    break;
                }
                self.draw(std::slice::from_ref(&rule))?;
            }
        }
        Ok(accepted.map(|(_, order)| order.clone()))
    }

    /// The beam's worth of most precise rules among `orders`, wrong by more than epsilon with probability delta at
    /// most; the most precise first.
    fn identify(&mut self, orders: Vec<Order>) -> Result<Vec<Order>, Halt> {
        let rules: Vec<Coalition> = orders.iter().map(|order| self.coalition(order)).collect();
        let fresh: Vec<_> = rules.iter().filter(|rule| self.arm(rule).samples == 0).cloned().collect();
        self.draw(&fresh)?;
        let width = self.options.beam.min(rules.len());
        for round in 1.. {
            let arms: Vec<Arm> = rules.iter().map(|rule| self.arm(rule)).collect();
            let mut ranked: Vec<usize> = (0..rules.len()).collect();
            ranked.sort_by(|&a, &b| arms[b].share().total_cmp(&arms[a].share()));
            let (top, rest) = ranked.split_at(width);
            // A rule of this length that is good enough already ends the search: no need to rank the others.
            if top.iter().any(|&k| self.certain(arms[k])) {
                return Ok(top
                    .iter()
                    .filter(|&&k| self.certain(arms[k]))
                    .map(|&k| orders[k].clone())
                    .collect());
            }
            // Kaufmann & Kalyanakrishnan's exploration rate, with their alpha = 1.1 and k = 405.5.
            let u = (405.5 * rules.len() as f64 * f64::powf(f64::from(round), 1.1) / self.options.delta).ln();
            let rate = u + u.ln();
            let weakest = top.iter().map(|&k| (arms[k].lower(rate), k)).min_by(|a, b| a.0.total_cmp(&b.0));
            let strongest = rest.iter().map(|&k| (arms[k].upper(rate), k)).max_by(|a, b| a.0.total_cmp(&b.0));
            match (weakest, strongest) {
                (Some((low, weak)), Some((high, strong))) if high - low > self.options.epsilon => {
                    self.draw(&[rules[weak].clone(), rules[strong].clone()])?;
                }
                _ => return Ok(top.iter().map(|&k| orders[k].clone()).collect()),
            }
        }
        Ok(orders)
    }
}

impl Halt {
    fn found(self, order: Order) -> Found {
        let stop = match self {
            Self::Spent => None,
            Self::Stopped(stop) => Some(stop),
        };
        Found { order, met: false, stop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::game::Function;

    fn options(seed: u64) -> Anchors {
        Anchors { threshold: 0.95, delta: 0.1, epsilon: 0.15, beam: 4, samples: 20_000, seed }
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

    #[test]
    fn the_best_rule_is_found_and_its_precision_lies_in_the_interval() {
        let (mut found, mut inside, mut covered) = (0, 0, 0);
        for seed in 0..100 {
            let run = anchors(&mut Function::new(8, conjunction), 0, &options(seed)).unwrap();
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
            let run = anchors(&mut Function::new(9, nearly), 0, &options(seed)).unwrap();
            if run.estimate.players == [2] {
                found += 1;
                let precision = run.estimate.precision;
                inside += usize::from(precision.low <= 31.0 / 32.0 && 31.0 / 32.0 <= precision.high);
                assert!(run.estimate.holds.iter().all(|row| nearly(row) > 0.5 && row.contains(2)));
                assert!(run.estimate.fails.iter().all(|row| nearly(row) < 0.5 && row.contains(2)));
            }
        }
        assert!(found >= 90 && inside * 100 >= found * 95, "{found} {inside}");
    }

    #[test]
    fn a_decision_that_always_holds_has_the_empty_rule() {
        let run = anchors(&mut Function::new(5, |_| 1.0), 0, &options(0)).unwrap();
        assert!(run.estimate.players.is_empty() && run.estimate.met);
        assert_eq!(run.estimate.coverage.share, 1.0);
    }

    #[test]
    fn prefixes_end_with_the_rule() {
        let run = anchors(&mut Function::new(8, conjunction), 0, &options(1)).unwrap();
        let lengths: Vec<_> = run.estimate.prefixes.iter().map(|(prefix, _)| prefix.len()).collect();
        assert_eq!(lengths, [0, 1, 2]);
        assert!(run.estimate.prefixes.iter().all(|(_, interval)| interval.samples > 0));
    }

    #[test]
    fn a_decision_that_every_player_is_needed_for_has_the_full_rule() {
        let all = |row: &Coalition| f64::from(u8::from(row.len() == 4));
        let run =
            anchors(&mut Function::new(4, all), 0, &Anchors { samples: 100_000, ..options(0) }).unwrap();
        assert_eq!(run.estimate.players.len(), 4);
        assert!((run.estimate.precision.share - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_budget_is_kept_and_its_end_is_said() {
        let mut game = Function::new(30, |row: &Coalition| f64::from(u8::from(row.len() > 25)));
        let run = anchors(&mut game, 0, &Anchors { samples: 3_000, ..options(0) }).unwrap();
        assert!(game.asked <= 3_000 && !run.estimate.met);
        assert!(matches!(run.ended, Ended::Budget));
        assert_eq!(run.evaluations, game.asked);
    }

    #[test]
    fn a_stopped_game_gives_the_best_rule_so_far() {
        let mut game = Function { limit: 150, chunk: 64, ..Function::new(8, conjunction) };
        let run = anchors(&mut game, 0, &options(0)).unwrap();
        assert!(matches!(run.ended, Ended::Stopped(_)) && !run.estimate.met);
    }

    #[test]
    fn a_threshold_outside_of_its_limits_is_refused() {
        for threshold in [0.0, 1.0, -0.5, f64::NAN] {
            let options = Anchors { threshold, ..options(0) };
            let refusal = anchors(&mut Function::new(8, conjunction), 0, &options).unwrap_err();
            assert!(refusal.to_string().starts_with("threshold is"), "{refusal}");
        }
    }
}
