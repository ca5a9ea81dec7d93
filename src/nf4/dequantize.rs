//! NF4 to f32 or bf16.

use super::{CODE, Nf4Matrix};
use half::bf16;
use std::ops::Range;

/// The values of both codes of a byte, first the high nibble's: one 8-byte load for two elements.
type Pairs = [[f32; 2]; 256];

const fn pairs(code: &[f32; 16]) -> Pairs {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < 256 {
        pairs[byte] = [code[byte >> 4], code[byte & 15]];
        byte += 1;
    }
    pairs
}

static NF4_PAIRS: Pairs = pairs(&CODE);

impl Nf4Matrix {
    /// Writes rows `rows` as f32 to `out` `[rows.len(), cols]`, row-major.
    ///
    /// Panics when the range passes the last row or `out` has another length.
    pub fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        assert!(
            rows.start <= rows.end && rows.end <= self.rows(),
            "rows {rows:?} of an NF4 matrix that has {}",
            self.rows()
        );
        assert_eq!(out.len(), rows.len() * self.cols(), "length of `out` for rows {rows:?} of {} columns", self.cols());
        self.dequantize_from(rows.start * self.cols(), out);
    }

    /// All elements as f32, row-major `[rows, cols]`.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.len()];
        self.dequantize_from(0, &mut out);
        out
    }

    /// All elements as bf16, row-major `[rows, cols]`: the f32 of [`dequantize`](Self::dequantize), rounded to nearest
    /// even.
    pub fn dequantize_bf16(&self) -> Vec<bf16> {
        let mut out = vec![bf16::ZERO; self.len()];
        let mut buffer = [0.0; 4096];
        for (i, out) in out.chunks_mut(buffer.len()).enumerate() {
            let chunk = &mut buffer[..out.len()];
            self.dequantize_from(i * 4096, chunk);
            out.iter_mut().zip(chunk).for_each(|(y, x)| *y = bf16::from_f32(*x));
        }
        out
    }

    /// Writes elements `first..first + out.len()` of the flattened matrix as f32.
    ///
    /// Panics when the range passes the last element.
    pub fn dequantize_range(&self, first: usize, out: &mut [f32]) {
        assert!(
            first <= self.len() && out.len() <= self.len() - first,
            "{} elements from {first} of an NF4 matrix that has {}",
            out.len(),
            self.len()
        );
        self.dequantize_from(first, out);
    }

    fn dequantize_from(&self, mut element: usize, mut out: &mut [f32]) {
        let own;
        let pairs = if *self.code() == CODE {
            &NF4_PAIRS
        } else {
            own = pairs(self.code());
            &own
        };
        while !out.is_empty() {
            let block = element / self.block_size();
            let count = ((block + 1) * self.block_size() - element).min(out.len());
            let (segment, rest) = out.split_at_mut(count);
            dequantize_segment(pairs, self.codes(), element, self.absmax_at(block), segment);
            element += count;
            out = rest;
        }
    }
}

/// Elements `first..first + out.len()` of one block. A range that begins or ends within a byte uses half of it.
#[inline]
fn dequantize_segment(pairs: &Pairs, codes: &[u8], first: usize, absmax: f32, out: &mut [f32]) {
    let (head, out) = out.split_at_mut((first % 2).min(out.len()));
    if let [x] = head {
        *x = pairs[usize::from(codes[first / 2])][1] * absmax;
    }
    let begin = first.div_ceil(2);
    let (whole, tail) = out.as_chunks_mut::<2>();
    let end = begin + whole.len();
    for (out, &byte) in whole.iter_mut().zip(&codes[begin..end]) {
        *out = pairs[usize::from(byte)].map(|code| code * absmax);
    }
    if let [x] = tail {
        *x = pairs[usize::from(codes[end])][0] * absmax;
    }
}
