//! This file is where the beam search of an anchor draws rows, compares rules and ends.

use std::collections::{HashMap, HashSet};

use super::super::bounds::{self, Interval};
use super::super::budget::evaluate;
use super::super::game::{Coalition, Game, Stop};
use super::{Anchors, BATCH, FRESH, PURPOSE_FRESH, PURPOSE_SEARCH, SLACK, perturbed};

/// Rows drawn for a rule at a time where the budget is short.
const FEW: usize = 4;
/// Rows drawn for each sample allowed at most; few players have few distinct rows, and repeats are free.
const DRAWN_PER_SAMPLE: usize = 20;

/// What each evaluation of a coalition gave, for all outputs.
pub(super) type Outcomes = HashMap<Coalition, Vec<Vec<f64>>>;

/// What is known of a rule's precision.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Arm {
    hits: f64,
    samples: usize,
    /// Whether these are all perturbations that respect the rule: the share is the precision.
    whole: bool,
}

impl Arm {
    fn share(self) -> f64 {
        if self.samples == 0 { 0.0 } else { (self.hits / self.samples as f64).min(1.0) }
    }

    fn lower(self, rate: f64) -> f64 {
        match self.samples {
            _ if self.whole => self.share(),
            0 => 0.0,
            samples => bounds::lower(self.share(), rate / samples as f64),
        }
    }

    fn upper(self, rate: f64) -> f64 {
        match self.samples {
            _ if self.whole => self.share(),
            0 => 1.0,
            samples => bounds::upper(self.share(), rate / samples as f64),
        }
    }

    pub(super) fn interval(self) -> Interval {
        if self.whole {
            Interval::exact(self.share(), self.samples)
        } else {
            Interval::of(self.hits, self.samples)
        }
    }
}

/// A rule under construction: its players in the order taken.
type Order = Vec<usize>;

/// Where the search ended.
pub(super) struct Found {
    pub(super) order: Order,
    pub(super) precision: Arm,
    /// The rows that precision was measured on, with the share that keeps the decision.
    pub(super) measured: Vec<(Coalition, f64)>,
    /// Whether it ended because the rule is good enough.
    pub(super) accepted: bool,
    pub(super) met: bool,
    pub(super) stop: Option<Stop>,
}

pub(super) struct Search<'a, G> {
    game: &'a mut G,
    outcomes: &'a mut Outcomes,
    output: usize,
    pub(super) options: &'a Anchors,
    arms: HashMap<Coalition, Arm>,
    /// How many evaluations of each coalition this output asked for.
    counts: HashMap<Coalition, usize>,
    /// All of them, in order.
    pub(super) asked: Vec<Coalition>,
    /// Rows drawn, equal ones counted each.
    drawn: usize,
    /// Rules measured on fresh rows.
    measures: usize,
}

/// Why a step of the search could not be made.
enum Halt {
    Spent,
    Stopped(Stop),
}

impl<'a, G: Game> Search<'a, G> {
    pub(super) fn new(
        game: &'a mut G,
        outcomes: &'a mut Outcomes,
        output: usize,
        options: &'a Anchors,
    ) -> Self {
        let (arms, counts, asked) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { game, outcomes, output, options, arms, counts, asked, drawn: 0, measures: 0 }
    }

    pub(super) fn players(&self) -> usize {
        self.game.players()
    }

    pub(super) fn coalition(&self, order: &[usize]) -> Coalition {
        Coalition::of(self.players(), order.iter().copied())
    }

    pub(super) fn arm(&self, rule: &Coalition) -> Arm {
        self.arms.get(rule).copied().unwrap_or_default()
    }

    /// The shortest rule that meets the threshold, or the most precise one seen where the budget or the game ended.
    pub(super) fn run(&mut self) -> Found {
        let mut tried: Vec<Order> = vec![Vec::new()];
        let halt = match self.walk(&mut tried) {
            Ok(found) => return found,
            Err(halt) => halt,
        };
        let order = self.best(tried);
        let rule = self.coalition(&order);
        let seen = Found {
            precision: self.arm(&rule),
            order,
            measured: Vec::new(),
            accepted: false,
            met: false,
            stop: None,
        };
        match halt {
            Halt::Stopped(stop) => Found { stop: Some(stop), ..seen },
            Halt::Spent if self.room().is_none() => seen,
            Halt::Spent => {
                let (measured, precision, stop) = self.measure(&rule);
                let precision = if precision.samples == 0 { seen.precision } else { precision };
                Found { met: stop.is_none() && self.certain(precision), precision, measured, stop, ..seen }
            }
        }
    }

