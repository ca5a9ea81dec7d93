//! Frozen linear layers with a low-rank term, on bf16 values.

use super::gemm::{Out, Product, Right, Scratch, Side, multiply, multiply_sides};
use super::isa::Isa;
use super::rows::{round, round_row, widen};
use super::stored::{Rows, Stored};
use crate::backend::batch::adapter_runs;
use half::bf16;
use qlora_kernels::rng::Dropout;
use rayon::prelude::*;
use std::ops::Range;

/// One linear layer of those that share an input.
pub struct Segment<'a> {
    /// N
    pub n: usize,
    /// `[N, K]`
    pub weight: &'a dyn Stored,
    /// `[N]`
    pub bias: Option<&'a [f32]>,
    pub lora: Option<LowRank<'a>>,
}

/// A and B, which are rounded to bf16 where they are read.
#[derive(Clone, Copy)]
pub struct LowRank<'a> {
    pub r: usize,
    pub scale: f32,
    /// `[count]`: the scale of each of several pairs, of which a token takes that of its adapter; `None`: one pair
    pub scales: Option<&'a [f32]>,
    /// `[r, K]`, or `[count, r, K]`
    pub a: &'a [f32],
    /// `[N, r]`, or `[count, N, r]`
    pub b: &'a [f32],
}

/// `[rows, columns]` in f32, read as bf16; zero beyond.
pub struct Rounded<'a> {
    pub data: &'a [f32],
    pub rows: usize,
    pub columns: usize,
}

impl Stored for Rounded<'_> {
    fn read(&self, _: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        if row >= self.rows {
            return out.fill(bf16::ZERO);
        }
        let (values, beyond) = out.split_at_mut(self.columns.min(columns.end) - columns.start);
        round_row(&self.data[row * self.columns..][columns.start..][..values.len()], values);
        beyond.fill(bf16::ZERO);
    }
}

impl<'a> LowRank<'a> {
    fn a(&self, k: usize) -> Rounded<'a> {
        self.a_of(0, k)
    }

    fn b(&self, n: usize) -> Rounded<'a> {
        self.b_of(0, n)
    }

    /// A of pair number `pair`.
    fn a_of(&self, pair: usize, k: usize) -> Rounded<'a> {
        let len = self.r * k;
        Rounded { data: &self.a[pair * len..][..len], rows: self.r, columns: k }
    }

    fn b_of(&self, pair: usize, n: usize) -> Rounded<'a> {
        let len = n * self.r;
        Rounded { data: &self.b[pair * len..][..len], rows: n, columns: self.r }
    }

    /// B of the pairs that tokens of these adapters take, each with its first column of the layer's part of S.
    fn taken_pairs(&self, n: usize, adapters: &[i32]) -> Vec<(usize, Rounded<'a>)> {
        let pair = |index: usize| (index * padded(self.r), self.b_of(index, n));
        match self.scales {
            None => vec![pair(0)],
            Some(scales) => (0..scales.len()).filter(|&index| adapters.contains(&(index as i32))).map(pair).collect(),
        }
    }

    /// Columns of S and T, of which an odd rank leaves the last one of a pair zero.
    fn columns(&self) -> usize {
        padded(self.r) * self.scales.map_or(1, <[f32]>::len)
    }
}

/// Columns of S and T that rank `r` takes: products run over pairs.
pub fn padded(r: usize) -> usize {
    r.next_multiple_of(2)
}

/// Segments with the column where their output begins and the column where their low-rank term begins.
pub(super) fn placed<'s, 'a>(segments: &'s [Segment<'a>]) -> impl Iterator<Item = (usize, usize, &'s Segment<'a>)> {
    segments.iter().scan((0, 0), |(n, r), segment| {
        let at = (*n, *r);
        *n += segment.n;
        *r += segment.lora.map_or(0, |lora| lora.columns());
        Some((at.0, at.1, segment))
    })
}

pub(super) fn widths(segments: &[Segment]) -> (usize, usize) {
    segments.iter().fold((0, 0), |(n, r), s| (n + s.n, r + s.lora.map_or(0, |lora| lora.columns())))
}

