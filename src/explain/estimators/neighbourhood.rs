//! This file is where LIME's whole neighbourhood is summed under a process over interactions.
//!
//! LIME's weights are A⁻¹ b, with b = Σ w (x - c) f over the texts that it draws. Its scatter over seeds comes from
//! the interactions in f, of which a sample sees other ones each time. Here f is a constant and a weight for each
//! player, unpenalised, beside a Gaussian process over interactions of two and more players, whose covariance
//! gives the interaction of a set A the variance ρ^|A| (presence coded as ±1). The drawing treats all players alike, so
//! that the sums over every text it could draw are sums over the number present and the hypergeometric overlap:
//! b and its posterior variance are closed forms (Bayesian quadrature, O'Hagan 1991).

use std::collections::HashMap;

use faer::Mat;

use super::game::Coalition;
use super::interactions::Fitted;
use super::presence;

/// More players make the sums over overlaps dear, more rows the process.
const MOST_PLAYERS: usize = 128;
const MOST_ROWS: usize = 2048;
/// The expected number of players in an interaction that is tried.
const REACH: [f64; 4] = [1.2, 2.4, 4.0, 6.0];
/// Unstructured variance tried, relative to the interactions' own.
const NOISE: [f64; 5] = [1e-4, 1e-2, 1e-1, 1.0, 1e1];
/// Rows on which reach and noise are chosen.
const TRIAL_ROWS: usize = 256;

/// The texts that LIME draws, as many as were drawn, and which of them were seen.
pub(super) struct Neighbourhood {
    players: usize,
    /// Summed weight of the texts with each number of players present.
    masses: Vec<f64>,
    centre: f64,
    /// Σ w (x - c)(x - c)ᵀ.
    pub(super) centred: Mat<f64>,
    /// The distinct row of each row.
    places: Vec<usize>,
    /// A one, then presence as ±1, of each distinct row; the original is the last.
    trend: Mat<f64>,
    present: Vec<usize>,
}

/// What is believed of the sums over the neighbourhood.
pub(super) struct Belief {
    /// Σ w (x - c) f.
    pub(super) right: Vec<f64>,
    /// Its posterior covariance.
    pub(super) spread: Mat<f64>,
}

impl Neighbourhood {
    /// The neighbourhood that `rows` were drawn from; none where interactions cannot be told apart from them: too
    /// few distinct rows, no original among them, or more rows or players than can be had.
    pub(super) fn of(rows: &[Coalition], width: f64) -> Option<Self> {
        let players = rows.first()?.players();
        let mut distinct: HashMap<&Coalition, usize> = HashMap::new();
        let mut kept: Vec<&Coalition> = Vec::new();
        for row in rows.iter().filter(|row| row.len() < players) {
            distinct.entry(row).or_insert_with(|| {
                kept.push(row);
                kept.len() - 1
            });
        }
        let original = rows.iter().find(|row| row.len() == players)?;
        distinct.insert(original, kept.len());
        kept.push(original);
        if kept.len() < players + 4 || kept.len() > MOST_ROWS || !(2..=MOST_PLAYERS).contains(&players) {
            return None;
        }
        let mut masses: Vec<f64> = (0..=players)
            .map(|present| presence::weight(&Coalition::of(players, 0..present), width))
            .collect();
        let each = (rows.len() - 1) as f64 / players as f64;
        masses[..players].iter_mut().for_each(|mass| *mass *= each);

        let n = players as f64;
        let mean_of = |of: &dyn Fn(f64) -> f64| -> f64 {
            masses.iter().enumerate().map(|(present, mass)| mass * of(present as f64)).sum()
        };
        let total = mean_of(&|_| 1.0);
        let (one, two) = (mean_of(&|m| m / n), mean_of(&|m| m * (m - 1.0) / (n * (n - 1.0))));
        let centre = one / total;
        let less = total * centre * centre;
        Some(Self {
            players,
            centre,
            centred: Mat::from_fn(players, players, |a, b| if a == b { one - less } else { two - less }),
            places: rows.iter().map(|row| distinct[row]).collect(),
            trend: Mat::from_fn(kept.len(), players + 1, |row, col| match col {
                0 => 1.0,
                _ if kept[row].contains(col - 1) => 1.0,
                _ => -1.0,
            }),
            present: kept.iter().map(|row| row.len()).collect(),
            masses,
        })
    }

