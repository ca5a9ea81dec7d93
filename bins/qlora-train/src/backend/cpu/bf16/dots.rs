//! Dot products of bf16 numbers, for a token of text: panels are not worth making for it.

#![allow(unsafe_code)]

use super::fused::fused;
use super::isa::{Isa, LANES};
use super::layout::dequantize;
use super::pairs::WIDTH;
use crate::backend::cpu::gemm::simd::vectorized;
use half::bf16;

/// Rows that are multiplied together at most.
pub const FEW: usize = 4;

/// Pairs that are added in one step: one to each sum of four vectors.
const STEP: usize = 4 * LANES;

/// Σ x·y in four vectors of interleaved chains, added in order, and then their halves, quarters and so on. Lengths are
/// equal and even.
pub fn dot(isa: Isa, x: &[bf16], y: &[bf16]) -> f32 {
    assert!(x.len() == y.len() && x.len().is_multiple_of(2), "rows of pairs");
    match isa.has_vectors() {
        // SAFETY: the processor has the instructions; the lengths are equal and even.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { x86::dot(x, y) },
        _ => {
            let mut sums = [0.0f32; STEP];
            for (x, y) in x.chunks(2 * STEP).zip(y.chunks(2 * STEP)) {
                add_pairs(x, y, &mut sums);
            }
            total(sums)
        }
    }
}

/// The sum of four vectors of sums.
fn total(sums: [f32; STEP]) -> f32 {
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

vectorized! {
    /// Writes values to `out` in the order in which words of codes give them up: of every two blocks, and of one at the
    /// end, the first of each four values, then the second of each, and so on.
    pub fn in_order_of_codes<'a>(values: &'a [bf16], out: &'a mut [bf16]) {
        let (pairs, rest) = values.as_chunks::<{ 2 * DOT_BLOCK }>();
        let (to, rest_to) = out.as_chunks_mut::<{ 2 * DOT_BLOCK }>();
        pairs.iter().zip(to).for_each(|(values, out)| deal(values, out));
        let (one, to) = (rest.as_chunks::<DOT_BLOCK>().0, rest_to.as_chunks_mut::<DOT_BLOCK>().0);
        one.iter().zip(to).for_each(|(values, out)| deal(values, out));
    }
}

#[inline(always)]
fn deal<const N: usize>(values: &[bf16; N], out: &mut [bf16; N]) {
    for i in 0..N / 4 {
        for j in 0..4 {
            out[j * (N / 4) + i] = values[4 * i + j];
        }
    }
}

/// Adds to `sums` the [`dot`] of each of `count` rows of `x`, at most [`FEW`], with as many rows of codes as `absmax`
/// is for, [dequantized](dequantize), `stride` bytes apart; both in the [order of codes](in_order_of_codes), which `x`
/// has already. A row has whole blocks of [`DOT_BLOCK`]; `absmax` holds theirs, row after row. The sums of a row of `x`
/// lie [`WIDTH`] after those of the row before.
pub fn dots_nf4(
    isa: Isa,
    code: &[f32; 16],
    absmax: &[f32],
    codes: &[u8],
    stride: usize,
    x: &[bf16],
    count: usize,
    sums: &mut [f32],
) {
    let k = x.len() / count;
    assert!(k > 0 && x.len() == count * k && k.is_multiple_of(DOT_BLOCK) && stride >= k / 2, "whole blocks");
    let (blocks, rows) = (k / DOT_BLOCK, absmax.len() * DOT_BLOCK / k);
    assert!(rows > 0 && absmax.len() == rows * blocks, "an absmax for every block");
    assert!(codes.len() >= (rows - 1) * stride + k / 2, "codes out of bounds");
    assert!(rows <= WIDTH && sums.len() >= (count - 1) * WIDTH + rows, "sums out of bounds");
    match isa.has_vectors() {
        // The conversion instruction takes a subnormal value for zero.
        #[cfg(target_arch = "x86_64")]
        true if are_normal(absmax) => {
            // SAFETY: the processor has the instructions; the bounds were checked above.
            unsafe {
                match count {
                    1 => x86::dots_nf4::<1>(code, absmax, codes, stride, x, sums),
                    2 => x86::dots_nf4::<2>(code, absmax, codes, stride, x, sums),
                    3 => x86::dots_nf4::<3>(code, absmax, codes, stride, x, sums),
                    FEW => x86::dots_nf4::<FEW>(code, absmax, codes, stride, x, sums),
                    _ => unreachable!("{count} rows together"),
                }
            }
        }
        _ => {
            for row in 0..rows {
                let (codes, absmax) = (&codes[row * stride..][..k / 2], &absmax[row * blocks..][..blocks]);
                for (x, sums) in x.chunks_exact(k).zip(sums.chunks_mut(WIDTH)) {
                    sums[row] += dot_of_codes(isa, code, absmax, codes, x);
                }
            }
        }
    }
}

