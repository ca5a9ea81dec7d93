//! The 16 values of NF4 looked up in registers: as numbers with AVX-512, byte by byte with AVX2.
//!
//! No instruction stands in a closure here: the compiler keeps closures outside of the function that has the vectors,
//! and calls each of their instructions.

use crate::backend::cpu::gemm::GROUP;
use pulp::x86::{V3, V4};
use qlora_kernels::nf4::CODE;
use std::arch::x86_64::{__m256, __m256i, __m512, __m512i};

/// Work with the values of codes, compiled for each kind of look-up.
pub trait Work {
    fn run(self, look_up: &impl LookUp);
}

/// Values of codes, and the registers that this takes. Of the two codes of a byte, the high nibble is the earlier one.
pub trait LookUp {
    /// Sums in registers, one for each value of a group
    type Sums: Copy;

    /// The values of a group, times `scale`.
    fn values(&self, codes: [u8; GROUP / 2], scale: f32) -> [f32; GROUP];

    fn zeros(&self) -> Self::Sums;

    /// Adds `x` times [`values`](Self::values), both rounded, to the sums.
    fn add(&self, codes: [u8; GROUP / 2], scale: f32, x: &[f32; GROUP], sums: Self::Sums) -> Self::Sums;

    fn stored(&self, sums: Self::Sums) -> [f32; GROUP];
}

/// Does the work with the look-up of this processor, and gives it back where the processor has vectors for none.
pub fn with_vectors<W: Work>(code: &[f32; 16], work: W) -> Result<(), W> {
    match V4::try_new() {
        Some(simd) => simd.vectorize(Wide { simd, code, work }),
        None => return with_bytes(code, work),
    }
    Ok(())
}

fn with_bytes<W: Work>(code: &[f32; 16], work: W) -> Result<(), W> {
    let Some(simd) = V3::try_new() else { return Err(work) };
    simd.vectorize(Bytes { simd, code, work });
    Ok(())
}

struct Wide<'a, W> {
    simd: V4,
    code: &'a [f32; 16],
    work: W,
}

impl<W: Work> pulp::NullaryFnOnce for Wide<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let v = self.simd.avx512f;
        let halves = v._mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        let shifts = v._mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
        self.work.run(&WideTable { simd: self.simd, table: pulp::cast(*self.code), halves, shifts });
    }
}

struct WideTable {
    simd: V4,
    table: __m512,
    halves: __m512i,
    shifts: __m512i,
}

impl WideTable {
    #[inline(always)]
    fn look_up(&self, codes: [u8; GROUP / 2], scale: f32) -> [__m512; 2] {
        let [first, second]: [i64; 2] = pulp::cast(codes);
        [self.half(first, scale), self.half(second, scale)]
    }

    #[inline(always)]
    fn half(&self, codes: i64, scale: f32) -> __m512 {
        let v = self.simd.avx512f;
        // Only the low four bits of an index count.
        let codes = v._mm512_permutexvar_epi32(self.halves, v._mm512_set1_epi64(codes));
        let index = v._mm512_srlv_epi32(codes, self.shifts);
        v._mm512_mul_ps(v._mm512_permutexvar_ps(index, self.table), v._mm512_set1_ps(scale))
    }
}

impl LookUp for WideTable {
    type Sums = [__m512; 2];

    #[inline(always)]
    fn values(&self, codes: [u8; GROUP / 2], scale: f32) -> [f32; GROUP] {
        pulp::cast(self.look_up(codes, scale))
    }

    #[inline(always)]
    fn zeros(&self) -> Self::Sums {
        [self.simd.avx512f._mm512_setzero_ps(); 2]
    }

    #[inline(always)]
    fn add(&self, codes: [u8; GROUP / 2], scale: f32, x: &[f32; GROUP], mut sums: Self::Sums) -> Self::Sums {
        let (v, values, x) = (self.simd.avx512f, self.look_up(codes, scale), pulp::cast::<_, [__m512; 2]>(*x));
        for i in 0..2 {
            sums[i] = v._mm512_add_ps(sums[i], v._mm512_mul_ps(x[i], values[i]));
        }
        sums
    }

    #[inline(always)]
    fn stored(&self, sums: Self::Sums) -> [f32; GROUP] {
        pulp::cast(sums)
    }
}

