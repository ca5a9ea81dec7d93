//! Causal attention in tiles with a running softmax (Dao et al. 2022): no `[M, M]` memory, and every output row is
//! summed in one fixed order.

use super::elementwise::{exp_shifted, gradients_of_row, largest, score_gradients};
use super::gemm::small::{Mat, matmul};
use super::soft_cap::{cap_scores, cap_values, times};
use super::workspace::Workspace;
use qlora_kernels::shape::{AttentionShape, Visible};
use rayon::prelude::*;
use std::ops::Range;

/// Rows of one task: queries in the forward pass and for dQ, keys for dK and dV.
const ROWS: usize = 64;
/// Columns of a tile of scores.
const COLUMNS: usize = 128;
const TILE: usize = ROWS * COLUMNS;

/// Values of scratch memory: two tiles per task.
pub fn scratch(tokens: usize) -> usize {
    tokens.div_ceil(ROWS) * 2 * TILE
}

/// The parts of `rows` that lie in one document each, with that document.
pub fn documents(boundaries: &[u32], rows: Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    boundaries.windows(2).map(|w| w[0] as usize..w[1] as usize).filter_map(move |document| {
        let part = rows.start.max(document.start)..rows.end.min(document.end);
        (!part.is_empty()).then_some((part, document))
    })
}

/// The keys that one of `queries` sees, from the beginning of a tile of a document on: a query's sums run over the same
/// tiles wherever the document lies in a batch.
pub fn keys_of_task(visible: Visible, start: usize, queries: &Range<usize>, tile: usize) -> Range<usize> {
    let first = visible.keys(start, queries.start).start;
    start + (first - start) / tile * tile..queries.end
}

/// The part of a tile of keys that a query sees, counted within the tile. `start` is its document's.
pub fn keys_in_tile(visible: Visible, start: usize, query: usize, tile: &Range<usize>) -> Range<usize> {
    let Range { start, end } = visible.keys(start, query);
    let end = end.saturating_sub(tile.start).min(tile.len());
    start.saturating_sub(tile.start).min(end)..end
}

/// The part of a tile of queries that sees a key, counted within the tile. `end` is its document's.
pub fn queries_in_tile(visible: Visible, key: usize, end: usize, tile: &Range<usize>) -> Range<usize> {
    let end = visible.end_of_queries(key, end).saturating_sub(tile.start).min(tile.len());
    key.saturating_sub(tile.start).min(end)..end
}

/// Zeros outside `seen`.
pub fn hide(values: &mut [f32], seen: &Range<usize>) {
    values[..seen.start].fill(0.0);
    values[seen.end..].fill(0.0);
}

fn tiles(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(COLUMNS).map(move |start| start..(start + COLUMNS).min(end))
}

pub fn forward(
    workspace: &mut Workspace,
    qkv: &[f32],
    boundaries: &[u32],
    shape: AttentionShape,
    visible: Visible,
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (d, heads, width) = (shape.head_dim, shape.heads, shape.out());
    out.par_chunks_mut(ROWS * width)
        .zip(lse.par_chunks_mut(ROWS * heads))
        .zip(workspace.scores.par_chunks_mut(2 * TILE))
        .enumerate()
        .for_each(|(task, ((out, lse), scores))| {
            let first = task * ROWS;
            for (queries, document) in documents(boundaries, first..first + lse.len() / heads) {
                let out = &mut out[(queries.start - first) * width..][..queries.len() * width];
                let lse = &mut lse[(queries.start - first) * heads..][..queries.len() * heads];
                for head in 0..heads {
                    let queries = queries.clone();
                    one_head(qkv, shape, visible, head, queries, document.start, scores, &mut out[head * d..], lse);
                }
            }
        });
}