    fn walk(&mut self, tried: &mut Vec<Order>) -> Result<Found, Halt> {
        let mut beam: Vec<Order> = vec![Vec::new()];
        loop {
            while let Some(order) = self.accept(&beam)? {
                let rule = self.coalition(&order);
                let (measured, precision, stop) = self.measure(&rule);
                let holds = precision.share() >= self.options.threshold - SLACK;
                if stop.is_some() || holds {
                    let precision = if precision.samples == 0 { self.arm(&rule) } else { precision };
                    let accepted = stop.is_none();
                    return Ok(Found { order, precision, measured, accepted, met: accepted, stop });
                }
                // Taken by luck among many: what the fresh rows tell is learnt, and the search goes on.
                let arm = self.arms.entry(rule).or_default();
                arm.hits += precision.hits;
                arm.samples += precision.samples;
                self.room().ok_or(Halt::Spent)?;
            }
            let longer = self.longer(&beam);
            if longer.is_empty() {
                return Err(Halt::Spent);
            }
            tried.extend(longer.iter().cloned());
            beam = self.identify(longer)?;
        }
    }

    /// Every rule of the beam with one more player, none twice.
    fn longer(&self, beam: &[Order]) -> Vec<Order> {
        let mut known = HashSet::new();
        let mut longer = Vec::new();
        for order in beam {
            for player in (0..self.players()).filter(|player| !order.contains(player)) {
                let extended: Order = order.iter().copied().chain([player]).collect();
                if known.insert(self.coalition(&extended)) {
                    longer.push(extended);
                }
            }
        }
        longer
    }

    /// The rule whose lower bound is highest, the first of equals.
    fn best(&self, tried: Vec<Order>) -> Order {
        let low = |order: &Order| self.arm(&self.coalition(order)).lower(self.rate());
        let best =
            tried.into_iter().map(|order| (low(&order), order)).reduce(|a, b| if b.0 > a.0 { b } else { a });
        best.map(|(_, order)| order).unwrap_or_default()
    }

