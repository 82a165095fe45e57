//! Where rows are grouped into chunks: the grain of fairness, cancellation and memory.

use super::Padding;

/// What bounds a chunk.
#[derive(Debug, Clone, Copy)]
pub struct Batching {
    /// Computed tokens in one chunk, padding included; a longer row is a chunk of its own. This bounds the
    /// memory of a run. About 500 is best on a processor (`benches/README.md`).
    pub chunk_tokens: usize,
    /// Workers among which one request's rows are spread.
    pub workers: usize,
}

/// A chunk smaller than this is not worth spreading over another worker.
const SMALLEST_CHUNK: usize = 96;

/// At most this share of a chunk's computed tokens may be padding.
const MOST_PADDING: f64 = 0.04;

/// Groups rows of the given lengths into chunks of row indices, longest rows first.
///
/// Rows of one length go together; neighbouring lengths share a chunk only while padding stays below 4 %,
/// and never where the model cannot pad.
pub fn plan(lengths: &[usize], padding: Padding, batching: Batching) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
    let budget = budget(lengths, batching);

    let mut chunks: Vec<Vec<usize>> = Vec::new();
    let (mut longest, mut tokens) = (0, 0);
    for row in order {
        let length = lengths[row];
        let open = chunks.last_mut().filter(|chunk| {
            let computed = longest * (chunk.len() + 1);
            let padded = 1.0 - (tokens + length) as f64 / computed.max(1) as f64;
            let mates = length == longest || (padding != Padding::Never && padded <= MOST_PADDING);
            mates && computed <= budget
        });
        match open {
            Some(chunk) => chunk.push(row),
            None => {
                chunks.push(vec![row]);
                (longest, tokens) = (length, 0);
            }
        }
        tokens += length;
    }
    chunks
}

/// Tokens of a chunk such that every worker gets as many chunks as the others, of about one size: a worker with
/// nothing left to do waits for the last chunk of another.
fn budget(lengths: &[usize], batching: Batching) -> usize {
    let Batching { chunk_tokens, workers } = batching;
    let total: usize = lengths.iter().sum();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let workers = workers.max(1);
    let waves = total.div_ceil(chunk_tokens.max(1) * workers).max(1);
    let share = total.div_ceil(waves * workers);
    // A row is not divided: a share that ends inside of one includes it.
    (share + longest.saturating_sub(1)).max(SMALLEST_CHUNK).min(chunk_tokens).max(1)
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
        assert_eq!(chunks.iter().map(Vec::len).collect::<Vec<_>>(), [13, 13, 13, 11]);
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
        assert_eq!(chunks, [vec![1], vec![0, 2]]);
    }

    proptest! {
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
