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
mod tests {
    use super::super::pairs::{Places, pair};
    use super::*;
    use qlora_kernels::nf4::Nf4Options;

    #[test]
    fn a_dot_product_is_that_of_the_values() {
        // Even and odd numbers of blocks, parts of blocks, other sizes of blocks, more rows than are looked up
        // together, a row with more blocks than that, scales that make subnormal values.
        for (rows, cols, block_size, size) in [
            (3, 32, 32, 1.0),
            (5, 224, 32, 1.0),
            (70, 576, 64, 1.0),
            (5, 64, 64, 1.0),
            (3, 96, 64, 1.0),
            (2, 17_408, 64, 1.0),
            (3, 92, 32, 1.0),
            (4, 128, 64, 1e-37),
        ] {
            let weight: Vec<f32> = (0..rows * cols).map(|i| size * (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
            let x: Vec<bf16> = (0..cols).map(|i| bf16::from_f32((i as f32 * 0.71).cos())).collect();
            for double_quant in [true, false] {
                let options = Nf4Options { block_size, double_quant };
                let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
                let isa = Isa::detect().unwrap_or(Isa::SCALAR);
                for columns in [0..cols, 0..32, 32.min(cols / 2)..cols - cols % 32] {
                    let x = &x[columns.clone()];
                    let (mut values, mut scratch) = (vec![bf16::ZERO; columns.len()], vec![bf16::NAN; cols]);
                    let mut dot = |row: usize| {
                        matrix.read(isa, row, columns.clone(), &mut values);
                        0.5 + dots::dot(isa, x, &values)
                    };
                    for rows in [0..rows, 1..rows, rows - 1..rows] {
                        let expected: Vec<f32> = rows.clone().map(&mut dot).collect();
                        let mut found = vec![0.5; rows.len()];
                        matrix.dots(isa, rows.clone(), columns.clone(), x, &mut found, &mut scratch);
                        assert_eq!(found, expected, "{rows:?} x {cols} / {block_size}, {columns:?}");
                        // The instructions take subnormal numbers for zero; the twin does not.
                        let mut twin = vec![0.5; rows.len()];
                        matrix.dots(Isa::SCALAR, rows.clone(), columns.clone(), x, &mut twin, &mut scratch);
                        assert!(size < 1.0 || twin == expected, "{rows:?} x {cols} / {block_size}, {columns:?}");
                    }
                }
            }
        }
    }

    /// Blocks of a panel's width and wider ones, more rows than are looked up together, an odd number of rows; matrices
    /// and parts that no vector reads.
    #[test]
    fn pairs_of_rows_are_those_of_the_values() {
        for (rows, cols, block_size) in [(150, 192, 64), (5, 256, 128), (7, 4096, 4096), (6, 96, 32), (4, 65, 64)] {
            let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
            for double_quant in [true, false] {
                let options = Nf4Options { block_size, double_quant };
                let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
                let whole = matrix.dequantize();
                let value = |row: usize, column: usize| bf16::from_f32(whole[row * cols + column]);
                for (tile, first) in [(16, 0), (64, 1)] {
                    for columns in [0..64, cols - 64..cols, 0..32] {
                        let pairs = (rows - first) / 2 + 1;
                        let mut panel = vec![7; 64 * pairs];
                        let isa = Isa::avx512_bf16().unwrap_or(Isa::SCALAR);
                        let data = Panel { data: &mut panel, places: Places { pairs, tile } };
                        let done = matrix.pair_rows(isa, first..rows, columns.clone(), data);
                        let read =
                            isa != Isa::SCALAR && columns.len() == 64 && cols % block_size == 0 && block_size >= 64;
                        assert_eq!(
                            done,
                            if read { (rows - first) / 2 * 2 } else { 0 },
                            "{rows} x {cols} / {block_size}"
                        );
                        for (row, i) in (first..first + done).step_by(2).zip(0..) {
                            for (j, column) in columns.clone().enumerate() {
                                let found = std::mem::replace(&mut panel[(j / tile * pairs + i) * tile + j % tile], 7);
                                assert_eq!(found, pair(value(row, column), value(row + 1, column)), "{row}, {column}");
                            }
                        }
                        assert!(panel.iter().all(|&x| x == 7), "{rows} x {cols} / {block_size} writes more");
                    }
                }
            }
        }
    }

    #[test]
    fn values_are_the_dequantized_ones_rounded_once() {
        for (rows, cols, block_size) in [(7, 192, 64), (5, 37, 32), (3, 4096, 4096), (4, 90, 128)] {
            let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
            for double_quant in [true, false] {
                let options = Nf4Options { block_size, double_quant };
                let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
                let whole = matrix.dequantize();
                for columns in [0..cols, 1..cols - 2, cols / 3..cols / 2] {
                    for row in 0..rows {
                        for isa in [Isa::detect().unwrap_or(Isa::SCALAR), Isa::SCALAR] {
                            let mut out = vec![bf16::NAN; columns.len()];
                            matrix.read(isa, row, columns.clone(), &mut out);
                            let expected = whole[row * cols..][columns.clone()].iter().map(|&x| bf16::from_f32(x));
                            assert!(out.iter().copied().eq(expected), "{rows} x {cols} / {block_size}");
                        }
                    }
                }
            }
        }
    }
}
