//! Causal attention in tiles with a running softmax (Dao et al. 2022), on bf16 values with sums in f32.
//!
//! A task is a tile of tokens, as queries (forward pass, dQ) and as keys (dK, dV), of one key head and all query heads
//! that share it, so that the panels of keys and values are made once for the group. Every sum has one fixed order.

use super::gemm::{PAIRS, Right, each, fill};
use super::isa::{self, Isa, LANES};
use super::pairs::WIDTH;
use super::rows::{round_row, round_scaled, widen};
use super::scores::{OfQueries, Softmax, correct_rows, key_gradient_rows, query_gradient_rows, softmax_rows};
use super::stored::{Limited, Rows};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::attention::{documents, keys_in_tile, keys_of_task, queries_in_tile};
use crate::backend::cpu::gemm::tiles::{Tile, grid};
use half::bf16;
use qlora_kernels::shape::{AttentionShape, Visible};
use rayon::prelude::*;
use std::ops::Range;

/// Rows and columns of a tile of scores.
const TILE: usize = WIDTH;

/// Tasks of a batch of `tokens` tokens.
pub fn tasks(tokens: usize, kv_heads: usize) -> usize {
    tokens.div_ceil(TILE) * kv_heads
}

/// The columns of every key head, `width` each, from `first` on.
fn of_heads(kv_heads: usize, first: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..kv_heads).map(move |head| first + head * width..first + (head + 1) * width)
}

/// Scratch memory of one task.
pub struct Scratch {
    /// Three right operands of a tile: `[D / 2 or D / WIDTH · TILE / 2, WIDTH]` each
    panels: [Aligned<u32>; 3],
    band: Aligned<bf16>,
    /// Scores, and the gradients of probabilities: `[TILE, TILE]` each
    scores: Aligned<f32>,
    gradients: Aligned<f32>,
    /// Their rounded values
    p: Aligned<bf16>,
    ds: Aligned<bf16>,
    /// Sums of a task's results, `[2, heads of a group, D / WIDTH, TILE, WIDTH]`
    sums: Aligned<f32>,
}

impl Scratch {
    /// For tiles of `shape`.
    pub fn new(shape: AttentionShape) -> Self {
        let group = shape.heads / shape.kv_heads;
        let parts = shape.head_dim.div_ceil(WIDTH);
        Self {
            panels: std::array::from_fn(|_| Aligned::zeros(panel_len(shape))),
            band: Aligned::zeros(LANES * 2 * PAIRS),
            scores: Aligned::zeros(TILE * TILE),
            gradients: Aligned::zeros(TILE * TILE),
            p: Aligned::zeros(TILE * TILE),
            ds: Aligned::zeros(TILE * TILE),
            sums: Aligned::zeros(group.max(2) * parts * TILE * WIDTH),
        }
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes(shape: AttentionShape) -> u64 {
        let sums = (shape.heads / shape.kv_heads).max(2) * shape.head_dim.div_ceil(WIDTH) * TILE * WIDTH;
        (3 * 4 * panel_len(shape) + LANES * 2 * PAIRS * 2 + 12 * TILE * TILE + 4 * sums) as u64
    }
}

/// Both ways of reading a tile of `[TILE, D]`: D / 2 pairs for TILE columns, or TILE / 2 pairs for D columns.
fn panel_len(shape: AttentionShape) -> usize {
    (shape.head_dim.div_ceil(2) * TILE).max(shape.head_dim.div_ceil(WIDTH) * TILE / 2 * WIDTH)
}

/// `[tile, D]` values of one head in rows of `stride`.
#[derive(Clone, Copy)]
struct Head<'a> {
    data: &'a [bf16],
    stride: usize,
    /// The first row is the token 0.
    column: usize,
}

impl<'a> Head<'a> {
    fn rows(&self, tokens: Range<usize>) -> Rows<'a> {
        Rows { data: &self.data[tokens.start * self.stride + self.column..], stride: self.stride }
    }
}

fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(TILE).map(move |start| start..(start + TILE).min(end))
}

/// A tile of tokens as the right operand of a product along D: its tokens are the columns.
fn along_d(isa: Isa, tile: Rows, tokens: usize, d: usize, panel: &mut [u32], band: &mut [bf16]) {
    let width = tokens.next_multiple_of(LANES);
    fill(isa, &Right::Turned(&tile), 0..d, 0..tokens, &mut panel[..d / 2 * width], width, band);
}