fn one_head(
    qkv: &[f32],
    shape: AttentionShape,
    visible: Visible,
    head: usize,
    queries: Range<usize>,
    document_start: usize,
    scores: &mut [f32],
    out: &mut [f32], // [queries, H·D] from this head's column on
    lse: &mut [f32], // [queries, H]
) {
    let (d, width, stride) = (shape.head_dim, shape.qkv(), shape.out());
    let rows = queries.len();
    let q = Mat::new(&qkv[queries.start * width + head * d..], rows, d, width);
    let (mut max, mut sum) = ([f32::NEG_INFINITY; ROWS], [0.0f32; ROWS]);
    let all = keys_of_task(visible, document_start, &queries, COLUMNS);
    for keys in tiles(all.clone()) {
        let (columns, begun) = (keys.len(), keys.start > all.start);
        let k = Mat::new(&qkv[keys.start * width + shape.key_column(head)..], columns, d, width);
        let v = Mat::new(&qkv[keys.start * width + shape.value_column(head)..], columns, d, width);
        matmul(scores, COLUMNS, false, shape.scale() as f32, q, k.transposed());
        for row in 0..rows {
            let scores = &mut scores[row * COLUMNS..][..columns];
            let seen = keys_in_tile(visible, document_start, queries.start + row, &keys);
            hide(scores, &seen);
            if seen.is_empty() {
                continue;
            }
            let scores = &mut scores[seen];
            if let Some(cap) = shape.soft_cap {
                cap_values(cap, scores);
            }
            let new_max = largest(scores, max[row]);
            let correction = (max[row] - new_max).exp();
            max[row] = new_max;
            sum[row] = sum[row] * correction + exp_shifted(scores, new_max);
            if begun {
                out[row * stride..][..d].iter_mut().for_each(|o| *o *= correction);
            }
        }
        matmul(out, stride, begun, 1.0, Mat::new(scores, rows, columns, COLUMNS), v);
    }
    for row in 0..rows {
        let inverse = 1.0 / sum[row];
        out[row * stride..][..d].iter_mut().for_each(|o| *o *= inverse);
        lse[row * shape.heads + head] = max[row] + sum[row].ln();
    }
}

pub fn backward(
    workspace: &mut Workspace,
    dout: &[f32],
    qkv: &[f32],
    out: &[f32],
    lse: &[f32],
    boundaries: &[u32],
    shape: AttentionShape,
    visible: Visible,
    dqkv: &mut [f32],
) {
    let (d, heads, width) = (shape.head_dim, shape.heads, shape.qkv());
    let delta = &mut workspace.delta[..lse.len()];
    delta.par_chunks_mut(ROWS * heads).enumerate().for_each(|(task, delta)| {
        for (i, delta) in delta.iter_mut().enumerate() {
            let at = (task * ROWS * heads + i) * d;
            *delta = dout[at..at + d].iter().zip(&out[at..at + d]).map(|(a, b)| a * b).sum();
        }
    });
    let pass = Pass { dout, qkv, lse, delta, shape, visible };
    dqkv.par_chunks_mut(ROWS * width).zip(workspace.scores.par_chunks_mut(2 * TILE)).enumerate().for_each(
        |(task, (dqkv, scratch))| {
            let first = task * ROWS;
            let (p, ds) = scratch.split_at_mut(TILE);
            for (part, document) in documents(boundaries, first..first + dqkv.len() / width) {
                let dqkv = &mut dqkv[(part.start - first) * width..][..part.len() * width];
                for head in 0..heads {
                    pass.query_gradient(head, part.clone(), document.start, p, ds, &mut dqkv[head * d..]);
                }
                for kv_head in 0..shape.kv_heads {
                    pass.key_value_gradient(kv_head, part.clone(), document.end, p, ds, dqkv);
                }
            }
        },
    );
}

struct Pass<'a> {
    dout: &'a [f32],
    qkv: &'a [f32],
    lse: &'a [f32],
    delta: &'a [f32],
    shape: AttentionShape,
    visible: Visible,
}