    /// What the worths `y` of the rows tell; none where no process fits them.
    pub(super) fn believe(&self, y: &[f64]) -> Option<Belief> {
        let (mut worths, mut counts) = (vec![0.0; self.present.len()], vec![0.0; self.present.len()]);
        for (&place, y) in self.places.iter().zip(y) {
            worths[place] += y;
            counts[place] += 1.0;
        }
        worths.iter_mut().zip(&counts).for_each(|(worth, count)| *worth /= count);

        // The original is the last row of a trial as well.
        let last = self.present.len() - 1;
        let trial: Vec<usize> = (0..last.min(TRIAL_ROWS.max(3 * self.players))).chain([last]).collect();
        let trial_trend =
            Mat::from_fn(trial.len(), self.players + 1, |row, col| self.trend[(trial[row], col)]);
        let trial_worths: Vec<f64> = trial.iter().map(|&row| worths[row]).collect();
        let (_, kernel, noise) = REACH
            .iter()
            .filter_map(|&reach| {
                let kernel = Kernel::new(self.players, reach);
                let covariance = kernel.within(&trial_trend);
                let tried = |&noise: &f64| {
                    Some((Fitted::new(&covariance, &trial_trend, &trial_worths, noise)?.likelihood(), noise))
                };
                let best = NOISE.iter().filter_map(tried).max_by(|a, b| a.0.total_cmp(&b.0))?;
                Some((best.0, kernel, best.1))
            })
            .max_by(|a, b| a.0.total_cmp(&b.0))?;
        let fitted = Fitted::new(&kernel.within(&self.trend), &self.trend, &worths, noise)?;

        let sums = Sums::of(&kernel, &self.masses);
        let shift = |row: usize, player: usize| {
            let there = self.trend[(row, player + 1)] > 0.0;
            sums.shifted(self.present[row], there, self.centre)
        };
        let with = Mat::from_fn(self.present.len(), self.players, shift);
        // A player's weight in ±1 is half its weight in presence.
        let of_trend = Mat::from_fn(self.players + 1, self.players, |row, player| {
            if row == 0 { 0.0 } else { 2.0 * self.centred[(row - 1, player)] }
        });
        let prior = self.prior(&sums);
        let (right, spread) = fitted.functional(&of_trend, &with, &|a, b| prior[usize::from(a == b)]);
        Some(Belief { right, spread })
    }

    /// The prior covariance of b of two players, and the prior variance of b of one.
    fn prior(&self, sums: &Sums) -> [f64; 2] {
        let n = self.players as f64;
        let (mut two, mut one) = (0.0, 0.0);
        for (present, mass) in self.masses.iter().enumerate() {
            let [with, without] = [true, false].map(|there| sums.shifted(present, there, self.centre));
            let s = present as f64;
            let pair = n * (n - 1.0);
            let (near, far) = (1.0 - self.centre, -self.centre);
            one += mass * (s / n * near * with + (1.0 - s / n) * far * without);
            let both = s * (s - 1.0) / pair * near * with + (n - s) * (n - s - 1.0) / pair * far * without;
            let either = s * (n - s) / pair * (far * with + near * without);
            two += mass * (both + either);
        }
        [two, one]
    }
}

/// The covariance of the interactions of two and more players, scaled to variance one.
struct Kernel {
    /// By the number of players in which two rows differ.
    by_distance: Vec<f64>,
}

impl Kernel {
    fn new(players: usize, reach: f64) -> Self {
        let (n, rho) = (players as i32, (reach / players as f64).min(0.95));
        let scale = (1.0 + rho).powi(n) - 1.0 - f64::from(n) * rho;
        let at = |distance: i32| {
            let all = (1.0 + rho).powi(n - distance) * (1.0 - rho).powi(distance);
            (all - 1.0 - rho * f64::from(n - 2 * distance)) / scale
        };
        Self { by_distance: (0..=n).map(at).collect() }
    }

    fn within(&self, trend: &Mat<f64>) -> Mat<f64> {
        let mut covariance = trend * trend.transpose();
        // The column of ones adds one to each product.
        let most = self.by_distance.len() as f64;
        for col in 0..covariance.ncols() {
            for row in 0..covariance.nrows() {
                let distance = ((most - covariance[(row, col)]) / 2.0).round() as usize;
                covariance[(row, col)] = self.by_distance[distance];
            }
        }
        covariance
    }
}

