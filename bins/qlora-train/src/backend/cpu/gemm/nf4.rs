//! Parts of NF4 matrices as f32, and their products with rows, with the processor's table look-up where it has one. The
//! values are those of [`Nf4Matrix::dequantize_rows`], bit for bit.

use super::bf16_rows::has_vectors;
use super::{GROUP, LANES};
use qlora_kernels::nf4::Nf4Matrix;
use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::prefetch::prefetch;
#[cfg(target_arch = "x86_64")]
use look_up::{LookUp, Work, with_vectors};

/// Writes columns `columns` of rows `rows` to `out`, `stride` values from one row to the next.
pub fn read(matrix: &Nf4Matrix, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(groups) = groups(matrix, &columns) {
        let ends = [columns.start..groups.start, groups.end..columns.end];
        let part = Part { matrix, rows: rows.clone(), columns: groups, out: &mut out[ends[0].len()..], stride };
        if with_vectors(matrix.code(), part).is_ok() {
            for end in ends.into_iter().filter(|end| !end.is_empty()) {
                let first = end.start - columns.start;
                one_by_one(matrix, rows.clone(), end, &mut out[first..], stride);
            }
            return;
        }
    }
    one_by_one(matrix, rows, columns, out, stride);
}

fn one_by_one(matrix: &Nf4Matrix, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
    for (row, out) in rows.zip(out.chunks_mut(stride)) {
        matrix.dequantize_range(row * matrix.cols() + columns.start, &mut out[..columns.len()]);
    }
}

/// Bytes between the codes that are multiplied and those that are brought into the caches: the processor looks ahead
/// by itself, but not beyond a page.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// The whole groups among these columns, each of which lies in one block; none if there are none, or rows begin within
/// one.
#[cfg(target_arch = "x86_64")]
fn groups(matrix: &Nf4Matrix, columns: &Range<usize>) -> Option<Range<usize>> {
    let groups = columns.start.next_multiple_of(GROUP)..columns.end / GROUP * GROUP;
    (matrix.cols().is_multiple_of(GROUP) && groups.start < groups.end).then_some(groups)
}

/// Columns of rows that are read, of whole groups.
#[cfg(target_arch = "x86_64")]
struct Part<'a> {
    matrix: &'a Nf4Matrix,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &'a mut [f32],
    stride: usize,
}

#[cfg(target_arch = "x86_64")]
impl Work for Part<'_> {
    #[inline(always)]
    fn run(self, look_up: &impl LookUp) {
        /// Scales that are read together.
        const SCALES: usize = 16;
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
                let codes = &self.matrix.codes()[element / 2..][..count / 2];
                for (out, codes) in part.as_chunks_mut::<GROUP>().0.iter_mut().zip(codes.as_chunks().0) {
                    *out = look_up.values(*codes, scales[block - first]);
                }
                element += count;
                rest = after;
            }
        }
    }
}

/// Rows of a matrix with the scales of their blocks, to be multiplied.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub struct ScaledRows<'a> {
    matrix: &'a Nf4Matrix,
    first_row: usize,
    scales: &'a [f32],
    first_block: usize,
}

impl<'a> ScaledRows<'a> {
    /// True if the processor has a look-up, parts of `chunk` columns are whole groups, and the scales of a row are at
    /// most `scales`.
    pub fn can_read(matrix: &Nf4Matrix, chunk: usize, scales: usize) -> bool {
        let is_whole = matrix.cols().is_multiple_of(GROUP) && chunk.is_multiple_of(GROUP);
        has_vectors() && is_whole && Self::at_once(matrix, scales) > 0
    }

    /// Rows whose scales are at most `scales`. A block may begin in the row before.
    pub fn at_once(matrix: &Nf4Matrix, scales: usize) -> usize {
        (scales - 1) * matrix.block_size() / matrix.cols().max(1)
    }

    /// Reads the scales of `rows` to the beginning of `scales`.
    pub fn read_scales(matrix: &Nf4Matrix, rows: &Range<usize>, scales: &mut [f32]) {
        let first_block = rows.start * matrix.cols() / matrix.block_size();
        let end = (rows.end * matrix.cols()).div_ceil(matrix.block_size());
        matrix.absmax_range(first_block, &mut scales[..end - first_block]);
    }

    /// `rows` with the scales that [`read_scales`](Self::read_scales) has read for them.
    pub fn new(matrix: &'a Nf4Matrix, rows: &Range<usize>, scales: &'a [f32]) -> Self {
        let first_block = rows.start * matrix.cols() / matrix.block_size();
        Self { matrix, first_row: rows.start, scales, first_block }
    }

    /// Writes partial sums of the products of `x` with as many columns of each row, from `first` on; both are whole
    /// groups.
    pub fn products(&self, x: &[f32], first: usize, sums: &mut [[f32; LANES]]) {
        assert!(first.is_multiple_of(GROUP) && x.len().is_multiple_of(GROUP), "{} columns from {first}", x.len());
        #[cfg(target_arch = "x86_64")]
        if with_vectors(self.matrix.code(), Products { rows: *self, x, first, sums: &mut *sums }).is_ok() {
            return;
        }
        unreachable!("`can_read` has seen the processor's look-up; {} rows", sums.len());
    }
}

#[cfg(target_arch = "x86_64")]
struct Products<'a> {
    rows: ScaledRows<'a>,
    x: &'a [f32],
    first: usize,
    sums: &'a mut [[f32; LANES]],
}

#[cfg(target_arch = "x86_64")]
impl Work for Products<'_> {
    #[inline(always)]
    fn run(self, look_up: &impl LookUp) {
        let ScaledRows { matrix, first_row, scales, first_block } = self.rows;
        let shift = matrix.block_size().trailing_zeros();
        let x = self.x.as_chunks::<GROUP>().0;
        let all = matrix.codes();
        for (row, sums) in self.sums.iter_mut().enumerate() {
            let element = (first_row + row) * matrix.cols() + self.first;
            let ahead = all.len().min(element / 2 + AHEAD);
            prefetch(&all[ahead..all.len().min(ahead + self.x.len() / 2)]);
            let codes = all[element / 2..][..self.x.len() / 2].as_chunks::<{ GROUP / 2 }>().0;
            let (mut even, mut odd) = (look_up.zeros(), look_up.zeros());
            let mut at = element;
            for (x, codes) in x.chunks(2).zip(codes.chunks(2)) {
                even = look_up.add(codes[0], scales[(at >> shift) - first_block], &x[0], even);
                if let (Some(x), Some(codes)) = (x.get(1), codes.get(1)) {
                    odd = look_up.add(*codes, scales[((at + GROUP) >> shift) - first_block], x, odd);
                }
                at += 2 * GROUP;
            }
            sums[..GROUP].copy_from_slice(&look_up.stored(even));
            sums[GROUP..].copy_from_slice(&look_up.stored(odd));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod look_up;

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_kernels::nf4::Nf4Options;

    #[test]
    fn parts_equal_those_of_the_whole_matrix() {
        for (rows, cols, block_size) in
            [(7, 192, 64), (5, 96, 32), (9, 48, 128), (6, 37, 64), (3, 4096, 4096), (4, 160, 32)]
        {
            let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
            for double_quant in [true, false] {
                let options = Nf4Options { block_size, double_quant };
                let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
                let whole = matrix.dequantize();
                for columns in [0..cols, 16..cols.min(32), cols / 3..cols - 1, 1..33, cols - 33..cols] {
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
