//! This file is where a set of Shapley values and its evidence are defined.

/// Shapley values of a game, or an estimate of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Shapley {
    /// `values[output][player]`, in the game's units; they sum to `full - base`.
    pub values: Vec<Vec<f64>>,
    /// The standard error of each value, in the same shape; zero where it is exact. Not a number where
    /// the samples are too few to tell.
    pub standard_errors: Vec<Vec<f64>>,
    /// The worth of nobody, by output.
    pub base: Vec<f64>,
    /// The worth of everybody, by output.
    pub full: Vec<f64>,
}

impl Shapley {
    /// What the values of `output` miss of `full - base`; rounding alone for every estimator here.
    pub fn efficiency_gap(&self, output: usize) -> f64 {
        self.full[output] - self.base[output] - self.values[output].iter().sum::<f64>()
    }

    /// The largest standard error of any value of any output; not a number where one of them is none.
    pub fn largest_standard_error(&self) -> f64 {
        largest(self.standard_errors.iter().flatten())
    }
}

/// The largest of standard errors; not a number where one of them is none.
pub fn largest<'a>(errors: impl IntoIterator<Item = &'a f64>) -> f64 {
    errors
        .into_iter()
        .fold(0.0, |most: f64, &it| if most.is_nan() || it.is_nan() { f64::NAN } else { most.max(it) })
}

/// The probability weight of a coalition of `size` in a player's Shapley value among `players`:
/// size! (players - size - 1)! / players!.
pub(super) fn weight(players: usize, size: usize) -> f64 {
    // 1 / (n C(n - 1, s)), the binomial built as a running product that stays near its final size.
    let smaller = size.min(players - 1 - size);
    let binomial: f64 = (0..smaller).map(|k| (players - 1 - k) as f64 / (smaller - k) as f64).product();
    1.0 / (players as f64 * binomial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_unknown_standard_error_makes_the_largest_unknown() {
        for errors in [[f64::NAN, 0.0, 2.0], [1.0, f64::NAN, 0.0]] {
            assert!(largest(&errors).is_nan());
        }
        assert_eq!(largest(&[1.0, 3.0, 2.0]), 3.0);
    }
}
