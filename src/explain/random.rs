//! Where randomness comes from: one named generator, keyed so that samples do not depend on batches.

use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

/// The generator's name, as answers carry it.
pub const GENERATOR: &str = "chacha8";

/// The generator of one stream of a seed. Streams of one seed are independent; a method that draws sample
/// `i` from stream `i` gives the same samples with any batch size and any number of threads.
pub fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(stream);
    generator
}
