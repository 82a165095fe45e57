//! This file is where a game's interactions are modelled, so that they stop being noise in Kernel SHAP.
//!
//! Shapley values depend on the odd half of a game alone, g(S) = (v(S) - v(complement)) / 2: with presence
//! coded as t = ±1, on its parities of 1, 3, 5, ... players. Plain Kernel SHAP fits the parities of one player
//! (the values) by least squares and counts all others as noise. Here they are a Gaussian process whose
//! covariance gives the parity of a set A the variance of the product of ρ_i over A, so that short interactions
//! of important players are believed first; the one-player parities stay unpenalised (universal kriging). The
//! Shapley values of the posterior mean are the estimate, and their posterior variance its squared standard
//! error. Parity A with |A| odd adds 2/|A| to the value of each of its members, which makes all sums below
//! closed forms: sums over odd sets are hyperbolic sines of sums of atanh ρ, and 1/|A| is an integral over a scale.

use faer::Mat;
use gauss_quad::legendre::GaussLegendre;

use super::game::{Coalition, Stop};
use super::linalg::{Cholesky, column, solve_symmetric};
use super::regression::Worths;

/// The expected number of players in an interaction, tried in the first and in the second round.
const EVEN_REACH: [f64; 3] = [1.2, 2.4, 3.6];
const GRADED_REACH: [f64; 4] = [1.2, 2.4, 3.6, 6.0];
/// Unstructured variance tried, relative to the interactions' own.
const NOISE: [f64; 6] = [1e-4, 1e-2, 1e-1, 1.0, 1e1, 1e2];
/// Beyond this many players each trial is dear, and fewer are made.
const MANY_PLAYERS: usize = 128;
const FEW_REACHES: [f64; 1] = [2.4];
const FEW_NOISES: [f64; 3] = [1e-2, 1.0, 1e2];
/// Rows on which reach and noise are chosen.
const TRIAL_ROWS: usize = 256;
/// The part of a player's reach that does not depend on how important it looks.
const FLOOR: f64 = 0.2;
/// Nodes of the integral over the scale: exact up to interactions of 32 players.
const MAX_NODES: usize = 16;

/// What is believed of the odd half of a game after some of its coalitions were seen.
pub(super) struct Posterior {
    /// Shapley values.
    pub(super) values: Vec<f64>,
    /// Their variances.
    pub(super) variances: Vec<f64>,
    trend: Vec<f64>,
    weights: Vec<f64>,
    kernel: Kernel,
    rows: Mat<f64>,
}

/// Players beyond whom the process takes more memory and time than its estimate is worth.
const MOST_PLAYERS: usize = 1024;

