//! Values for tests.

use half::bf16;
use qlora_kernels::rng::Stream;

/// From −2 to 2, drawn with a seed.
pub fn values(count: usize, seed: u64) -> Vec<bf16> {
    let mut stream = Stream::new(seed, 1);
    (0..count).map(|_| bf16::from_f32(stream.below(2001) as f32 / 500.0 - 2.0)).collect()
}
