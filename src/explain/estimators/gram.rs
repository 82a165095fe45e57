//! This file is where weighted rows of presence bits become the sums that a regression needs.

use faer::Mat;

use super::game::Coalition;

/// Weighted sums over rows. No matrix of rows is ever made: 5,000 rows of 400 features stay bits.
pub(super) struct Gram {
    /// Σ w.
    pub(super) total: f64,
    /// Σ w x.
    pub(super) sums: Vec<f64>,
    /// Σ w x xᵀ, both triangles.
    pub(super) products: Mat<f64>,
}

impl Gram {
    pub(super) fn of<'a>(players: usize, rows: impl Iterator<Item = (&'a Coalition, f64)>) -> Self {
        let (mut total, mut products) = (0.0, Mat::<f64>::zeros(players, players));
        for (row, weight) in rows {
            total += weight;
            let members: Vec<usize> = row.members().collect();
            for (place, &a) in members.iter().enumerate() {
                let column = products.col_as_slice_mut(a);
                members[place..].iter().for_each(|&b| column[b] += weight);
            }
        }
        for a in 0..players {
            for b in 0..a {
                products[(b, a)] = products[(a, b)];
            }
        }
        // A bit is its own square.
        let sums = (0..players).map(|a| products[(a, a)]).collect();
        Self { total, sums, products }
    }

    /// Σ w (x - centre)(x - centre)ᵀ.
    pub(super) fn centred(&self, centre: &[f64]) -> Mat<f64> {
        Mat::from_fn(centre.len(), centre.len(), |a, b| {
            self.products[(a, b)] - self.sums[a] * centre[b] - centre[a] * self.sums[b]
                + self.total * centre[a] * centre[b]
        })
    }
}
