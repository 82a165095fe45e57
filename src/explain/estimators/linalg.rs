//! This file is where dense linear algebra is asked for: the one place that names faer.

use faer::linalg::solvers::{DenseSolveCore, Llt, Solve};
use faer::{Mat, Side};

/// The factor of a symmetric positive definite matrix A = L Lᵀ.
pub(super) struct Cholesky(Llt<f64>);

impl Cholesky {
    /// Factors `matrix`, of which the lower triangle is read; none where it is not positive definite.
    pub(super) fn of(matrix: &Mat<f64>) -> Option<Self> {
        matrix.llt(Side::Lower).ok().map(Self)
    }

    /// A⁻¹ B.
    pub(super) fn solve(&self, right: &Mat<f64>) -> Mat<f64> {
        self.0.solve(right)
    }

    /// A⁻¹ b.
    pub(super) fn solve_vector(&self, right: &[f64]) -> Vec<f64> {
        column(&self.solve(&Mat::from_fn(right.len(), 1, |row, _| right[row])), 0)
    }

    /// A⁻¹.
    pub(super) fn inverse(&self) -> Mat<f64> {
        self.0.inverse()
    }

    /// L⁻¹ B.
    pub(super) fn half_solve(&self, right: &Mat<f64>) -> Mat<f64> {
        let mut solved = right.clone();
        self.0.L().solve_lower_triangular_in_place(solved.as_mut());
        solved
    }

    /// ln det A.
    pub(super) fn log_determinant(&self) -> f64 {
        let lower = self.0.L();
        2.0 * (0..lower.nrows()).map(|k| lower[(k, k)].ln()).sum::<f64>()
    }
}

/// One column as a vector.
pub(super) fn column(matrix: &Mat<f64>, column: usize) -> Vec<f64> {
    (0..matrix.nrows()).map(|row| matrix[(row, column)]).collect()
}

/// Solves A x = b for a symmetric A that ought to be positive definite; where rounding or collinearity spoils
/// that, the diagonal is raised by the smallest power of ten (relative to its mean) that mends it.
pub(super) fn solve_symmetric(matrix: &Mat<f64>) -> Cholesky {
    let order = matrix.nrows();
    let mean = (0..order).map(|k| matrix[(k, k)].abs()).sum::<f64>() / order.max(1) as f64;
    let scale = if mean > 0.0 && mean.is_finite() { mean } else { 1.0 };
    let raised = |by: f64| {
        Mat::from_fn(order, order, |row, col| {
            let entry = if matrix[(row, col)].is_finite() { matrix[(row, col)] } else { 0.0 };
            if row == col { entry + by * scale } else { entry }
        })
    };
    Cholesky::of(matrix)
        .or_else(|| (-13..=6).find_map(|power| Cholesky::of(&raised(10f64.powi(power)))))
        .or_else(|| Cholesky::of(&Mat::identity(order, order)))
        .expect("the identity is positive definite")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Mat<f64> {
        let rows = [[4.0, 2.0, 0.4], [2.0, 5.0, 1.0], [0.4, 1.0, 3.0]];
        Mat::from_fn(3, 3, |row, col| rows[row][col])
    }

    #[test]
    fn the_solution_satisfies_the_system() {
        let x = Cholesky::of(&example()).unwrap().solve_vector(&[1.0, -2.0, 0.5]);
        for (row, right) in [1.0, -2.0, 0.5].iter().enumerate() {
            let left: f64 = (0..3).map(|col| example()[(row, col)] * x[col]).sum();
            assert!((left - right).abs() < 1e-14);
        }
    }

    #[test]
    fn the_log_determinant_is_that_of_the_cofactor_expansion() {
        // 4 (15 - 1) - 2 (6 - 0.4) + 0.4 (2 - 2) = 44.8
        assert!((Cholesky::of(&example()).unwrap().log_determinant() - 44.8f64.ln()).abs() < 1e-14);
    }

    #[test]
    fn collinear_columns_are_solved_by_sharing() {
        let singular = Mat::from_fn(2, 2, |_, _| 1.0);
        let x = solve_symmetric(&singular).solve_vector(&[2.0, 2.0]);
        assert!((x[0] - 1.0).abs() < 1e-3 && (x[1] - 1.0).abs() < 1e-3, "{x:?}");
    }
}
