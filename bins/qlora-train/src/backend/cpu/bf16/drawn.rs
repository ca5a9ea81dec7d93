//! Values for tests, and the ways of computing with them.

use super::isa::Isa;
use half::bf16;
use qlora_kernels::rng::RngStream;

/// From −2 to 2, drawn with a seed.
pub fn values(count: usize, seed: u64) -> Vec<bf16> {
    let mut stream = RngStream::new(seed, 1);
    (0..count).map(|_| bf16::from_f32(stream.below(2001) as f32 / 500.0 - 2.0)).collect()
}

/// Each of the cases with each way of computing products that this processor has, and with the twins, which all have.
pub fn by_every_kind<T: Clone>(cases: &[T]) -> Vec<(Isa, T)> {
    let kinds = [Isa::amx(), Isa::avx512_bf16(), Some(Isa::AMX_TWIN), Some(Isa::SCALAR)];
    kinds.into_iter().flatten().flat_map(|isa| cases.iter().map(move |case| (isa, case.clone()))).collect()
}