/// Fits the process to g(`pairs[k]`), with g(everybody) taken as certain; none where there are too few pairs to
/// tell interactions from values, or too many players. `check` is asked before each factorisation.
///
/// # Errors
/// What `check` says.
pub(super) fn fit(
    pairs: &[Coalition],
    worths: Worths<'_>,
    check: &dyn Fn() -> Result<(), Stop>,
) -> Result<Option<Posterior>, Stop> {
    let players = pairs[0].players();
    if pairs.len() < players + 4 || players > MOST_PLAYERS {
        return Ok(None);
    }
    let Worths { halves, full, .. } = worths;
    let rows = |step: f64| -> (Mat<f64>, Vec<f64>) {
        let count = (pairs.len() as f64 / step) as usize;
        let places: Vec<usize> = (0..count).map(|k| (k as f64 * step) as usize).collect();
        let signs = Mat::from_fn(count + 1, players, |row, player| match places.get(row) {
            Some(&place) if !pairs[place].contains(player) => -1.0,
            _ => 1.0,
        });
        (signs, places.iter().map(|&place| halves[place]).chain([full]).collect())
    };
    let trial_count = pairs.len().min(TRIAL_ROWS.max(2 * players));
    let (trial_rows, trial) = rows(pairs.len() as f64 / trial_count as f64);

    let many = players > MANY_PLAYERS;
    let noises = if many { &FEW_NOISES[..] } else { &NOISE };
    let choose = |grades: &[f64], reaches: &[f64]| -> Result<Option<(f64, f64, Kernel)>, Stop> {
        let mut best: Option<(f64, f64, Kernel)> = None;
        for reach in reaches {
            let kernel = || Kernel::new(grades.iter().map(|grade| grade * reach / players as f64).collect());
            let covariance = kernel().between(&trial_rows, &trial_rows);
            for &noise in noises {
                check()?;
                let Some(fitted) = Fitted::new(&covariance, &trial_rows, &trial, noise) else { continue };
                if best.as_ref().is_none_or(|best| fitted.likelihood >= best.0) {
                    best = Some((fitted.likelihood, noise, kernel()));
                }
            }
        }
        Ok(best)
    };
    let Some((even_likelihood, even_noise, even)) =
        choose(&vec![1.0; players], if many { &FEW_REACHES } else { &EVEN_REACH })?
    else {
        return Ok(None);
    };
    let fitted = Fitted::new(&even.between(&trial_rows, &trial_rows), &trial_rows, &trial, even_noise);
    let Some(first) = fitted.map(|it| it.values(&even, &trial_rows)) else { return Ok(None) };
    let importance = (first.iter().map(|value| value * value).sum::<f64>() / players as f64).sqrt();
    let mut graded = None;
    if importance > 0.0 {
        let grades: Vec<f64> =
            first.iter().map(|value| FLOOR + (1.0 - FLOOR) * value.abs() / importance).collect();
        graded = choose(&grades, if many { &FEW_REACHES } else { &GRADED_REACH })?;
    }
    let (noise, kernel) = match graded {
        Some((likelihood, noise, kernel)) if likelihood > even_likelihood => (noise, kernel),
        _ => (even_noise, even),
    };

    let (rows, halves) = rows(1.0);
    check()?;
    let Some(fitted) = Fitted::new(&kernel.between(&rows, &rows), &rows, &halves, noise) else {
        return Ok(None);
    };
    check()?;
    let mut values = fitted.values(&kernel, &rows);
    let mut variances = fitted.variances(&kernel, &rows);
    if worths.full_spread != 0.0 {
        let with = kernel.values_with(&rows);
        let mut answer = fitted.answer(&with, &rows);
        level(&mut answer, 2.0);
        variances.iter_mut().zip(answer).for_each(|(it, answer)| *it += answer.powi(2) * worths.full_spread);
    }
    // What the near-certain full row leaves is rounding; it goes to all alike.
    level(&mut values, 2.0 * full);
    let Fitted { trend, weights, .. } = fitted;
    Ok(Some(Posterior { values, variances, trend, weights, kernel, rows }))
}

/// Adds the same to all values, so that they sum to `total`.
pub(super) fn level(values: &mut [f64], total: f64) {
    let gap = (total - values.iter().sum::<f64>()) / values.len() as f64;
    values.iter_mut().for_each(|value| *value += gap);
}

impl Posterior {
    /// The posterior mean of g at each coalition.
    pub(super) fn predict(&self, coalitions: &[Coalition]) -> Vec<f64> {
        let players = self.trend.len();
        let signs = Mat::from_fn(coalitions.len(), players, |row, player| {
            if coalitions[row].contains(player) { 1.0 } else { -1.0 }
        });
        let covariance = self.kernel.between(&signs, &self.rows);
        (0..coalitions.len())
            .map(|row| {
                let trend: f64 = (0..players).map(|player| signs[(row, player)] * self.trend[player]).sum();
                let rest: f64 = self.weights.iter().enumerate().map(|(k, w)| covariance[(row, k)] * w).sum();
                trend + rest
            })
            .collect()
    }
}

/// The covariance of the interactions of three and more players, scaled to variance one.
struct Kernel {
    rho: Vec<f64>,
    scale: f64,
}

/// ln of the product of sqrt(1 - (x ρ)²), and atanh(x ρ) of each player.
fn hyperbolic(rho: &[f64], x: f64) -> (f64, Vec<f64>) {
    let log = rho.iter().map(|r| 0.5 * (1.0 - (x * r) * (x * r)).ln()).sum();
    (log, rho.iter().map(|r| (x * r).atanh()).collect())
}

impl Kernel {
    fn new(mut rho: Vec<f64>) -> Self {
        rho.iter_mut().for_each(|r| *r = r.min(0.95));
        let (log, atanh) = hyperbolic(&rho, 1.0);
        let scale = log.exp() * atanh.iter().sum::<f64>().sinh() - rho.iter().sum::<f64>();
        Self { rho, scale: scale.max(f64::MIN_POSITIVE) }
    }

    /// The covariance of g between each row of `a` and each of `b` (signs).
    fn between(&self, a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
        let (log, atanh) = hyperbolic(&self.rho, 1.0);
        let factor = log.exp();
        let scaled = |by: &[f64]| Mat::from_fn(a.nrows(), a.ncols(), |row, col| a[(row, col)] * by[col]);
        let mut covariance = &scaled(&atanh) * b.transpose();
        let trend = &scaled(&self.rho) * b.transpose();
        for col in 0..covariance.ncols() {
            for row in 0..covariance.nrows() {
                let entry = factor * covariance[(row, col)].sinh() - trend[(row, col)];
                covariance[(row, col)] = entry / self.scale;
            }
        }
        covariance
    }

