//! Dot products of bf16 numbers, for a token of text: panels are not worth making for it.

#![allow(unsafe_code)]

use super::fused::fused;
use super::isa::{Isa, LANES};
use super::layout::dequantize;
use half::bf16;

/// Σ x·y in four vectors of interleaved chains, added in order, and then their halves, quarters and so on. Lengths are
/// equal and even.
pub fn dot(isa: Isa, x: &[bf16], y: &[bf16]) -> f32 {
    assert!(x.len() == y.len() && x.len().is_multiple_of(2), "rows of pairs");
    match isa.has_vectors() {
        // SAFETY: the processor has the instructions; the lengths are equal and even.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { x86::dot(x, y) },
        _ => {
            const STEP: usize = 4 * 2 * LANES;
            let mut sums = [0.0f32; 4 * LANES];
            for (x, y) in x.chunks(STEP).zip(y.chunks(STEP)) {
                add_pairs(x, y, &mut sums);
            }
            let [mut total, b, c, d]: [[f32; LANES]; 4] = bytemuck::cast(sums);
            for other in [b, c, d] {
                total.iter_mut().zip(other).for_each(|(total, sum)| *total += sum);
            }
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    total[i] += total[i + half];
                }
            }
            total[0]
        }
    }
}

/// Adds to `sums` the [`dot`] of `x` with each of as many rows of `values`, `stride` values apart.
pub fn dots(isa: Isa, values: &[bf16], stride: usize, x: &[bf16], sums: &mut [f32]) {
    assert!(x.len().is_multiple_of(2) && stride >= x.len(), "rows of pairs");
    assert!(sums.is_empty() || values.len() >= (sums.len() - 1) * stride + x.len(), "rows out of bounds");
    match isa.has_vectors() {
        // SAFETY: the processor has the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { x86::dots(values, stride, x, sums) },
        _ => {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum += dot(isa, x, &values[row * stride..][..x.len()]);
            }
        }
    }
}

/// Elements under one absmax of [`dots_nf4`].
pub const DOT_BLOCK: usize = 64;

/// Adds to `sums` the [`dot`] of `x` with each of as many rows of codes, [dequantized](dequantize), `stride` bytes
/// apart. A row has whole blocks of [`DOT_BLOCK`]; `absmax` holds theirs, row after row. `scratch` has room for a row.
pub fn dots_nf4(
    isa: Isa,
    code: &[f32; 16],
    absmax: &[f32],
    codes: &[u8],
    stride: usize,
    x: &[bf16],
    sums: &mut [f32],
    scratch: &mut [bf16],
) {
    assert!(x.len().is_multiple_of(DOT_BLOCK) && stride >= x.len() / 2, "whole blocks");
    assert!(absmax.len() * DOT_BLOCK == sums.len() * x.len(), "an absmax for every block");
    assert!(sums.is_empty() || codes.len() >= (sums.len() - 1) * stride + x.len() / 2, "codes out of bounds");
    match isa.has_vectors() {
        // The conversion instruction takes a subnormal value for zero. Every scale is looked at, without a branch,
        // several at once.
        #[cfg(target_arch = "x86_64")]
        true if absmax.iter().fold(true, |all, &x| all & ((x == 0.0) | (x.abs() > 1e-30))) => {
            // SAFETY: the processor has the instructions; the bounds were checked above.
            unsafe { x86::dots_nf4(code, absmax, codes, stride, x, sums) }
        }
        _ => {
            let blocks = x.len() / DOT_BLOCK;
            let values = &mut scratch[..x.len()];
            for (row, sum) in sums.iter_mut().enumerate() {
                let codes = &codes[row * stride..][..x.len() / 2];
                dequantize(isa, code, &absmax[row * blocks..][..blocks], DOT_BLOCK, codes, values);
                *sum += dot(isa, x, values);
            }
        }
    }
}

