//! Operands of a product, and how its contraction is cut.

use super::pack::{Stored, turn};
use super::{CHUNK, WIDTH};
use std::ops::Range;

/// Steps of a panel that are read before they go to its parts.
const BAND: usize = 32;

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

    /// Writes a panel in parts of `at_once` columns, one after the other: steps of as many values, in the last part of
    /// a multiple of `lanes`.
    pub fn fill(&self, steps: Range<usize>, columns: Range<usize>, panel: &mut [f32], at_once: usize, lanes: usize) {
        let count = columns.len();
        let parts = (0..count).step_by(at_once).map(|from| from..(from + at_once).min(count));
        let width = |part: &Range<usize>| part.len().next_multiple_of(lanes);
        match *self {
            Right::Upright { matrix, first } if count <= at_once => {
                matrix.read(first + steps.start..first + steps.end, columns, panel, count.next_multiple_of(lanes));
            }
            Right::Upright { matrix, first } => {
                // Whole rows of a panel are read, as they lie.
                let mut band = [0.0f32; BAND * WIDTH];
                for start in steps.clone().step_by(BAND) {
                    let end = (start + BAND).min(steps.end);
                    matrix.read(first + start..first + end, columns.clone(), &mut band, WIDTH);
                    for part in parts.clone() {
                        let width = width(&part);
                        let out = &mut panel[part.start * steps.len() + (start - steps.start) * width..];
                        for (out, band) in out.chunks_mut(width).zip(band.chunks(WIDTH)).take(end - start) {
                            out[..part.len()].copy_from_slice(&band[part.clone()]);
                        }
                    }
                }
            }
            Right::Turned(matrix) => {
                for part in parts {
                    let columns = columns.start + part.start..columns.start + part.end;
                    turn(matrix, steps.clone(), columns, &mut panel[part.start * steps.len()..], width(&part));
                }
            }
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
