//! Values laid out as panels have them: codes and rows of bf16, by pairs along the contraction.
//!
//! Every function has a scalar twin that gives the same bits.

#![allow(unsafe_code)]

use super::isa::{Isa, LANES};
use super::pairs::{Panel, WIDTH, pair};
use super::rows::round;
use half::bf16;

/// Rows by which a matrix is asked for before it is read: a part of every row is no stream that the processor sees.
pub const AHEAD: usize = 16;

/// Pair j of row i becomes `out[j · stride + i]`; rows hold as many pairs each.
pub fn transpose(isa: Isa, rows: &[&[bf16]; LANES], out: &mut [u32], stride: usize) {
    let len = rows[0].len() / 2;
    assert!(len > 0 && rows.iter().all(|row| row.len() == 2 * len), "rows of equal length");
    assert!(stride >= LANES && out.len() >= (len - 1) * stride + LANES, "transposed rows out of bounds");
    let whole = match isa.has_vectors() {
        // SAFETY: the processor has the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { x86::transpose(rows, len, out, stride) },
        _ => 0,
    };
    for j in whole..len {
        for (i, row) in rows.iter().enumerate() {
            out[j * stride + i] = pair(row[2 * j], row[2 * j + 1]);
        }
    }
}

/// `out[i] = bf16(code[codes[i]] · absmax[i / block])` for NF4 codes, two in a byte, the earlier one in the high half.
/// All blocks but the last are whole.
pub fn dequantize(isa: Isa, code: &[f32; 16], absmax: &[f32], block: usize, codes: &[u8], out: &mut [bf16]) {
    assert_eq!(out.len(), 2 * codes.len(), "a byte holds two codes");
    assert!(block.is_multiple_of(2) && absmax.len() * block >= out.len(), "an absmax for every block");
    match isa.has_vectors() {
        // SAFETY: the processor has the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        true if block.is_multiple_of(32) && out.len().is_multiple_of(32) => unsafe {
            x86::dequantize(code, absmax, block, codes, out);
        },
        _ => {
            for ((out, codes), absmax) in out.chunks_mut(block).zip(codes.chunks(block / 2)).zip(absmax) {
                let table: [bf16; 16] = std::array::from_fn(|i| round(code[i] * absmax));
                for (out, code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                    *out = [table[usize::from(code >> 4)], table[usize::from(code & 15)]];
                }
            }
        }
    }
}

/// `out[i] = (low[i], high[i])`
pub fn interleave(isa: Isa, low: &[bf16], high: &[bf16], out: &mut [u32]) {
    assert!(low.len() == out.len() && high.len() == out.len(), "rows of equal length");
    let whole = match isa.has_vectors() {
        // SAFETY: the processor has the instructions; the lengths were checked above.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { x86::interleave(low, high, out) },
        _ => 0,
    };
    for i in whole..out.len() {
        out[i] = pair(low[i], high[i]);
    }
}

/// The first `columns` values of `count` rows, `stride` apart, by pairs of rows.
pub fn pair_rows(isa: Isa, rows: &[bf16], stride: usize, count: usize, columns: usize, panel: Panel) {
    assert!(count > 0 && count.is_multiple_of(2) && rows.len() >= (count - 1) * stride + columns, "rows out of bounds");
    assert!(columns > 0 && columns <= WIDTH && panel.places.tile.is_multiple_of(LANES), "{columns} columns of a panel");
    assert!(panel.data.len() > panel.places.at(count / 2 - 1, columns - 1), "a panel of {} pairs", panel.places.pairs);
    let whole = match isa.has_vectors() {
        // SAFETY: the processor has the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { x86::pair_rows(rows, stride, count, columns, panel.data, panel.places) },
        _ => 0,
    };
    for row in (0..count).step_by(2) {
        for column in whole..columns {
            let at = panel.places.at(row / 2, column);
            panel.data[at] = pair(rows[row * stride + column], rows[(row + 1) * stride + column]);
        }
    }
}