/// `x` itself without dropout, otherwise a masked copy of it in `scratch`.
pub(super) fn dropped<'a>(
    x: &'a [bf16],
    k: usize,
    first: usize,
    dropout: Option<Dropout>,
    scratch: &'a mut [bf16],
) -> &'a [bf16] {
    let Some(dropout) = dropout.filter(|d| !d.is_identity()) else { return x };
    let out = &mut scratch[..x.len()];
    out.par_chunks_exact_mut(k).zip(x.par_chunks_exact(k)).enumerate().with_min_len(16).for_each(|(row, (out, x))| {
        for (quad, (out, x)) in out.chunks_mut(4).zip(x.chunks(4)).enumerate() {
            let factors = dropout.factors((first + row) as u32, quad as u32);
            out.iter_mut().zip(x).zip(factors).for_each(|((out, x), factor)| *out = round(widen(*x) * factor));
        }
    });
    out
}

/// Operands that all operations of a group share.
pub struct Group<'a> {
    pub isa: Isa,
    pub k: usize,
    pub segments: &'a [Segment<'a>],
    /// Token of the batch that the first row is: dropout masks are numbered by it.
    pub first: usize,
    pub dropout: Option<Dropout>,
    /// `[M]`: the adapter of each token; read where a layer has several pairs
    pub adapters: &'a [i32],
}

