//! This file is where Kernel SHAP's plain regression is made, and where it is known how far to trust it.

use faer::Mat;

use super::design::Design;
use super::game::Coalition;
use super::linalg::solve_symmetric;

/// Pairs beyond size one, less the parameters fitted to them, from which a standard error is told. Size one is
/// complete from the start, and what it leaves over says nothing of the sizes that were drawn.
pub(super) const FREEDOM: usize = 12;

/// What `freedom` degrees of freedom make of a variance that was estimated: that of Student's t. Not a number
/// below [`FREEDOM`].
pub(super) fn inflation(freedom: usize) -> f64 {
    if freedom < FREEDOM { f64::NAN } else { freedom as f64 / (freedom - 2) as f64 }
}

/// How many of `pairs` were drawn rather than listed beforehand: those beyond size one.
pub(super) fn drawn(pairs: &[Coalition]) -> usize {
    pairs.iter().filter(|pair| pair.len() > 1).count()
}

/// One output's worths as the regression reads them.
#[derive(Clone, Copy)]
pub(super) struct Worths<'a> {
    /// Half the difference between each pair's coalition and its complement.
    pub(super) halves: &'a [f64],
    /// The variance of each half; zero where worths are certain.
    pub(super) spread: &'a [f64],
    /// Half the difference between everybody and nobody, and its variance.
    pub(super) full: f64,
    pub(super) full_spread: f64,
}

/// Values and their variances.
pub(super) struct Linear {
    pub(super) values: Vec<f64>,
    pub(super) variances: Vec<f64>,
}

impl Linear {
    pub(super) fn variance(&self) -> f64 {
        self.variances.iter().sum()
    }
}

/// Least squares of the odd half on the players' signs, each size weighted by the Shapley kernel's mass, with
/// the sum of coefficients equal to the half of everybody: a linear map of the halves, alike for all outputs.
pub(super) struct Plain {
    signs: Mat<f64>,
    /// What each pair's half (a column) adds to each coefficient.
    map: Mat<f64>,
    /// What the half of everybody adds to each coefficient.
    ends: Vec<f64>,
    residuals: Vec<Residual>,
    inflation: f64,
}

/// What is known of a pair's residual beforehand.
struct Residual {
    /// The part of the pairs of its size that was not evaluated: zero for a complete size.
    missing: f64,
    /// The expected square of the residual where the halves have variance one: the sum of squares of a row of
    /// 1 - hat matrix. Near zero where the fit all but passes through the pair.
    left: f64,
}

impl Plain {
    pub(super) fn new(pairs: &[Coalition]) -> Self {
        let (players, count) = (pairs[0].players(), pairs.len());
        let sizes: Vec<usize> = pairs.iter().map(Coalition::len).collect();
        let weights = Design::weights(players, &sizes);
        let sign = |row: usize, player: usize| if pairs[row].contains(player) { 1.0 } else { -1.0 };
        let signs = Mat::from_fn(count, players, sign);
        let weighted = Mat::from_fn(players, count, |player, row| signs[(row, player)] * weights[row].0);
        let gram = solve_symmetric(&(&weighted * &signs));
        let ones = gram.solve_vector(&vec![1.0; players]);
        let total: f64 = ones.iter().sum();
        let inverse = gram.inverse();
        let bread = Mat::from_fn(players, players, |a, b| inverse[(a, b)] - ones[a] * ones[b] / total);
        let map = &bread * &weighted;
        let hats = &signs * &(&map * map.transpose());
        let residual = |row: usize| {
            let along =
                |of: &dyn Fn(usize) -> f64| (0..players).map(|p| signs[(row, p)] * of(p)).sum::<f64>();
            let left = 1.0 - 2.0 * along(&|p| map[(p, row)]) + along(&|p| hats[(row, p)]);
            Residual { missing: weights[row].1, left: left.max(1e-9) }
        };
        let residuals: Vec<Residual> = (0..count).map(residual).collect();
        let inflation = inflation(drawn(pairs).saturating_sub(players));
        Self { signs, map, ends: ones.iter().map(|one| one / total).collect(), residuals, inflation }
    }

    /// The values, and their variances by the sandwich formula: each squared residual over what the fit left of
    /// it (MacKinnon & White 1985), in the part of its size that is missing; the draws' variance in the rest.
    pub(super) fn fit(&self, worths: Worths<'_>) -> Linear {
        let players = self.ends.len();
        let from_halves = |player: usize| {
            worths.halves.iter().enumerate().map(|(row, half)| self.map[(player, row)] * half).sum::<f64>()
        };
        let coefficients: Vec<f64> =
            (0..players).map(|player| self.ends[player] * worths.full + from_halves(player)).collect();
        let unknown = |(row, it): (usize, &Residual)| {
            let fitted: f64 = (0..players).map(|p| self.signs[(row, p)] * coefficients[p]).sum();
            let between = self.inflation * it.missing * (worths.halves[row] - fitted).powi(2) / it.left;
            let within = if it.missing < 1.0 { (1.0 - it.missing) * worths.spread[row] } else { 0.0 };
            between + within
        };
        let unknown: Vec<f64> = self.residuals.iter().enumerate().map(unknown).collect();
        let variance = |player: usize| {
            let rows = unknown.iter().enumerate().map(|(row, it)| self.map[(player, row)].powi(2) * it);
            4.0 * (rows.sum::<f64>() + self.ends[player].powi(2) * worths.full_spread)
        };
        Linear {
            values: coefficients.iter().map(|it| 2.0 * it).collect(),
            variances: (0..players).map(variance).collect(),
        }
    }
}