struct Bytes<'a, W> {
    simd: V3,
    code: &'a [f32; 16],
    work: W,
}

impl<W: Work> pulp::NullaryFnOnce for Bytes<'_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let own;
        let planes = if *self.code == CODE {
            &NF4_PLANES
        } else {
            own = planes(self.code);
            &own
        };
        let v = self.simd.avx;
        let twice = v._mm256_setr_epi8(
            0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15,
        );
        let (earlier, later) = (v._mm256_set1_epi16(0x000F), v._mm256_set1_epi16(0x0F00));
        self.work.run(&BytePlanes { simd: self.simd, planes: pulp::cast(*planes), twice, earlier, later });
    }
}

/// The bytes of the values of codes: first, second, third and fourth ones, for each half of a vector.
type Planes = [[[u8; 16]; 2]; 4];

static NF4_PLANES: Planes = planes(&CODE);

const fn planes(code: &[f32; 16]) -> Planes {
    let mut planes = [[[0; 16]; 2]; 4];
    let mut at = 0;
    while at < 64 {
        let byte = code[at % 16].to_le_bytes()[at / 16];
        planes[at / 16][0][at % 16] = byte;
        planes[at / 16][1][at % 16] = byte;
        at += 1;
    }
    planes
}

/// A table for each byte of a value, which a shuffle of bytes looks up for 32 codes.
struct BytePlanes {
    simd: V3,
    planes: [__m256i; 4],
    /// Puts the bytes of codes twice each into the order in which interleaving leaves their values one after the other.
    twice: __m256i,
    earlier: __m256i,
    later: __m256i,
}

impl BytePlanes {
    #[inline(always)]
    fn look_up(&self, codes: [u8; GROUP / 2], scale: f32) -> [__m256; 4] {
        let (v, w) = (self.simd.avx, self.simd.avx2);
        let bytes = w._mm256_shuffle_epi8(w._mm256_broadcastsi128_si256(pulp::cast(codes)), self.twice);
        let earlier = w._mm256_and_si256(w._mm256_srli_epi16::<4>(bytes), self.earlier);
        let index = w._mm256_or_si256(earlier, w._mm256_and_si256(bytes, self.later));
        let a = w._mm256_shuffle_epi8(self.planes[0], index);
        let b = w._mm256_shuffle_epi8(self.planes[1], index);
        let c = w._mm256_shuffle_epi8(self.planes[2], index);
        let d = w._mm256_shuffle_epi8(self.planes[3], index);
        let (low, low_later) = (w._mm256_unpacklo_epi8(a, b), w._mm256_unpackhi_epi8(a, b));
        let (high, high_later) = (w._mm256_unpacklo_epi8(c, d), w._mm256_unpackhi_epi8(c, d));
        let values = [
            w._mm256_unpacklo_epi16(low, high),
            w._mm256_unpackhi_epi16(low, high),
            w._mm256_unpacklo_epi16(low_later, high_later),
            w._mm256_unpackhi_epi16(low_later, high_later),
        ];
        let mut scaled = [v._mm256_set1_ps(scale); 4];
        for (scaled, values) in scaled.iter_mut().zip(values) {
            *scaled = v._mm256_mul_ps(v._mm256_castsi256_ps(values), *scaled);
        }
        scaled
    }
}

impl LookUp for BytePlanes {
    type Sums = [__m256; 4];

    #[inline(always)]
    fn values(&self, codes: [u8; GROUP / 2], scale: f32) -> [f32; GROUP] {
        pulp::cast(self.look_up(codes, scale))
    }

    #[inline(always)]
    fn zeros(&self) -> Self::Sums {
        [self.simd.avx._mm256_setzero_ps(); 4]
    }

    #[inline(always)]
    fn add(&self, codes: [u8; GROUP / 2], scale: f32, x: &[f32; GROUP], mut sums: Self::Sums) -> Self::Sums {
        let (v, values, x) = (self.simd.avx, self.look_up(codes, scale), pulp::cast::<_, [__m256; 4]>(*x));
        for i in 0..4 {
            sums[i] = v._mm256_add_ps(sums[i], v._mm256_mul_ps(x[i], values[i]));
        }
        sums
    }

    #[inline(always)]
    fn stored(&self, sums: Self::Sums) -> [f32; GROUP] {
        pulp::cast(sums)
    }
}

#[cfg(test)]
mod tests;
