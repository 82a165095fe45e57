//! This file is where random numbers come from: one keyed stream a sample, the same on every machine.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::game::Coalition;

pub use crate::explain::random::GENERATOR;

/// The random numbers of one sample. Two streams share nothing unless seed, purpose and index are equal,
/// so a sample does not depend on which samples were drawn before it, or by which thread.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of sample `index` drawn for `purpose` under `seed`.
    pub fn new(seed: u64, purpose: u64, index: u64) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&purpose.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(index);
        Self(generator)
    }

    /// A whole number from 0 to `bound - 1`, all equally probable (Lemire 2019: multiply and reject).
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = bound.max(1) as u64;
        let threshold = bound.wrapping_neg() % bound;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            if product as u64 >= threshold {
                return (product >> 64) as usize;
            }
        }
    }

    /// A fraction in [0, 1).
    pub fn fraction(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A subset of `size` players, all equally probable (Floyd's algorithm).
    pub fn subset(&mut self, players: usize, size: usize) -> Coalition {
        let mut chosen = Coalition::empty(players);
        for last in players - size..players {
            let pick = self.below(last + 1);
            chosen.insert(if chosen.contains(pick) { last } else { pick });
        }
        chosen
    }

    /// Puts `items` into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_published_chacha8_keystream() {
        // ChaCha8, all-zero 256-bit key and nonce: test vector of draft-strombergson-chacha-test-vectors-01,
        // TC1 (first bytes 3e 00 ef 2f 89 5f 40 d6).
        let mut stream = Stream::new(0, 0, 0);
        assert_eq!(stream.0.next_u64().to_le_bytes(), [0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6]);
    }

    #[test]
    fn subsets_have_their_size_and_every_player_the_same_chance() {
        let mut counts = [0usize; 7];
        for index in 0..7_000 {
            let subset = Stream::new(5, 1, index).subset(7, 3);
            assert_eq!(subset.len(), 3);
            subset.members().for_each(|member| counts[member] += 1);
        }
        // 3,000 expected each, standard deviation 41.
        assert!(counts.iter().all(|&count| (2_800..3_200).contains(&count)), "{counts:?}");
    }
}
