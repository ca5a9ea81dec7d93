//! dQ, dK and dV in one pass over the tiles of scores.
//!
//! A task is a tile of keys of one key head. It computes probabilities and gradients of scores once for every tile of
//! queries that sees them: for dK and dV, which it sums itself, and for its part of dQ, to which tasks add in the order
//! of their keys. A task waits there for those of earlier keys, which began before it.

use super::{
    Head, PART, Scratch, TILE, along_d, keys_seen, of_heads, panel, part, parts, rows_with, scaling, store_transposed,
    tiles, tiles_of_documents,
};
use crate::backend::cpu::attention::keys_of_task;
use crate::backend::cpu::bf16::fused::halves;
use crate::backend::cpu::bf16::gemm::{Right, each, fill};
use crate::backend::cpu::bf16::isa::{self, Isa, LANES};
use crate::backend::cpu::bf16::layout;
use crate::backend::cpu::bf16::pairs::WIDTH;
use crate::backend::cpu::bf16::rows::{round_row, widen};
use crate::backend::cpu::bf16::scores::{OfQueries, OfScores, gradient_rows};
use crate::backend::cpu::bf16::stored::{Limited, Rows};
use crate::backend::cpu::bf16::transposed::transpose;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::gemm::tiles::{Tile, grid};
use half::bf16;
use qlora_kernels::shape::{AttentionShape, Visible};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Sums over all tokens.
pub struct Sums<'a> {
    /// `[M, H]`: becomes rowsum(dO ∘ O)
    pub delta: &'a mut [f32],
    /// [`Sums::dq_len`] values: becomes dQ before it is rounded
    pub dq: &'a mut [f32],
}

impl Sums<'_> {
    /// Values of `dq` for as many tokens: `[H, D / WIDTH, M, WIDTH]`.
    pub fn dq_len(tokens: usize, shape: AttentionShape) -> usize {
        shape.heads * shape.head_dim.div_ceil(WIDTH) * tokens * WIDTH
    }
}

/// Keys of a task. With few tasks for each thread they are smaller; the order of every sum stays the same.
pub fn keys_at_once(tokens: usize, kv_heads: usize, threads: usize) -> usize {
    if super::tasks(tokens, kv_heads) < 8 * threads { PART } else { TILE }
}

/// dq‖dk‖dv from dO, with the probabilities computed again.
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
    sums: Sums,
    dqkv: &mut [bf16],
) {
    let (d, heads, kv_heads) = (shape.head_dim, shape.heads, shape.kv_heads);
    let Sums { delta, dq } = sums;
    delta
        .par_chunks_mut(LANES)
        .zip(dout.par_chunks(LANES * d).zip(out.par_chunks(LANES * d)))
        .with_min_len(16)
        .for_each(|(delta, (dout, out))| dots_of_rows(isa, dout, out, delta));
    let tokens = lse.len() / heads;
    let at_once = keys_at_once(tokens, kv_heads, scratch.len().min(rayon::current_num_threads()));
    let of_queries: Vec<_> = tiles_of_documents(boundaries, TILE).collect();
    let of_keys: Vec<_> = tiles_of_documents(boundaries, at_once).collect();
    let rows = |tiles: &[(Range<usize>, Range<usize>)]| tiles.iter().map(|(tile, _)| tile.clone()).collect::<Vec<_>>();
    let (query_rows, key_rows) = (rows(&of_queries), rows(&of_keys));
    let columns = [(heads, 0), (kv_heads, shape.key_column(0)), (kv_heads, shape.value_column(0))]
        .map(|(heads, first)| of_heads(heads, first, d).collect::<Vec<_>>());
    let areas = [(&query_rows[..], &columns[0][..]), (&key_rows, &columns[1]), (&key_rows, &columns[2])];
    let [of_q, of_k, of_v] = grid(dqkv, shape.qkv(), areas);

    let mut rest: Vec<&mut [f32]> = dq.chunks_exact_mut(tokens * WIDTH).collect();
    let mut turns = Vec::with_capacity(of_q.len());
    for (number, out) in of_q.into_iter().enumerate() {
        let (queries, document) = &of_queries[number / heads];
        let parts = d.div_ceil(WIDTH);
        let sums = rest[number % heads * parts..][..parts].iter_mut();
        let sums = sums.map(|rest| rest.split_off_mut(..queries.len() * WIDTH).expect("rows of every token")).collect();
        let first = keys_of_task(visible, document.start, queries, at_once).start;
        turns.push(Turn { first, next: AtomicUsize::new(first), gradient: Mutex::new(Gradient { sums, out }) });
    }
    let pass = Pass { isa, dout, qkv, lse, delta, shape, visible, turns: &turns, failed: AtomicBool::new(false) };
    let tasks = of_k.into_iter().zip(of_v).enumerate().collect();
    each(scratch, tasks, |scratch, (task, (mut dk, mut dv)): (usize, (Tile<bf16>, Tile<bf16>))| {
        let (_, document) = &of_keys[task / kv_heads];
        let first = query_rows.partition_point(|tile| tile.start < document.start);
        pass.gradients(task % kv_heads, document.clone(), first, scratch, &mut dk, &mut dv);
    });
}

