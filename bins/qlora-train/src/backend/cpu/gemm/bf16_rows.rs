//! Rows of bf16, widened in registers where the processor has vectors for it.

use super::LANES;
use super::prefetch::prefetch;
use half::bf16;

/// Elements between those that are multiplied and those that are brought into the caches: a page.
const AHEAD: usize = 2048;

/// Rows of a matrix of `stride` columns, from an element on.
pub struct Bf16Rows<'a> {
    values: &'a [bf16],
    stride: usize,
    first: usize,
}

impl<'a> Bf16Rows<'a> {
    pub fn of(values: &'a [bf16], stride: usize) -> Self {
        Self { values, stride, first: 0 }
    }

    pub fn begin(&mut self, row: usize, column: usize) {
        self.first = row * self.stride + column;
    }

    /// Writes partial sums of the products of `x` with each row; only where the processor [has vectors](has_vectors).
    pub fn multiply(&self, x: &[f32], sums: &mut [[f32; LANES]]) {
        #[cfg(target_arch = "x86_64")]
        if vectors::multiply(self, x, sums) {
            return;
        }
        unreachable!("no vectors for {} columns of {} rows", x.len(), sums.len());
    }

    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    /// Elements of a row, as many as `x` has; others are brought into the caches.
    fn row(&self, row: usize, x: &[f32]) -> &[bf16] {
        let at = self.first + row * self.stride;
        let ahead = self.values.len().min(at + AHEAD);
        prefetch(&self.values[ahead..self.values.len().min(ahead + x.len())]);
        &self.values[at..][..x.len()]
    }
}

/// True if the processor has vectors of 256 bits or more, which [`multiply`](Bf16Rows::multiply) takes.
pub fn has_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return pulp::x86::V3::try_new().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
mod vectors {
    use super::{Bf16Rows, LANES};
    use half::bf16;
    use pulp::x86::{V3, V4};
    use std::arch::x86_64::{__m128i, __m256, __m256i, __m512};

    pub fn multiply(rows: &Bf16Rows, x: &[f32], sums: &mut [[f32; LANES]]) -> bool {
        if let Some(simd) = V4::try_new() {
            simd.vectorize(Wide { simd, rows, x, sums });
            return true;
        }
        multiply_in_halves(rows, x, sums)
    }

    pub fn multiply_in_halves(rows: &Bf16Rows, x: &[f32], sums: &mut [[f32; LANES]]) -> bool {
        let Some(simd) = V3::try_new() else { return false };
        simd.vectorize(Halves { simd, rows, x, sums });
        true
    }

    /// Adds the products that do not fill all lanes.
    #[inline(always)]
    fn add_rest(x: &[f32], row: &[bf16], sums: &mut [f32; LANES]) {
        for (sum, (x, value)) in sums.iter_mut().zip(x.iter().zip(row)) {
            *sum += x * f32::from_bits(u32::from(value.to_bits()) << 16);
        }
    }

    struct Wide<'a> {
        simd: V4,
        rows: &'a Bf16Rows<'a>,
        x: &'a [f32],
        sums: &'a mut [[f32; LANES]],
    }

    impl pulp::NullaryFnOnce for Wide<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let v = self.simd.avx512f;
            let (x, x_rest) = self.x.as_chunks::<LANES>();
            for (row, out) in self.sums.iter_mut().enumerate() {
                let (row, row_rest) = self.rows.row(row, self.x).as_chunks::<LANES>();
                let mut sums = [v._mm512_setzero_ps(); LANES / 16];
                for (x, row) in x.iter().zip(row) {
                    let (x, row): ([__m512; LANES / 16], [__m256i; LANES / 16]) = (pulp::cast(*x), pulp::cast(*row));
                    for i in 0..LANES / 16 {
                        let value = v._mm512_slli_epi32::<16>(v._mm512_cvtepu16_epi32(row[i]));
                        sums[i] = v._mm512_add_ps(sums[i], v._mm512_mul_ps(x[i], v._mm512_castsi512_ps(value)));
                    }
                }
                *out = pulp::cast(sums);
                add_rest(x_rest, row_rest, out);
            }
        }
    }

    struct Halves<'a> {
        simd: V3,
        rows: &'a Bf16Rows<'a>,
        x: &'a [f32],
        sums: &'a mut [[f32; LANES]],
    }

    impl pulp::NullaryFnOnce for Halves<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let (v, w) = (self.simd.avx, self.simd.avx2);
            let (x, x_rest) = self.x.as_chunks::<LANES>();
            for (row, out) in self.sums.iter_mut().enumerate() {
                let (row, row_rest) = self.rows.row(row, self.x).as_chunks::<LANES>();
                let mut sums = [v._mm256_setzero_ps(); LANES / 8];
                for (x, row) in x.iter().zip(row) {
                    let (x, row): ([__m256; LANES / 8], [__m128i; LANES / 8]) = (pulp::cast(*x), pulp::cast(*row));
                    for i in 0..LANES / 8 {
                        let value = w._mm256_slli_epi32::<16>(w._mm256_cvtepu16_epi32(row[i]));
                        sums[i] = v._mm256_add_ps(sums[i], v._mm256_mul_ps(x[i], v._mm256_castsi256_ps(value)));
                    }
                }
                *out = pulp::cast(sums);
                add_rest(x_rest, row_rest, out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
