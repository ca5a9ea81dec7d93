//! Matrix products whose right operand is made panel by panel: dequantized straight into the layout that the inner loop
//! reads, by the thread that multiplies with it, so that it never leaves that core's cache.
//!
//! Every element of a product is one chain of multiply-adds along each [`CHUNK`] of the contraction, and the chunks'
//! sums are added in order. Which tile, thread or vector width computes it changes no bit.

use super::gemv::Dots;
use super::product::{Left, Product};
use super::tiles::{Tile, split};
use super::{CHUNK, PANEL, WIDTH};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Rows that the inner loop works on together.
const ROWS: usize = 6;
/// Rows that meet one part of a panel after the other: with a panel they fit the second cache.
const BLOCK: usize = 16 * ROWS;

/// `dst = Σ left·right`, or `dst += …` with `accumulate`, in columns `columns` of the first `rows` rows of `dst` (rows
/// of `stride` values); column 0 of the right operands is `columns.start` of `dst`. `scratch` holds one [`PANEL`] for
/// each thread that may take part.
pub fn multiply(
    scratch: &mut [f32],
    dst: &mut [f32],
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    accumulate: bool,
    products: &[Product],
) {
    let arch = Arch::new();
    let first = columns.start;
    let lanes = arch.dispatch(Lanes);
    let threads = rayon::current_num_threads();
    if let Some(dots) = Dots::of(rows, products) {
        return dots.multiply(dst, stride, rows, columns, accumulate);
    }
    let tiles = split(dst, stride, rows, columns, widest(lanes), threads);
    let workers = threads.min(tiles.len());
    let queue = Mutex::new(tiles.into_iter());
    scratch.par_chunks_exact_mut(PANEL).take(workers).with_max_len(1).for_each(|panel| {
        loop {
            let tile = queue.lock().expect("no thread panics while it takes a tile").next();
            let Some(mut tile) = tile else { return };
            compute(arch, lanes, &mut tile, first, panel, accumulate, products);
        }
    });
}

/// Columns of a panel at most.
pub fn widest(lanes: usize) -> usize {
    if lanes < 4 { columns_at_once(lanes) } else { WIDTH }
}

/// Columns of a part of a panel: there are registers for the sums of [`ROWS`] rows, 24 of 32 or 12 of 16.
fn columns_at_once(lanes: usize) -> usize {
    match lanes {
        16 => WIDTH,
        4 | 8 => 16,
        _ => 4,
    }
}

/// One tile. `panel` holds the chunks of the contraction one after the other; column `first` of the destination is
/// column 0 of the right operands.
pub fn compute(
    arch: Arch,
    lanes: usize,
    tile: &mut Tile,
    first: usize,
    panel: &mut [f32],
    mut add: bool,
    products: &[Product],
) {
    let columns = tile.columns.start - first..tile.columns.end - first;
    let (width, at_once) = (columns.len().next_multiple_of(lanes), columns_at_once(lanes));
    let parts = products.iter().flat_map(|product| {
        let ends = move |start: usize| start..(start + product.chunk).min(product.k);
        (0..product.k).step_by(product.chunk).map(move |start| (product, ends(start)))
    });
    let mut parts = parts.peekable();
    // Chunks that fit a panel together are one chain: a low-rank term ends that of its base.
    while let Some(first) = parts.next() {
        let second = parts.next_if(|(_, steps)| steps.len() + first.1.len() <= CHUNK && products.len() > 1);
        let mut rest = &mut *panel;
        let mut taken = [None, None];
        for (taken, (product, steps)) in taken.iter_mut().zip([Some(first), second].into_iter().flatten()) {
            let (values, after) = rest.split_at_mut(steps.len() * width);
            product.right.fill(steps.clone(), columns.clone(), values, at_once, lanes);
            *taken = Some(Part { panel: values, steps: steps.len(), left: product.left, first: steps.start });
            rest = after;
        }
        let [Some(base), more] = taken else { unreachable!("there is a first part") };
        for row in (0..tile.rows.len()).step_by(BLOCK) {
            let rows = row..(row + BLOCK).min(tile.rows.len());
            for column in (0..width).step_by(at_once) {
                let width = at_once.min(width - column);
                let (base, more) = (base.columns(column, width), more.map(|more| more.columns(column, width)));
                arch.dispatch(RowTiles { tile, rows: rows.clone(), column, width, base, more, add });
            }
        }
        add = true;
    }
}

/// A round of the inner loop on one panel that stays in the nearest cache; returns its FLOPs. For measuring.
pub fn peak_round() -> impl FnMut() -> f64 {
    const VALUES: usize = 24 << 8;
    const TIMES: usize = 64;
    let arch = Arch::new();
    let width = columns_at_once(arch.dispatch(Lanes));
    let steps = VALUES / width;
    let panel = vec![0.5f32; VALUES];
    let left = vec![0.25f32; steps];
    let rows = 0..TIMES * ROWS;
    let mut sums = vec![0.0f32; rows.len() * width];
    move || {
        for tile in &mut split(&mut sums, width, rows.len(), 0..width, width, 1) {
            // All rows are one.
            let left = Left::Rows { data: std::hint::black_box(&left), stride: 0 };
            let base = Part { panel: &panel, steps, left, first: 0 };
            arch.dispatch(RowTiles { tile, rows: rows.clone(), column: 0, width, base, more: None, add: false });
        }
        (2 * rows.len() * VALUES) as f64
    }
}

