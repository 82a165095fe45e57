//! Where rows are grouped into chunks: the grain of fairness, cancellation and memory.

use std::collections::BTreeMap;

use super::{Layout, Padding, Row};

/// What bounds a chunk.
#[derive(Debug, Clone, Copy)]
pub struct Batching {
    /// Computed tokens in one chunk, padding included; a longer row is a chunk of its own. This bounds the
    /// memory of a run. About 500 is best on a processor (`benches/README.md`).
    pub chunk_tokens: usize,
    /// Workers among which one request's rows are spread.
    pub workers: usize,
}

/// A chunk of fewer tokens is not worth spreading over another worker.
const SMALLEST_CHUNK: usize = 32;

/// At most this share of a chunk's computed tokens may be padding.
const MOST_PADDING: f64 = 0.04;

/// Groups `rows` into chunks of row indices as their graph's layout wants it: see [`plan`], for rows of each count of the
/// layout's counted token by themselves.
pub fn plan_rows(rows: &[Row], layout: &Layout, batching: Batching) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    rows.iter().enumerate().for_each(|(place, row)| groups.entry(layout.count(row)).or_default().push(place));
    let within = |group: Vec<usize>| {
        let lengths: Vec<usize> = group.iter().map(|&place| rows[place].len()).collect();
        let chunks = plan(&lengths, layout.padding, batching);
        chunks.into_iter().map(move |chunk| chunk.into_iter().map(|it| group[it]).collect())
    };
    groups.into_values().flat_map(within).collect()
}

/// Groups rows of the given lengths into chunks of row indices, such that the workers finish together: every worker
/// gets as many chunks as the others, of about one size, the largest first.
///
/// Rows of one length go together; neighbouring lengths share a chunk only while padding stays below 4 %,
/// and never where the model cannot pad. A model that takes one row at a time gets as many chunks as there are rows.
pub fn plan(lengths: &[usize], padding: Padding, batching: Batching) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let mut left: usize = lengths.iter().sum();
    let shares = shares(lengths, batching);

    let mut chunks: Vec<Chunk> = Vec::new();
    for row in order {
        let length = lengths[row];
        match chunks.last_mut() {
            Some(open) if open.takes(length, padding, batching.chunk_tokens) => open.rows.push(row),
            _ => {
                let share = left / shares.saturating_sub(chunks.len()).max(1);
                let share = share.max(SMALLEST_CHUNK);
                chunks.push(Chunk { rows: vec![row], longest: length, tokens: 0, share });
            }
        }
        if let Some(open) = chunks.last_mut() {
            open.tokens += length;
        }
        left -= length;
    }
    chunks.sort_by_key(|chunk| std::cmp::Reverse(chunk.computed(chunk.rows.len())));
    chunks.into_iter().map(|chunk| chunk.rows).collect()
}

/// Chunks of as many whole rows as fit, rounded up to as many for every worker.
fn shares(lengths: &[usize], batching: Batching) -> usize {
    let workers = batching.workers.max(1);
    let mean = lengths.iter().sum::<usize>().div_ceil(lengths.len().max(1)).max(1);
    let rows = (batching.chunk_tokens / mean).max(1);
    lengths.len().div_ceil(rows * workers).max(1) * workers
}

/// A chunk that rows are put into, from long ones to short ones.
struct Chunk {
    rows: Vec<usize>,
    longest: usize,
    /// Of its rows, without padding.
    tokens: usize,
    /// Tokens that it should come nearest to.
    share: usize,
}

impl Chunk {
    /// Tokens that a run of so many rows computes.
    fn computed(&self, rows: usize) -> usize {
        self.longest * rows
    }

    fn takes(&self, length: usize, padding: Padding, most: usize) -> bool {
        let computed = self.computed(self.rows.len() + 1);
        let padded = 1.0 - (self.tokens + length) as f64 / computed.max(1) as f64;
        let mates = match padding {
            Padding::Alone => false,
            Padding::Never => length == self.longest,
            Padding::Right(_) | Padding::Left(_) => length == self.longest || padded <= MOST_PADDING,
        };
        mates && computed <= most && self.tokens + length / 2 <= self.share
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: Batching = Batching { chunk_tokens: 500, workers: 1 };

    #[test]
    fn equal_rows_fill_chunks_to_the_budget() {
        let chunks = plan(&[25; 45], Padding::Right(0), ONE);
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [15, 15, 15]);
    }

    #[test]
    fn workers_get_equal_shares_of_a_large_request() {
        let chunks = plan(&[32; 50], Padding::Right(0), Batching { chunk_tokens: 512, workers: 2 });
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [13, 13, 12, 12]);
    }

    #[test]
    fn a_small_request_is_spread_over_the_workers() {
        let chunks = plan(&[25; 20], Padding::Right(0), Batching { chunk_tokens: 500, workers: 2 });
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10]);
    }

    #[test]
    fn a_row_over_the_budget_is_alone() {
        let chunks = plan(&[700, 700], Padding::Right(0), ONE);
        assert_eq!(chunks, [[0], [1]]);
    }

    #[test]
    fn a_model_without_padding_gets_equal_lengths_only() {
        let chunks = plan(&[100, 101, 100], Padding::Never, ONE);
        assert_eq!(chunks, [vec![0, 2], vec![1]]);
    }

    #[test]
    fn a_model_that_takes_one_row_gets_one_row() {
        assert_eq!(plan(&[7, 9, 7], Padding::Alone, ONE), [[1], [0], [2]]);
    }

    #[test]
    fn rows_that_hold_a_counted_token_unequally_often_are_apart() {
        let rows = [[5, 2, 6, 2], [5, 6, 7, 2], [2, 2, 5, 6], [5, 6, 8, 2]].map(|it| Row::of(it, None));
        let layout = |counted| Layout {
            inputs: vec![],
            outputs: vec![],
            padding: Padding::Right(0),
            counted,
            least: 1,
        };
        assert_eq!(plan_rows(&rows, &layout(Some(2)), ONE), [[1, 3], [0, 2]]);
        assert_eq!(plan_rows(&rows, &layout(None), ONE), [[0, 1, 2, 3]]);
    }

    proptest! {
        #[test]
        fn workers_finish_within_a_row_of_each_other(
            length in 100usize..260, rows in 1usize..200, workers in 1usize..5,
        ) {
            let chunks = plan(&vec![length; rows], Padding::Never, Batching { chunk_tokens: 520, workers });
            let mut done = vec![0; workers];
            for chunk in chunks {
                *done.iter_mut().min().unwrap() += chunk.len();
            }
            prop_assert!(done.iter().max().unwrap() - done.iter().min().unwrap() <= 1, "{done:?}");
        }

        #[test]
        fn every_row_is_in_one_chunk_and_little_is_padding(
            lengths in prop::collection::vec(1usize..300, 1..200), workers in 1usize..5,
        ) {
            let batching = Batching { chunk_tokens: 512, workers };
            let chunks = plan(&lengths, Padding::Right(0), batching);
            let mut rows: Vec<usize> = chunks.concat();
            rows.sort_unstable();
            prop_assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>());
            for chunk in &chunks {
                let longest = chunk.iter().map(|&row| lengths[row]).max().unwrap();
                let own: usize = chunk.iter().map(|&row| lengths[row]).sum();
                let computed = longest * chunk.len();
                prop_assert!(computed <= 512 || chunk.len() == 1);
                prop_assert!((computed - own) as f64 <= 0.04 * computed as f64 + 1e-9);
            }
        }
    }
}
