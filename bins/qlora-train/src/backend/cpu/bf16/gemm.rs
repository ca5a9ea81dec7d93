//! Matrix products of bf16 operands with sums in f32.
//!
//! The right operand is made panel by panel, in pairs along the contraction, by the thread that multiplies with it.
//! Every element of a product is one sum along all of its contraction, in order, whichever thread or tile computes it.

use super::amx;
use super::dots::FEW;
use super::isa::{self, Isa, LANES};
use super::layout;
use super::pairs::{Panel, Places, WIDTH};
use super::rows::{round, widen};
use super::stored::{Rows, Stored, scratch_len};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::gemm::tiles::{Tile, even_width, grid, split};
use half::bf16;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

/// Pairs of a panel at most.
pub const PAIRS: usize = 288;
/// Rows whose sums a thread keeps.
pub(super) const ROWS: usize = 512;

/// Scratch memory of one thread.
pub struct Scratch {
    /// `[PAIRS, WIDTH]`
    pub(super) panel: Aligned<u32>,
    /// `[ROWS, WIDTH]`
    pub(super) sums: Aligned<f32>,
    /// `[BAND, 2 · PAIRS]`: values before they are paired
    pub(super) band: Aligned<bf16>,
}

/// Rows that are read before they are transposed.
const BAND: usize = LANES;

impl Scratch {
    pub fn new() -> Self {
        Self {
            panel: Aligned::zeros(PAIRS * WIDTH),
            sums: Aligned::zeros(ROWS * WIDTH),
            band: Aligned::zeros(BAND * 2 * PAIRS),
        }
    }

    /// Bytes that [`Self::new`] takes.
    pub const BYTES: u64 = (PAIRS * WIDTH * 4 + ROWS * WIDTH * 4 + BAND * 2 * PAIRS * 2) as u64;
}

/// The right operand `[k, N]` of a product.
#[derive(Clone, Copy)]
pub enum Right<'a> {
    /// The matrix `[k, N]` as it is stored
    Upright(&'a dyn Stored),
    /// The transpose of a stored matrix `[N, k]`
    Turned(&'a dyn Stored),
}

/// One product of a sum of products.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// `[M, k]`
    pub left: Rows<'a>,
    /// Length of the contraction, which is even; an odd one is padded with zeros by the caller
    pub k: usize,
    pub right: Right<'a>,
}

