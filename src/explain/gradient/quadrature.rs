//! Where points and weights on `[0, 1]` come from.

use std::{f64::consts::PI, num::NonZeroUsize};

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
    /// Fejér's points, drawn towards the path's first half, where a network that normalises changes most; every
    /// point is kept when points are added.
    Graded,
}

/// Points on `[0, 1]` in ascending order with weights that sum to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Nodes {
    /// Where the integrand is evaluated.
    pub points: Vec<f64>,
    /// How much each evaluation counts.
    pub weights: Vec<f64>,
}

impl Nodes {
    /// Where in the list the very point `at` is.
    pub fn place(&self, at: f64) -> Option<usize> {
        self.points.binary_search_by(|point| point.total_cmp(&at)).ok()
    }
}

impl Rule {
    /// The number of points that refines `steps` points: about twice as many, all of the old ones among them
    /// where the rule has such a number.
    pub fn refined(self, steps: usize) -> usize {
        match self {
            Self::Trapezoid => (2 * steps).max(4) - 1,
            Self::Graded => 2 * steps + 1,
            Self::GaussLegendre | Self::Midpoint | Self::Left | Self::Right => 2 * steps,
        }
    }

    /// Whether the points of [`Rule::refined`] hold all of those that they refine.
    pub fn nests(self) -> bool {
        match self {
            Self::Trapezoid | Self::Graded | Self::Left | Self::Right => true,
            Self::GaussLegendre | Self::Midpoint => false,
        }
    }

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
            Self::Graded => graded(steps),
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

/// Where [`Rule::Graded`] is densest, and how far around it stays dense.
///
/// Along a path through embedding space the derivative is an analytic function with singularities off the real line;
/// those of the bundled model lie around shares of 0.05 to 0.35, at a distance of 0.02 to 0.2, whatever the baseline.
/// `centre + width·sinh(·)` keeps the points apart in proportion to that distance (Johnston and Elliott, 2005). At the
/// end of the path they are 2.4 times as far apart as even ones would be.
const CENTRE: f64 = 0.2;
const WIDTH: f64 = 0.2;

fn graded(steps: usize) -> Nodes {
    let from = (-CENTRE / WIDTH).asinh();
    let way = ((1.0 - CENTRE) / WIDTH).asinh() - from;
    let even = fejer(steps);
    let at = |even: f64| CENTRE + WIDTH * (from + way * even).sinh();
    let slope = |even: f64| (from + way * even).cosh();
    let weights: Vec<f64> =
        even.points.iter().zip(&even.weights).map(|(&point, weight)| weight * slope(point)).collect();
    let total: f64 = weights.iter().sum();
    Nodes {
        points: even.points.into_iter().map(at).collect(),
        weights: weights.into_iter().map(|it| it / total).collect(),
    }
}

/// Fejér's second rule: the inner extrema of a Chebyshev polynomial; exact for polynomials of degree `steps − 1`.
/// Clenshaw-Curtis, with the ends, is more exact and no choice: at the zero vector, the slope of a root-mean-square
/// norm is one over the root of its epsilon.
fn fejer(steps: usize) -> Nodes {
    let parts = steps.max(1) + 1;
    let sines: Vec<f64> = (0..2 * parts).map(|k| (PI * k as f64 / parts as f64).sin()).collect();
    let weight = |k: usize| {
        let odd = (1..=parts / 2).map(|j| 2 * j - 1);
        let sum: f64 = odd.map(|j| sines[j * k % (2 * parts)] / j as f64).sum();
        2.0 * sines[k] * sum / parts as f64
    };
    // The quotient is the same float for k of n and 2k of 2n: points nest to the last bit.
    let point = |k: usize| (PI / 2.0 * (k as f64 / parts as f64)).sin().powi(2);
    Nodes { points: (1..parts).map(point).collect(), weights: (1..parts).map(weight).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: [Rule; 6] =
        [Rule::GaussLegendre, Rule::Midpoint, Rule::Trapezoid, Rule::Left, Rule::Right, Rule::Graded];

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
    fn three_points_of_fejer_are_the_tabulated_ones() {
        let (nodes, half) = (fejer(3), 0.5f64.sqrt() / 2.0);
        for (found, wanted) in nodes.points.iter().zip([0.5 - half, 0.5, 0.5 + half]) {
            assert!((found - wanted).abs() < 1e-15);
        }
        assert!(nodes.weights.iter().all(|it| (it - 1.0 / 3.0).abs() < 1e-15));
    }

    #[test]
    fn fejer_is_exact_for_polynomials() {
        for steps in [1, 2, 3, 8, 9, 32] {
            let nodes = fejer(steps);
            let power = steps as i32 - 1;
            let found: f64 = nodes.points.iter().zip(&nodes.weights).map(|(x, w)| w * x.powi(power)).sum();
            assert!((found - 1.0 / steps as f64).abs() < 1e-14, "{steps}: {found}");
        }
    }

    #[test]
    fn graded_points_ascend_between_the_ends_and_count() {
        for steps in [1, 2, 3, 32, 263, 1024] {
            let nodes = Rule::Graded.nodes(steps);
            assert!(nodes.points[0] > 0.0 && nodes.points[steps - 1] < 1.0, "{steps}");
            assert!(nodes.points.is_sorted_by(|a, b| a < b), "{steps}");
            assert!(nodes.weights.iter().all(|it| *it > 0.0), "{steps}");
        }
    }

    #[test]
    fn the_graded_rule_needs_fewer_points_for_a_jump_in_the_first_half() {
        // The derivative of a score that jumps at 0.18, as steeply as those of the bundled model.
        let (at, width) = (0.18, 0.04);
        let slope = |x: f64| width / ((x - at).powi(2) + width * width);
        let wanted = ((1.0 - at) / width).atan() + (at / width).atan();
        let error = |rule: Rule, steps| (integral(rule, steps, slope) - wanted).abs();
        assert!(error(Rule::Graded, 40) < error(Rule::GaussLegendre, 50));
    }

    #[test]
    fn what_a_nesting_rule_refines_it_keeps() {
        for rule in RULES.into_iter().filter(|it| it.nests()) {
            for steps in [1, 2, 3, 4, 7, 16, 32, 33, 100] {
                let mut nodes = rule.nodes(steps);
                for _ in 0..4 {
                    let finer = rule.nodes(rule.refined(nodes.points.len()));
                    let kept = nodes.points.iter().filter(|it| finer.place(**it).is_some()).count();
                    assert_eq!(kept, nodes.points.len(), "{rule:?} from {steps}");
                    nodes = finer;
                }
            }
        }
    }

    #[test]
    fn every_rule_converges() {
        let wanted = std::f64::consts::E - 1.0;
        for rule in RULES {
            assert!((integral(rule, 2000, f64::exp) - wanted).abs() < 1e-3, "{rule:?}");
        }
    }
}
