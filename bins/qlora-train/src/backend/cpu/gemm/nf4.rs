//! Parts of NF4 matrices as f32, with the processor's 16-entry table look-up where it has one. The values are those of
//! [`Nf4Matrix::dequantize_rows`], bit for bit.

use qlora_kernels::nf4::Nf4Matrix;
use std::ops::Range;

/// Writes columns `columns` of rows `rows` to `out`, `stride` values from one row to the next.
pub fn read(matrix: &Nf4Matrix, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = pulp::x86::V4::try_new()
        && columns.start.is_multiple_of(16)
        && columns.len().is_multiple_of(16)
        && matrix.cols().is_multiple_of(16)
    {
        simd.vectorize(LookUp { simd, matrix, rows, columns, out, stride });
        return;
    }
    for (row, out) in rows.zip(out.chunks_mut(stride)) {
        matrix.dequantize_range(row * matrix.cols() + columns.start, &mut out[..columns.len()]);
    }
}

/// Rows and columns whose first elements are multiples of 16: groups of 16 lie in one block each.
#[cfg(target_arch = "x86_64")]
struct LookUp<'a> {
    simd: pulp::x86::V4,
    matrix: &'a Nf4Matrix,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &'a mut [f32],
    stride: usize,
}

/// Scales that are looked up together.
#[cfg(target_arch = "x86_64")]
const SCALES: usize = 16;

#[cfg(target_arch = "x86_64")]
impl pulp::NullaryFnOnce for LookUp<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let v = self.simd.avx512f;
        let table = pulp::cast(*self.matrix.code());
        let halves = v._mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        // The earlier element is the high nibble of its byte.
        let shifts = v._mm512_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24, 4, 0, 12, 8, 20, 16, 28, 24);
        let shift = self.matrix.block_size().trailing_zeros();
        for (row, out) in self.rows.zip(self.out.chunks_mut(self.stride)) {
            let mut element = row * self.matrix.cols() + self.columns.start;
            let mut rest = &mut out[..self.columns.len()];
            let last = (element + rest.len().max(1) - 1) >> shift;
            let (mut scales, mut first, mut known) = ([0.0f32; SCALES], 0, 0);
            while !rest.is_empty() {
                let block = element >> shift;
                if block >= first + known {
                    (first, known) = (block, SCALES.min(last + 1 - block));
                    self.matrix.absmax_range(first, &mut scales[..known]);
                }
                let count = (((block + 1) << shift) - element).min(rest.len());
                let (part, after) = std::mem::take(&mut rest).split_at_mut(count);
                let scale = v._mm512_set1_ps(scales[block - first]);
                let codes = &self.matrix.codes()[element / 2..][..count / 2];
                for (out, codes) in part.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<8>().0) {
                    let codes = v._mm512_set1_epi64(i64::from_le_bytes(*codes));
                    // Only the low four bits of an index count.
                    let index = v._mm512_srlv_epi32(v._mm512_permutexvar_epi32(halves, codes), shifts);
                    *out = pulp::cast(v._mm512_mul_ps(v._mm512_permutexvar_ps(index, table), scale));
                }
                element += count;
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_kernels::nf4::Nf4Options;

    #[test]
    fn parts_equal_those_of_the_whole_matrix() {
        for (rows, cols, block_size) in [(7, 192, 64), (5, 96, 32), (9, 48, 128), (6, 37, 64), (3, 4096, 4096)] {
            let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
            for double_quant in [true, false] {
                let options = Nf4Options { block_size, double_quant };
                let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
                let whole = matrix.dequantize();
                for columns in [0..cols, 16..cols.min(32), cols / 3..cols - 1] {
                    let mut out = vec![f32::NAN; (rows - 1) * 5000];
                    read(&matrix, 1..rows, columns.clone(), &mut out, 5000);
                    for row in 1..rows {
                        let part = &out[(row - 1) * 5000..][..columns.len()];
                        assert!(
                            part == &whole[row * cols..][columns.clone()],
                            "{rows} x {cols} / {block_size}, row {row}"
                        );
                    }
                }
            }
        }
    }
}
