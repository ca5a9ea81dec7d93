//! Frozen weights as bf16: NF4 through a table for each block, 16-bit weights as they are.

use super::gemm::Stored;
use super::isa::{self, Isa};
use super::rows::round;
use half::bf16;
use qlora_kernels::nf4::Nf4Matrix;
use std::ops::Range;

/// Blocks whose absmax is looked up together.
const BLOCKS: usize = 32;

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
            absmax[..blocks].iter_mut().enumerate().for_each(|(i, absmax)| *absmax = self.absmax_at(first + i));
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
            isa::dequantize(isa, self.code(), &absmax[..blocks], block, codes, &mut part[head..head + 2 * whole]);
            element += count;
            rest = after;
        }
    }

    /// Whole blocks are dequantized in registers.
    fn dot(&self, isa: Isa, row: usize, columns: Range<usize>, x: &[bf16], scratch: &mut [bf16]) -> f32 {
        let (block, first) = (self.block_size(), row * self.cols() + columns.start);
        let blocks = columns.len().div_ceil(block);
        if blocks > BLOCKS || !first.is_multiple_of(block) || !columns.len().is_multiple_of(32) {
            let values = &mut scratch[..columns.len()];
            self.read(isa, row, columns, values);
            return isa::dot(isa, x, values);
        }
        let mut absmax = [0.0; BLOCKS];
        let of_block = |(i, absmax): (usize, &mut f32)| *absmax = self.absmax_at(first / block + i);
        absmax[..blocks].iter_mut().enumerate().for_each(of_block);
        let codes = &self.codes()[first / 2..][..columns.len() / 2];
        isa::dot_nf4(isa, self.code(), &absmax[..blocks], block, codes, x, scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_kernels::nf4::Nf4Options;

    #[test]
    fn a_dot_product_is_that_of_the_values() {
        // One to seven vectors of the four chains, whole blocks and parts of them, one beyond the table of absmax.
        for (rows, cols, block_size) in
            [(3, 32, 32), (5, 224, 32), (4, 576, 64), (3, 96, 64), (2, 4096, 64), (3, 92, 32)]
        {
            let weight: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.37).sin() * (i % 61) as f32).collect();
            let x: Vec<bf16> = (0..cols).map(|i| bf16::from_f32((i as f32 * 0.71).cos())).collect();
            let options = Nf4Options { block_size, double_quant: true };
            let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
            let isa = Isa::detect().unwrap_or(Isa::SCALAR);
            for columns in [0..cols, 0..32, 32.min(cols / 2)..cols - cols % 32] {
                for row in 0..rows {
                    let (mut values, mut scratch) = (vec![bf16::ZERO; columns.len()], vec![bf16::NAN; cols]);
                    matrix.read(Isa::SCALAR, row, columns.clone(), &mut values);
                    let x = &x[columns.clone()];
                    let expected = isa::dot(Isa::SCALAR, x, &values);
                    for isa in [isa, Isa::SCALAR] {
                        let found = matrix.dot(isa, row, columns.clone(), x, &mut scratch);
                        assert_eq!(found, expected, "{rows} x {cols} / {block_size}, {columns:?} of row {row}");
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