/// rowsum(X ∘ Y) of as many rows as there are `dots`, each summed in order.
fn dots_of_rows(isa: Isa, x: &[bf16], y: &[bf16], dots: &mut [f32]) {
    let d = x.len() / dots.len();
    dots.fill(0.0);
    let Some(dots) = dots.as_mut_array::<LANES>() else {
        for (dot, (x, y)) in dots.iter_mut().zip(x.chunks_exact(d).zip(y.chunks_exact(d))) {
            *dot = x.iter().zip(y).fold(0.0, |dot, (x, y)| dot + widen(*x) * widen(*y));
        }
        return;
    };
    for columns in tiles(0..d, 2 * LANES) {
        let [x, y] = [x, y].map(|values| {
            let mut pairs = [0u32; LANES * LANES];
            let row = |i: usize| &values[i * d..][columns.clone()];
            layout::transpose(isa, &std::array::from_fn(row), &mut pairs, LANES);
            pairs
        });
        add_products(&x[..columns.len() / 2 * LANES], &y, dots);
    }
}

vectorized! {
    /// Adds the products of the earlier halves, and of the later ones, of each row of pairs.
    fn add_products<'a>(x: &'a [u32], y: &'a [u32], dots: &'a mut [f32; LANES]) {
        for (x, y) in x.as_chunks::<LANES>().0.iter().zip(y.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                let ((x0, x1), (y0, y1)) = (halves(x[lane]), halves(y[lane]));
                dots[lane] += x0 * y0;
                dots[lane] += x1 * y1;
            }
        }
    }
}

/// dQ of a tile of queries and one head.
struct Gradient<'a> {
    /// The sums of each [`WIDTH`] columns, `[queries, WIDTH]`
    sums: Vec<&'a mut [f32]>,
    out: Tile<'a, bf16>,
}

/// The order in which tasks add to a gradient.
struct Turn<'a> {
    /// The first key that its queries see, or one before it
    first: usize,
    /// The first key of the tile whose part is added next
    next: AtomicUsize,
    gradient: Mutex<Gradient<'a>>,
}

struct Pass<'a> {
    isa: Isa,
    dout: &'a [bf16],
    qkv: &'a [bf16],
    lse: &'a [f32],
    delta: &'a [f32],
    shape: AttentionShape,
    visible: Visible,
    /// One of every tile of queries and head
    turns: &'a [Turn<'a>],
    /// Set when a task panics, for those that wait for it
    failed: AtomicBool,
}