/// Destination of a product: `[M, stride]`.
pub enum Out<'a> {
    /// `bf16(scale · sum + bias)`
    Bf16 { data: &'a mut [bf16], stride: usize, scale: f32, bias: Option<&'a [f32]> },
    /// `bf16(sum + more)`, with `more` `[M, N]` in rows of its own length
    Plus { data: &'a mut [bf16], stride: usize, more: &'a [f32] },
    /// `bf16(data + sum)`
    AddBf16 { data: &'a mut [bf16], stride: usize },
    /// `sum`
    F32 { data: &'a mut [f32], stride: usize },
    /// `+= sum`
    Add { data: &'a mut [f32], stride: usize },
    /// `sum`, whose chains go on from what `data` holds unless it `begins`: of a contraction that comes in parts
    Continued { data: &'a mut [f32], stride: usize, begins: bool },
}

/// `out[.., columns] = Σ left·right` for the first `rows` rows; column 0 of the right operands is `columns.start` of
/// `out`.
pub fn multiply(isa: Isa, scratch: &mut [Scratch], out: Out, rows: usize, columns: Range<usize>, products: &[Product]) {
    let first = columns.start;
    match out {
        Out::Bf16 { data, stride, scale, bias: None } => {
            run(isa, scratch, data, stride, rows, columns, products, None, &|out, _, _, sums| {
                round_scaled(out, sums, scale);
            });
        }
        Out::Bf16 { data, stride, scale, bias: Some(bias) } => {
            run(isa, scratch, data, stride, rows, columns, products, None, &|out, _, at, sums| {
                round_biased(out, sums, scale, &bias[at - first..][..sums.len()]);
            });
        }
        Out::Plus { data, stride, more } => {
            let width = columns.len();
            run(isa, scratch, data, stride, rows, columns, products, None, &|out, row, at, sums| {
                round_sum(out, sums, &more[row * width + at - first..][..sums.len()]);
            });
        }
        Out::AddBf16 { data, stride } => {
            run(isa, scratch, data, stride, rows, columns, products, None, &|out, _, _, sums| add_rounded(out, sums));
        }
        Out::F32 { data, stride } => {
            run(isa, scratch, data, stride, rows, columns, products, None, &|out, _, _, sums| {
                out.copy_from_slice(sums)
            });
        }
        Out::Add { data, stride } => {
            run(isa, scratch, data, stride, rows, columns, products, None, &|out, _, _, sums| add(out, sums));
        }
        Out::Continued { data, stride, begins } => {
            let begin: Begin<f32> = if begins { None } else { Some(&go_on) };
            run(isa, scratch, data, stride, rows, columns, products, begin, &|out, _, _, sums| {
                out.copy_from_slice(sums);
            });
        }
    }
}

/// Products whose results lie side by side with others'.
pub struct Side<'a> {
    /// Columns of the destination
    pub columns: Range<usize>,
    pub bias: Option<&'a [f32]>,
    /// With a right operand that is [turned](Right::Turned)
    pub products: Vec<Product<'a>>,
}

/// `out[.., columns] = bf16(Σ left·right + bias)` of every side, which follow one another. Of a few rows the tiles of
/// all sides are taken by the threads in one go.
pub fn multiply_sides(
    isa: Isa,
    scratch: &mut [Scratch],
    data: &mut [bf16],
    stride: usize,
    rows: usize,
    sides: &[Side],
) {
    if rows > FEW {
        for Side { columns, bias, products } in sides {
            let out = Out::Bf16 { data: &mut *data, stride, scale: 1.0, bias: *bias };
            multiply(isa, scratch, out, rows, columns.clone(), products);
        }
        return;
    }
    let threads = scratch.len().min(rayon::current_num_threads());
    let cut = |side: &Side| {
        let (width, end) = (even_width(side.columns.len(), WIDTH, threads), side.columns.end);
        side.columns.clone().step_by(width).map(move |start| start..(start + width).min(end)).collect::<Vec<_>>()
    };
    let (sides, columns): (Vec<&Side>, Vec<Range<usize>>) =
        sides.iter().flat_map(|side| cut(side).into_iter().map(move |columns| (side, columns))).unzip();
    let all = 0..rows;
    let [tiles] = grid(data, stride, [(std::slice::from_ref(&all), &columns)]);
    each_in_order(scratch, tiles.into_iter().zip(sides).collect(), |scratch, (mut tile, side)| {
        let first = side.columns.start;
        few_rows(isa, scratch, &mut tile, first, &side.products, None, &|out, _, at, sums| match side.bias {
            None => round_scaled(out, sums, 1.0),
            Some(bias) => round_biased(out, sums, 1.0, &bias[at - first..][..sums.len()]),
        });
    });
}

vectorized! {
    /// A sum of −0 becomes 0, as with a bias of 0.
    pub fn round_scaled<'a>(out: &'a mut [bf16], sums: &'a [f32], scale: f32) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = round(scale * sum + 0.0);
        }
    }
}

vectorized! {
    fn round_biased<'a>(out: &'a mut [bf16], sums: &'a [f32], scale: f32, bias: &'a [f32]) {
        for ((out, sum), bias) in out.iter_mut().zip(sums).zip(bias) {
            *out = round(scale * sum + bias);
        }
    }
}

vectorized! {
    fn round_sum<'a>(out: &'a mut [bf16], sums: &'a [f32], more: &'a [f32]) {
        for ((out, sum), more) in out.iter_mut().zip(sums).zip(more) {
            *out = round(sum + more);
        }
    }
}

vectorized! {
    fn add_rounded<'a>(out: &'a mut [bf16], sums: &'a [f32]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = round(widen(*out) + sum);
        }
    }
}

vectorized! {
    pub(super) fn add<'a>(out: &'a mut [f32], sums: &'a [f32]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += sum;
        }
    }
}

/// The end of one row of a tile: destination, row, first column, sums.
type Finish<'a, T> = &'a (dyn Fn(&mut [T], usize, usize, &[f32]) + Sync);

/// The beginning of one row of a tile, where its chains go on: sums, and what the destination holds.
type Begin<'a, T> = Option<&'a (dyn Fn(&mut [f32], &[T]) + Sync)>;

fn go_on(sums: &mut [f32], out: &[f32]) {
    sums.copy_from_slice(out);
}

fn run<T: Send>(
    isa: Isa,
    scratch: &mut [Scratch],
    data: &mut [T],
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    products: &[Product],
    begin: Begin<T>,
    finish: Finish<T>,
) {
    let first = columns.start;
    let threads = scratch.len().min(rayon::current_num_threads());
    let few = rows <= FEW && products.iter().all(|product| matches!(product.right, Right::Turned(_)));
    assert!(!few || begin.is_none(), "a few rows are no sum that comes in parts");
    let compute = if few { few_rows } else { compute };
    let width = if few { even_width(columns.len(), WIDTH, threads) } else { WIDTH };
    let tiles = split(data, stride, rows, columns, width, threads);
    if tiles.len() == 1 || threads == 1 {
        for mut tile in tiles {
            compute(isa, &mut scratch[0], &mut tile, first, products, begin, finish);
        }
        return;
    }
    let run = |scratch: &mut Scratch, mut tile| compute(isa, scratch, &mut tile, first, products, begin, finish);
    match few {
        true => each_in_order(scratch, tiles, run),
        false => each(scratch, tiles, run),
    }
}

