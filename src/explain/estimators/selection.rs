//! This file is where LIME decides which features may have a weight, from centred weighted sums alone.

use faer::Mat;

use super::linalg::solve_symmetric;

/// How features are selected before the last fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Selection {
    /// All features.
    #[default]
    None,
    /// Those of largest |coefficient| in a ridge regression with penalty 0.01.
    HighestWeights,
    /// Greedily the one that raises R² most, in least squares.
    Forward,
    /// The longest support along the lasso path that is not too long (Efron et al. 2004).
    LassoPath,
}

/// At most `count` players, ascending. `gram` and `right` are the centred sums of x xᵀ and x y.
pub(super) fn select(how: Selection, count: usize, gram: &Mat<f64>, right: &[f64]) -> Vec<usize> {
    let players = right.len();
    if count >= players {
        return (0..players).collect();
    }
    let mut chosen = match how {
        Selection::None => (0..players).collect(),
        Selection::HighestWeights => highest_weights(count, gram, right),
        Selection::Forward => forward(count, gram, right),
        Selection::LassoPath => lasso_path(count, gram, right),
    };
    chosen.sort_unstable();
    chosen
}

/// The coefficients of a ridge regression from its centred sums.
pub(super) fn ridge(gram: &Mat<f64>, right: &[f64], alpha: f64) -> Vec<f64> {
    let order = right.len();
    solve_symmetric(&Mat::from_fn(order, order, |a, b| gram[(a, b)] + if a == b { alpha } else { 0.0 }))
        .solve_vector(right)
}

fn highest_weights(count: usize, gram: &Mat<f64>, right: &[f64]) -> Vec<usize> {
    let coefficients = ridge(gram, right, 0.01);
    let mut order: Vec<usize> = (0..right.len()).collect();
    order.sort_by(|&a, &b| coefficients[b].abs().total_cmp(&coefficients[a].abs()).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// Each step takes the feature that explains most of what is left, then makes the others orthogonal to it.
fn forward(count: usize, gram: &Mat<f64>, right: &[f64]) -> Vec<usize> {
    let (mut gram, mut right) = (gram.clone(), right.to_vec());
    let players = right.len();
    let smallest = 1e-10 * (0..players).map(|k| gram[(k, k)]).fold(0.0, f64::max);
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let gain = |k: usize| right[k] * right[k] / gram[(k, k)];
        let open = (0..players).filter(|k| !chosen.contains(k) && gram[(*k, *k)] > smallest);
        let Some(best) = open.max_by(|&a, &b| gain(a).total_cmp(&gain(b)).then(b.cmp(&a))) else { break };
        let pivot = gram[(best, best)];
        let column: Vec<f64> = (0..players).map(|k| gram[(k, best)]).collect();
        let height = right[best];
        for a in 0..players {
            right[a] -= column[a] * height / pivot;
            for b in 0..players {
                gram[(a, b)] -= column[a] * column[b] / pivot;
            }
        }
        chosen.push(best);
    }
    chosen
}

/// Walks the lasso path by its corners: along each piece the active coefficients move so that all active
/// correlations fall alike, until another feature's correlation meets them or a coefficient meets zero.
fn lasso_path(count: usize, gram: &Mat<f64>, right: &[f64]) -> Vec<usize> {
    let players = right.len();
    let mut correlation = right.to_vec();
    let mut coefficients = vec![0.0; players];
    let height = |correlation: &[f64]| correlation.iter().fold(0.0f64, |most, c| most.max(c.abs()));
    let mut level = height(right);
    let negligible = 1e-10 * level;
    let mut active: Vec<usize> = Vec::new();
    let mut dropped = None;
    let mut longest = Vec::new();
    for _ in 0..8 * players {
        if level <= negligible {
            break;
        }
        if active.is_empty() && dropped.is_none() {
            active
                .extend((0..players).max_by(|&a, &b| correlation[a].abs().total_cmp(&correlation[b].abs())));
        }
        let inner = Mat::from_fn(active.len(), active.len(), |a, b| gram[(active[a], active[b])]);
        let signs: Vec<f64> = active.iter().map(|&k| correlation[k].signum()).collect();
        let direction = solve_symmetric(&inner).solve_vector(&signs);
        let fall: Vec<f64> = (0..players)
            .map(|k| active.iter().zip(&direction).map(|(&a, d)| gram[(k, a)] * d).sum())
            .collect();

        let joining = (0..players).filter(|k| !active.contains(k) && dropped != Some(*k)).flat_map(|k| {
            let meet =
                [(level - correlation[k]) / (1.0 - fall[k]), (level + correlation[k]) / (1.0 + fall[k])];
            meet.map(|step| (step, k))
        });
        let join = joining
            .filter(|(step, _)| step.is_finite() && *step > 1e-12 * level)
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let leaving = active.iter().zip(&direction).map(|(&k, d)| (-coefficients[k] / d, k));
        let leave = leaving.filter(|(step, _)| *step > 0.0).min_by(|a, b| a.0.total_cmp(&b.0));
        let step = level.min(join.map_or(level, |it| it.0)).min(leave.map_or(level, |it| it.0));

        active.iter().zip(&direction).for_each(|(&k, d)| coefficients[k] += step * d);
        (0..players).for_each(|k| correlation[k] -= step * fall[k]);
        level -= step;
        dropped = leave.filter(|it| it.0 == step).map(|it| it.1);
        if let Some(gone) = dropped {
            coefficients[gone] = 0.0;
            active.retain(|&k| k != gone);
        }
        let support: Vec<usize> = (0..players).filter(|&k| coefficients[k] != 0.0).collect();
        if support.len() <= count {
            longest = support;
        }
        match (dropped, join) {
            (None, Some((at, new))) if at == step => active.push(new),
            (None, _) => break,
            (Some(_), _) => {}
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// y = 3 x0 - 2 x3 + 0.5 x4 on a correlated design.
    fn example() -> (Mat<f64>, Vec<f64>) {
        let gram = Mat::from_fn(6, 6, |a, b| if a == b { 10.0 } else { 4.0 / (1.0 + a.abs_diff(b) as f64) });
        let truth = [3.0, 0.0, 0.0, -2.0, 0.5, 0.0];
        let right = (0..6).map(|a| (0..6).map(|b| gram[(a, b)] * truth[b]).sum()).collect();
        (gram, right)
    }

    #[test]
    fn each_way_finds_the_features_that_matter() {
        let (gram, right) = example();
        for how in [Selection::HighestWeights, Selection::Forward, Selection::LassoPath] {
            assert_eq!(select(how, 2, &gram, &right), [0, 3], "{how:?}");
            assert_eq!(select(how, 3, &gram, &right), [0, 3, 4], "{how:?}");
        }
    }

    #[test]
    fn the_lasso_path_ends_in_least_squares() {
        // With room for all but one, the path's last corners decide: the support of the truth.
        let (gram, right) = example();
        assert_eq!(select(Selection::LassoPath, 5, &gram, &right), [0, 3, 4]);
    }
}
