//! Products of a few rows with transposed matrices, which are bound by how fast the matrices can be read: one dot
//! product for each element, without panels. A row's result does not depend on the others.

use super::CHUNK;
use super::product::{Left, Product, Right};
use super::simd::vectorized;
use super::tiles::{Tile, split};
use crate::backend::cpu::elementwise::dot;
use rayon::prelude::*;
use std::ops::Range;

/// Rows at most.
const ROWS: usize = 4;
/// Columns of a tile.
const COLUMNS: usize = 32;
/// Columns that are read together.
const BAND: usize = 8;
/// Multiply-adds that are not worth waking another thread for.
const ALONE: usize = 1 << 16;

/// A sum of such products.
pub struct Dots<'a>(&'a [Product<'a>]);

impl<'a> Dots<'a> {
    /// None: there are more rows than that, or another kind of product.
    pub fn of(rows: usize, products: &'a [Product<'a>]) -> Option<Self> {
        let turned = products.iter().all(|product| matches!(product.right, Right::Turned(_)));
        (rows <= ROWS && turned).then_some(Self(products))
    }

    /// Writes or adds the products to `dst`, with the operands of [`super::panels::multiply`].
    pub fn multiply(&self, dst: &mut [f32], stride: usize, rows: usize, columns: Range<usize>, accumulate: bool) {
        let work = rows * columns.len() * self.0.iter().map(|product| product.k).sum::<usize>();
        let threads = if work < ALONE { 1 } else { rayon::current_num_threads() };
        let first = columns.start;
        let tiles = split(dst, stride, rows, columns, COLUMNS, threads);
        let compute = |mut tile: Tile| self.compute(&mut tile, first, accumulate);
        match threads {
            1 => tiles.into_iter().for_each(compute),
            _ => tiles.into_par_iter().for_each(compute),
        }
    }

    fn compute(&self, tile: &mut Tile, first: usize, mut add: bool) {
        let mut band = [0.0f32; BAND * CHUNK];
        let mut x = [0.0f32; CHUNK];
        let from = tile.columns.start - first;
        let count = tile.columns.len();
        for product in self.0 {
            let Right::Turned(matrix) = product.right else { unreachable!("checked in `of`") };
            for start in (0..product.k).step_by(product.chunk) {
                let steps = start..(start + product.chunk).min(product.k);
                for column in (0..count).step_by(BAND) {
                    let end = (column + BAND).min(count);
                    matrix.read(from + column..from + end, steps.clone(), &mut band, CHUNK);
                    for row in 0..tile.rows.len() {
                        let x = &mut x[..steps.len()];
                        match product.left {
                            Left::Rows { data, stride } => {
                                x.copy_from_slice(&data[row * stride + start..][..steps.len()]);
                            }
                            left => x.iter_mut().enumerate().for_each(|(j, x)| *x = left.at(row, start + j)),
                        }
                        let out = &mut tile.row(row)[column..end];
                        row_times_band(x, &band, add, out);
                    }
                }
                add = true;
            }
        }
    }
}

vectorized! {
    fn row_times_band<'a>(x: &'a [f32], band: &'a [f32; BAND * CHUNK], add: bool, out: &'a mut [f32]) {
        for (out, values) in out.iter_mut().zip(band.chunks_exact(CHUNK)) {
            let product = dot::<64>(x, &values[..x.len()]);
            *out = if add { *out + product } else { product };
        }
    }
}
