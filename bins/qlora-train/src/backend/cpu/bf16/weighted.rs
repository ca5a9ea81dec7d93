//! Weighted sums of rows of bf16 numbers, for a few queries that see the same keys.

#![allow(unsafe_code)]

use super::dots::FEW;
use super::fused::fused;
use super::isa::Isa;
use super::pairs::WIDTH;
use half::bf16;

/// Adds to each of `sums` `[parts of D, rows of p, WIDTH]` the first `count` rows of D values, `stride` values apart,
/// as often as a row of `p` `[rows of p, WIDTH]` says; beyond `count` it is zero. The sum of a column is one chain over
/// pairs of rows, the later first.
pub fn add_weighted(isa: Isa, p: &[bf16], rows: &[bf16], stride: usize, count: usize, d: usize, sums: &mut [f32]) {
    let few = p.len() / WIDTH;
    assert!(few > 0 && few <= FEW && p.len() == few * WIDTH && count <= WIDTH, "weights of up to {FEW} x {WIDTH} rows");
    assert!(count > 0 && stride >= d && rows.len() >= (count - 1) * stride + d, "rows out of bounds");
    assert!(sums.len() >= d.div_ceil(WIDTH) * p.len(), "sums out of bounds");
    for (part, sums) in sums.chunks_exact_mut(p.len()).take(d.div_ceil(WIDTH)).enumerate() {
        let (rows, columns) = (&rows[part * WIDTH..], WIDTH.min(d - part * WIDTH));
        match isa.has_vectors() {
            // SAFETY: the processor has the instructions; the bounds were checked above.
            #[cfg(target_arch = "x86_64")]
            true => unsafe {
                match few {
                    1 => x86::add_weighted::<1>(p, rows, stride, count, columns, sums),
                    2 => x86::add_weighted::<2>(p, rows, stride, count, columns, sums),
                    3 => x86::add_weighted::<3>(p, rows, stride, count, columns, sums),
                    _ => x86::add_weighted::<FEW>(p, rows, stride, count, columns, sums),
                }
            },
            _ => {
                for (p, sums) in p.chunks_exact(WIDTH).zip(sums.chunks_exact_mut(WIDTH)) {
                    for (column, sum) in sums[..columns].iter_mut().enumerate() {
                        let value = |row: usize| if row < count { rows[row * stride + column] } else { bf16::ZERO };
                        *sum += (0..count).step_by(2).fold(0.0, |sum, row| {
                            let later = fused(p[row + 1].to_f32(), value(row + 1).to_f32(), sum);
                            fused(p[row].to_f32(), value(row).to_f32(), later)
                        });
                    }
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::isa::LANES;
    use super::WIDTH;
    use half::bf16;
    use std::arch::x86_64::*;

    /// Up to [`WIDTH`] columns, all sums in registers. Words of two rows are interleaved within each 16 bytes; the sums
    /// are put in order at the end.
    ///
    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::add_weighted`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn add_weighted<const R: usize>(
        p: &[bf16],
        rows: &[bf16],
        stride: usize,
        count: usize,
        columns: usize,
        sums: &mut [f32],
    ) {
        let masks = [0, 32].map(|first: usize| ((1u64 << columns.saturating_sub(first).min(32)) - 1) as u32);
        let mut acc = [[_mm512_setzero_ps(); 4]; R];
        // SAFETY: the caller's bounds; what is beyond the columns is masked off. `p` has a pair for an odd last row.
        unsafe {
            for row in (0..count).step_by(2) {
                let at = rows.as_ptr().wrapping_add(row * stride);
                let mut pairs = [_mm512_setzero_si512(); 4];
                for (half, mask) in masks.into_iter().enumerate() {
                    let load = |row: usize, mask| {
                        _mm512_maskz_loadu_epi16(mask, at.wrapping_add(row * stride + 32 * half).cast())
                    };
                    let (one, next) = (load(0, mask), load(1, if row + 1 < count { mask } else { 0 }));
                    pairs[2 * half] = _mm512_unpacklo_epi16(one, next);
                    pairs[2 * half + 1] = _mm512_unpackhi_epi16(one, next);
                }
                for (r, acc) in acc.iter_mut().enumerate() {
                    let p = p.as_ptr().add(r * WIDTH + row).cast::<i32>().read_unaligned();
                    for (acc, pairs) in acc.iter_mut().zip(pairs) {
                        *acc = _mm512_dpbf16_ps(*acc, bits(_mm512_set1_epi32(p)), bits(pairs));
                    }
                }
            }
            let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
            let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
            for (acc, sums) in acc.into_iter().zip(sums.as_chunks_mut::<WIDTH>().0) {
                for (quarter, order) in [first, second, first, second].into_iter().enumerate() {
                    let [low, high] = [0, 1].map(|i| _mm512_castps_pd(acc[quarter / 2 * 2 + i]));
                    let sum = _mm512_castpd_ps(_mm512_permutex2var_pd(low, order, high));
                    let sums = sums.as_mut_ptr().add(quarter * LANES);
                    _mm512_storeu_ps(sums, _mm512_add_ps(_mm512_loadu_ps(sums), sum));
                }
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    fn bits(x: __m512i) -> __m512bh {
        // SAFETY: vectors of the same bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
    }
}

#[cfg(test)]
mod tests;