impl Group<'_> {
    /// `S = scale·dropout(X)·Aᵀ`; `masked` holds as many values as X where there is dropout. Of several pairs a token
    /// has only the columns of its own; the others are zero.
    pub fn lora_down(&self, scratch: &mut [Scratch], x: &[bf16], masked: &mut [bf16], s: &mut [bf16]) {
        let (_, width) = widths(self.segments);
        let x = dropped(x, self.k, self.first, self.dropout, masked);
        for (_, column, segment) in placed(self.segments) {
            let Some(lora) = segment.lora else { continue };
            let k = self.k;
            let Some(scales) = lora.scales else {
                let a = lora.a(k);
                let product = Product { left: Rows { data: x, stride: k }, k, right: Right::Turned(&a) };
                let out = Out::Bf16 { data: s, stride: width, scale: lora.scale, bias: None };
                multiply(self.isa, scratch, out, x.len() / k, column..column + lora.columns(), &[product]);
                continue;
            };
            let own = column..column + lora.columns();
            s.par_chunks_exact_mut(width).with_min_len(16).for_each(|s| s[own.clone()].fill(bf16::ZERO));
            for (pair, rows) in adapter_runs(self.adapters, scales.len()) {
                let a = lora.a_of(pair, k);
                let left = Rows { data: &x[rows.start * k..rows.end * k], stride: k };
                let product = Product { left, k, right: Right::Turned(&a) };
                let data = &mut s[rows.start * width..rows.end * width];
                let out = Out::Bf16 { data, stride: width, scale: scales[pair], bias: None };
                let first = column + pair * padded(lora.r);
                multiply(self.isa, scratch, out, rows.len(), first..first + padded(lora.r), &[product]);
            }
        }
    }

    /// `Y = X·Wᵀ + S·Bᵀ + bias`
    pub fn forward(&self, scratch: &mut [Scratch], x: &[bf16], s: Option<&[bf16]>, y: &mut [bf16]) {
        let (n, r) = widths(self.segments);
        let pairs: Vec<Vec<(usize, Rounded)>> = self
            .segments
            .iter()
            .map(|segment| segment.lora.map_or_else(Vec::new, |lora| lora.taken_pairs(segment.n, self.adapters)))
            .collect();
        let sides = placed(self.segments).zip(&pairs).map(|((column, rank, segment), pairs)| {
            let left = Rows { data: x, stride: self.k };
            let base = Product { left, k: self.k, right: Right::Turned(segment.weight) };
            let terms = s.into_iter().flat_map(|s| {
                pairs.iter().map(move |(first, b)| {
                    let left = Rows { data: &s[rank + first..], stride: r };
                    Product { left, k: padded(b.columns), right: Right::Turned(b) }
                })
            });
            let products = [base].into_iter().chain(terms).collect();
            Side { columns: column..column + segment.n, bias: segment.bias, products }
        });
        multiply_sides(self.isa, scratch, y, n, x.len() / self.k, &sides.collect::<Vec<_>>());
    }

    /// `T = scale·dY·B`
    pub fn lora_dy_b(&self, scratch: &mut [Scratch], dy: &[bf16], t: &mut [bf16]) {
        let (n, width) = widths(self.segments);
        for (column, rank, segment) in placed(self.segments) {
            let Some(lora) = segment.lora else { continue };
            let b = lora.b(segment.n);
            let left = Rows { data: &dy[column..], stride: n };
            let product = Product { left, k: segment.n, right: Right::Upright(&b) };
            let out = Out::Bf16 { data: t, stride: width, scale: lora.scale, bias: None };
            multiply(self.isa, scratch, out, dy.len() / n, rank..rank + lora.columns(), &[product]);
        }
    }

    /// `dX = dY·W + dropout(T·A)`, or += with `accumulate`; `term` holds as many values as dX where there is dropout.
    pub fn dx(
        &self,
        scratch: &mut [Scratch],
        dy: &[bf16],
        t: Option<&[bf16]>,
        term: &mut [f32],
        accumulate: bool,
        dx: &mut [bf16],
    ) {
        let (n, r) = widths(self.segments);
        let (k, rows) = (self.k, dy.len() / n);
        let a: Vec<(usize, usize, Rounded)> = placed(self.segments)
            .filter_map(|(_, rank, segment)| segment.lora.map(|lora| (rank, lora.columns(), lora.a(k))))
            .collect();
        let mut products: Vec<Product> = placed(self.segments)
            .map(|(column, _, segment)| {
                let left = Rows { data: &dy[column..], stride: n };
                Product { left, k: segment.n, right: Right::Upright(segment.weight) }
            })
            .collect();
        let terms: Vec<Product> = match t {
            Some(t) => a
                .iter()
                .map(|(rank, steps, a)| {
                    let left = Rows { data: &t[*rank..], stride: r };
                    Product { left, k: *steps, right: Right::Upright(a) }
                })
                .collect(),
            None => Vec::new(),
        };
        let Some(dropout) = self.dropout.filter(|d| !d.is_identity() && !terms.is_empty()) else {
            products.extend(terms);
            let out = match accumulate {
                true => Out::AddBf16 { data: dx, stride: k },
                false => Out::Bf16 { data: dx, stride: k, scale: 1.0, bias: None },
            };
            return multiply(self.isa, scratch, out, rows, 0..k, &products);
        };
        let term = &mut term[..rows * k];
        multiply(self.isa, scratch, Out::F32 { data: term, stride: k }, rows, 0..k, &terms);
        term.par_chunks_exact_mut(k).enumerate().with_min_len(16).for_each(|(row, term)| {
            for (quad, term) in term.chunks_mut(4).enumerate() {
                let factors = dropout.factors((self.first + row) as u32, quad as u32);
                term.iter_mut().zip(factors).for_each(|(x, factor)| *x *= factor);
            }
        });
        if accumulate {
            let rows = term.par_chunks_exact_mut(k).zip(dx.par_chunks_exact(k)).with_min_len(16);
            rows.for_each(|(term, dx)| term.iter_mut().zip(dx).for_each(|(x, dx)| *x += widen(*dx)));
        }
        multiply(self.isa, scratch, Out::Plus { data: dx, stride: k, more: term }, rows, 0..k, &products);
    }
}

/// The first `columns` columns of `count` rows, each as a row of `steps` values; those beyond `count` are zero.
pub fn transpose(from: &[bf16], stride: usize, count: usize, columns: usize, steps: usize, to: &mut [bf16]) {
    for (column, to) in to.chunks_exact_mut(steps).take(columns).enumerate() {
        for (row, to) in to.iter_mut().enumerate() {
            *to = if row < count { from[row * stride + column] } else { bf16::ZERO };
        }
    }
}

#[cfg(test)]
mod tests;
