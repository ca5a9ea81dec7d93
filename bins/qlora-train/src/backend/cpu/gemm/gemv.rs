//! Products of a few rows with transposed matrices, which are bound by how fast the matrices can be read: one dot
//! product for each element, without panels. A row's result does not depend on the others.

use super::bf16_rows::{self, Bf16Rows};
use super::nf4::ScaledRows;
use super::pack::Stored;
use super::product::{Left, Product, Right};
use super::tiles::{Tile, split};
use super::{CHUNK, LANES};
use pulp::{Arch, Simd, WithSimd};
use qlora_kernels::nf4::Nf4Matrix;
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
/// Scales of a band of NF4 codes at most: of eight rows of 8,000 codes in blocks of 64.
const SCALES: usize = 1 << 10;

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

    fn compute(&self, tile: &mut Tile, first: usize, accumulate: bool) {
        let from = tile.columns.start - first;
        for (index, product) in self.0.iter().enumerate() {
            let Right::Turned(matrix) = product.right else { unreachable!("checked in `of`") };
            let add = accumulate || index > 0;
            let codes = matrix.nf4().filter(|codes| ScaledRows::can_read(codes, product.chunk, SCALES));
            match (codes, matrix.bf16()) {
                (Some(codes), _) => multiply(&mut Codes::of(codes), product, tile, from, add),
                (None, Some(mut rows)) if bf16_rows::has_vectors() => multiply(&mut rows, product, tile, from, add),
                _ => multiply(&mut Values::of(matrix), product, tile, from, add),
            }
        }
    }
}

/// Rows of a matrix, as many at a time as there are partial sums.
trait Rows {
    /// Rows at a time.
    fn at_once(&self) -> usize {
        BAND
    }

    /// Goes on with these columns of these rows.
    fn read(&mut self, rows: Range<usize>, columns: &Range<usize>);

    /// Writes partial sums of the products of `x` with each row.
    fn products(&self, x: &[f32], sums: &mut [[f32; LANES]]);
}

/// Parts of at most `count` of a range from 0 on.
fn cut(end: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..end).step_by(count).map(move |start| start..(start + count).min(end))
}

/// The tile's columns are rows of the matrix from `from` on.
fn multiply(rows: &mut impl Rows, product: &Product, tile: &mut Tile, from: usize, add: bool) {
    let (mut copy, mut sums) = ([0.0f32; CHUNK], [[0.0f32; LANES]; BAND]);
    for band in cut(tile.columns.len(), rows.at_once()) {
        for steps in cut(product.k, product.chunk) {
            rows.read(from + band.start..from + band.end, &steps);
            for row in 0..tile.rows.len() {
                let x = part_of_row(&product.left, row, &steps, &mut copy);
                rows.products(x, &mut sums[..band.len()]);
                write_totals(&sums, &mut tile.row(row)[band.clone()], add || steps.start > 0);
            }
        }
    }
}

/// Rows of codes, whose values exist in registers alone.
struct Codes<'a> {
    matrix: &'a Nf4Matrix,
    scales: [f32; SCALES],
    rows: Range<usize>,
    first: usize,
}

impl<'a> Codes<'a> {
    fn of(matrix: &'a Nf4Matrix) -> Self {
        Self { matrix, scales: [0.0; SCALES], rows: 0..0, first: 0 }
    }
}

impl Rows for Codes<'_> {
    fn at_once(&self) -> usize {
        ScaledRows::at_once(self.matrix, SCALES).min(BAND)
    }

    fn read(&mut self, rows: Range<usize>, columns: &Range<usize>) {
        if self.rows != rows {
            ScaledRows::read_scales(self.matrix, &rows, &mut self.scales);
        }
        (self.rows, self.first) = (rows, columns.start);
    }

    fn products(&self, x: &[f32], sums: &mut [[f32; LANES]]) {
        ScaledRows::new(self.matrix, &self.rows, &self.scales).products(x, self.first, sums);
    }
}

/// Rows of whatever is stored, read as values a part at a time.
struct Values<'a> {
    matrix: &'a dyn Stored,
    values: [f32; BAND * CHUNK],
}

impl<'a> Values<'a> {
    fn of(matrix: &'a dyn Stored) -> Self {
        Self { matrix, values: [0.0; BAND * CHUNK] }
    }
}

impl Rows for Values<'_> {
    fn read(&mut self, rows: Range<usize>, columns: &Range<usize>) {
        self.matrix.read(rows, columns.clone(), &mut self.values, CHUNK);
    }

    fn products(&self, x: &[f32], sums: &mut [[f32; LANES]]) {
        Arch::new().dispatch(RowTimesBand { x, values: &self.values, sums });
    }
}

impl Rows for Bf16Rows<'_> {
    fn read(&mut self, rows: Range<usize>, columns: &Range<usize>) {
        self.begin(rows.start, columns.start);
    }

    fn products(&self, x: &[f32], sums: &mut [[f32; LANES]]) {
        self.multiply(x, sums);
    }
}

/// Columns of a row of the left operand, as they lie or in `copy`.
fn part_of_row<'a>(left: &Left<'a>, row: usize, steps: &Range<usize>, copy: &'a mut [f32; CHUNK]) -> &'a [f32] {
    match left {
        Left::Rows { data, stride } => &data[row * stride + steps.start..][..steps.len()],
        left => {
            let copy = &mut copy[..steps.len()];
            copy.iter_mut().enumerate().for_each(|(j, x)| *x = left.at(row, steps.start + j));
            copy
        }
    }
}

/// Writes or adds the sums of each row's partial sums, in their order. Rows are summed beside one another, as each
/// addition waits for the one before it.
fn write_totals(sums: &[[f32; LANES]; BAND], out: &mut [f32], add: bool) {
    let mut totals = [-0.0f32; BAND];
    for lane in 0..LANES {
        for (total, sums) in totals.iter_mut().zip(sums) {
            *total += sums[lane];
        }
    }
    for (out, total) in out.iter_mut().zip(totals) {
        *out = if add { *out + total } else { total };
    }
}

/// Partial sums of the products of a row with each row of values, [`CHUNK`] apart.
struct RowTimesBand<'a> {
    x: &'a [f32],
    values: &'a [f32; BAND * CHUNK],
    sums: &'a mut [[f32; LANES]],
}

impl WithSimd for RowTimesBand<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.rows::<S, 4>(simd),
            8 => self.rows::<S, 8>(simd),
            4 => self.rows::<S, 16>(simd),
            _ => self.rows::<S, LANES>(simd),
        }
    }
}

impl RowTimesBand<'_> {
    /// `V` vectors hold [`LANES`] sums.
    #[inline(always)]
    fn rows<S: Simd, const V: usize>(self, simd: S) {
        let (x, x_rest) = self.x.as_chunks::<LANES>();
        for (values, out) in self.values.chunks_exact(CHUNK).zip(self.sums.iter_mut()) {
            let (values, rest) = values[..self.x.len()].as_chunks::<LANES>();
            let mut sums = [simd.splat_f32s(0.0); V];
            for (x, values) in x.iter().zip(values) {
                let (x, values) = (S::as_simd_f32s(x).0, S::as_simd_f32s(values).0);
                for (sum, (x, value)) in sums.iter_mut().zip(x.iter().zip(values)) {
                    *sum = simd.add_f32s(*sum, simd.mul_f32s(*x, *value));
                }
            }
            out.copy_from_slice(bytemuck::cast_slice(&sums));
            for (sum, (x, value)) in out.iter_mut().zip(x_rest.iter().zip(rest)) {
                *sum += x * value;
            }
        }
    }
}

#[cfg(test)]
mod tests;
