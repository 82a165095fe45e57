//! Where points and weights on `[0, 1]` come from.

use std::num::NonZeroUsize;

use gauss_quad::GaussLegendre;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the integral along the path is approximated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Exact for polynomials of degree `2·steps − 1`.
    #[default]
    GaussLegendre,
    /// The middle of each of `steps` intervals.
    Midpoint,
    /// `steps` points from end to end, the two ends with half weight.
    Trapezoid,
    /// The left end of each interval.
    Left,
    /// The right end of each interval.
    Right,
}

/// Points on `[0, 1]` in ascending order with weights that sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Nodes {
    /// Where the integrand is evaluated.
    pub points: Vec<f64>,
    /// How much each evaluation counts.
    pub weights: Vec<f64>,
}

impl Rule {
    /// The rule with `steps` points.
    pub fn nodes(self, steps: usize) -> Nodes {
        let n = steps.max(1) as f64;
        let even = |shift: f64| {
            let points = (0..steps.max(1)).map(|k| (k as f64 + shift) / n).collect();
            Nodes { points, weights: vec![1.0 / n; steps.max(1)] }
        };
        match self {
            Self::Left => even(0.0),
            Self::Midpoint => even(0.5),
            Self::Right => even(1.0),
            Self::Trapezoid if steps < 2 => even(0.5),
            Self::Trapezoid => {
                let step = 1.0 / (n - 1.0);
                let mut weights = vec![step; steps];
                weights[0] = step / 2.0;
                weights[steps - 1] = step / 2.0;
                Nodes { points: (0..steps).map(|k| k as f64 * step).collect(), weights }
            }
            Self::GaussLegendre => gauss_legendre(steps),
        }
    }
}

fn gauss_legendre(steps: usize) -> Nodes {
    let degree = NonZeroUsize::new(steps).unwrap_or(NonZeroUsize::MIN);
    let mut pairs: Vec<(f64, f64)> =
        GaussLegendre::new(degree).iter().map(|(node, weight)| ((node + 1.0) / 2.0, weight / 2.0)).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (points, weights) = pairs.into_iter().unzip();
    Nodes { points, weights }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: [Rule; 5] = [Rule::GaussLegendre, Rule::Midpoint, Rule::Trapezoid, Rule::Left, Rule::Right];

    fn integral(rule: Rule, steps: usize, f: impl Fn(f64) -> f64) -> f64 {
        let nodes = rule.nodes(steps);
        nodes.points.iter().zip(&nodes.weights).map(|(&at, weight)| weight * f(at)).sum()
    }

    #[test]
    fn weights_sum_to_one() {
        for rule in RULES {
            for steps in [1, 2, 3, 10, 50, 200] {
                assert!((integral(rule, steps, |_| 1.0) - 1.0).abs() < 1e-12, "{rule:?} {steps}");
            }
        }
    }

    #[test]
    fn three_gauss_legendre_points_are_the_tabulated_ones() {
        let nodes = Rule::GaussLegendre.nodes(3);
        for (found, wanted) in nodes.points.iter().zip([0.112_701_665, 0.5, 0.887_298_335]) {
            assert!((found - wanted).abs() < 1e-8);
        }
        for (found, wanted) in nodes.weights.iter().zip([5.0 / 18.0, 8.0 / 18.0, 5.0 / 18.0]) {
            assert!((found - wanted).abs() < 1e-12);
        }
    }

    #[test]
    fn gauss_legendre_is_exact_for_polynomials() {
        assert!((integral(Rule::GaussLegendre, 5, |x| x.powi(9)) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn every_rule_converges() {
        let wanted = std::f64::consts::E - 1.0;
        for rule in RULES {
            assert!((integral(rule, 2000, f64::exp) - wanted).abs() < 1e-3, "{rule:?}");
        }
    }
}
