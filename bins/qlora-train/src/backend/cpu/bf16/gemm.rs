//! Matrix products of bf16 operands with sums in f32.
//!
//! The right operand is made panel by panel, in pairs along the contraction, by the thread that multiplies with it.
//! Every element of a product is one chain along all of its contraction, in order, whichever thread or tile computes
//! it.

use super::amx;
use super::dots;
use super::isa::{self, Isa, LANES};
use super::layout;
use super::pairs::{Panel, Places, WIDTH};
use super::rows::{round, widen};
use super::stored::{Rows, Stored};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::gemm::tiles::{Tile, even_width, split};
use half::bf16;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

/// Pairs of a panel at most.
pub const PAIRS: usize = 288;
/// Rows whose sums a thread keeps.
const ROWS: usize = 512;

/// Scratch memory of one thread.
pub struct Scratch {
    /// `[PAIRS, WIDTH]`
    panel: Aligned<u32>,
    /// `[ROWS, WIDTH]`
    sums: Aligned<f32>,
    /// `[BAND, 2 · PAIRS]`: values before they are paired
    band: Aligned<bf16>,
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
}

/// `out[.., columns] = Σ left·right` for the first `rows` rows; column 0 of the right operands is `columns.start` of
/// `out`.
pub fn multiply(isa: Isa, scratch: &mut [Scratch], out: Out, rows: usize, columns: Range<usize>, products: &[Product]) {
    let first = columns.start;
    match out {
        Out::Bf16 { data, stride, scale, bias: None } => {
            run(isa, scratch, data, stride, rows, columns, products, &|out, _, _, sums| round_scaled(out, sums, scale));
        }
        Out::Bf16 { data, stride, scale, bias: Some(bias) } => {
            run(isa, scratch, data, stride, rows, columns, products, &|out, _, at, sums| {
                round_biased(out, sums, scale, &bias[at - first..][..sums.len()]);
            });
        }
        Out::Plus { data, stride, more } => {
            let width = columns.len();
            run(isa, scratch, data, stride, rows, columns, products, &|out, row, at, sums| {
                round_sum(out, sums, &more[row * width + at - first..][..sums.len()]);
            });
        }
        Out::AddBf16 { data, stride } => {
            run(isa, scratch, data, stride, rows, columns, products, &|out, _, _, sums| add_rounded(out, sums));
        }
        Out::F32 { data, stride } => {
            run(isa, scratch, data, stride, rows, columns, products, &|out, _, _, sums| out.copy_from_slice(sums));
        }
        Out::Add { data, stride } => {
            run(isa, scratch, data, stride, rows, columns, products, &|out, _, _, sums| add(out, sums));
        }
    }
}

vectorized! {
    /// A sum of −0 becomes 0, as with a bias of 0.
    fn round_scaled<'a>(out: &'a mut [bf16], sums: &'a [f32], scale: f32) {
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
    fn add<'a>(out: &'a mut [f32], sums: &'a [f32]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out += sum;
        }
    }
}

/// The end of one row of a tile: destination, row, first column, sums.
type Finish<'a, T> = &'a (dyn Fn(&mut [T], usize, usize, &[f32]) + Sync);