/// A tile of tokens as the right operand of a product along its tokens, in parts of [`WIDTH`] columns.
fn along_tokens(isa: Isa, tile: Rows, tokens: usize, d: usize, panel: &mut [u32], band: &mut [bf16]) {
    let (steps, tile) = (tokens.next_multiple_of(2), Limited { matrix: &tile, count: tokens });
    for (columns, panel) in parts(d).zip(panel.chunks_mut(TILE / 2 * WIDTH)) {
        let width = columns.len().next_multiple_of(LANES);
        fill(isa, &Right::Upright(&tile), 0..steps, columns, &mut panel[..steps / 2 * width], width, band);
    }
}

fn parts(d: usize) -> impl Iterator<Item = Range<usize>> {
    (0..d).step_by(WIDTH).map(move |start| start..(start + WIDTH).min(d))
}

/// `scores [rows, tokens] = left [rows, D] · panel` of [`along_d`].
fn scores_of(isa: Isa, left: Rows, rows: usize, tokens: usize, d: usize, panel: &[u32], scores: &mut [f32]) {
    let width = tokens.next_multiple_of(LANES);
    isa::multiply(isa, left.data, left.stride, rows, &panel[..d / 2 * width], width, scores, false);
}

/// `sums [parts, TILE, WIDTH] (+)= left [rows, TILE] · panel` of [`along_tokens`].
fn add_values(
    isa: Isa,
    left: &[bf16],
    rows: usize,
    tokens: usize,
    d: usize,
    panel: &[u32],
    sums: &mut [f32],
    add: bool,
) {
    let pairs = tokens.div_ceil(2);
    let each = panel.chunks(TILE / 2 * WIDTH).zip(sums.chunks_mut(TILE * WIDTH));
    for (columns, (panel, sums)) in parts(d).zip(each) {
        let width = columns.len().next_multiple_of(LANES);
        isa::multiply(isa, left, TILE, rows, &panel[..pairs * width], width, sums, add);
    }
}

/// `O = softmax(Q·Kᵀ/√D)·V` and the log-sum-exp of every query.
pub fn forward(
    isa: Isa,
    scratch: &mut [Scratch],
    qkv: &[bf16],
    boundaries: &[u32],
    shape: AttentionShape,
    visible: Visible,
    out: &mut [bf16], // [M, H·D]
    lse: &mut [f32],  // [M, H]
) {
    let (kv_heads, group) = (shape.kv_heads, shape.heads / shape.kv_heads);
    let columns = |width: usize| of_heads(kv_heads, 0, width).collect::<Vec<_>>();
    let out = grid(out, shape.out(), TILE, &columns(group * shape.head_dim));
    let lse = grid(lse, shape.heads, TILE, &columns(group));
    // The last queries see the most keys and are taken first, so that no thread begins with them at the end.
    let tasks = out.into_iter().zip(lse).enumerate().rev().collect();
    each(scratch, tasks, |scratch, (task, (mut out, mut lse)): (usize, (Tile<bf16>, Tile<f32>))| {
        for (queries, document) in documents(boundaries, out.rows.clone()) {
            let (start, kv_head) = (document.start, task % kv_heads);
            forward_group(isa, qkv, shape, visible, kv_head, queries, start, scratch, &mut out, &mut lse);
        }
    });
}

fn forward_group(
    isa: Isa,
    qkv: &[bf16],
    shape: AttentionShape,
    visible: Visible,
    kv_head: usize,
    queries: Range<usize>,
    document_start: usize,
    scratch: &mut Scratch,
    out: &mut Tile<bf16>, // [rows, D of every member of the group]
    lse: &mut Tile<f32>,  // [rows, members]
) {
    let (d, group, stride) = (shape.head_dim, shape.heads / shape.kv_heads, shape.qkv());
    let (rows, scale) = (queries.len(), shape.scale() as f32);
    let head = |column| Head { data: qkv, stride, column };
    let (keys, values) = (head(shape.key_column(kv_head * group)), head(shape.value_column(kv_head * group)));
    let Scratch { panels: [k, v, _], band, scores, p, sums, .. } = scratch;
    let count = d.div_ceil(WIDTH);
    let (mut max, mut sum) = (vec![f32::NEG_INFINITY; group * rows], vec![0.0f32; group * rows]);
    let all = keys_of_task(visible, document_start, &queries, TILE);
    for tile in tiles(all.clone()) {
        let (columns, begun) = (tile.len(), tile.start > all.start);
        along_d(isa, keys.rows(tile.clone()), columns, d, k, band);
        along_tokens(isa, values.rows(tile.clone()), columns, d, v, band);
        let seen: Vec<_> = queries.clone().map(|query| keys_in_tile(visible, document_start, query, &tile)).collect();
        for member in 0..group {
            let q = head((kv_head * group + member) * d).rows(queries.clone());
            scores_of(isa, q, rows, columns, d, k, scores);
            let of_member = member * rows..(member + 1) * rows;
            let mut corrections = [0.0; TILE];
            let running = Softmax {
                max: &mut max[of_member.clone()],
                sum: &mut sum[of_member],
                corrections: &mut corrections[..rows],
            };
            softmax_rows(&mut scores[..rows * WIDTH], &seen, scale, shape.soft_cap, running, p);
            let sums = &mut sums[member * count * TILE * WIDTH..][..count * TILE * WIDTH];
            if begun {
                correct_rows(sums, TILE, &corrections[..rows]);
            }
            add_values(isa, p, rows, columns, d, v, sums, begun);
        }
    }
    for member in 0..group {
        for row in 0..rows {
            let (max, sum) = (max[member * rows + row], sum[member * rows + row]);
            let (inverse, to) = (1.0 / sum, queries.start - out.rows.start + row);
            for part in 0..count {
                let o = &sums[((member * count + part) * TILE + row) * WIDTH..][..(d - part * WIDTH).min(WIDTH)];
                round_scaled(&mut out.row(to)[member * d + part * WIDTH..][..o.len()], o, inverse);
            }
            lse.row(to)[member] = max + sum.ln();
        }
    }
}