/// Σ w k(x, row) and Σ w x_j k(x, row) over the neighbourhood's texts x, which depend on the number of players
/// present in the row and on whether j is.
struct Sums {
    all: Vec<f64>,
    with: Vec<[f64; 2]>,
}

impl Sums {
    fn of(kernel: &Kernel, masses: &[f64]) -> Self {
        let players = masses.len() - 1;
        let mut logs = vec![0.0f64; players + 1];
        (1..=players).for_each(|k| logs[k] = logs[k - 1] + (k as f64).ln());
        let choose = |n: usize, k: usize| logs[n] - logs[k] - logs[n - k];
        // The mean of the kernel over the overlap of `drawn` of `n` players with `present` of them, where the sets
        // differ in `apart` further players.
        let mean = |n: usize, present: usize, drawn: usize, apart: usize| -> f64 {
            let least = (drawn + present).saturating_sub(n);
            (least..=present.min(drawn))
                .map(|overlap| {
                    let log =
                        choose(present, overlap) + choose(n - present, drawn - overlap) - choose(n, drawn);
                    log.exp() * kernel.by_distance[drawn + present - 2 * overlap + apart]
                })
                .sum()
        };
        let all = |present: usize| (0..=players).map(|m| masses[m] * mean(players, present, m, 0)).sum();
        let with = |present: usize, there: usize| -> f64 {
            // A player that is there is one of the present, one that is not is one of the others.
            if present < there || present - there > players - 1 {
                return 0.0;
            }
            let share = |m: usize| masses[m] * m as f64 / players as f64;
            (1..=players).map(|m| share(m) * mean(players - 1, present - there, m - 1, 1 - there)).sum()
        };
        Self {
            all: (0..=players).map(all).collect(),
            with: (0..=players).map(|present| [with(present, 0), with(present, 1)]).collect(),
        }
    }

    /// Σ w (x_j - centre) k(x, row).
    fn shifted(&self, present: usize, there: bool, centre: f64) -> f64 {
        self.with[present][usize::from(there)] - centre * self.all[present]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::estimators::presence::WIDTH;

    #[test]
    fn the_closed_sums_are_those_over_all_subsets() {
        let players = 6;
        let rows: Vec<Coalition> = (0..64).map(|code| Coalition::from_code(players, code)).collect();
        let neighbourhood = Neighbourhood::of(&rows, WIDTH).unwrap();
        let kernel = Kernel::new(players, 2.4);
        let sums = Sums::of(&kernel, &neighbourhood.masses);
        let mut sizes = vec![0.0; players + 1];
        rows.iter().for_each(|row| sizes[row.len()] += 1.0);
        let weight = |row: &Coalition| neighbourhood.masses[row.len()] / sizes[row.len()];
        let number = |row: &Coalition, player: usize| f64::from(u8::from(row.contains(player)));
        let covariance = |a: &Coalition, b: &Coalition| {
            kernel.by_distance[(0..players).filter(|&k| a.contains(k) != b.contains(k)).count()]
        };
        let direct = |of: &dyn Fn(&Coalition) -> f64| rows.iter().map(|x| weight(x) * of(x)).sum::<f64>();
        let centre = direct(&|x| number(x, 0)) / direct(&|_| 1.0);
        assert!((centre - neighbourhood.centre).abs() < 1e-12);
        for (a, b) in [(0, 0), (0, 1)] {
            let wanted = direct(&|x| (number(x, a) - centre) * (number(x, b) - centre));
            assert!((neighbourhood.centred[(a, b)] - wanted).abs() < 1e-12);
            let wanted = direct(&|x| {
                (number(x, a) - centre) * direct(&|y| (number(y, b) - centre) * covariance(x, y))
            });
            let found = neighbourhood.prior(&sums)[usize::from(a == b)];
            assert!((found - wanted).abs() < 1e-10, "{found} {wanted}");
        }
        for row in &rows {
            for player in 0..players {
                let wanted = direct(&|x| (number(x, player) - centre) * covariance(x, row));
                let found = sums.shifted(row.len(), row.contains(player), centre);
                assert!((found - wanted).abs() < 1e-10, "{found} {wanted}");
            }
        }
    }

    #[test]
    fn one_that_cannot_be_told_apart_is_left_to_the_sample() {
        let few: Vec<Coalition> = (0..8).map(|code| Coalition::from_code(8, code)).collect();
        assert!(Neighbourhood::of(&few, WIDTH).is_none());
    }
}