vectorized! {
    /// True if no value under these scales is subnormal. Every scale is looked at, without a branch.
    #[cfg(target_arch = "x86_64")]
    fn are_normal<'a>(absmax: &'a [f32]) -> bool {
        // Twice the bits, as a number without a sign, grow with the value; 1 less turns zero into the largest.
        let least = absmax.iter().fold(u32::MAX, |least, x| least.min((x.to_bits() << 1).wrapping_sub(1)));
        least >= 1e-30f32.to_bits() << 1
    }
}

/// One element of [`dots_nf4`].
fn dot_of_codes(isa: Isa, code: &[f32; 16], absmax: &[f32], codes: &[u8], x: &[bf16]) -> f32 {
    let (mut sums, mut values, mut ordered) = ([0.0f32; STEP], [bf16::ZERO; 2 * STEP], [bf16::ZERO; 2 * STEP]);
    for ((x, codes), absmax) in x.chunks(2 * DOT_BLOCK).zip(codes.chunks(DOT_BLOCK)).zip(absmax.chunks(2)) {
        let (values, ordered) = (&mut values[..x.len()], &mut ordered[..x.len()]);
        dequantize(isa, code, absmax, DOT_BLOCK, codes, values);
        in_order_of_codes(values, ordered);
        add_pairs(x, ordered, &mut sums);
    }
    total(sums)
}