/// dq‖dk‖dv from dO, with the probabilities computed again. `delta` `[M, H]` becomes rowsum(dO ∘ O).
pub fn backward(
    isa: Isa,
    scratch: &mut [Scratch],
    dout: &[bf16],
    qkv: &[bf16],
    out: &[bf16],
    lse: &[f32],
    boundaries: &[u32],
    shape: AttentionShape,
    visible: Visible,
    delta: &mut [f32],
    dqkv: &mut [bf16],
) {
    let (d, kv_heads) = (shape.head_dim, shape.kv_heads);
    delta.par_chunks_mut(TILE).zip(dout.par_chunks(TILE * d).zip(out.par_chunks(TILE * d))).for_each(
        |(delta, (dout, out))| {
            for (delta, (dout, out)) in delta.iter_mut().zip(dout.chunks_exact(d).zip(out.chunks_exact(d))) {
                *delta = dout.iter().zip(out).map(|(a, b)| widen(*a) * widen(*b)).sum();
            }
        },
    );
    let pass = Pass { isa, dout, qkv, lse, delta, shape, visible };
    let columns: Vec<_> = of_heads(kv_heads, 0, shape.heads / kv_heads * d)
        .chain(of_heads(kv_heads, shape.key_column(0), d))
        .chain(of_heads(kv_heads, shape.value_column(0), d))
        .collect();
    let mut tiles = grid(dqkv, shape.qkv(), TILE, &columns).into_iter();
    let mut tasks = Vec::with_capacity(tiles.len() / 3);
    for _ in 0..tiles.len() / columns.len() {
        let [q, k, v] = [(); 3].map(|()| tiles.by_ref().take(kv_heads).collect::<Vec<_>>());
        tasks.extend(q.into_iter().zip(k).zip(v).enumerate());
    }
    each(scratch, tasks, |scratch, (kv_head, ((mut dq, mut dk), mut dv)): (usize, ((Tile<bf16>, _), _))| {
        for (part, document) in documents(boundaries, dq.rows.clone()) {
            pass.query_gradient(kv_head, part.clone(), document.start, scratch, &mut dq);
            pass.key_value_gradient(kv_head, part, document.end, scratch, &mut dk, &mut dv);
        }
    });
}

struct Pass<'a> {
    isa: Isa,
    dout: &'a [bf16],
    qkv: &'a [bf16],
    lse: &'a [f32],
    delta: &'a [f32],
    shape: AttentionShape,
    visible: Visible,
}

