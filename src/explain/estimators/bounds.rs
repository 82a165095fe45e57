//! This file is where a share's confidence bounds come from: exact Kullback-Leibler (Chernoff) bounds.

/// The Kullback-Leibler divergence between coins of bias `p` and `q`.
fn divergence(p: f64, q: f64) -> f64 {
    let term = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a * (a / b).ln() };
    term(p, q) + term(1.0 - p, 1.0 - q)
}

/// The largest bias that a share of `share` allows at `level` (divergence per sample).
pub(super) fn upper(share: f64, level: f64) -> f64 {
    bisect(share, 1.0, |q| divergence(share, q) <= level)
}

/// The smallest bias that a share of `share` allows at `level` (divergence per sample).
pub(super) fn lower(share: f64, level: f64) -> f64 {
    bisect(share, 0.0, |q| divergence(share, q) <= level)
}

/// The border of `holds` between `inside`, where it holds, and `outside`; halved until it does not move.
fn bisect(mut inside: f64, mut outside: f64, holds: impl Fn(f64) -> bool) -> f64 {
    if holds(outside) {
        return outside;
    }
    loop {
        let middle = 0.5 * (inside + outside);
        if middle == inside || middle == outside {
            return inside;
        }
        if holds(middle) {
            inside = middle;
        } else {
            outside = middle;
        }
    }
}

/// A share and where its bias lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The share seen.
    pub share: f64,
    /// The lower bound.
    pub low: f64,
    /// The upper bound.
    pub high: f64,
    /// Of how many.
    pub samples: usize,
    /// The probability with which the bounds hold the bias, at least.
    pub confidence: f64,
}

impl Interval {
    const CONFIDENCE: f64 = 0.95;

    /// The two-sided Chernoff interval of `samples` numbers between 0 and 1 that sum to `hits`; 0 to 1 without
    /// samples.
    pub(super) fn of(hits: f64, samples: usize) -> Self {
        let confidence = Self::CONFIDENCE;
        if samples == 0 {
            return Self { share: f64::NAN, low: 0.0, high: 1.0, samples, confidence };
        }
        let share = (hits / samples as f64).min(1.0);
        let level = (2.0 / (1.0 - confidence)).ln() / samples as f64;
        Self { share, low: lower(share, level), high: upper(share, level), samples, confidence }
    }

    /// A share of all there are.
    pub(super) fn exact(share: f64, samples: usize) -> Self {
        Self { share, low: share, high: share, samples, confidence: 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_bounds_of_a_full_share_are_the_exact_ones() {
        // Level ln(1/.1)/n, and ln(1/(.1/(1 + 3 * 20)))/n as in a beam of 4 over 20 words.
        for (n, expected) in [(50.0, 0.955), (100.0, 0.977), (200.0, 0.989)] {
            assert!((lower(1.0, 10f64.ln() / n) - expected).abs() < 6e-4);
        }
        for (n, expected) in [(10.0, 0.527), (50.0, 0.880), (100.0, 0.938), (200.0, 0.968)] {
            assert!((lower(1.0, 610f64.ln() / n) - expected).abs() < 6e-4);
        }
    }

    #[test]
    fn bounds_lie_where_the_divergence_is_the_level() {
        for share in [0.05, 0.4, 0.93] {
            let level = 0.02;
            assert!((divergence(share, upper(share, level)) - level).abs() < 1e-12);
            assert!((divergence(share, lower(share, level)) - level).abs() < 1e-12);
        }
        assert_eq!((lower(0.0, 0.1), upper(1.0, 0.1)), (0.0, 1.0));
    }
}