impl Pass<'_> {
    fn query_gradient(
        &self,
        head: usize,
        queries: Range<usize>,
        document_start: usize,
        p: &mut [f32],
        ds: &mut [f32],
        dq: &mut [f32], // [queries, qkv] from this head's column on
    ) {
        let (d, width, heads) = (self.shape.head_dim, self.shape.qkv(), self.shape.heads);
        let scale = self.shape.scale() as f32;
        let rows = queries.len();
        let q = Mat::new(&self.qkv[queries.start * width + head * d..], rows, d, width);
        let dout = Mat::new(&self.dout[(queries.start * heads + head) * d..], rows, d, heads * d);
        let all = keys_of_task(self.visible, document_start, &queries, COLUMNS);
        for keys in tiles(all.clone()) {
            let columns = keys.len();
            let k = Mat::new(&self.qkv[keys.start * width + self.shape.key_column(head)..], columns, d, width);
            let v = Mat::new(&self.qkv[keys.start * width + self.shape.value_column(head)..], columns, d, width);
            matmul(p, COLUMNS, false, scale, q, k.transposed());
            matmul(ds, COLUMNS, false, 1.0, dout, v.transposed());
            for row in 0..rows {
                let query = queries.start + row;
                let seen = keys_in_tile(self.visible, document_start, query, &keys);
                let (lse, delta) = (self.lse[query * heads + head], self.delta[query * heads + head]);
                let p = &mut p[row * COLUMNS..][seen.clone()];
                let ds = &mut ds[row * COLUMNS..][..columns];
                let slopes = cap_scores::<COLUMNS>(self.shape.soft_cap, p);
                exp_shifted(p, lse);
                gradients_of_row(p, delta, scale, &mut ds[seen.clone()]);
                if let Some(slopes) = slopes {
                    times(&mut ds[seen.clone()], &slopes);
                }
                hide(ds, &seen);
            }
            matmul(dq, width, keys.start > all.start, 1.0, Mat::new(ds, rows, columns, COLUMNS), k);
        }
    }

    fn key_value_gradient(
        &self,
        kv_head: usize,
        keys: Range<usize>,
        document_end: usize,
        p: &mut [f32],    // [keys, queries]
        ds: &mut [f32],   // [keys, queries]
        dqkv: &mut [f32], // [keys, qkv]
    ) {
        let (d, width, heads) = (self.shape.head_dim, self.shape.qkv(), self.shape.heads);
        let scale = self.shape.scale() as f32;
        let per_kv = heads / self.shape.kv_heads;
        let rows = keys.len();
        let (key, value) = (self.shape.key_column(kv_head * per_kv), self.shape.value_column(kv_head * per_kv));
        let k = Mat::new(&self.qkv[keys.start * width + key..], rows, d, width);
        let v = Mat::new(&self.qkv[keys.start * width + value..], rows, d, width);
        let mut accumulate = false;
        for head in kv_head * per_kv..(kv_head + 1) * per_kv {
            for queries in tiles(keys.start..self.visible.end_of_queries(keys.end - 1, document_end)) {
                let columns = queries.len();
                let q = Mat::new(&self.qkv[queries.start * width + head * d..], columns, d, width);
                let dout = Mat::new(&self.dout[(queries.start * heads + head) * d..], columns, d, heads * d);
                matmul(p, COLUMNS, false, scale, k, q.transposed());
                matmul(ds, COLUMNS, false, 1.0, v, dout.transposed());
                let (mut lse, mut delta) = ([0.0; COLUMNS], [0.0; COLUMNS]);
                for (column, query) in queries.clone().enumerate() {
                    lse[column] = self.lse[query * heads + head];
                    delta[column] = self.delta[query * heads + head];
                }
                for row in 0..rows {
                    // Queries before the key do not see it, nor do those past its window.
                    let seen = queries_in_tile(self.visible, keys.start + row, document_end, &queries);
                    let p = &mut p[row * COLUMNS..][..columns];
                    let ds = &mut ds[row * COLUMNS..][..columns];
                    let slopes = cap_scores::<COLUMNS>(self.shape.soft_cap, &mut p[seen.clone()]);
                    score_gradients(
                        &lse[seen.clone()],
                        &delta[seen.clone()],
                        scale,
                        &mut p[seen.clone()],
                        &mut ds[seen.clone()],
                    );
                    if let Some(slopes) = slopes {
                        times(&mut ds[seen.clone()], &slopes);
                    }
                    hide(p, &seen);
                    hide(ds, &seen);
                }
                matmul(&mut dqkv[value..], width, accumulate, 1.0, Mat::new(p, rows, columns, COLUMNS), dout);
                matmul(&mut dqkv[key..], width, accumulate, 1.0, Mat::new(ds, rows, columns, COLUMNS), q);
                accumulate = true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
