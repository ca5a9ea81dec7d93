//! Gradients of A and B: sums over tokens, a chunk of them at a time.
//!
//! A task is some columns of X, for A of all layers that read it, or of dY, for B of one layer. Where there are
//! instructions for it, rows of X and dY are read as they lie: a panel would take a fifth of the time.

use super::gemm::{PAIRS, ROWS, Right, Scratch, add, each, fill};
use super::isa::{self, Isa, LANES};
use super::layout;
use super::linear::{Group, dropped, placed, widths};
use super::pairs::WIDTH;
use super::stored::{Limited, Rows};
use super::transposed::transpose;
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::gemm::tiles::{Tile, grid};
use half::bf16;
use std::ops::Range;

/// Tokens whose part of a sum over tokens is summed on its own.
pub const TOKENS: usize = 256;

/// Gradients of one segment's A `[r, K]` and B `[N, r]`.
pub struct Gradients<'a> {
    pub a: &'a mut [f32],
    pub b: &'a mut [f32],
}

/// Scratch memory of [`Group::gradients`].
pub struct GradientScratch {
    /// `[max Σr, TOKENS]`: T and S of a chunk, transposed, two values in one
    t: Aligned<u32>,
    s: Aligned<u32>,
    band: Aligned<bf16>,
}

impl GradientScratch {
    /// For groups with up to `max_r` rows of A in all.
    pub fn new(max_r: usize) -> Self {
        let [left, band] = lengths(max_r);
        Self { t: Aligned::zeros(left), s: Aligned::zeros(left), band: Aligned::zeros(band) }
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes(max_r: usize) -> u64 {
        let [left, band] = lengths(max_r);
        (2 * 4 * left + 2 * band) as u64
    }
}

/// Values of each of T and S, and of the band.
fn lengths(max_r: usize) -> [usize; 2] {
    [max_r * TOKENS / 2, usize::from(max_r > 0) * LANES * 2 * PAIRS]
}

/// Columns of a chunk of X or dY, and what the products with them are added to.
struct Task<'a> {
    /// `[Σr, TOKENS]`
    left: &'a [bf16],
    right: Rows<'a>,
    columns: Range<usize>,
    parts: Vec<To<'a>>,
}

/// A gradient to which rows of a product are added.
enum To<'a> {
    /// `[r, columns]`
    A(Tile<'a, f32>),
    /// `[columns, r]`
    B { r: usize, data: &'a mut [f32] },
}

impl To<'_> {
    fn rows(&self) -> usize {
        match self {
            To::A(tile) => tile.rows.len(),
            To::B { r, .. } => *r,
        }
    }

    /// Adds `sums`, rows of [`WIDTH`], from row `first` on.
    fn add(&mut self, isa: Isa, sums: &[f32], first: usize) {
        match self {
            To::A(tile) => {
                for (i, sums) in sums.chunks_exact(WIDTH).enumerate() {
                    let to = tile.row(first + i);
                    add(to, &sums[..to.len()]);
                }
            }
            To::B { r, data } => add_transposed(isa, sums, first, *r, data),
        }
    }
}

fn strips(columns: usize) -> Vec<Range<usize>> {
    (0..columns).step_by(WIDTH).map(|start| start..(start + WIDTH).min(columns)).collect()
}