/// Runs every task once, on as many threads as there is scratch memory for; a thread takes the next task when it is
/// done.
pub fn each<S: Send, T: Send>(scratch: &mut [S], tasks: Vec<T>, run: impl Fn(&mut S, T) + Sync) {
    let workers = rayon::current_num_threads().min(tasks.len());
    let queue = Mutex::new(tasks.into_iter());
    scratch.par_iter_mut().take(workers).with_max_len(1).for_each(|scratch| {
        loop {
            let task = queue.lock().expect("no thread panics while it takes a task").next();
            let Some(task) = task else { return };
            run(scratch, task);
        }
    });
}

/// Runs every task once, as [`each`] does. A thread begins with a part of the tasks of its own, in their order, and
/// takes from the ends of others' parts when it is done: what lies side by side in memory is read in one stream.
pub fn each_in_order<S: Send, T: Send>(scratch: &mut [S], tasks: Vec<T>, run: impl Fn(&mut S, T) + Sync) {
    let workers = rayon::current_num_threads().min(scratch.len()).min(tasks.len());
    let (count, mut tasks) = (tasks.len(), tasks.into_iter());
    let part = |worker: usize| (worker + 1) * count / workers - worker * count / workers;
    let parts: Vec<Mutex<VecDeque<T>>> =
        (0..workers).map(|worker| Mutex::new(tasks.by_ref().take(part(worker)).collect())).collect();
    // A function of its own, so that a part is locked while a task is taken from it and not while the task runs.
    let take = |number: usize, task: fn(&mut VecDeque<T>) -> Option<T>| {
        task(&mut parts[number % workers].lock().expect("no thread panics while it takes a task"))
    };
    scratch.par_iter_mut().enumerate().take(workers).with_max_len(1).for_each(|(worker, scratch)| {
        while let Some(task) = take(worker, VecDeque::pop_front) {
            run(scratch, task);
        }
        for other in worker + 1..worker + workers {
            while let Some(task) = take(other, VecDeque::pop_back) {
                run(scratch, task);
            }
        }
    });
}

/// Steps of a contraction of a few rows that are summed on their own: as many as a panel has room for.
const STEPS: usize = 8192;
const _: () = assert!(scratch_len(STEPS) <= PAIRS * WIDTH);

/// One tile of a few rows: a dot product for each of its elements, over [`STEPS`] steps at a time, in order.
fn few_rows<T>(
    isa: Isa,
    scratch: &mut Scratch,
    tile: &mut Tile<T>,
    first: usize,
    products: &[Product],
    _: Begin<T>,
    finish: Finish<T>,
) {
    let columns = tile.columns.start - first..tile.columns.end - first;
    let (row, rows) = (tile.rows.start, tile.rows.len());
    let Scratch { sums, panel, .. } = scratch;
    let sums = &mut sums[..rows * WIDTH];
    sums.fill(0.0);
    for product in products {
        let Right::Turned(matrix) = product.right else { unreachable!("checked by the caller") };
        for start in (0..product.k).step_by(STEPS) {
            let steps = start..(start + STEPS).min(product.k);
            let left = |i: usize| &product.left.data[(row + i) * product.left.stride..][steps.clone()];
            let left: [&[bf16]; FEW] = std::array::from_fn(|i| if i < rows { left(i) } else { &[] });
            matrix.dots(isa, columns.clone(), steps.clone(), &left[..rows], sums, panel);
        }
    }
    for i in 0..rows {
        let column = tile.columns.start;
        finish(tile.row(i), row + i, column, &sums[i * WIDTH..][..columns.len()]);
    }
}

/// Steps of a contraction of `k` that are multiplied at one time: as many in every part as can be, in whole tiles.
fn even_part(k: usize) -> usize {
    k.div_ceil(k.div_ceil(2 * PAIRS)).next_multiple_of(2 * amx::PAIRS)
}

