//! This file is where a set of Shapley values and its evidence are defined.

/// Shapley values of a game, or an estimate of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Shapley {
    /// `values[output][player]`, in the game's units; they sum to `full - base`.
    pub values: Vec<Vec<f64>>,
    /// The standard error of each value, in the same shape; zero where it is exact. Not a number where one
    /// sample alone says nothing about spread.
    pub standard_errors: Vec<Vec<f64>>,
    /// The worth of nobody, by output.
    pub base: Vec<f64>,
    /// The worth of everybody, by output.
    pub full: Vec<f64>,
}

impl Shapley {
    /// Values that are exact.
    pub(super) fn exact(values: Vec<Vec<f64>>, base: Vec<f64>, full: Vec<f64>) -> Self {
        let standard_errors = values.iter().map(|row| vec![0.0; row.len()]).collect();
        Self { values, standard_errors, base, full }
    }

    /// What the values of `output` miss of `full - base`; rounding alone for every estimator here.
    pub fn efficiency_gap(&self, output: usize) -> f64 {
        self.full[output] - self.base[output] - self.values[output].iter().sum::<f64>()
    }

    /// The largest standard error of any value of any output.
    pub fn largest_standard_error(&self) -> f64 {
        self.standard_errors.iter().flatten().copied().fold(0.0, |a, b| if b.is_nan() { b } else { a.max(b) })
    }
}

/// The probability weight of a coalition of `size` in a player's Shapley value among `players`:
/// size! (players - size - 1)! / players!.
pub(super) fn weight(players: usize, size: usize) -> f64 {
    // 1 / (n C(n - 1, s)), the binomial built as a running product that stays near its final size.
    let smaller = size.min(players - 1 - size);
    let binomial: f64 = (0..smaller).map(|k| (players - 1 - k) as f64 / (smaller - k) as f64).product();
    1.0 / (players as f64 * binomial)
}