impl Group<'_> {
    /// `dA += Tᵀ·dropout(X)` and `dB += dYᵀ·S`, over chunks of tokens in order. `gradients` has an entry for each
    /// segment.
    pub fn gradients(
        &self,
        scratch: &mut [Scratch],
        more: &mut GradientScratch,
        x: &[bf16],
        dy: &[bf16],
        s: &[bf16],
        t: &[bf16],
        masked: &mut [bf16],
        gradients: &mut [Option<Gradients>],
    ) {
        let ((n, width), k) = (widths(self.segments), self.k);
        let tokens = x.len() / k;
        let x = dropped(x, k, self.first, self.dropout, masked);
        for first in (0..tokens).step_by(TOKENS) {
            let count = TOKENS.min(tokens - first);
            let mut ranks = Vec::with_capacity(self.segments.len());
            for ((_, rank, segment), gradients) in placed(self.segments).zip(&*gradients) {
                let r = segment.lora.filter(|_| gradients.is_some()).map_or(0, |lora| lora.r);
                let begins = ranks.iter().sum::<usize>() * TOKENS / 2;
                for (from, to) in [(t, &mut more.t), (s, &mut more.s)] {
                    let rows = Rows { data: &from[first * width + rank..], stride: width };
                    transpose(self.isa, rows, count, r, &mut to[begins..], TOKENS / 2, &mut more.band);
                }
                ranks.push(r);
            }
            let turned = [&more.t, &more.s].map(|turned| bytemuck::cast_slice(turned));
            let x = Rows { data: &x[first * k..], stride: k };
            let dy = Rows { data: &dy[first * n..], stride: n };
            let tasks = self.tasks(x, dy, turned, &ranks, gradients);
            each(scratch, tasks, |scratch, task| contract(self.isa, scratch, count, task));
        }
    }

    /// `turned` is Tᵀ and Sᵀ, with `ranks` rows for each segment.
    fn tasks<'a>(
        &self,
        x: Rows<'a>,
        dy: Rows<'a>,
        [t, s]: [&'a [bf16]; 2],
        ranks: &[usize],
        gradients: &'a mut [Option<Gradients>],
    ) -> Vec<Task<'a>> {
        let all = ranks.iter().sum::<usize>() * TOKENS;
        let of_a = |columns| Task { left: &t[..all], right: x, columns, parts: Vec::new() };
        let mut tasks: Vec<Task> = strips(self.k).into_iter().map(of_a).collect();
        let (mut of_b, mut row) = (Vec::new(), 0);
        for (((column, _, segment), gradients), &r) in placed(self.segments).zip(gradients).zip(ranks) {
            let (Some(Gradients { a, b }), 1..) = (gradients, r) else { continue };
            let [tiles] = grid(a, self.k, [(std::slice::from_ref(&(0..r)), &strips(self.k))]);
            tasks.iter_mut().zip(tiles).for_each(|(task, tile)| task.parts.push(To::A(tile)));
            let (left, right) = (&s[row * TOKENS..][..r * TOKENS], Rows { data: &dy.data[column..], ..dy });
            for (columns, data) in strips(segment.n).into_iter().zip(b.chunks_mut(WIDTH * r)) {
                of_b.push(Task { left, right, columns, parts: vec![To::B { r, data }] });
            }
            row += r;
        }
        // Those of A take longest.
        tasks.retain(|task| !task.parts.is_empty());
        tasks.extend(of_b);
        tasks
    }
}

/// Adds the products over `count` tokens.
fn contract(isa: Isa, scratch: &mut Scratch, count: usize, task: Task) {
    let Task { left, right, columns, mut parts } = task;
    let Scratch { panel, sums, band } = scratch;
    let (width, pairs) = (columns.len().next_multiple_of(LANES), count.div_ceil(2));
    let panel = &mut panel[..pairs * width];
    let (mut is_filled, is_whole) = (false, columns.len() == WIDTH && count.is_multiple_of(2));
    for (block, left) in left.chunks(ROWS * TOKENS).enumerate() {
        let (first, rows) = (block * ROWS, left.len() / TOKENS);
        let from = &right.data[columns.start..];
        if !is_whole || !isa::multiply_rows(isa, left, TOKENS, rows, from, right.stride, pairs, sums) {
            if !is_filled {
                let right = Limited { matrix: &right, count };
                fill(isa, &Right::Upright(&right), 0..2 * pairs, columns.clone(), panel, width, band);
                is_filled = true;
            }
            isa::multiply(isa, left, TOKENS, rows, panel, width, sums, false);
        }
        let mut begins = 0;
        for to in &mut parts {
            let here = begins.max(first)..(begins + to.rows()).min(first + rows);
            if !here.is_empty() {
                to.add(isa, &sums[(here.start - first) * WIDTH..][..here.len() * WIDTH], here.start - begins);
            }
            begins += to.rows();
        }
    }
}

/// Adds rows of [`WIDTH`] sums to columns `first..` of `b [columns, r]`.
fn add_transposed(isa: Isa, sums: &[f32], first: usize, r: usize, b: &mut [f32]) {
    let rows = sums.len() / WIDTH;
    for start in (0..rows).step_by(LANES) {
        let mut turned = [0u32; WIDTH * LANES];
        // Rows beyond the last are not added.
        let row = |i: usize| bytemuck::cast_slice(&sums[(start + i).min(rows - 1) * WIDTH..][..WIDTH]);
        layout::transpose(isa, &std::array::from_fn(row), &mut turned, LANES);
        add_columns(bytemuck::cast_slice(&turned), LANES.min(rows - start), first + start, r, b);
    }
}

vectorized! {
    /// Adds `count` of each [`LANES`] values to the columns `first..` of a row of `r`.
    fn add_columns<'a>(values: &'a [f32], count: usize, first: usize, r: usize, b: &'a mut [f32]) {
        if r == LANES {
            return b.iter_mut().zip(values).for_each(|(b, value)| *b += value);
        }
        for (b, values) in b.chunks_exact_mut(r).zip(values.as_chunks::<LANES>().0) {
            b[first..][..count].iter_mut().zip(values).for_each(|(b, value)| *b += value);
        }
    }
}

#[cfg(test)]
mod tests;