/// Values of a vector of this processor.
pub struct Lanes;

impl WithSimd for Lanes {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// A panel and the first of the left operand's columns that it meets.
#[derive(Clone, Copy)]
struct Part<'a> {
    panel: &'a [f32],
    steps: usize,
    left: Left<'a>,
    first: usize,
}

impl Part<'_> {
    /// The part of a panel for `width` columns from `column` on, before which whole parts lie.
    fn columns(&self, column: usize, width: usize) -> Self {
        Self { panel: &self.panel[column * self.steps..][..width * self.steps], ..*self }
    }
}

/// Rows of a tile against one panel or two.
struct RowTiles<'t, 'm, 'a> {
    tile: &'t mut Tile<'m>,
    rows: Range<usize>,
    /// The first of the tile's columns
    column: usize,
    width: usize,
    base: Part<'a>,
    more: Option<Part<'a>>,
    add: bool,
}

impl WithSimd for RowTiles<'_, '_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.width / S::F32_LANES {
            1 => self.rows::<S, 1>(simd),
            2 => self.rows::<S, 2>(simd),
            3 => self.rows::<S, 3>(simd),
            4 => self.rows::<S, 4>(simd),
            vectors => unreachable!("a panel of {vectors} vectors"),
        }
    }
}

impl RowTiles<'_, '_, '_> {
    /// `V` vectors make up a row of the panel.
    #[inline(always)]
    fn rows<S: Simd, const V: usize>(self, simd: S) {
        for row in self.rows.clone().step_by(ROWS) {
            let count = ROWS.min(self.rows.end - row);
            let first = self.tile.rows.start + row;
            let mut sums = [[simd.splat_f32s(0.0); V]; ROWS];
            sums = part::<S, V>(simd, &self.base, first, count, sums);
            if let Some(more) = &self.more {
                sums = part::<S, V>(simd, more, first, count, sums);
            }
            for i in 0..ROWS {
                if i < count {
                    store(simd, &mut self.tile.row(row + i)[self.column..], &sums[i], self.add);
                }
            }
        }
    }
}

/// Continues the chains of `count` rows from `row` on. Where that is fewer than [`ROWS`], the last is computed again in
/// place of those that are missing.
#[inline(always)]
fn part<S: Simd, const V: usize>(
    simd: S,
    part: &Part,
    row: usize,
    count: usize,
    mut sums: [[S::f32s; V]; ROWS],
) -> [[S::f32s; V]; ROWS] {
    let panel = S::as_simd_f32s(part.panel).0.as_chunks::<V>().0;
    let steps = panel.len();
    let last = count - 1;
    match part.left {
        Left::Rows { data, stride } => {
            let row = |i: usize| &data[(row + i.min(last)) * stride + part.first..][..steps];
            let rows = [row(0), row(1), row(2), row(3), row(4), row(5)];
            for j in 0..steps {
                let left = [rows[0][j], rows[1][j], rows[2][j], rows[3][j], rows[4][j], rows[5][j]];
                sums = step(simd, &panel[j], left, sums);
            }
        }
        Left::Columns { data, stride } if count == ROWS => {
            for (panel, column) in panel.iter().zip(data[part.first * stride + row..].chunks(stride)) {
                sums = step(simd, panel, *column.first_chunk().expect("inside the matrix"), sums);
            }
        }
        Left::Columns { data, stride } => {
            for (panel, column) in panel.iter().zip(data[part.first * stride + row..].chunks(stride)) {
                let column = &column[..count];
                let left = std::array::from_fn(|i| column[i.min(last)]);
                sums = step(simd, panel, left, sums);
            }
        }
    }
    sums
}

/// One multiply-add for each of [`ROWS`] rows and V vectors of columns.
#[inline(always)]
fn step<S: Simd, const V: usize>(
    simd: S,
    panel: &[S::f32s; V],
    left: [f32; ROWS],
    mut sums: [[S::f32s; V]; ROWS],
) -> [[S::f32s; V]; ROWS] {
    let panel = *panel;
    for i in 0..ROWS {
        let x = simd.splat_f32s(left[i]);
        for v in 0..V {
            sums[i][v] = simd.mul_add_e_f32s(x, panel[v], sums[i][v]);
        }
    }
    sums
}

#[inline(always)]
fn store<S: Simd, const V: usize>(simd: S, out: &mut [f32], sums: &[S::f32s; V], add: bool) {
    if let Some(out) = S::as_mut_simd_f32s(out).0.first_chunk_mut::<V>() {
        for v in 0..V {
            out[v] = if add { simd.add_f32s(out[v], sums[v]) } else { sums[v] };
        }
        return;
    }
    // The last columns of a matrix do not fill a vector.
    let sums: &[f32] = bytemuck::cast_slice(sums);
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = if add { *out + sum } else { *sum };
    }
}
