//! Operands of a product, and how its contraction is cut.

use super::CHUNK;
use super::pack::{Stored, turn};
use std::ops::Range;

/// The left operand `[M, k]` of a product.
#[derive(Clone, Copy)]
pub enum Left<'a> {
    /// Row-major, `stride` values from one row to the next
    Rows { data: &'a [f32], stride: usize },
    /// Column-major, `stride` values from one column to the next
    Columns { data: &'a [f32], stride: usize },
}

impl Left<'_> {
    pub fn at(&self, row: usize, column: usize) -> f32 {
        match *self {
            Left::Rows { data, stride } => data[row * stride + column],
            Left::Columns { data, stride } => data[column * stride + row],
        }
    }
}

/// The right operand `[k, N]` of a product, read panel by panel.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// The matrix from row `first` on
    Upright { matrix: &'a dyn Stored, first: usize },
    /// The transposed matrix
    Turned(&'a dyn Stored),
}

impl<'a> Right<'a> {
    pub fn upright(matrix: &'a dyn Stored) -> Self {
        Right::Upright { matrix, first: 0 }
    }

    pub fn fill(&self, steps: Range<usize>, columns: Range<usize>, panel: &mut [f32], width: usize) {
        match *self {
            Right::Upright { matrix, first } => {
                matrix.read(first + steps.start..first + steps.end, columns, panel, width);
            }
            Right::Turned(matrix) => turn(matrix, steps, columns, panel, width),
        }
    }
}

/// One product of a sum of products.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub left: Left<'a>,
    pub k: usize,
    pub right: Right<'a>,
    /// Steps of the contraction that are summed on their own, at most [`CHUNK`]
    pub chunk: usize,
}

impl<'a> Product<'a> {
    /// In equal chunks, as few as there can be.
    pub fn new(left: Left<'a>, k: usize, right: Right<'a>) -> Self {
        Self { left, k, right, chunk: k.div_ceil(k.div_ceil(CHUNK)) }
    }
}
