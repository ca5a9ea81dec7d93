//! Causal attention in tiles with a running softmax (Dao et al. 2022), on bf16 values with sums in f32.
//!
//! A task is a tile of queries (forward pass, dQ) or of keys (dK, dV) of one key head and all query heads that share
//! it, so that the panels of keys and values are made once for the group. Every sum has one fixed order.

use super::gemm::{PAIRS, Right, each, fill};
use super::isa::{self, Isa, LANES};
use super::pairs::WIDTH;
use super::rows::{round_row, round_scaled, widen};
use super::scores::{OfQueries, Softmax, correct_rows, key_gradient_rows, query_gradient_rows, softmax_rows};
use super::stored::{Limited, Rows};
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::attention::{documents, keys_in_tile, keys_of_task, queries_in_tile};
use half::bf16;
use qlora_kernels::shape::{AttentionShape, Visible};
use rayon::prelude::*;
use std::ops::Range;

/// Rows and columns of a tile of scores.
const TILE: usize = WIDTH;

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
    let (heads, width) = (shape.heads, shape.out());
    let tasks = out.chunks_mut(TILE * width).zip(lse.chunks_mut(TILE * heads)).enumerate().collect();
    each(scratch, tasks, |scratch, (task, (out, lse)): (usize, (&mut [bf16], &mut [f32]))| {
        let first = task * TILE;
        for (queries, document) in documents(boundaries, first..first + lse.len() / heads) {
            let out = &mut out[(queries.start - first) * width..][..queries.len() * width];
            let lse = &mut lse[(queries.start - first) * heads..][..queries.len() * heads];
            for kv_head in 0..shape.kv_heads {
                let queries = queries.clone();
                forward_group(isa, qkv, shape, visible, kv_head, queries, document.start, scratch, out, lse);
            }
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
    out: &mut [bf16],
    lse: &mut [f32],
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
        let head = kv_head * group + member;
        for row in 0..rows {
            let (max, sum) = (max[member * rows + row], sum[member * rows + row]);
            let inverse = 1.0 / sum;
            for part in 0..count {
                let o = &sums[((member * count + part) * TILE + row) * WIDTH..][..(d - part * WIDTH).min(WIDTH)];
                let out = &mut out[row * shape.out() + head * d + part * WIDTH..][..o.len()];
                round_scaled(out, o, inverse);
            }
            lse[row * shape.heads + head] = max + sum.ln();
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
    let (d, width) = (shape.head_dim, shape.qkv());
    delta.par_chunks_mut(TILE).zip(dout.par_chunks(TILE * d).zip(out.par_chunks(TILE * d))).for_each(
        |(delta, (dout, out))| {
            for (delta, (dout, out)) in delta.iter_mut().zip(dout.chunks_exact(d).zip(out.chunks_exact(d))) {
                *delta = dout.iter().zip(out).map(|(a, b)| widen(*a) * widen(*b)).sum();
            }
        },
    );
    let pass = Pass { isa, dout, qkv, lse, delta, shape, visible };
    let tasks = dqkv.chunks_mut(TILE * width).enumerate().collect();
    each(scratch, tasks, |scratch, (task, dqkv): (usize, &mut [bf16])| {
        let first = task * TILE;
        for (part, document) in documents(boundaries, first..first + dqkv.len() / width) {
            let dqkv = &mut dqkv[(part.start - first) * width..][..part.len() * width];
            for kv_head in 0..shape.kv_heads {
                pass.query_gradient(kv_head, part.clone(), document.start, scratch, dqkv);
                pass.key_value_gradient(kv_head, part.clone(), document.end, scratch, dqkv);
            }
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
        dqkv: &mut [bf16],
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
            let from = &sums[member * count * TILE * WIDTH..];
            store(from, rows, d, &mut dqkv[(kv_head * group + member) * d..], shape.qkv());
        }
    }

    fn key_value_gradient(
        &self,
        kv_head: usize,
        keys: Range<usize>,
        document_end: usize,
        scratch: &mut Scratch,
        dqkv: &mut [bf16],
    ) {
        let Self { isa, shape, visible, .. } = *self;
        let (d, heads) = (shape.head_dim, shape.heads);
        let (group, scale, rows) = (heads / shape.kv_heads, shape.scale() as f32, keys.len());
        let (key, value) = (shape.key_column(kv_head * group), shape.value_column(kv_head * group));
        let (k, v) = (self.qkv(key).rows(keys.clone()), self.qkv(value).rows(keys.clone()));
        let Scratch { panels: [along, of_q, of_dout], band, scores, gradients, p, ds, sums } = scratch;
        let (dk, dv) = sums.split_at_mut(d.div_ceil(WIDTH) * TILE * WIDTH);
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
                add_values(isa, ds, rows, columns, d, of_q, dk, begun);
                along_tokens(isa, dout, columns, d, of_dout, band);
                add_values(isa, p, rows, columns, d, of_dout, dv, begun);
                begun = true;
            }
        }
        store(dk, rows, d, &mut dqkv[key..], shape.qkv());
        store(dv, rows, d, &mut dqkv[value..], shape.qkv());
    }
}

/// Rounds sums of `rows` rows and `d` columns, in parts of [`WIDTH`] columns.
fn store(sums: &[f32], rows: usize, d: usize, out: &mut [bf16], stride: usize) {
    for (part, start) in (0..d).step_by(WIDTH).enumerate() {
        for row in 0..rows {
            let from = &sums[(part * TILE + row) * WIDTH..][..(d - start).min(WIDTH)];
            round_row(from, &mut out[row * stride + start..][..from.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qlora_kernels::reference;
    use qlora_kernels::rng::Stream;

    fn values(len: usize, seed: u64) -> Vec<bf16> {
        let mut stream = Stream::new(seed, 1);
        (0..len).map(|_| bf16::from_f32(stream.below(4001) as f32 / 1000.0 - 2.0)).collect()
    }

    fn wide(x: &[bf16]) -> Vec<f64> {
        x.iter().map(|x| x.to_f64()).collect()
    }

    /// Beside the f64 reference on the same bf16 inputs: probabilities and score gradients are rounded to bf16 once
    /// (2⁻⁸ of each), and so is the result.
    #[track_caller]
    fn assert_close(what: &str, found: &[bf16], expected: &[f64], sizes: f64) {
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let bound = expected.abs() * 2f64.powi(-8) + sizes * 2f64.powi(-8);
            assert!((found.to_f64() - expected).abs() <= bound, "{what} {i}: {found} {expected}, bound {bound}");
        }
    }

    #[test]
    fn attention_and_its_gradient_are_the_reference_within_rounding() {
        for (heads, kv_heads, head_dim, boundaries, window, soft_cap) in [
            (2, 2, 16, vec![0, 5], None, None),
            (3, 1, 64, vec![0, 1, 70, 141], None, None),
            (8, 2, 128, vec![0, 64, 130], None, None),
            (4, 1, 32, vec![0, 200], None, None),
            (2, 2, 16, vec![0, 5], Some(1), None),
            // Tiles that no query of a task sees, before and after those that one does.
            (2, 1, 32, vec![0, 20, 400], Some(70), None),
            (2, 2, 64, vec![0, 1, 70, 341], Some(9), None),
            (4, 2, 32, vec![0, 70, 200], None, Some(1.5)),
            (3, 1, 64, vec![0, 1, 70, 141], Some(70), Some(4.0)),
        ] {
            let visible = Visible::new(window);
            let shape = AttentionShape { heads, kv_heads, head_dim, soft_cap };
            let m = *boundaries.last().unwrap() as usize;
            let (qkv, dout) = (values(m * shape.qkv(), 1), values(m * shape.out(), 2));
            let (mut expected, mut expected_lse) = (vec![0.0; m * shape.out()], vec![0.0; m * heads]);
            reference::attention(&wide(&qkv), &boundaries, shape, window, &mut expected, &mut expected_lse);
            let mut expected_d = vec![0.0; m * shape.qkv()];
            let (wide_dout, wide_qkv) = (wide(&dout), wide(&qkv));
            for isa in [Isa::detect().unwrap_or(Isa::SCALAR), Isa::SCALAR] {
                let (mut out, mut lse) = (vec![bf16::ZERO; m * shape.out()], vec![0.0; m * heads]);
                let mut scratch: Vec<Scratch> = (0..3).map(|_| Scratch::new(shape)).collect();
                forward(isa, &mut scratch, &qkv, &boundaries, shape, visible, &mut out, &mut lse);
                // Values are at most 2, probabilities sum to 1.
                assert_close("out", &out, &expected, 2.0);
                for (found, expected) in lse.iter().zip(&expected_lse) {
                    assert!((f64::from(*found) - expected).abs() <= 1e-4 * expected.abs().max(1.0));
                }
                reference::attention_backward(
                    &wide_dout,
                    &wide_qkv,
                    &wide(&out),
                    &lse.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
                    &boundaries,
                    shape,
                    window,
                    &mut expected_d,
                );
                let (mut delta, mut dqkv) = (vec![0.0; m * heads], vec![bf16::ZERO; m * shape.qkv()]);
                let back = |scratch: &mut [Scratch], delta: &mut [f32], dqkv: &mut [bf16]| {
                    backward(isa, scratch, &dout, &qkv, &out, &lse, &boundaries, shape, visible, delta, dqkv);
                };
                back(&mut scratch, &mut delta, &mut dqkv);
                let size = expected_d.iter().fold(0.0f64, |size, x| size.max(x.abs()));
                assert_close("gradient", &dqkv, &expected_d, size);
                let mut again = dqkv.clone();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
                pool.install(|| back(&mut scratch, &mut delta, &mut again));
                assert!(again == dqkv, "bits depend on threads");
            }
        }
    }
}
