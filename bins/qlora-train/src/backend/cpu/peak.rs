//! Peak of the processor as this code can reach it: the tiles of a product on operands that lie in the nearest cache.

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

/// FLOP/s of rounds that each return their FLOPs.
fn measure(mut round: impl FnMut() -> f64) -> f64 {
    round();
    let (start, mut flops) = (Instant::now(), 0.0);
    while start.elapsed() < TIME {
        flops += round();
    }
    flops / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Isa;

    #[test]
    fn every_arithmetic_has_a_peak() {
        for precision in [Precision::F32, Precision::Bf16(Isa::detect().unwrap_or(Isa::SCALAR))] {
            let peak = peak_flops(precision);
            assert!(peak.is_finite() && peak > 1e6, "{precision:?}: {peak}");
        }
    }
}
