//! This file is where Kernel SHAP chooses which coalitions to ask for.

use std::collections::HashSet;

use super::game::Coalition;
use super::random::Stream;

/// A coalition size that has at most this many members is listed once and read in random order; of a larger
/// one, members are drawn until a new one comes.
const LISTED: f64 = 16_384.0;

/// A growing set of coalitions, each standing for itself and its complement, none twice.
///
/// The smaller half of each pair has from 1 to players/2 members. All pairs of size one come first; after
/// that, sizes take turns so that size s gets a share proportional to 1/sqrt(s (n - s)), midway between the
/// Shapley kernel and leverage scores (Musco & Witter 2025), until it is complete. The design of k pairs is the
/// beginning of the design of k + 1.
pub(super) struct Design {
    players: usize,
    seed: u64,
    strata: Vec<Stratum>,
    /// Next draw of the strata that are not listed.
    draws: u64,
}

/// The pairs of one size.
struct Stratum {
    size: usize,
    share: f64,
    /// How many there are; a float because it may be astronomical.
    population: f64,
    taken: usize,
    /// All of them in random order, where they are few.
    listed: Option<Vec<Coalition>>,
    seen: HashSet<Coalition>,
}

impl Design {
    /// The empty design for `players` of at least 2.
    pub(super) fn new(players: usize, seed: u64) -> Self {
        let strata = (1..=players / 2)
            .map(|size| {
                let half = if 2 * size == players { 0.5 } else { 1.0 };
                Stratum {
                    size,
                    share: half / ((size * (players - size)) as f64).sqrt(),
                    population: half * binomial(players, size),
                    taken: 0,
                    listed: None,
                    seen: HashSet::new(),
                }
            })
            .collect();
        Self { players, seed, strata, draws: 0 }
    }

    /// How many pairs there are in all.
    pub(super) fn population(players: usize) -> f64 {
        (2f64.powi(players as i32) - 2.0) / 2.0
    }

    /// The next `count` pairs, fewer where the design is complete.
    pub(super) fn take(&mut self, count: usize) -> Vec<Coalition> {
        std::iter::from_fn(|| self.next()).take(count).collect()
    }

    fn next(&mut self) -> Option<Coalition> {
        let open = |stratum: &&mut Stratum| (stratum.taken as f64) < stratum.population;
        let priority = |stratum: &Stratum| match stratum.size {
            1 => f64::INFINITY,
            _ => stratum.share / (2 * stratum.taken + 1) as f64,
        };
        let stratum =
            self.strata.iter_mut().filter(open).max_by(|a, b| priority(a).total_cmp(&priority(b)))?;
        let place = stratum.taken;
        stratum.taken += 1;
        if stratum.population <= LISTED {
            let (players, seed) = (self.players, self.seed);
            let listed = stratum.listed.get_or_insert_with(|| {
                let mut all = combinations(players, stratum.size);
                // Each complement of a half-sized coalition is another half-sized one.
                all.retain(|coalition| 2 * stratum.size != players || coalition.contains(0));
                Stream::new(seed, PURPOSE_ORDER, stratum.size as u64).shuffle(&mut all);
                all
            });
            return listed.get(place).cloned();
        }
        loop {
            let drawn = Stream::new(self.seed, PURPOSE_DRAW, self.draws).subset(self.players, stratum.size);
            self.draws += 1;
            let drawn = if 2 * stratum.size == self.players && !drawn.contains(0) {
                drawn.complement()
            } else {
                drawn
            };
            if stratum.seen.insert(drawn.clone()) {
                return Some(drawn);
            }
        }
    }

    /// For each of the pairs of these sizes, the Shapley kernel's mass that it stands for, and the part of its
    /// size's pairs that is not among them: zero for a complete size. Sizes without a pair leave their mass to
    /// the nearest that has one, complete ones last.
    pub(super) fn weights(players: usize, sizes: &[usize]) -> Vec<(f64, f64)> {
        let half = |size: usize| if 2 * size == players { 0.5 } else { 1.0 };
        let mut taken = vec![0usize; players / 2 + 1];
        sizes.iter().for_each(|&size| taken[size] += 1);
        let missing =
            |size: usize| (1.0 - taken[size] as f64 / (half(size) * binomial(players, size))).max(0.0);
        let mut masses = vec![0.0; taken.len()];
        for size in 1..taken.len() {
            let nearest = (1..taken.len())
                .filter(|&it| taken[it] > 0)
                .min_by_key(|&it| (it != size && missing(it) == 0.0, it.abs_diff(size)));
            if let Some(nearest) = nearest {
                masses[nearest] += half(size) * (players - 1) as f64 / (size * (players - size)) as f64;
            }
        }
        sizes.iter().map(|&size| (masses[size] / taken[size] as f64, missing(size))).collect()
    }
}

const PURPOSE_ORDER: u64 = 0x6f72_6465;
const PURPOSE_DRAW: u64 = 0x6472_6177;

/// n choose k, in floating point.
pub(super) fn binomial(n: usize, k: usize) -> f64 {
    (0..k.min(n - k)).map(|j| (n - j) as f64 / (j + 1) as f64).product::<f64>().round()
}

/// All coalitions of one size, in lexicographic order.
fn combinations(players: usize, size: usize) -> Vec<Coalition> {
    let mut picks: Vec<usize> = (0..size).collect();
    let mut all = vec![Coalition::of(players, picks.iter().copied())];
    while let Some(place) = (0..size).rfind(|&place| picks[place] < players - size + place) {
        picks[place] += 1;
        for later in place + 1..size {
            picks[later] = picks[later - 1] + 1;
        }
        all.push(Coalition::of(players, picks.iter().copied()));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_design_holds_every_pair_once() {
        for players in 2..=11 {
            let pairs = Design::new(players, 1).take(usize::MAX);
            let both: HashSet<_> = pairs.iter().flat_map(|pair| [pair.clone(), pair.complement()]).collect();
            assert_eq!(both.len(), (1 << players) - 2);
            assert_eq!(2 * pairs.len(), both.len());
        }
    }

    #[test]
    fn drawn_sizes_repeat_no_pair() {
        let pairs = Design::new(40, 3).take(5_000);
        let both: HashSet<_> = pairs.iter().flat_map(|pair| [pair.clone(), pair.complement()]).collect();
        assert_eq!(both.len(), 10_000);
        assert!(pairs[..40].iter().all(|pair| pair.len() == 1));
    }

    #[test]
    fn a_longer_design_begins_with_the_shorter_one() {
        let mut grown = Design::new(20, 9);
        let mut parts = grown.take(30);
        parts.extend(grown.take(270));
        assert_eq!(parts, Design::new(20, 9).take(300));
    }
}