/// [`dequantize`] of [`WIDTH`] values of each of as many rows as there are `absmax`, `stride` bytes apart, by pairs of
/// rows. Returns whether it was done: without instructions for it there is no better way than row by row.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
pub fn pair_codes(isa: Isa, code: &[f32; 16], absmax: &[f32], codes: &[u8], stride: usize, panel: Panel) -> bool {
    let count = absmax.len();
    assert!(count > 0 && count.is_multiple_of(2) && codes.len() >= (count - 1) * stride + WIDTH / 2, "rows of codes");
    assert!(
        panel.places.tile.is_multiple_of(LANES) && panel.data.len() > panel.places.at(count / 2 - 1, WIDTH - 1),
        "out of bounds"
    );
    match isa.has_vectors() {
        #[cfg(target_arch = "x86_64")]
        true => {
            // SAFETY: the processor has the instructions; the bounds were checked above.
            unsafe { x86::pair_codes(code, absmax, codes, stride, panel.data, panel.places) };
            true
        }
        _ => false,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::pairs::{PAIRS_OF_TWO, Places, WIDTH};
    use super::{AHEAD, LANES};
    use half::bf16;
    use std::arch::x86_64::*;

    /// Returns how many columns it did: all but those that do not fill a vector.
    ///
    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::transpose`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn transpose(from: &[&[bf16]; LANES], len: usize, out: &mut [u32], stride: usize) -> usize {
        let whole = len / LANES * LANES;
        for start in (0..whole).step_by(LANES) {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (row, from) in rows.iter_mut().zip(from) {
                // SAFETY: the caller's bounds.
                *row = unsafe { _mm512_loadu_ps(from.as_ptr().add(2 * start).cast()) };
            }
            // Four rounds, each of which exchanges one bit of the row's number with one of the column's.
            let mut a = rows;
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            let mut b = a;
            for i in 0..4 {
                for j in 0..2 {
                    let (x, y) = (_mm512_castps_pd(a[4 * i + j]), _mm512_castps_pd(a[4 * i + j + 2]));
                    b[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(x, y));
                    b[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(x, y));
                }
            }
            // b[4i + c] holds, in its quarter q, columns 4q + c of rows 4i .. 4i + 4.
            for c in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x88>(b[c], b[4 + c]);
                let high = _mm512_shuffle_f32x4::<0x88>(b[8 + c], b[12 + c]);
                let low_odd = _mm512_shuffle_f32x4::<0xDD>(b[c], b[4 + c]);
                let high_odd = _mm512_shuffle_f32x4::<0xDD>(b[8 + c], b[12 + c]);
                let columns = [
                    (c, _mm512_shuffle_f32x4::<0x88>(low, high)),
                    (8 + c, _mm512_shuffle_f32x4::<0xDD>(low, high)),
                    (4 + c, _mm512_shuffle_f32x4::<0x88>(low_odd, high_odd)),
                    (12 + c, _mm512_shuffle_f32x4::<0xDD>(low_odd, high_odd)),
                ];
                for (column, values) in columns {
                    // SAFETY: the caller's bounds.
                    unsafe { _mm512_storeu_ps(out.as_mut_ptr().add((start + column) * stride).cast(), values) };
                }
            }
        }
        whole
    }

    /// # Safety
    /// The processor has the features, and the lengths are those that [`super::dequantize`] checks, in whole vectors.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn dequantize(code: &[f32; 16], absmax: &[f32], block: usize, codes: &[u8], out: &mut [bf16]) {
        for (number, absmax) in absmax.iter().enumerate() {
            let start = number * block;
            if start >= out.len() {
                return;
            }
            let table = block_table(code, *absmax);
            for i in (start..(start + block).min(out.len())).step_by(32) {
                // SAFETY: in every round 16 bytes of codes and 64 of values are left.
                unsafe {
                    let values = values_of(_mm_loadu_si128(codes.as_ptr().add(i / 2).cast()), table);
                    _mm512_storeu_si512(out.as_mut_ptr().add(i).cast(), values);
                }
            }
        }
    }

    /// [`scaled`], twice.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn block_table(code: &[f32; 16], absmax: f32) -> __m512i {
        // SAFETY: the code has 64 bytes.
        let code = unsafe { _mm512_loadu_ps(code.as_ptr()) };
        _mm512_broadcast_i64x4(scaled(code, absmax))
    }

    /// The 16 values of a block in bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn scaled(code: __m512, absmax: f32) -> __m256i {
        let (half, one) = (_mm512_set1_epi32(0x7FFF), _mm512_set1_epi32(1));
        // Rounded to bf16 by integers: the conversion instruction takes subnormal numbers for zero.
        let bits = _mm512_castps_si512(_mm512_mul_ps(code, _mm512_set1_ps(absmax)));
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), one);
        let rounded = _mm512_srli_epi32::<16>(_mm512_add_epi32(bits, _mm512_add_epi32(half, odd)));
        _mm512_cvtepi32_epi16(rounded)
    }

    /// The 32 values of 16 bytes of codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn values_of(codes: __m128i, table: __m512i) -> __m512i {
        let codes = _mm512_cvtepu8_epi32(codes);
        // Only the low five bits of an index count, and the table is there twice.
        let index = _mm512_or_si512(_mm512_srli_epi32::<4>(codes), _mm512_slli_epi32::<16>(codes));
        _mm512_permutexvar_epi16(index, table)
    }

    /// Returns how many columns it did: all that fill a vector.
    ///
    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::pair_rows`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn pair_rows(
        rows: &[bf16],
        stride: usize,
        count: usize,
        columns: usize,
        panel: &mut [u32],
        places: Places,
    ) -> usize {
        let (rows, whole) = (rows.as_ptr(), columns / LANES * LANES);
        let [first, second] = pairs_of_two();
        // The places of each vector of columns; computing them each time would take as long as the pairs.
        let mut out = [panel.as_mut_ptr(); WIDTH / LANES];
        for (out, column) in out.iter_mut().zip((0..whole).step_by(LANES)) {
            *out = out.wrapping_add(places.at(0, column));
        }
        let mut low = rows;
        for pair in 0..count / 2 {
            let high = low.wrapping_add(stride);
            for ahead in [low, high] {
                let ahead = ahead.wrapping_add(AHEAD * stride);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(columns - 1).cast());
            }
            let at = pair * places.tile;
            let mut vector = 0;
            while (vector + 2) * LANES <= whole {
                // SAFETY: 32 values of both rows and 32 pairs are left in every round.
                unsafe {
                    let low = _mm512_loadu_si512(low.add(vector * LANES).cast());
                    let high = _mm512_loadu_si512(high.add(vector * LANES).cast());
                    let to = [out[vector].add(at), out[vector + 1].add(at)];
                    _mm512_storeu_si512(to[0].cast(), _mm512_permutex2var_epi16(low, first, high));
                    _mm512_storeu_si512(to[1].cast(), _mm512_permutex2var_epi16(low, second, high));
                }
                vector += 2;
            }
            if vector * LANES < whole {
                // SAFETY: 16 values of both rows and 16 pairs are left.
                unsafe {
                    let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.add(vector * LANES).cast()));
                    let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(high.add(vector * LANES).cast()));
                    let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                    _mm512_storeu_si512(out[vector].add(at).cast(), pairs);
                }
            }
            low = high.wrapping_add(stride);
        }
        whole
    }

    #[target_feature(enable = "avx512f")]
    fn pairs_of_two() -> [__m512i; 2] {
        // SAFETY: 64 bytes each.
        let load = |numbers: &[u16; 32]| unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) };
        [load(&PAIRS_OF_TWO[0]), load(&PAIRS_OF_TWO[1])]
    }

    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::pair_codes`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn pair_codes(
        code: &[f32; 16],
        absmax: &[f32],
        codes: &[u8],
        stride: usize,
        panel: &mut [u32],
        places: Places,
    ) {
        // SAFETY: the code has 64 bytes.
        let code = unsafe { _mm512_loadu_ps(code.as_ptr()) };
        let (codes, out) = (codes.as_ptr(), panel.as_mut_ptr());
        let four_bits = _mm256_set1_epi8(15);
        // Codes of the second row are looked up in the second half of the table.
        let second = _mm512_set1_epi32(16 << 16);
        for (number, absmax) in absmax.as_chunks::<2>().0.iter().enumerate() {
            let table =
                _mm512_inserti64x4::<1>(_mm512_castsi256_si512(scaled(code, absmax[0])), scaled(code, absmax[1]));
            let row = codes.wrapping_add(2 * number * stride);
            for ahead in [AHEAD, AHEAD + 1] {
                _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(ahead * stride).cast());
            }
            // Bytes of codes 0..16 and 32..48, and of the others.
            let split = |bytes: __m256i| {
                let earlier = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), four_bits);
                let later = _mm256_and_si256(bytes, four_bits);
                (_mm256_unpacklo_epi8(earlier, later), _mm256_unpackhi_epi8(earlier, later))
            };
            // SAFETY: both rows have 32 bytes.
            let (low, high) = unsafe {
                (split(_mm256_loadu_si256(row.cast())), split(_mm256_loadu_si256(row.wrapping_add(stride).cast())))
            };
            let first = |bytes| _mm256_castsi256_si128(bytes);
            let last = |bytes| _mm256_extracti128_si256::<1>(bytes);
            let parts = [
                (first(low.0), first(high.0)),
                (first(low.1), first(high.1)),
                (last(low.0), last(high.0)),
                (last(low.1), last(high.1)),
            ];
            for (part, (low, high)) in parts.into_iter().enumerate() {
                let high = _mm512_or_si512(_mm512_slli_epi32::<16>(_mm512_cvtepu8_epi32(high)), second);
                let values = _mm512_permutexvar_epi16(_mm512_or_si512(_mm512_cvtepu8_epi32(low), high), table);
                // SAFETY: 16 pairs of the panel.
                unsafe { _mm512_storeu_si512(out.add(places.at(number, part * LANES)).cast(), values) };
            }
        }
    }

    /// Returns how many pairs it did.
    ///
    /// # Safety
    /// The processor has the features, and the lengths are those that [`super::interleave`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub unsafe fn interleave(low: &[bf16], high: &[bf16], out: &mut [u32]) -> usize {
        let [first, second] = pairs_of_two();
        let twice = out.len() / 32 * 32;
        for i in (0..twice).step_by(32) {
            // SAFETY: 32 values of each row and 32 pairs are left in every round.
            unsafe {
                let low = _mm512_loadu_si512(low.as_ptr().add(i).cast());
                let high = _mm512_loadu_si512(high.as_ptr().add(i).cast());
                let to = out.as_mut_ptr().add(i);
                _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi16(low, first, high));
                _mm512_storeu_si512(to.add(LANES).cast(), _mm512_permutex2var_epi16(low, second, high));
            }
        }
        if out.len() - twice < LANES {
            return twice;
        }
        // SAFETY: 16 values of each row and 16 pairs are left.
        unsafe {
            let low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(low.as_ptr().add(twice).cast()));
            let high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(high.as_ptr().add(twice).cast()));
            let pairs = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
            _mm512_storeu_si512(out.as_mut_ptr().add(twice).cast(), pairs);
        }
        twice + LANES
    }
}

#[cfg(test)]
mod tests;