fn add_pairs(x: &[bf16], y: &[bf16], sums: &mut [f32]) {
    for (sum, (x, y)) in sums.iter_mut().zip(x.as_chunks::<2>().0.iter().zip(y.as_chunks::<2>().0)) {
        *sum = fused(x[0].to_f32(), y[0].to_f32(), fused(x[1].to_f32(), y[1].to_f32(), *sum));
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::LANES;
    use half::bf16;
    use std::arch::x86_64::*;

    /// The sum of a vector, as [`super::dot`] adds it.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn total(all: __m512) -> f32 {
        let eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps::<1>(all));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }

    /// The [`total`] of each of sixteen vectors: halves are added two vectors at a time, then their halves.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn totals(all: [__m512; LANES]) -> __m512 {
        let halves = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
        let quarters = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
        let pairs = |a, b| {
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        };
        let ones = |a, b| _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xDD>(a, b));
        let mut eight = [_mm512_setzero_ps(); 8];
        for (i, sum) in eight.iter_mut().enumerate() {
            *sum = halves(all[i], all[i + 8]);
        }
        let mut four = [_mm512_setzero_ps(); 4];
        for (i, sum) in four.iter_mut().enumerate() {
            *sum = quarters(eight[i], eight[i + 4]);
        }
        let two = |i: usize| pairs(_mm512_castps_pd(four[i]), _mm512_castps_pd(four[i + 2]));
        // The vectors' sums lie in this order too.
        let order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
        _mm512_permutexvar_ps(order, ones(two(0), two(1)))
    }

    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::dots`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn dots(values: &[bf16], stride: usize, x: &[bf16], sums: &mut [f32]) {
        // SAFETY: the caller's bounds.
        let row = |row: usize| unsafe { values.get_unchecked(row * stride..row * stride + x.len()) };
        let (groups, rest) = sums.as_chunks_mut::<LANES>();
        let mut first = 0;
        for sums in groups {
            let mut all = [_mm512_setzero_ps(); LANES];
            for (i, all) in all.iter_mut().enumerate() {
                // SAFETY: rows are as long as x.
                *all = unsafe { chains(x, row(first + i)) };
            }
            first += LANES;
            // SAFETY: sums of sixteen rows.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(_mm512_loadu_ps(sums.as_ptr()), totals(all))) };
        }
        for (i, sum) in rest.iter_mut().enumerate() {
            // SAFETY: rows are as long as x.
            *sum += unsafe { dot(x, row(first + i)) };
        }
    }

    /// Bytes by which codes are asked for before they are read: a page, at whose end the processor stops to look ahead.
    const AHEAD: usize = 4096;

    /// Two blocks at a time: four vectors of values, one for each of the four chains.
    ///
    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::dots_nf4`] checks; no value is subnormal.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn dots_nf4(
        code: &[f32; 16],
        absmax: &[f32],
        codes: &[u8],
        stride: usize,
        x: &[bf16],
        sums: &mut [f32],
    ) {
        let blocks = x.len() / super::DOT_BLOCK;
        // SAFETY: the code has 64 bytes, and so have the two tables.
        let (code, bytes, shifts) = unsafe {
            (
                _mm512_loadu_ps(code.as_ptr()),
                _mm512_loadu_si512(CODE_BYTES.as_ptr().cast()),
                _mm512_loadu_si512(CODE_SHIFTS.as_ptr().cast()),
            )
        };
        for (row, sum) in sums.iter_mut().enumerate() {
            let mut acc = [_mm512_setzero_ps(); 4];
            // SAFETY: the caller's bounds: a block has 32 bytes of codes, 64 values of x and an absmax.
            unsafe {
                let (codes, absmax) = (codes.as_ptr().add(row * stride), absmax.as_ptr().add(row * blocks));
                for line in (0..x.len() / 2).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(AHEAD + line).cast());
                }
                // Half a block.
                let add = |acc: __m512, half: usize, table: __m512i| {
                    let codes = _mm512_broadcast_i32x4(_mm_loadu_si128(codes.add(16 * half).cast()));
                    let index = _mm512_srlv_epi16(_mm512_shuffle_epi8(codes, bytes), shifts);
                    let values = _mm512_permutexvar_epi16(index, table);
                    let x = _mm512_loadu_si512(x.as_ptr().add(32 * half).cast());
                    _mm512_dpbf16_ps(acc, bits(x), bits(values))
                };
                for block in (0..blocks - blocks % 2).step_by(2) {
                    let scaled = |block: usize| _mm512_mul_ps(code, _mm512_set1_ps(*absmax.add(block)));
                    let both = _mm512_cvtne2ps_pbh(scaled(block + 1), scaled(block));
                    let both = std::mem::transmute::<__m512bh, __m512i>(both);
                    let (first, second) =
                        (_mm512_shuffle_i64x2::<0x44>(both, both), _mm512_shuffle_i64x2::<0xEE>(both, both));
                    acc[0] = add(acc[0], 2 * block, first);
                    acc[1] = add(acc[1], 2 * block + 1, first);
                    acc[2] = add(acc[2], 2 * block + 2, second);
                    acc[3] = add(acc[3], 2 * block + 3, second);
                }
                if blocks % 2 == 1 {
                    let table = block_table_of_normal(code, *absmax.add(blocks - 1));
                    acc[0] = add(acc[0], 2 * blocks - 2, table);
                    acc[1] = add(acc[1], 2 * blocks - 1, table);
                }
            }
            *sum += total(added(acc));
        }
    }

    /// The byte that holds the code of each value, for both bytes of the value, in a vector that has 16 bytes of codes
    /// four times.
    static CODE_BYTES: [u8; 64] = {
        let mut bytes = [0; 64];
        let mut i = 0;
        while i < 64 {
            bytes[i] = (i / 4) as u8;
            i += 1;
        }
        bytes
    };
    /// The shift of each code: the earlier code is in the high half.
    static CODE_SHIFTS: [u16; 32] = {
        let mut shifts = [0; 32];
        let mut i = 0;
        while i < 32 {
            shifts[i] = 4;
            i += 2;
        }
        shifts
    };

    #[target_feature(enable = "avx512f")]
    fn bits(x: __m512i) -> __m512bh {
        // SAFETY: vectors of the same bits.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(x) }
    }

    /// [`block_table`] of a scale that makes no subnormal value.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    fn block_table_of_normal(code: __m512, absmax: f32) -> __m512i {
        let table = _mm512_cvtneps_pbh(_mm512_mul_ps(code, _mm512_set1_ps(absmax)));
        // SAFETY: vectors of the same bits.
        _mm512_broadcast_i64x4(unsafe { std::mem::transmute::<__m256bh, __m256i>(table) })
    }

    /// # Safety
    /// The processor has the features; both rows have as many values, an even number.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn dot(x: &[bf16], y: &[bf16]) -> f32 {
        // SAFETY: the caller's.
        total(unsafe { chains(x, y) })
    }

    #[target_feature(enable = "avx512f")]
    fn added(acc: [__m512; 4]) -> __m512 {
        _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(acc[0], acc[1]), acc[2]), acc[3])
    }

    /// The four chains of a dot product, added.
    ///
    /// # Safety
    /// Those of [`dot`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn chains(x: &[bf16], y: &[bf16]) -> __m512 {
        let pairs = x.len() / 2;
        let whole = pairs / (4 * LANES) * (4 * LANES);
        let mut acc = [_mm512_setzero_ps(); 4];
        for pair in (0..whole).step_by(4 * LANES) {
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: four whole vectors are left in every round.
                let load = |row: &[bf16]| unsafe {
                    let at = row.as_ptr().add(2 * (pair + i * LANES));
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(at.cast()))
                };
                *acc = _mm512_dpbf16_ps(*acc, load(x), load(y));
            }
        }
        if whole < pairs {
            for (i, acc) in acc.iter_mut().enumerate() {
                let first = whole + i * LANES;
                let mask = ((1u32 << pairs.saturating_sub(first).min(LANES)) - 1) as u16;
                // SAFETY: pairs beyond the rows are masked off, and are zero.
                let load = |row: &[bf16]| unsafe {
                    let at = row.as_ptr().wrapping_add(2 * first);
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_maskz_loadu_epi32(mask, at.cast()))
                };
                *acc = _mm512_dpbf16_ps(*acc, load(x), load(y));
            }
        }
        added(acc)
    }
}

#[cfg(test)]
mod tests;
