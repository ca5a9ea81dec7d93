//! Scales of blocks in NF4, of which a row of weights has one in 64.

#![allow(unsafe_code)]

use super::isa::Isa;
use qlora_kernels::nf4::Nf4Matrix;

/// [`Nf4Matrix::absmax_range`], with the same bits.
pub fn absmax_range(isa: Isa, matrix: &Nf4Matrix, first: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        use qlora_kernels::nf4::Absmax;

        // Processors with instructions for bf16 exist that lack those for tables of bytes.
        let has_vectors = isa.has_vectors() && is_x86_feature_detected!("avx512vbmi");
        if let Absmax::DoubleQuantized { codes, nested_absmax, nested_block_size, nested_map, offset } = matrix.absmax()
            && has_vectors
        {
            // Fewer are not worth the time that making the table takes.
            if out.len() >= x86::CODES {
                let codes = &codes[first..][..out.len()];
                // SAFETY: the processor has the instructions; there are as many codes as scales, and a matrix has a
                // nested absmax for each of its codes.
                unsafe { x86::absmax(codes, first, nested_absmax, *nested_block_size, nested_map, *offset, out) };
                return;
            }
        }
    }
    let _ = isa;
    matrix.absmax_range(first, out);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Codes of a vector.
    pub const CODES: usize = 64;

    /// Byte b of the 256 values of a map, for each b of four: four vectors of 64.
    type Planes = [[__m512i; 4]; 4];

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn planes(map: &[f32; 256]) -> Planes {
        let mut planes = [[_mm512_setzero_si512(); 4]; 4];
        // Bytes b of 32 values that lie in two vectors, and then their bytes b + 1.
        let two_bytes: [u8; 128] = std::array::from_fn(|i| ((i % 32) * 4 + i / 32) as u8);
        for (b, order) in [0, 2].into_iter().zip(two_bytes.as_chunks::<64>().0) {
            // SAFETY: 64 bytes.
            let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
            for (q, values) in map.as_chunks::<64>().0.iter().enumerate() {
                // SAFETY: four vectors of sixteen values.
                let at = |i: usize| unsafe { _mm512_loadu_si512(values.as_ptr().add(16 * i).cast()) };
                let low = _mm512_permutex2var_epi8(at(0), order, at(1));
                let high = _mm512_permutex2var_epi8(at(2), order, at(3));
                planes[b][q] = _mm512_shuffle_i64x2::<0x44>(low, high);
                planes[b + 1][q] = _mm512_shuffle_i64x2::<0xEE>(low, high);
            }
        }
        planes
    }

    /// `out[i] = map[codes[i]] · nested_absmax[(first + i) / nested_block_size] + offset`, each rounded.
    ///
    /// # Safety
    /// The processor has avx512f, avx512bw and avx512vbmi, and `out` has as many values as there are codes.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub unsafe fn absmax(
        codes: &[u8],
        first: usize,
        nested_absmax: &[f32],
        nested_block_size: usize,
        map: &[f32; 256],
        offset: f32,
        out: &mut [f32],
    ) {
        let (planes, offset) = (planes(map), _mm512_set1_ps(offset));
        // Quarters of a vector are interleaved on their own: quarter i is to get codes 4i, 16 + 4i, 32 + 4i and 48 + 4i
        // with the three after each.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let mut at = 0;
        while at < codes.len() {
            let nested = (first + at) / nested_block_size;
            let count = ((nested + 1) * nested_block_size - first - at).min(codes.len() - at).min(CODES);
            let mask = u64::MAX >> (CODES - count);
            // SAFETY: codes beyond the last are masked off.
            let codes = unsafe { _mm512_maskz_loadu_epi8(mask, codes.as_ptr().add(at).cast()) };
            let codes = _mm512_permutexvar_epi32(order, codes);
            let is_in_upper_half = _mm512_movepi8_mask(codes);
            let byte = |b: usize| {
                let [p, q, r, s] = planes[b];
                let (lower, upper) = (_mm512_permutex2var_epi8(p, codes, q), _mm512_permutex2var_epi8(r, codes, s));
                _mm512_mask_blend_epi8(is_in_upper_half, lower, upper)
            };
            let (zero, one, two, three) = (byte(0), byte(1), byte(2), byte(3));
            let early = (_mm512_unpacklo_epi8(zero, one), _mm512_unpacklo_epi8(two, three));
            let late = (_mm512_unpackhi_epi8(zero, one), _mm512_unpackhi_epi8(two, three));
            let sixteens = [
                _mm512_unpacklo_epi16(early.0, early.1),
                _mm512_unpackhi_epi16(early.0, early.1),
                _mm512_unpacklo_epi16(late.0, late.1),
                _mm512_unpackhi_epi16(late.0, late.1),
            ];
            let nested = _mm512_set1_ps(nested_absmax[nested]);
            for (i, values) in sixteens.into_iter().enumerate() {
                let scales = _mm512_add_ps(_mm512_mul_ps(_mm512_castsi512_ps(values), nested), offset);
                // SAFETY: scales beyond the last are masked off.
                unsafe {
                    let to = out.as_mut_ptr().wrapping_add(at + 16 * i);
                    _mm512_mask_storeu_ps(to, (mask >> (16 * i)) as u16, scales);
                }
            }
            at += count;
        }
    }
}

#[cfg(test)]
mod tests;