/// Sets its flag when a task panics.
struct Watch<'a>(&'a AtomicBool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
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

    /// `first` is the number of the document's first tile of queries.
    fn gradients(
        &self,
        kv_head: usize,
        document: Range<usize>,
        first: usize,
        scratch: &mut Scratch,
        dk: &mut Tile<bf16>, // [keys, D]
        dv: &mut Tile<bf16>,
    ) {
        let _watch = Watch(&self.failed);
        let Self { isa, shape, visible, .. } = *self;
        let (d, heads, keys) = (shape.head_dim, shape.heads, dk.rows.clone());
        let (group, count) = (heads / shape.kv_heads, keys.len());
        let k_rows = self.qkv(shape.key_column(kv_head * group)).rows(keys.clone());
        let v_rows = self.qkv(shape.value_column(kv_head * group)).rows(keys.clone());
        let Scratch {
            along_d: panels,
            along_tokens: keys_panel,
            transposed,
            band,
            scores,
            gradients,
            p,
            ds,
            ds_rows,
            sums,
        } = scratch;
        let [q_turned, dout_turned] = transposed;
        let (k, v) = panels.split_at_mut(d / 2 * TILE);
        let v = &mut v[..d / 2 * TILE];
        along_d(isa, k_rows, count, d, k, band);
        along_d(isa, v_rows, count, d, v, band);
        along_tokens(isa, k_rows, count, d, keys_panel, band);
        let (sums_k, rest) = sums.split_at_mut(d * WIDTH);
        let sums_v = &mut rest[..d * WIDTH];
        sums_k.fill(0.0);
        sums_v.fill(0.0);
        let (number, end) = ((keys.start - document.start) / TILE, visible.end_of_queries(keys.end - 1, document.end));
        let queries = || tiles(document.start + number * TILE..document.end, TILE).take_while(|tile| tile.start < end);
        for head in kv_head * group..(kv_head + 1) * group {
            for (tile, number) in queries().zip(first + number..) {
                let (q, dout) = (self.qkv(head * d).rows(tile.clone()), self.dout(head).rows(tile.clone()));
                let next = tile.end..(tile.end + TILE).min(document.end);
                [self.qkv(head * d), self.dout(head)].iter().for_each(|head| head.prefetch(next.clone(), d));
                transpose(isa, q, tile.len(), d, q_turned, TILE / 2, band);
                transpose(isa, dout, tile.len(), d, dout_turned, TILE / 2, band);
                let (q_turned, dout_turned): (&[bf16], &[bf16]) =
                    (bytemuck::cast_slice(q_turned), bytemuck::cast_slice(dout_turned));
                let (lse, delta) = self.of_queries(head, tile.clone());
                let seen = &keys_seen(visible, document.start, &tile, &keys)[..tile.len()];
                let of_parts = k.chunks_exact(d / 2 * part(isa)).zip(v.chunks_exact(d / 2 * part(isa)));
                for (columns, (k, v)) in parts(isa, count).zip(of_parts) {
                    let (width, rows) = (columns.len(), rows_with(seen, &columns));
                    if rows.len() < tile.len() {
                        // A part is computed from its first row on.
                        ds_rows.chunks_exact_mut(WIDTH).for_each(|row| row[columns.clone()].fill(bf16::ZERO));
                    }
                    if rows.is_empty() {
                        continue;
                    }
                    let (q_rows, dout_rows) =
                        (&q.data[rows.start * q.stride..], &dout.data[rows.start * dout.stride..]);
                    let (k, v) = (&k[..d / 2 * width], &v[..d / 2 * width]);
                    isa::multiply(isa, q_rows, q.stride, rows.len(), k, width, &mut scores[columns.start..], false);
                    let gradients_to = &mut gradients[columns.start..];
                    isa::multiply(isa, dout_rows, dout.stride, rows.len(), v, width, gradients_to, false);
                    let of_queries = OfQueries { lse: &lse[rows.start..], delta: &delta[rows.start..] };
                    let of_scores =
                        OfScores { panel: panel(isa, ds, rows.len(), width), rows: &mut ds_rows[rows.start * WIDTH..] };
                    let (seen, p_panel) = (&seen[rows.clone()], panel(isa, p, rows.len(), width));
                    let scaling = scaling(shape);
                    gradient_rows(
                        isa,
                        scores,
                        gradients,
                        seen,
                        columns.clone(),
                        scaling,
                        of_queries,
                        p_panel,
                        of_scores,
                    );
                    let used = rows.len().div_ceil(2) * width;
                    let (to_k, to_v) = (&mut sums_k[columns.start..], &mut sums_v[columns.start..]);
                    isa::multiply(isa, &q_turned[rows.start..], TILE, d, &ds[..used], width, to_k, true);
                    isa::multiply(isa, &dout_turned[rows.start..], TILE, d, &p[..used], width, to_v, true);
                }
                self.add_query_gradient(&self.turns[number * heads + head], &keys, tile, ds_rows, keys_panel);
            }
        }
        store_transposed(isa, sums_k, None, &keys, d, scores, dk, 0);
        store_transposed(isa, sums_v, None, &keys, d, scores, dv, 0);
    }

    /// Adds `ds [queries, TILE] · keys` when the parts of all keys before are added.
    fn add_query_gradient(&self, turn: &Turn, keys: &Range<usize>, queries: Range<usize>, ds: &[bf16], panel: &[u32]) {
        let (isa, d, pairs) = (self.isa, self.shape.head_dim, keys.len().div_ceil(2));
        while turn.next.load(Ordering::Acquire) != keys.start {
            assert!(!self.failed.load(Ordering::Relaxed), "another thread's part of the gradient has failed");
            std::thread::yield_now();
        }
        let mut gradient = turn.gradient.lock().expect("no thread panics while it adds");
        let Gradient { sums, out } = &mut *gradient;
        for ((columns, sums), panel) in tiles(0..d, WIDTH).zip(sums).zip(panel.chunks(TILE / 2 * WIDTH)) {
            let width = columns.len().next_multiple_of(LANES);
            let panel = &panel[..pairs * width];
            isa::multiply(isa, ds, TILE, queries.len(), panel, width, sums, keys.start > turn.first);
            if keys.end >= queries.end {
                for (row, sums) in sums.chunks_exact(WIDTH).enumerate() {
                    round_row(&sums[..columns.len()], &mut out.row(row)[columns.clone()]);
                }
            }
        }
        turn.next.store(keys.end, Ordering::Release);
    }
}

/// A tile of tokens as the right operand of a product along its tokens, in parts of [`WIDTH`] columns.
fn along_tokens(isa: Isa, tile: Rows, tokens: usize, d: usize, panel: &mut [u32], band: &mut [bf16]) {
    let (steps, tile) = (tokens.next_multiple_of(2), Limited { matrix: &tile, count: tokens });
    for (columns, panel) in tiles(0..d, WIDTH).zip(panel.chunks_mut(TILE / 2 * WIDTH)) {
        let width = columns.len().next_multiple_of(LANES);
        fill(isa, &Right::Upright(&tile), 0..steps, columns, &mut panel[..steps / 2 * width], width, band);
    }
}