/// One tile, a block of rows at a time. Column `first` of the destination is column 0 of the right operands.
fn compute<T>(
    isa: Isa,
    scratch: &mut Scratch,
    tile: &mut Tile<T>,
    first: usize,
    products: &[Product],
    begin: Begin<T>,
    finish: Finish<T>,
) {
    let columns = tile.columns.start - first..tile.columns.end - first;
    let width = columns.len().next_multiple_of(LANES);
    let Scratch { panel, sums, band } = scratch;
    for block in (0..tile.rows.len()).step_by(ROWS) {
        let count = ROWS.min(tile.rows.len() - block);
        let row = tile.rows.start + block;
        let mut add = begin.is_some();
        if let Some(begin) = begin {
            (0..count).for_each(|i| begin(&mut sums[i * WIDTH..][..columns.len()], tile.row(block + i)));
        }
        for product in products {
            let part = even_part(product.k);
            for start in (0..product.k).step_by(part) {
                let steps = start..(start + part).min(product.k);
                let panel = &mut panel[..steps.len() / 2 * width];
                fill(isa, &product.right, steps.clone(), columns.clone(), panel, width, band);
                let left = &product.left.data[row * product.left.stride + start..];
                isa::multiply(isa, left, product.left.stride, count, panel, width, sums, add);
                add = true;
            }
        }
        for i in 0..count {
            let column = tile.columns.start;
            finish(tile.row(block + i), row + i, column, &sums[i * WIDTH..][..columns.len()]);
        }
    }
}

/// Columns `columns` of `row`: where they lie, or in `values`.
fn row_of<'a>(
    isa: Isa,
    matrix: &'a dyn Stored,
    row: usize,
    columns: Range<usize>,
    values: &'a mut [bf16],
) -> &'a [bf16] {
    if let Some(found) = matrix.values(row, columns.clone()) {
        return found;
    }
    matrix.read(isa, row, columns, values);
    values
}

/// Steps `steps` and columns `columns` of the right operand, in pairs of steps; columns beyond the last are zero.
pub fn fill(
    isa: Isa,
    right: &Right,
    steps: Range<usize>,
    columns: Range<usize>,
    panel: &mut [u32],
    width: usize,
    band: &mut [bf16],
) {
    if columns.len() < width {
        panel.fill(0);
    }
    let (pairs, tile) = (steps.len() / 2, isa.panel_tile(width));
    match *right {
        Right::Upright(matrix) => {
            let whole = Panel { data: &mut *panel, places: Places { pairs, tile } };
            let done = matrix.pair_rows(isa, steps.clone(), columns.clone(), whole);
            let (low, high) = band.split_at_mut(WIDTH);
            let (low, high) = (&mut low[..columns.len()], &mut high[..columns.len()]);
            for (pair, step) in steps.step_by(2).enumerate().skip(done / 2) {
                matrix.prefetch(step + layout::AHEAD, columns.clone());
                matrix.prefetch(step + 1 + layout::AHEAD, columns.clone());
                let low = row_of(isa, matrix, step, columns.clone(), low);
                let high = row_of(isa, matrix, step + 1, columns.clone(), high);
                for (number, (low, high)) in low.chunks(tile).zip(high.chunks(tile)).enumerate() {
                    layout::interleave(isa, low, high, &mut panel[(number * pairs + pair) * tile..][..low.len()]);
                }
            }
        }
        Right::Turned(matrix) => {
            for start in (0..columns.len()).step_by(BAND) {
                let count = BAND.min(columns.len() - start);
                band[count * 2 * PAIRS..].fill(bf16::ZERO);
                let mut rows: [&[bf16]; BAND] = [&[]; BAND];
                for (i, (row, values)) in rows.iter_mut().zip(band.chunks_exact_mut(2 * PAIRS)).enumerate() {
                    let values = &mut values[..steps.len()];
                    *row = match i < count {
                        true => row_of(isa, matrix, columns.start + start + i, steps.clone(), values),
                        false => values,
                    };
                }
                layout::transpose(isa, &rows, &mut panel[start / tile * pairs * tile + start % tile..], tile);
            }
        }
    }
}

/// A round of the instructions on one panel that stays in the nearest cache; returns its FLOPs. For measuring.
pub fn peak_round(isa: Isa) -> impl FnMut() -> f64 {
    const ROWS: usize = 64;
    const PAIRS: usize = 144;
    const CALLS: usize = 8;
    let (mut panel, mut left) = (Aligned::zeros(PAIRS * WIDTH), Aligned::zeros(ROWS * 2 * PAIRS));
    panel.fill(0x3F00_3F00u32);
    left.fill(bf16::from_f32(0.25));
    let mut sums = Aligned::zeros(ROWS * WIDTH);
    move || {
        for _ in 0..CALLS {
            isa::multiply(isa, std::hint::black_box(&left), 2 * PAIRS, ROWS, &panel, WIDTH, &mut sums, false);
        }
        (4 * ROWS * PAIRS * WIDTH * CALLS) as f64
    }
}

#[cfg(test)]
mod tests;
