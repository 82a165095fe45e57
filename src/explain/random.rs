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

/// Standard deviation of the components, the yardstick of noise that is added to them.
pub fn deviation(values: &[f32]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|&it| f64::from(it)).sum::<f64>() / count;
    (values.iter().map(|&it| (f64::from(it) - mean).powi(2)).sum::<f64>() / count).sqrt()
}