fn add_pairs(x: &[bf16], y: &[bf16], sums: &mut [f32]) {
    for (sum, (x, y)) in sums.iter_mut().zip(x.as_chunks::<2>().0.iter().zip(y.as_chunks::<2>().0)) {
        *sum = fused(x[0].to_f32(), y[0].to_f32(), fused(x[1].to_f32(), y[1].to_f32(), *sum));
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{DOT_BLOCK, LANES, WIDTH};
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
        // SAFETY: the caller's.
        unsafe {
            match x.len() / 2 {
                0 => {}
                // Rows of a head, whose other factor stays in registers.
                1..=16 => each_dot(values, stride, sums, short::<1>(x)),
                17..=32 => each_dot(values, stride, sums, short::<2>(x)),
                33..=64 => each_dot(values, stride, sums, short::<4>(x)),
                _ => each_dot(values, stride, sums, |row| {
                    for at in (0..x.len()).step_by(PAGE / 4) {
                        begin_page(row.wrapping_add(at + PAGE / 4).cast());
                    }
                    chains(x, std::slice::from_raw_parts(row, x.len()))
                }),
            }
        }
    }

    /// Adds to `sums` the total of what `chains` gives for each row.
    ///
    /// # Safety
    /// Those of [`dots`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn each_dot(values: &[bf16], stride: usize, sums: &mut [f32], chains: impl Fn(*const bf16) -> __m512) {
        // Pointers move on; computing each address would cost as much as the products.
        let mut row = values.as_ptr();
        let mut next = |all: &mut [__m512]| {
            for all in all {
                *all = chains(row);
                row = row.wrapping_add(stride);
            }
        };
        let (groups, rest) = sums.as_chunks_mut::<LANES>();
        for sums in groups {
            let mut all = [_mm512_setzero_ps(); LANES];
            next(&mut all);
            // SAFETY: as many sums as there are.
            unsafe { add_totals(all, sums.as_mut_ptr(), LANES) };
        }
        if !rest.is_empty() {
            let mut all = [_mm512_setzero_ps(); LANES];
            next(&mut all[..rest.len()]);
            // SAFETY: as many sums as there are.
            unsafe { add_totals(all, rest.as_mut_ptr(), rest.len()) };
        }
    }

    /// Adds the [`totals`] of the first `count` vectors to as many sums.
    ///
    /// # Safety
    /// The processor has the features, and there are as many sums, 1 to 16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn add_totals(all: [__m512; LANES], sums: *mut f32, count: usize) {
        let mask = (u32::from(u16::MAX) >> (LANES - count)) as u16;
        // SAFETY: the caller's; others are masked off.
        unsafe {
            let before = _mm512_maskz_loadu_ps(mask, sums);
            _mm512_mask_storeu_ps(sums, mask, _mm512_add_ps(before, totals(all)));
        }
    }

    /// The chains of a dot product of `V` vectors at most with each of other rows.
    ///
    /// # Safety
    /// The processor has the features; rows have as many values as `x`, more than `V - 1` vectors at least.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn short<const V: usize>(x: &[bf16]) -> impl Fn(*const bf16) -> __m512 {
        let pairs = x.len() / 2;
        let mask = |i: usize| ((1u32 << pairs.saturating_sub(i * LANES).min(LANES)) - 1) as u16;
        let masks: [u16; V] = std::array::from_fn(mask);
        // SAFETY: pairs beyond the rows are masked off, and are zero.
        let load = move |row: *const bf16, i: usize| unsafe {
            bits(_mm512_maskz_loadu_epi32(masks[i], row.wrapping_add(2 * LANES * i).cast()))
        };
        let x: [__m512bh; V] = std::array::from_fn(|i| load(x.as_ptr(), i));
        move |row| {
            let chain = |i: usize| _mm512_dpbf16_ps(_mm512_setzero_ps(), x[i], load(row, i));
            (1..V).fold(chain(0), |sum, i| _mm512_add_ps(sum, chain(i)))
        }
    }

    const PAGE: usize = 4096;

    /// Brings the first line of the page into the caches, and where the page lies: the processor looks ahead by itself,
    /// but not beyond a page.
    #[inline(always)]
    fn begin_page(at: *const u8) {
        // SAFETY: reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.map_addr(|at| at & !(PAGE - 1)).cast()) };
    }

    /// Sixteen rows of codes at a time, each with `R` rows of `x`.
    ///
    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::dots_nf4`] checks; no value is subnormal.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn dots_nf4<const R: usize>(
        code: &[f32; 16],
        absmax: &[f32],
        codes: &[u8],
        stride: usize,
        x: &[bf16],
        sums: &mut [f32],
    ) {
        let blocks = x.len() / R / DOT_BLOCK;
        let rows = absmax.len() / blocks;
        // SAFETY: the code has 64 bytes.
        let code = unsafe { _mm512_loadu_ps(code.as_ptr()) };
        for first in (0..rows).step_by(LANES) {
            let count = LANES.min(rows - first);
            let mut all = [[_mm512_setzero_ps(); LANES]; R];
            for i in 0..count {
                // SAFETY: the caller's bounds.
                let row = unsafe {
                    let (absmax, codes) =
                        (absmax.as_ptr().add((first + i) * blocks), codes.as_ptr().add((first + i) * stride));
                    row_of_codes::<R>(code, absmax, codes, blocks, x.as_ptr())
                };
                all.iter_mut().zip(row).for_each(|(all, sum)| all[i] = sum);
            }
            for (r, all) in all.into_iter().enumerate() {
                // SAFETY: the caller's bounds.
                unsafe { add_totals(all, sums.as_mut_ptr().add(r * WIDTH + first), count) };
            }
        }
    }

    /// The four chains of the dot product of one row of codes with each of `R` rows of `x`, added.
    ///
    /// Two blocks are 32 words of four codes: one vector, which gives up the first code of every word, and the others
    /// shifted down. A table has the values of both blocks; the fifth bit of an index chooses the block.
    ///
    /// # Safety
    /// The processor has the features; there are as many blocks of absmax, of codes and of each row of `x`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    unsafe fn row_of_codes<const R: usize>(
        code: __m512,
        absmax: *const f32,
        codes: *const u8,
        blocks: usize,
        x: *const bf16,
    ) -> [__m512; R] {
        const AND_OR: i32 = 0xEA;
        let nibbles = _mm512_set1_epi8(0x0F);
        let later_block = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi8(0x10));
        let mut acc = [[_mm512_setzero_ps(); 4]; R];
        let (mut absmax, mut codes, mut x) = (absmax, codes, x);
        // SAFETY: the caller's bounds.
        unsafe {
            let mut add = |x: *const bf16, chain: usize, index: __m512i, table: __m512i| {
                let values = bits(_mm512_permutexvar_epi16(index, table));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = bits(_mm512_loadu_si512(x.add(r * blocks * DOT_BLOCK + chain * 2 * LANES).cast()));
                    acc[chain] = _mm512_dpbf16_ps(acc[chain], x, values);
                }
            };
            for _ in 0..blocks / 2 {
                // What is done with a line takes so long that the processor does not see the next ones in time.
                _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(PAGE).cast());
                begin_page(codes.wrapping_add(2 * PAGE));
                let scaled = |block: usize| _mm512_mul_ps(code, _mm512_set1_ps(*absmax.add(block)));
                let table = _mm512_cvtne2ps_pbh(scaled(1), scaled(0));
                let table = std::mem::transmute::<__m512bh, __m512i>(table);
                let words = _mm512_loadu_si512(codes.cast());
                let low = _mm512_ternarylogic_epi32::<AND_OR>(words, nibbles, later_block);
                let high = _mm512_ternarylogic_epi32::<AND_OR>(_mm512_srli_epi16::<4>(words), nibbles, later_block);
                add(x, 0, high, table);
                add(x, 1, low, table);
                add(x, 2, _mm512_srli_epi16::<8>(high), table);
                add(x, 3, _mm512_srli_epi16::<8>(low), table);
                (absmax, codes, x) = (absmax.add(2), codes.add(DOT_BLOCK), x.add(2 * DOT_BLOCK));
            }
            if blocks % 2 == 1 {
                let table = block_table_of_normal(code, *absmax);
                let words = _mm512_broadcast_i64x4(_mm256_loadu_si256(codes.cast()));
                let shifts =
                    |first, second| _mm512_inserti64x4::<1>(_mm512_set1_epi16(first), _mm256_set1_epi16(second));
                add(x, 0, _mm512_srlv_epi16(words, shifts(4, 0)), table);
                add(x, 1, _mm512_srlv_epi16(words, shifts(12, 8)), table);
            }
        }
        std::array::from_fn(|r| added(acc[r]))
    }

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