impl<'a> Pass<'a> {
    fn qkv(&self, column: usize) -> Head<'a> {
        Head { data: self.qkv, stride: self.shape.qkv(), column }
    }

    fn dout(&self, head: usize) -> Head<'a> {
        Head { data: self.dout, stride: self.shape.out(), column: head * self.shape.head_dim }
    }

    /// Log-sum-exps and deltas of a tile of queries.
    fn of_queries(&self, head: usize, queries: Range<usize>) -> ([f32; TILE], [f32; TILE]) {
        let (mut lse, mut delta) = ([0.0; TILE], [0.0; TILE]);
        for (i, query) in queries.enumerate() {
            lse[i] = self.lse[query * self.shape.heads + head];
            delta[i] = self.delta[query * self.shape.heads + head];
        }
        (lse, delta)
    }

    fn query_gradient(
        &self,
        kv_head: usize,
        queries: Range<usize>,
        document_start: usize,
        scratch: &mut Scratch,
        dq: &mut Tile<bf16>, // [rows, D of every member of the group]
    ) {
        let Self { isa, shape, visible, .. } = *self;
        let (d, heads) = (shape.head_dim, shape.heads);
        let (group, scale, rows) = (heads / shape.kv_heads, shape.scale() as f32, queries.len());
        let keys = self.qkv(shape.key_column(kv_head * group));
        let values = self.qkv(shape.value_column(kv_head * group));
        let Scratch { panels: [k, v, k_values], band, scores, gradients, ds, sums, .. } = scratch;
        let count = d.div_ceil(WIDTH);
        let all = keys_of_task(visible, document_start, &queries, TILE);
        for tile in tiles(all.clone()) {
            let (columns, begun) = (tile.len(), tile.start > all.start);
            along_d(isa, keys.rows(tile.clone()), columns, d, k, band);
            along_d(isa, values.rows(tile.clone()), columns, d, v, band);
            along_tokens(isa, keys.rows(tile.clone()), columns, d, k_values, band);
            let seen: Vec<_> =
                queries.clone().map(|query| keys_in_tile(visible, document_start, query, &tile)).collect();
            for member in 0..group {
                let head = kv_head * group + member;
                let q = self.qkv(head * d).rows(queries.clone());
                let dout = self.dout(head).rows(queries.clone());
                scores_of(isa, q, rows, columns, d, k, scores);
                scores_of(isa, dout, rows, columns, d, v, gradients);
                let (lse, delta) = self.of_queries(head, queries.clone());
                let of_queries = OfQueries { lse: &lse[..rows], delta: &delta[..rows] };
                query_gradient_rows(scores, gradients, &seen, scale, shape.soft_cap, of_queries, ds);
                let sums = &mut sums[member * count * TILE * WIDTH..][..count * TILE * WIDTH];
                add_values(isa, ds, rows, columns, d, k_values, sums, begun);
            }
        }
        for member in 0..group {
            store(&sums[member * count * TILE * WIDTH..], &queries, d, dq, member * d);
        }
    }

    fn key_value_gradient(
        &self,
        kv_head: usize,
        keys: Range<usize>,
        document_end: usize,
        scratch: &mut Scratch,
        dk: &mut Tile<bf16>, // [rows, D]
        dv: &mut Tile<bf16>,
    ) {
        let Self { isa, shape, visible, .. } = *self;
        let (d, heads) = (shape.head_dim, shape.heads);
        let (group, scale, rows) = (heads / shape.kv_heads, shape.scale() as f32, keys.len());
        let k = self.qkv(shape.key_column(kv_head * group)).rows(keys.clone());
        let v = self.qkv(shape.value_column(kv_head * group)).rows(keys.clone());
        let Scratch { panels: [along, of_q, of_dout], band, scores, gradients, p, ds, sums } = scratch;
        let (sums_k, sums_v) = sums.split_at_mut(d.div_ceil(WIDTH) * TILE * WIDTH);
        let mut begun = false;
        for head in kv_head * group..(kv_head + 1) * group {
            for tile in tiles(keys.start..visible.end_of_queries(keys.end - 1, document_end)) {
                let columns = tile.len();
                let (q, dout) = (self.qkv(head * d).rows(tile.clone()), self.dout(head).rows(tile.clone()));
                along_d(isa, q, columns, d, along, band);
                scores_of(isa, k, rows, columns, d, along, scores);
                along_d(isa, dout, columns, d, along, band);
                scores_of(isa, v, rows, columns, d, along, gradients);
                let (lse, delta) = self.of_queries(head, tile.clone());
                let of_queries = OfQueries { lse: &lse, delta: &delta };
                // Queries before the key do not see it, nor do those past its window.
                let seen: Vec<_> = keys.clone().map(|key| queries_in_tile(visible, key, document_end, &tile)).collect();
                key_gradient_rows(scores, gradients, &seen, scale, shape.soft_cap, of_queries, p, ds);
                along_tokens(isa, q, columns, d, of_q, band);
                add_values(isa, ds, rows, columns, d, of_q, sums_k, begun);
                along_tokens(isa, dout, columns, d, of_dout, band);
                add_values(isa, p, rows, columns, d, of_dout, sums_v, begun);
                begun = true;
            }
        }
        store(sums_k, &keys, d, dk, 0);
        store(sums_v, &keys, d, dv, 0);
    }
}

/// Rounds the sums of these tokens, in parts of [`WIDTH`] columns, to `d` columns of `out` from `column` on.
fn store(sums: &[f32], tokens: &Range<usize>, d: usize, out: &mut Tile<bf16>, column: usize) {
    let first = tokens.start - out.rows.start;
    for (part, start) in (0..d).step_by(WIDTH).enumerate() {
        for row in 0..tokens.len() {
            let from = &sums[(part * TILE + row) * WIDTH..][..(d - start).min(WIDTH)];
            round_row(from, &mut out.row(first + row)[column + start..][..from.len()]);
        }
    }
}

#[cfg(test)]
mod tests;