    fn nodes(&self) -> Vec<(f64, f64)> {
        let count = (self.rho.len() / 2 + 1).clamp(2, MAX_NODES);
        let count = count.try_into().expect("at least two nodes");
        GaussLegendre::new(count)
            .into_node_weight_pairs()
            .into_iter()
            .map(|(node, weight)| ((node + 1.0) / 2.0, weight / 2.0))
            .collect()
    }

    /// The covariance between the interactions' part of each player's Shapley value (columns) and g at each row.
    fn values_with(&self, rows: &Mat<f64>) -> Mat<f64> {
        let players = self.rho.len();
        let mut covariance =
            Mat::from_fn(rows.nrows(), players, |row, player| -2.0 * self.rho[player] * rows[(row, player)]);
        for (x, weight) in self.nodes() {
            let (log, atanh) = hyperbolic(&self.rho, x);
            let factors: Vec<f64> = self
                .rho
                .iter()
                .map(|r| 2.0 * weight * r * log.exp() / (1.0 - (x * r) * (x * r)).sqrt())
                .collect();
            for row in 0..rows.nrows() {
                let sum: f64 = (0..players).map(|j| atanh[j] * rows[(row, j)]).sum();
                for player in 0..players {
                    let sign = rows[(row, player)];
                    covariance[(row, player)] += factors[player] * sign * (sum - atanh[player] * sign).cosh();
                }
            }
        }
        Mat::from_fn(rows.nrows(), players, |row, player| covariance[(row, player)] / self.scale)
    }

    /// The variance of the interactions' part of each player's Shapley value.
    fn value_variances(&self) -> Vec<f64> {
        let mut variances: Vec<f64> = self.rho.iter().map(|r| -4.0 * r).collect();
        let nodes = self.nodes();
        for &(x, x_weight) in &nodes {
            for &(y, y_weight) in &nodes {
                let (log, atanh) = hyperbolic(&self.rho, x * y);
                let sum: f64 = atanh.iter().sum();
                for (player, r) in self.rho.iter().enumerate() {
                    let others =
                        (sum - atanh[player]).cosh() * log.exp() / (1.0 - (x * y * r).powi(2)).sqrt();
                    variances[player] += 4.0 * x_weight * y_weight * r * others;
                }
            }
        }
        variances.iter().map(|variance| (variance / self.scale).max(0.0)).collect()
    }
}

/// A generalised least squares fit: unpenalised trend, correlated residuals.
pub(super) struct Fitted {
    /// Restricted log likelihood, up to a constant; the variance profiled out.
    likelihood: f64,
    trend: Vec<f64>,
    /// Covariance⁻¹ (g - trend).
    weights: Vec<f64>,
    variance: f64,
    covariance: Cholesky,
    /// L⁻¹ rows.
    whitened: Mat<f64>,
    gram: Cholesky,
}

/// The variance of the full row, whose worth is certain.
const CERTAIN: f64 = 1e-9;

impl Fitted {
    /// Fits `g` of the rows of `rows`, which are the trend's regressors; the last row is the certain one. None where the
    /// covariance is not positive definite.
    pub(super) fn new(covariance: &Mat<f64>, rows: &Mat<f64>, g: &[f64], noise: f64) -> Option<Self> {
        let (count, players) = (rows.nrows(), rows.ncols());
        let mut noisy = covariance.clone();
        for k in 0..count {
            noisy[(k, k)] += if k + 1 == count { CERTAIN } else { noise };
        }
        let covariance = Cholesky::of(&noisy)?;
        let both = Mat::from_fn(
            count,
            players + 1,
            |row, col| if col < players { rows[(row, col)] } else { g[row] },
        );
        let both = covariance.half_solve(&both);
        let gram = both.transpose() * &both;
        let right: Vec<f64> = (0..players).map(|col| gram[(col, players)]).collect();
        let gram = solve_symmetric(&Mat::from_fn(players, players, |row, col| gram[(row, col)]));
        let trend = gram.solve_vector(&right);
        let residual: Vec<f64> = (0..count)
            .map(|row| g[row] - (0..players).map(|col| rows[(row, col)] * trend[col]).sum::<f64>())
            .collect();
        let weights = covariance.solve_vector(&residual);
        let freedom = count.saturating_sub(players).max(1) as f64;
        let square: f64 = residual.iter().zip(&weights).map(|(r, w)| r * w).sum();
        // A residual that is rounding must not make the likelihood infinite.
        let floor = 1e-20 * g.iter().map(|value| value * value).sum::<f64>() + f64::MIN_POSITIVE;
        let variance = (square / freedom).max(floor);
        let likelihood =
            -0.5 * (freedom * variance.ln() + covariance.log_determinant() + gram.log_determinant());
        let whitened = Mat::from_fn(count, players, |row, col| both[(row, col)]);
        likelihood.is_finite().then_some(Self {
            likelihood,
            trend,
            weights,
            variance,
            covariance,
            whitened,
            gram,
        })
    }