    /// The share of each row that keeps the decision; fewer answers come with the reason.
    fn decide(&mut self, rows: &[Coalition]) -> (Vec<f64>, Option<Stop>) {
        let mut repeats: HashMap<&Coalition, usize> = HashMap::new();
        let (mut numbers, mut missing) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            let repeat = repeats.entry(row).or_insert(0);
            let had = self.counts.get(row).copied().unwrap_or(0);
            let number = if self.options.drawn { had + *repeat } else { 0 };
            let known = self.outcomes.get(row).map_or(0, Vec::len);
            if number >= known && (self.options.drawn || *repeat == 0) {
                missing.push(row.clone());
            }
            *repeat += 1;
            numbers.push(number);
        }
        let (worths, stop) = evaluate(self.game, &missing);
        for (row, worth) in missing.into_iter().zip(worths) {
            self.outcomes.entry(row).or_default().push(worth);
        }
        let mut kept = Vec::with_capacity(rows.len());
        for (row, number) in rows.iter().zip(numbers) {
            let Some(worth) = self.outcomes.get(row).and_then(|all| all.get(number)) else { break };
            kept.push(worth[self.output]);
            let count = self.counts.entry(row.clone()).or_insert(0);
            if number == *count {
                *count += 1;
                self.asked.push(row.clone());
            }
        }
        (kept, stop)
    }

    /// Evaluations that `rows` would add.
    fn cost(&self, rows: &[Coalition]) -> usize {
        if self.options.drawn {
            return rows.len();
        }
        rows.iter().filter(|row| !self.counts.contains_key(*row)).collect::<HashSet<_>>().len()
    }

    /// Rows kept back to measure a rule on.
    fn reserve(&self) -> usize {
        FRESH.min(self.options.samples / 4)
    }

    /// Evaluations left beside those kept back; none where not even these are left.
    fn room(&self) -> Option<usize> {
        self.options.samples.checked_sub(self.asked.len() + self.reserve())
    }

    fn tired(&self) -> bool {
        self.drawn > DRAWN_PER_SAMPLE * self.options.samples
    }

    /// Whether all perturbations that respect the rule are to be taken, `count` being few enough. Where evaluations
    /// draw, all of them are no certainty.
    fn enumerable(&self, rule: &Coalition, count: usize) -> bool {
        let free = self.players() - rule.len();
        let all = 1usize.checked_shl(free as u32).unwrap_or(usize::MAX);
        all <= count && (!self.options.drawn || free == 0)
    }

    /// All perturbations that respect the rule; equally probable, since a player stays with probability one half.
    fn supersets(&self, rule: &Coalition) -> Vec<Coalition> {
        let free: Vec<usize> = rule.complement().members().collect();
        let present = |code: usize| (0..free.len()).filter(move |bit| code >> bit & 1 == 1);
        let row = |code| Coalition::of(self.players(), present(code).map(|bit| free[bit])).union(rule);
        (0..1usize << free.len()).map(row).collect()
    }

    /// The rule's precision on rows that no search saw, and on all where these are no more.
    fn measure(&mut self, rule: &Coalition) -> (Vec<(Coalition, f64)>, Arm, Option<Stop>) {
        let whole = self.arm(rule).whole || self.enumerable(rule, self.reserve());
        let rows: Vec<Coalition> = if whole {
            self.supersets(rule)
        } else {
            let from = self.measures * self.reserve();
            let row = |index| perturbed(self.players(), self.options.seed, PURPOSE_FRESH, index).union(rule);
            (from..from + self.reserve()).map(row).collect()
        };
        self.measures += 1;
        let (kept, stop) = self.decide(&rows);
        let arm = Arm { hits: kept.iter().sum(), samples: kept.len(), whole: whole && stop.is_none() };
        (rows.into_iter().zip(kept).collect(), arm, stop)
    }

    /// Draws [`BATCH`] more rows for each of `rules`, fewer where the budget is short; all rows there are, once
    /// as many were drawn.
    fn draw(&mut self, rules: &[Coalition]) -> Result<(), Halt> {
        // Where every row is known already no evaluation looks at the clock.
        self.game.check().map_err(Halt::Stopped)?;
        let mut open = Vec::new();
        for rule in rules {
            let reached = if self.tired() { self.options.samples } else { self.arm(rule).samples + BATCH };
            if !(self.enumerable(rule, reached) && self.exhaust(rule)?) {
                open.push(rule);
            }
        }
        if self.tired() && !open.is_empty() {
            return Err(Halt::Spent);
        }
        let room = self.room().ok_or(Halt::Spent)?;
        let mut count = BATCH;
        let rows = loop {
            let rows: Vec<Coalition> = open.iter().flat_map(|rule| self.drawn_for(rule, count)).collect();
            let cost = self.cost(&rows);
            // A first look at many rules leaves something to look closer at a few.
            let room = if rules.len() > 2 && count > FEW { room / 2 } else { room };
            if cost <= room {
                break rows;
            }
            if count <= FEW {
                return Err(Halt::Spent);
            }
            count = (count * room / cost).clamp(FEW, count - 1);
        };
        self.drawn += rows.len();
        let (kept, stop) = self.decide(&rows);
        for (rule, kept) in open.into_iter().zip(kept.chunks(count)) {
            let arm = self.arms.entry(rule.clone()).or_default();
            arm.samples += kept.len();
            arm.hits += kept.iter().sum::<f64>();
        }
        stop.map_or(Ok(()), |stop| Err(Halt::Stopped(stop)))
    }

    /// The next `count` rows of a rule. All rules share the distribution's draws, which is why equal rows are frequent.
    fn drawn_for(&self, rule: &Coalition, count: usize) -> Vec<Coalition> {
        let from = self.arm(rule).samples;
        let row = |index| perturbed(self.players(), self.options.seed, PURPOSE_SEARCH, index).union(rule);
        (from..from + count).map(row).collect()
    }

    /// Takes all rows of a rule, if the evaluations left suffice for that.
    fn exhaust(&mut self, rule: &Coalition) -> Result<bool, Halt> {
        let rows = self.supersets(rule);
        if self.cost(&rows) > self.room().unwrap_or(0) {
            return Ok(false);
        }
        self.drawn += rows.len();
        let (kept, stop) = self.decide(&rows);
        if let Some(stop) = stop {
            return Err(Halt::Stopped(stop));
        }
        self.arms.insert(rule.clone(), Arm { hits: kept.iter().sum(), samples: kept.len(), whole: true });
        Ok(true)
    }

    /// ln of one over the probability with which a single rule may be misjudged.
    fn rate(&self) -> f64 {
        ((1 + (self.options.beam - 1) * self.players()) as f64 / self.options.delta).ln()
    }

    /// Whether a rule's precision is known to be good enough.
    fn certain(&self, arm: Arm) -> bool {
        let threshold = self.options.threshold;
        arm.samples > 0 && arm.share() >= threshold && arm.lower(self.rate()) > threshold - SLACK
    }

    /// Whether a rule's precision is known not to be good enough.
    fn ruled_out(&self, arm: Arm) -> bool {
        let threshold = self.options.threshold;
        let reach = threshold + SLACK.min((1.0 - threshold) / 2.0);
        arm.samples > 0 && arm.share() < threshold && arm.upper(self.rate()) < reach
    }

    /// The most precise rule of the beam that is found to meet the threshold, each one sampled until that is
    /// decided.
    fn accept(&mut self, beam: &[Order]) -> Result<Option<Order>, Halt> {
        let mut accepted: Option<(f64, &Order)> = None;
        for order in beam {
            let rule = self.coalition(order);
            let arm = loop {
                let arm = self.arm(&rule);
                if self.certain(arm) || self.ruled_out(arm) {
                    break arm;
                }
                match self.draw(std::slice::from_ref(&rule)) {
                    Err(Halt::Spent) if accepted.is_some() => break arm,
                    step => step?,
                }
            };
            if self.certain(arm) && accepted.is_none_or(|(share, _)| arm.share() > share) {
                accepted = Some((arm.share(), order));
            }
        }
        Ok(accepted.map(|(_, order)| order.clone()))
    }

    /// The beam's worth of most precise rules among `orders`, the most precise first; wrong by more than epsilon with
    /// probability delta at most, unless half of the evaluations left do not suffice for that.
    fn identify(&mut self, orders: Vec<Order>) -> Result<Vec<Order>, Halt> {
        let rules: Vec<Coalition> = orders.iter().map(|order| self.coalition(order)).collect();
        let fresh: Vec<_> = rules.iter().filter(|rule| self.arm(rule).samples == 0).cloned().collect();
        let spare = self.room().unwrap_or(0) / 2;
        self.draw(&fresh)?;
        let width = self.options.beam.min(rules.len());
        for round in 1.. {
            let arms: Vec<Arm> = rules.iter().map(|rule| self.arm(rule)).collect();
            let mut ranked: Vec<usize> = (0..rules.len()).collect();
            ranked.sort_by(|&a, &b| arms[b].share().total_cmp(&arms[a].share()));
            let (top, rest) = ranked.split_at(width);
            // A rule of this length that is good enough already ends the search: no need to rank the others.
            let good = |&k: &usize| self.certain(arms[k]).then(|| orders[k].clone());
            let enough: Vec<Order> = top.iter().filter_map(good).collect();
            if !enough.is_empty() {
                return Ok(enough);
            }
            // Kaufmann & Kalyanakrishnan's exploration rate, with their alpha = 1.1 and k = 405.5.
            let u = (405.5 * rules.len() as f64 * f64::powf(f64::from(round), 1.1) / self.options.delta).ln();
            let rate = u + u.ln();
            let weakest = top.iter().map(|&k| (arms[k].lower(rate), k)).min_by(|a, b| a.0.total_cmp(&b.0));
            let strongest = rest.iter().map(|&k| (arms[k].upper(rate), k)).max_by(|a, b| a.0.total_cmp(&b.0));
            match (weakest, strongest) {
                (Some((low, weak)), Some((high, strong)))
                    if high - low > self.options.epsilon && self.room().unwrap_or(0) > spare =>
                {
                    let open = [weak, strong].into_iter().filter(|&k| !arms[k].whole);
                    self.draw(&open.map(|k| rules[k].clone()).collect::<Vec<_>>())?;
                }
                _ => return Ok(top.iter().map(|&k| orders[k].clone()).collect()),
            }
        }
        Ok(orders)
    }
}