fn run<T: Send>(
    isa: Isa,
    scratch: &mut [Scratch],
    data: &mut [T],
    stride: usize,
    rows: usize,
    columns: Range<usize>,
    products: &[Product],
    finish: Finish<T>,
) {
    let first = columns.start;
    let threads = scratch.len().min(rayon::current_num_threads());
    let few = rows <= FEW && products.iter().all(|product| matches!(product.right, Right::Turned(_)));
    let compute = if few { few_rows } else { compute };
    let width = if few { even_width(columns.len(), WIDTH, threads) } else { WIDTH };
    let tiles = split(data, stride, rows, columns, width, threads);
    if tiles.len() == 1 || threads == 1 {
        for mut tile in tiles {
            compute(isa, &mut scratch[0], &mut tile, first, products, finish);
        }
        return;
    }
    let run = |scratch: &mut Scratch, mut tile| compute(isa, scratch, &mut tile, first, products, finish);
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
fn each_in_order<S: Send, T: Send>(scratch: &mut [S], tasks: Vec<T>, run: impl Fn(&mut S, T) + Sync) {
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

/// Rows that are multiplied without panels: what limits them is how fast the matrices can be read.
const FEW: usize = 4;

/// Steps of a contraction of a few rows that are summed on their own: a row of the matrix that a band has room for.
const STEPS: usize = 8192;
const _: () = assert!(STEPS <= BAND * 2 * PAIRS);

/// One tile of a few rows: a dot product for each of its elements, over [`STEPS`] steps at a time, in order.
fn few_rows<T>(
    isa: Isa,
    scratch: &mut Scratch,
    tile: &mut Tile<T>,
    first: usize,
    products: &[Product],
    finish: Finish<T>,
) {
    let columns = tile.columns.start - first..tile.columns.end - first;
    let (row, rows) = (tile.rows.start, tile.rows.len());
    let Scratch { sums, band, .. } = scratch;
    sums[..rows * WIDTH].fill(0.0);
    for product in products {
        let Right::Turned(matrix) = product.right else { unreachable!("checked by the caller") };
        for start in (0..product.k).step_by(STEPS) {
            let steps = start..(start + STEPS).min(product.k);
            let left = |i: usize| &product.left.data[(row + i) * product.left.stride..][steps.clone()];
            if rows == 1 {
                matrix.dots(isa, columns.clone(), steps.clone(), left(0), &mut sums[..columns.len()], band);
                continue;
            }
            for column in columns.clone() {
                let values = &mut band[..steps.len()];
                matrix.read(isa, column, steps.clone(), values);
                for i in 0..rows {
                    sums[i * WIDTH + column - columns.start] += dots::dot(isa, left(i), values);
                }
            }
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
    finish: Finish<T>,
) {
    let columns = tile.columns.start - first..tile.columns.end - first;
    let width = columns.len().next_multiple_of(LANES);
    let Scratch { panel, sums, band } = scratch;
    for block in (0..tile.rows.len()).step_by(ROWS) {
        let count = ROWS.min(tile.rows.len() - block);
        let row = tile.rows.start + block;
        let mut add = false;
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
mod tests {
    use super::*;
    use qlora_kernels::rng::Stream;

    fn matrix(len: usize, seed: u64) -> Vec<bf16> {
        let mut stream = Stream::new(seed, 1);
        (0..len).map(|_| bf16::from_f32(stream.below(2001) as f32 / 1000.0 - 1.0)).collect()
    }

    fn scratch(threads: usize) -> Vec<Scratch> {
        (0..threads).map(|_| Scratch::new()).collect()
    }

    #[test]
    fn every_task_is_run_once() {
        for (threads, tasks) in [(1, 5), (2, 1), (3, 7), (4, 64), (7, 3)] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for scratches in 1..=threads {
                let mut done = vec![Vec::new(); scratches];
                pool.install(|| each_in_order(&mut done, (0..tasks).collect(), |done, task| done.push(task)));
                let mut all = done.concat();
                all.sort_unstable();
                assert_eq!(all, (0..tasks).collect::<Vec<i32>>(), "{threads} threads, {scratches} scratches");
            }
        }
    }

    /// Every shape in one thread and in several, both ways of reading the right operand, as the plain chain of its
    /// definition.
    #[test]
    fn products_are_chains_in_order_whatever_the_shape() {
        for (m, n, k, r) in [(5, 5, 2, 0), (7, 64, 34, 2), (70, 130, 514, 6), (600, 48, 1030, 16)] {
            let (x, w) = (matrix(m * k, 1), matrix(n * k, 2));
            let (s, b) = (matrix(m * r, 3), matrix(n * r, 4));
            let transposed: Vec<bf16> = (0..k * n).map(|i| w[i % n * k + i / n]).collect();
            let sum = |row: usize, column: usize| {
                let chain = |sum: f32, x: &[bf16], w: &[bf16]| {
                    x.chunks(2).zip(w.chunks(2)).fold(sum, |sum, (x, w)| {
                        let sum = x[1].to_f32().mul_add(w[1].to_f32(), sum);
                        x[0].to_f32().mul_add(w[0].to_f32(), sum)
                    })
                };
                let base = chain(0.0, &x[row * k..][..k], &w[column * k..][..k]);
                chain(base, &s[row * r..][..r], &b[column * r..][..r])
            };
            let (w, b) = (Rows { data: &w, stride: k }, Rows { data: &b, stride: r });
            let transposed = Rows { data: &transposed, stride: n };
            let low_rank = Product { left: Rows { data: &s, stride: r }, k: r, right: Right::Turned(&b) };
            for right in [Right::Turned(&w), Right::Upright(&transposed)] {
                let products = [Product { left: Rows { data: &x, stride: k }, k, right }, low_rank];
                let products = &products[..if r == 0 { 1 } else { 2 }];
                for threads in [1, 3] {
                    let mut out = vec![7.0f32; m * (n + 9)];
                    let destination = Out::F32 { data: &mut out, stride: n + 9 };
                    multiply(
                        Isa::avx512_bf16().unwrap_or(Isa::SCALAR),
                        &mut scratch(threads),
                        destination,
                        m,
                        4..4 + n,
                        products,
                    );
                    for row in 0..m {
                        for column in 0..n + 9 {
                            let found = out[row * (n + 9) + column];
                            let expected = if (4..4 + n).contains(&column) { sum(row, column - 4) } else { 7.0 };
                            assert!(found == expected, "{m} x {n} x {k}, {threads}: {found} {expected}");
                        }
                    }
                }
            }
        }
    }

    /// A row alone is what it is beside others, in any number of threads, and the sum that it should be.
    #[test]
    fn few_rows_are_dot_products() {
        for (m, n, k) in [(1, 3, 2), (2, 130, 514), (4, 64, 1100)] {
            let (x, w) = (matrix(m * k, 1), matrix(n * k, 2));
            let w = Rows { data: &w, stride: k };
            let run = |isa, x: &[bf16], threads| {
                let mut out = vec![0.0f32; x.len() / k * n];
                let product = Product { left: Rows { data: x, stride: k }, k, right: Right::Turned(&w) };
                let destination = Out::F32 { data: &mut out, stride: n };
                multiply(isa, &mut scratch(threads), destination, x.len() / k, 0..n, &[product]);
                out
            };
            let isa = Isa::detect().unwrap_or(Isa::SCALAR);
            let all = run(isa, &x, 1);
            assert!(all == run(isa, &x, 3) && all == run(Isa::SCALAR, &x, 2), "{m} x {n} x {k}");
            for row in 0..m {
                assert!(all[row * n..][..n] == run(isa, &x[row * k..][..k], 2), "row {row} alone");
                for column in 0..n {
                    let terms = (0..k).map(|i| x[row * k + i].to_f64() * w.data[column * k + i].to_f64());
                    let (exact, size) = terms.fold((0.0, 0.0f64), |(sum, size), x| (sum + x, size + x.abs()));
                    let error = (f64::from(all[row * n + column]) - exact).abs();
                    assert!(error <= k as f64 * size * f64::from(f32::EPSILON), "{row}, {column}");
                }
            }
        }
    }

    #[test]
    fn results_are_scaled_biased_rounded_or_added() {
        let (x, w) = (matrix(3 * 8, 5), matrix(4 * 8, 6));
        let w = Rows { data: &w, stride: 8 };
        let product = Product { left: Rows { data: &x, stride: 8 }, k: 8, right: Right::Turned(&w) };
        let mut sums = vec![0.0f32; 12];
        let mut one = scratch(1);
        multiply(Isa::SCALAR, &mut one, Out::F32 { data: &mut sums, stride: 4 }, 3, 0..4, &[product]);
        let mut added = vec![1.5f32; 12];
        multiply(Isa::SCALAR, &mut one, Out::Add { data: &mut added, stride: 4 }, 3, 0..4, &[product]);
        let mut rounded = vec![bf16::ZERO; 12];
        let bias = [0.25, -1.0, 2.0, 0.0];
        let out = Out::Bf16 { data: &mut rounded, stride: 4, scale: 0.5, bias: Some(&bias) };
        multiply(Isa::SCALAR, &mut one, out, 3, 0..4, &[product]);
        for i in 0..12 {
            assert_eq!(added[i], 1.5 + sums[i]);
            assert_eq!(rounded[i], bf16::from_f32(0.5 * sums[i] + bias[i % 4]));
        }
    }
}
