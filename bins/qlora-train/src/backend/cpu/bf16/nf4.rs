//! Frozen weights as bf16: NF4 through a table for each block, 16-bit weights as they are.

use super::dots;
use super::isa::Isa;
use super::layout;
use super::pairs::{Panel, WIDTH};
use super::rows::round;
use super::scales;
use super::stored::{SCALES, Stored, dots_of_copies};
use crate::backend::cpu::gemm::prefetch::prefetch;
use half::bf16;
use qlora_kernels::nf4::{Absmax, Nf4Matrix};
use std::ops::Range;

/// Blocks whose absmax is looked up together.
const BLOCKS: usize = 32;
/// Rows whose absmax is looked up together, where each has one.
const ROWS: usize = 64;

/// Brings what is stored of `count` scales into the caches: a thin stream beside that of the codes, which the processor
/// does not look far ahead of.
fn prefetch_scales(matrix: &Nf4Matrix, first: usize, count: usize) {
    fn part<T>(all: &[T], first: usize, count: usize) -> &[T] {
        &all[first..all.len().min(first + count)]
    }
    match matrix.absmax() {
        Absmax::F32(absmax) => prefetch(part(absmax, first, count)),
        Absmax::DoubleQuantized { codes, .. } => prefetch(part(codes, first, count)),
    }
}

impl Stored for Nf4Matrix {
    /// The values of [`Nf4Matrix::dequantize_range`], rounded to bf16.
    fn read(&self, isa: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        let (block, mut element) = (self.block_size(), row * self.cols() + columns.start);
        let mut rest = out;
        while !rest.is_empty() {
            let first = element / block;
            let begun = element % block;
            // A block that begins before the row's part is read alone, and so is one that ends in half a byte.
            let alone = begun > 0 || rest.len() < block;
            let count =
                if alone { (block - begun).min(rest.len()) } else { rest.len().min(BLOCKS * block) / block * block };
            let (part, after) = std::mem::take(&mut rest).split_at_mut(count);
            let mut absmax = [0.0; BLOCKS];
            let blocks = count.div_ceil(block);
            self.absmax_range(first, &mut absmax[..blocks]);
            let head = element % 2;
            let whole = (count - head) / 2;
            let at = |element: usize| {
                let byte = self.codes()[element / 2];
                let index = if element.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                round(self.code()[usize::from(index)] * absmax[0])
            };
            if head == 1 {
                part[0] = at(element);
            }
            if head + 2 * whole < count {
                part[count - 1] = at(element + count - 1);
            }
            let codes = &self.codes()[(element + head) / 2..][..whole];
            layout::dequantize(isa, self.code(), &absmax[..blocks], block, codes, &mut part[head..head + 2 * whole]);
            element += count;
            rest = after;
        }
    }

    /// Rows of a whole panel's width that lie in one block each.
    fn pair_rows(&self, isa: Isa, rows: Range<usize>, columns: Range<usize>, panel: Panel) -> usize {
        let (block, cols) = (self.block_size(), self.cols());
        let begins_alike = cols.is_multiple_of(block) && cols.is_multiple_of(2) && columns.start.is_multiple_of(2);
        let in_one_block = columns.start / block == (columns.end - 1) / block;
        let count = rows.len() / 2 * 2;
        if count == 0 || columns.len() != WIDTH || !begins_alike || !in_one_block {
            return 0;
        }
        let places = panel.places;
        for first in (0..count).step_by(ROWS) {
            let mut absmax = [0.0; ROWS];
            let absmax = &mut absmax[..ROWS.min(count - first)];
            let element = (rows.start + first) * cols + columns.start;
            self.absmax_strided(element / block, cols / block, absmax);
            let panel = Panel { data: &mut panel.data[first / 2 * places.tile..], places };
            if !layout::pair_codes(isa, self.code(), absmax, &self.codes()[element / 2..], cols / 2, panel) {
                return 0;
            }
        }
        count
    }

    fn prefetch(&self, row: usize, columns: Range<usize>) {
        if row < self.rows() {
            let start = (row * self.cols() + columns.start) / 2;
            prefetch(&self.codes()[start..start + columns.len() / 2]);
        }
    }

    /// Whole blocks are dequantized in registers.
    fn dots(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        x: &[&[bf16]],
        sums: &mut [f32],
        scratch: &mut [u32],
    ) {
        let (block, cols, k) = (self.block_size(), self.cols(), columns.len());
        let blocks = k.div_ceil(block);
        let in_registers = block == dots::DOT_BLOCK
            && blocks <= SCALES
            && [cols, columns.start, k].iter().all(|len| len.is_multiple_of(block));
        if !in_registers {
            return dots_of_copies(self, isa, rows, columns, x, sums, scratch);
        }
        prefetch_scales(self, rows.start * cols / block, 2 * rows.len() * blocks);
        let (absmax, ordered) = scratch.split_at_mut(SCALES);
        let absmax: &mut [f32] = bytemuck::cast_slice_mut(absmax);
        let ordered = &mut bytemuck::cast_slice_mut::<u32, bf16>(ordered)[..x.len() * k];
        x.iter().zip(ordered.chunks_exact_mut(k)).for_each(|(x, to)| dots::in_order_of_codes(x, to));
        // The scales of several rows lie side by side where the rows are whole.
        let together = if k == cols { WIDTH.min(SCALES / blocks) } else { 1 };
        for first in rows.clone().step_by(together) {
            let count = together.min(rows.end - first);
            let (absmax, element) = (&mut absmax[..count * blocks], first * cols + columns.start);
            scales::absmax_range(isa, self, element / block, absmax);
            let (codes, sums) = (&self.codes()[element / 2..], &mut sums[first - rows.start..]);
            dots::dots_nf4(isa, self.code(), absmax, codes, cols / 2, ordered, x.len(), sums);
        }
    }
}

#[cfg(test)]
mod tests;
