//! This file is where LIME's neighbourhood is defined: which features are present, and how near that is.

use super::game::Coalition;
use super::random::Stream;

/// The kernel width of LIME for text, on 100 times the cosine distance.
pub const WIDTH: f64 = 25.0;

const PURPOSE: u64 = 0x6c69_6d65;

/// Rows of one purpose are drawn apart from those of another: a fresh sample to test a surrogate on, say.
#[derive(Debug, Clone, Copy)]
pub(super) enum Draw {
    Fit,
    Fresh,
}

/// Rows `from..to` of LIME's sample: row 0 of a fit is the original; in any other, a number of features from 1
/// to all of them is removed, each number and then each subset of that size with equal probability.
pub(super) fn rows(players: usize, seed: u64, draw: Draw, from: usize, to: usize) -> Vec<Coalition> {
    let purpose = PURPOSE + draw as u64;
    let row = |index: usize| match (index, draw) {
        (0, Draw::Fit) => Coalition::full(players),
        _ => {
            let mut stream = Stream::new(seed, purpose, index as u64);
            let removed = 1 + stream.below(players);
            stream.subset(players, removed).complement()
        }
    };
    (from..to).map(row).collect()
}

/// LIME's weight of a row: sqrt(exp(-d² / width²)), d being 100 times the cosine distance to the original.
pub fn weight(row: &Coalition, width: f64) -> f64 {
    let distance = 100.0 * (1.0 - (row.len() as f64 / row.players() as f64).sqrt());
    (-distance * distance / (width * width)).exp().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_has_the_published_weights() {
        // lime 0.2.0.1: 90 % kept .979, 50 % .503, 25 % .135, 10 % .024, none 3.35e-4.
        for (kept, expected) in [(90, 0.979), (50, 0.503), (25, 0.135), (10, 0.024), (0, 3.35e-4)] {
            let found = weight(&Coalition::of(100, 0..kept), WIDTH);
            assert!(
                (found - expected).abs() < 5e-4 && (found / expected - 1.0).abs() < 0.02,
                "{kept}: {found}"
            );
        }
    }

    #[test]
    fn every_number_removed_is_equally_probable() {
        let mut counts = [0; 6];
        rows(5, 2, Draw::Fresh, 0, 5_000).iter().for_each(|row| counts[row.len()] += 1);
        assert_eq!(counts[5], 0);
        // 1,000 expected each, standard deviation 28.
        assert!(counts[..5].iter().all(|count| (880..1_120).contains(count)), "{counts:?}");
    }
}
