//! Frozen weights as bf16: NF4 through a table for each block, 16-bit weights as they are.

use super::dots;
use super::isa::Isa;
use super::layout;
use super::pairs::{Panel, WIDTH};
use super::rows::round;
use super::stored::{Stored, dots_of_copies};
use half::bf16;
use qlora_kernels::nf4::Nf4Matrix;
use std::ops::Range;

/// Blocks whose absmax is looked up together.
const BLOCKS: usize = 32;
/// Rows whose absmax is looked up together, where each has one.
const ROWS: usize = 64;
/// Blocks of a dot product whose absmax is looked up together: those of a row and more.
const DOT_BLOCKS: usize = 256;

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
            layout::prefetch(&self.codes()[start..start + columns.len() / 2]);
        }
    }

    /// Whole blocks are dequantized in registers.
    fn dots(
        &self,
        isa: Isa,
        rows: Range<usize>,
        columns: Range<usize>,
        x: &[bf16],
        sums: &mut [f32],
        scratch: &mut [bf16],
    ) {
        let (block, cols) = (self.block_size(), self.cols());
        let blocks = columns.len().div_ceil(block);
        let in_registers = block == dots::DOT_BLOCK
            && blocks <= DOT_BLOCKS
            && [cols, columns.start, columns.len()].iter().all(|len| len.is_multiple_of(block));
        if !in_registers {
            return dots_of_copies(self, isa, rows, columns, x, sums, scratch);
        }
        let mut absmax = [0.0; DOT_BLOCKS];
        // The scales of several rows lie side by side where the rows are whole.
        let together = if columns.len() == cols { DOT_BLOCKS / blocks } else { 1 };
        for (first, sums) in rows.step_by(together).zip(sums.chunks_mut(together)) {
            let absmax = &mut absmax[..sums.len() * blocks];
            let element = first * cols + columns.start;
            self.absmax_range(element / block, absmax);
            dots::dots_nf4(isa, self.code(), absmax, &self.codes()[element / 2..], cols / 2, x, sums, scratch);
        }
    }
}

#[cfg(test)]
mod tests;