    /// How probable the worths are under it, for comparison with another fit to the same rows.
    pub(super) fn likelihood(&self) -> f64 {
        self.likelihood
    }

    /// The posterior mean and covariance of linear functionals of the function: `of_trend` is what each (a column)
    /// gives for each regressor, `with` its covariance with each row, `prior` that between two of them.
    pub(super) fn functional(
        &self,
        of_trend: &Mat<f64>,
        with: &Mat<f64>,
        prior: &dyn Fn(usize, usize) -> f64,
    ) -> (Vec<f64>, Mat<f64>) {
        let mean = |which: usize| {
            let trend: f64 = self.trend.iter().enumerate().map(|(row, it)| of_trend[(row, which)] * it).sum();
            trend + self.weights.iter().enumerate().map(|(row, it)| with[(row, which)] * it).sum::<f64>()
        };
        let white = self.covariance.half_solve(with);
        let explained = self.whitened.transpose() * &white;
        let open = of_trend - &explained;
        let (seen, trend) = (white.transpose() * &white, open.transpose() * &self.gram.solve(&open));
        let count = with.ncols();
        let spread =
            Mat::from_fn(count, count, |a, b| self.variance * (prior(a, b) - seen[(a, b)] + trend[(a, b)]));
        ((0..count).map(mean).collect(), spread)
    }

    fn values(&self, kernel: &Kernel, rows: &Mat<f64>) -> Vec<f64> {
        combined(&self.trend, &self.weights, &kernel.values_with(rows))
    }

    /// What a unit of the certain row adds to each value.
    fn answer(&self, with: &Mat<f64>, rows: &Mat<f64>) -> Vec<f64> {
        let (count, players) = (rows.nrows(), rows.ncols());
        let unit = Mat::from_fn(count, 1, |row, _| if row + 1 == count { 1.0 } else { 0.0 });
        let white = self.covariance.half_solve(&unit);
        let trend = self.gram.solve_vector(&column(&(self.whitened.transpose() * &white), 0));
        let residual: Vec<f64> = (0..count)
            .map(|row| unit[(row, 0)] - (0..players).map(|p| rows[(row, p)] * trend[p]).sum::<f64>())
            .collect();
        combined(&trend, &self.covariance.solve_vector(&residual), with)
    }

    fn variances(&self, kernel: &Kernel, rows: &Mat<f64>) -> Vec<f64> {
        let players = self.trend.len();
        let with = self.covariance.half_solve(&kernel.values_with(rows));
        let explained = self.whitened.transpose() * &with;
        // What the trend's own uncertainty adds: (2 e - Hᵀ C⁻¹ k)ᵀ (Hᵀ C⁻¹ H)⁻¹ (2 e - Hᵀ C⁻¹ k).
        let open = Mat::from_fn(players, players, |row, col| {
            if row == col { 2.0 - explained[(row, col)] } else { -explained[(row, col)] }
        });
        let solved = self.gram.solve(&open);
        kernel
            .value_variances()
            .iter()
            .enumerate()
            .map(|(player, prior)| {
                let seen: f64 = column(&with, player).iter().map(|entry| entry * entry).sum();
                let trend: f64 = (0..players).map(|row| open[(row, player)] * solved[(row, player)]).sum();
                self.variance * (prior - seen + trend).max(0.0)
            })
            .collect()
    }
}

/// Values from a trend, and from weights of the rows with which they covary.
fn combined(trend: &[f64], weights: &[f64], with: &Mat<f64>) -> Vec<f64> {
    let rest =
        |player: usize| weights.iter().enumerate().map(|(row, w)| with[(row, player)] * w).sum::<f64>();
    trend.iter().enumerate().map(|(player, trend)| 2.0 * trend + rest(player)).collect()
}
