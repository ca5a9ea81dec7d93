//! Peaks of the processor as this code can reach them: the tiles of a product on operands that lie in the nearest
//! cache, and reading memory.

use super::Precision;
use super::bf16;
use super::gemm::panels;
use std::time::{Duration, Instant};

/// Time that every thread measures for: long enough that the clock has settled.
const TIME: Duration = Duration::from_millis(200);

/// FLOP/s of all threads together, a multiply-add counted as two.
pub fn peak_flops(precision: Precision) -> f64 {
    let per_thread = rayon::broadcast(|_| match precision {
        Precision::F32 => measure(panels::peak_round()),
        Precision::Bf16(isa) => measure(bf16::gemm::peak_round(isa)),
    });
    per_thread.iter().sum()
}

/// Bytes that are read to measure memory: far more than caches hold.
const READ_BYTES: usize = 256 << 20;

/// Bytes a second that all threads together read from memory, each its own part: from its beginning to its end, or in
/// two or four places in turn, which is what the processor can read ahead best of.
pub fn read_bandwidth() -> f64 {
    let words = READ_BYTES / 8 / rayon::current_num_threads();
    let per_thread = rayon::broadcast(|_| {
        // Written by the thread that reads it, so that it lies near to it.
        let part: Vec<u64> = (0..words as u64).collect();
        [measure(read::<1>(&part)), measure(read::<2>(&part)), measure(read::<4>(&part))]
    });
    let of_places = |i: usize| per_thread.iter().map(|rates| rates[i]).sum();
    (0..3).map(of_places).fold(0.0, f64::max)
}

/// A round that reads words at `N` places in turn, and returns their bytes.
fn read<const N: usize>(words: &[u64]) -> impl FnMut() -> f64 {
    move || {
        let chunks = words.as_chunks::<8>().0;
        let count = chunks.len() / N;
        let places: [&[[u64; 8]]; N] = std::array::from_fn(|i| &chunks[i * count..][..count]);
        let mut sums = [[0u64; 8]; N];
        for i in 0..count {
            for (sums, place) in sums.iter_mut().zip(places) {
                sums.iter_mut().zip(&place[i]).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
            }
        }
        std::hint::black_box(sums);
        (N * count * 64) as f64
    }
}

/// Units a second of rounds that each return theirs.
fn measure(mut round: impl FnMut() -> f64) -> f64 {
    round();
    let (start, mut units) = (Instant::now(), 0.0);
    while start.elapsed() < TIME {
        units += round();
    }
    units / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;

    #[test]
    fn memory_is_read_at_a_rate_that_memory_can_have() {
        let rate = read_bandwidth();
        assert!(rate > 1e8 && rate < 1e13, "{rate}");
    }

    #[test]
    fn all_words_are_read_at_any_number_of_places() {
        let words = vec![1; 4096];
        assert_eq!([read::<1>(&words)(), read::<2>(&words)(), read::<4>(&words)()], [4096.0 * 8.0; 3]);
    }

    #[test]
    fn every_arithmetic_has_a_peak() {
        for precision in [Precision::F32, Precision::Bf16(Isa::detect().unwrap_or(Isa::SCALAR))] {
            let peak = peak_flops(precision);
            assert!(peak.is_finite() && peak > 1e6, "{precision:?}: {peak}");
        }
    }
}
