//! Where a point of embedding space is told by the words that stand in it, and written only into its batch.

use std::sync::Arc;

use super::{Embedded, Point};
use crate::model::Words;

/// A point at which a line begins, told by its rows: tokens that it does not change keep the input's own. It holds no
/// matrix of its own, so that the points of a request cost no memory before they are evaluated.
#[derive(Clone)]
pub struct Start {
    /// The input's own rows.
    x: Arc<[f32]>,
    special: Arc<[bool]>,
    hidden: usize,
    rows: Rows,
    /// The one token that differs from the input; all ordinary ones where there is none.
    only: Option<usize>,
}

/// What stands at the ordinary tokens.
#[derive(Clone)]
pub(super) enum Rows {
    /// The same row at each.
    Same(Arc<[f32]>),
    /// Words, one for every token; those at special tokens are not read.
    Words(Arc<Words>, Arc<[u32]>),
}

impl Start {
    pub(super) fn new(embedded: &Embedded<'_, '_>, rows: Rows) -> Self {
        let (x, special) = (embedded.x.clone(), embedded.special.clone());
        Self { x, special, hidden: embedded.hidden, rows, only: None }
    }

    /// The input with this point's row at one token.
    #[must_use]
    pub fn only(&self, token: usize) -> Self {
        Self { only: Some(token), ..self.clone() }
    }

    /// The embedding at one token.
    pub fn row(&self, token: usize) -> &[f32] {
        if self.special[token] || self.only.is_some_and(|only| only != token) {
            return &self.x[token * self.hidden..][..self.hidden];
        }
        match &self.rows {
            Rows::Same(row) => row,
            Rows::Words(words, ids) => words.row(ids[token]),
        }
    }

    /// The way from here to the input, component by component.
    pub fn way(&self) -> impl Iterator<Item = f64> {
        let here = (0..self.special.len()).flat_map(|token| self.row(token));
        self.x.iter().zip(here).map(|(x, b)| f64::from(*x) - f64::from(*b))
    }

    /// The point itself, written when its batch is put together.
    pub fn point(&self) -> Point {
        let start = self.clone();
        Point::Fill(Arc::new(move |into: &mut [f32]| {
            for (token, into) in into.chunks_mut(start.hidden).enumerate() {
                into.copy_from_slice(start.row(token));
            }
        }))
    }

    /// The point `start + share·(x − start)`, written when its batch is put together.
    pub fn towards(&self, share: f32) -> Point {
        let start = self.clone();
        Point::Fill(Arc::new(move |into: &mut [f32]| {
            let rows = into.chunks_mut(start.hidden).zip(start.x.chunks(start.hidden));
            for (token, (into, to)) in rows.enumerate() {
                for ((into, &from), &to) in into.iter_mut().zip(start.row(token)).zip(to) {
                    *into = from + share * (to - from);
                }
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(rows: Rows) -> Start {
        let x = [9.0, 9.0, 1.0, 2.0, 3.0, 4.0];
        Start { x: x.into(), special: [true, false, false].into(), hidden: 2, rows, only: None }
    }

    fn words() -> Rows {
        let words = Words::new(vec![0.0, 0.0, 5.0, 6.0, 7.0, 8.0], 2);
        Rows::Words(words.into(), [2, 1, 2].into())
    }

    fn written(point: &Point) -> Vec<f32> {
        let Point::Fill(fill) = point else { panic!("a matrix is held for a point") };
        let mut into = vec![f32::NAN; 6];
        fill(&mut into);
        into
    }

    #[test]
    fn points_are_written_row_by_row_and_special_tokens_stay() {
        assert_eq!(written(&start(words()).point()), [9.0, 9.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(written(&start(words()).only(2).point()), [9.0, 9.0, 1.0, 2.0, 7.0, 8.0]);
        let zero = start(Rows::Same([0.0, 0.0].into()));
        assert_eq!(written(&zero.towards(0.5)), [9.0, 9.0, 0.5, 1.0, 1.5, 2.0]);
        assert_eq!(written(&zero.only(1).towards(0.5)), [9.0, 9.0, 0.5, 1.0, 3.0, 4.0]);
        assert_eq!(zero.way().collect::<Vec<_>>(), [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn the_points_of_many_lines_share_what_they_are_told_by() {
        let Rows::Words(table, ids) = words() else { unreachable!() };
        let start = start(Rows::Words(table.clone(), ids.clone()));
        let points: Vec<Point> = (0..100).map(|at| start.only(at % 3).towards(0.5)).collect();
        // One for the start, one for each point, one here: nothing was copied.
        assert_eq!([Arc::strong_count(&table), Arc::strong_count(&ids)], [points.len() + 2; 2]);
        assert_eq!(Arc::strong_count(&start.x), points.len() + 1);
    }
}
