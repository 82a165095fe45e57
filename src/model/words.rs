//! Where the word embedding's table is kept, and which words are near to one another in it.

use std::sync::Arc;

use quick_cache::sync::Cache;

/// The word embedding's table, `[vocabulary, hidden]`.
pub struct Words {
    values: Arc<[f32]>,
    /// Size of one embedding.
    pub hidden: usize,
    squares: Vec<f32>,
    near: Cache<u32, Arc<[u32]>>,
}

/// Neighbours that are found and kept for a word.
const NEIGHBOURS: usize = 500;

/// Words whose neighbours are kept, those that were asked for last and most: 16 MB of lists, whatever the vocabulary.
const KEPT: usize = 8192;

impl Words {
    /// The table from its values, row-major.
    pub fn new(values: Vec<f32>, hidden: usize) -> Self {
        let squares = values.chunks(hidden.max(1)).map(|row| dot(row, row)).collect();
        Self { values: values.into(), hidden, squares, near: Cache::new(KEPT) }
    }

    /// The embedding of a token.
    ///
    /// # Panics
    /// Where the table has no such row. No text and no model folder leads there: the tokenizer refuses texts with such
    /// tokens, and special tokens beyond the table are forgotten when the model opens.
    pub fn row(&self, id: u32) -> &[f32] {
        let start = id as usize * self.hidden;
        &self.values[start..start + self.hidden]
    }

    /// Rows of the table.
    pub fn count(&self) -> usize {
        self.squares.len()
    }

    /// The mean of all rows.
    pub fn mean(&self) -> Vec<f32> {
        let mut sums = vec![0.0f64; self.hidden];
        for row in self.values.chunks(self.hidden) {
            sums.iter_mut().zip(row).for_each(|(sum, it)| *sum += f64::from(*it));
        }
        sums.into_iter().map(|sum| (sum / self.count().max(1) as f64) as f32).collect()
    }

    /// The 500 tokens whose embeddings are nearest to that of `id` (Euclidean), nearest first, itself not
    /// among them. What was found is kept for a while.
    pub fn neighbors(&self, id: u32) -> Arc<[u32]> {
        if let Some(kept) = self.near.get(&id) {
            return kept;
        }
        let found: Arc<[u32]> = self.search(self.row(id), |other| other == id).into();
        self.near.insert(id, found.clone());
        found
    }

    /// The 500 tokens whose embeddings are nearest to `word` (Euclidean), nearest first.
    pub fn nearest(&self, word: &[f32]) -> Vec<u32> {
        self.search(word, |_| false)
    }

    fn search(&self, word: &[f32], except: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut order: Vec<(f32, u32)> = self
            .values
            .chunks(self.hidden)
            .zip(&self.squares)
            .zip(0u32..)
            .filter(|(_, other)| !except(*other))
            .map(|((row, square), other)| (square - 2.0 * dot(word, row), other))
            .collect();
        let by_distance = |a: &(f32, u32), b: &(f32, u32)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        if order.len() > NEIGHBOURS {
            order.select_nth_unstable_by(NEIGHBOURS - 1, by_distance);
            order.truncate(NEIGHBOURS);
        }
        order.sort_unstable_by(by_distance);
        order.into_iter().map(|(_, other)| other).collect()
    }
}

/// Inner product in eight independent sums, which the compiler turns into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for (a, b) in a8.iter().zip(b8) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_come_nearest_first_without_the_word_itself() {
        let words = Words::new(vec![0.0, 0.0, 5.0, 0.0, 1.0, 0.0, 0.0, 2.0], 2);
        assert_eq!(*words.neighbors(0), [2, 3, 1]);
        assert_eq!(*words.neighbors(1), [2, 0, 3]);
        assert_eq!(words.nearest(&[0.9, 0.0]), [2, 0, 3, 1]);
        assert_eq!(words.mean(), [1.5, 0.5]);
    }

    #[test]
    fn lists_of_neighbours_are_bounded_and_found_again() {
        let words = Words { near: Cache::new(4), ..Words::new((0..64).map(|it| it as f32).collect(), 1) };
        let first: Vec<_> = (0..64).map(|it| words.neighbors(it)).collect();
        assert!((1..=4).contains(&words.near.len()), "{} lists are kept", words.near.len());
        assert!(first.iter().zip(0..).all(|(it, id)| *it == words.neighbors(id)));
    }
}
