//! Causal attention in tiles with a running softmax (Dao et al. 2022), on bf16 values with sums in f32.
//!
//! A task of the forward pass is a tile of queries of one key head and all query heads that share it. Scores are
//! Kᵀ-first: their rows are keys and their columns queries, so that maxima and sums of a softmax run down columns,
//! several queries at a time, and the probabilities are the right operand of the next product, `Oᵀ = Vᵀ·Pᵀ`. Columns
//! are taken in parts, each with the rows that it sees. Tiles are counted from the beginning of a document. Every sum
//! has one fixed order.

pub mod backward;

use super::gemm::{PAIRS, Right, each, fill};
use super::isa::{self, Isa, LANES};
use super::layout;
use super::pairs::{Panel, Places, WIDTH};
use super::rows::{round_row, round_scaled};
use super::scores::{Scaling, Softmax, correct_columns, softmax_columns};
use super::stored::Rows;
use super::transposed::transpose;
use crate::backend::cpu::aligned::Aligned;
use crate::backend::cpu::attention::{keys_in_tile, keys_of_task, queries_in_tile};
use crate::backend::cpu::gemm::prefetch::prefetch;
use crate::backend::cpu::gemm::tiles::{Tile, grid};
use half::bf16;
use qlora_kernels::shape::{AttentionShape, Visible};
use std::ops::Range;

/// Rows and columns of a tile of scores.
const TILE: usize = WIDTH;
/// Rows that are left out together where no column of a part sees them or is seen by them.
const PART: usize = WIDTH / 2;

/// Columns of a part: all of a tile where products of a few columns take long to begin.
fn part(isa: Isa) -> usize {
    if isa.panel_tile(WIDTH) < WIDTH { TILE } else { PART }
}

/// Tasks of a batch of `tokens` tokens of one document.
pub fn tasks(tokens: usize, kv_heads: usize) -> usize {
    tokens.div_ceil(TILE) * kv_heads
}

/// The columns of every head, `width` each, from `first` on.
fn of_heads(heads: usize, first: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..heads).map(move |head| first + head * width..first + (head + 1) * width)
}

/// Scratch memory of one task.
pub struct Scratch {
    /// Right operands of products along D, `[D / 2, TILE]` each: of the queries of a group, or of keys and values
    along_d: Aligned<u32>,
    /// A right operand of a product along tokens, `[D / WIDTH, TILE / 2, WIDTH]`: of keys
    along_tokens: Aligned<u32>,
    /// Tiles of values, or of queries and dO, transposed: `[D, TILE]` each, two values in one
    transposed: [Aligned<u32>; 2],
    /// Values on the way into another layout, `[LANES, 2 · PAIRS]`
    band: Aligned<bf16>,
    /// Scores, and the gradients of probabilities: `[TILE, TILE]` each
    scores: Aligned<f32>,
    gradients: Aligned<f32>,
    /// Probabilities and gradients of scores as right operands, `[TILE / 2, TILE]` each
    p: Aligned<u32>,
    ds: Aligned<u32>,
    /// Gradients of scores as a left operand, `[TILE, TILE]`
    ds_rows: Aligned<bf16>,
    /// Sums of a task's results, transposed: `[D, WIDTH]` for each member of a group, or for keys and values
    sums: Aligned<f32>,
}

/// Values of each buffer of a [`Scratch`], in their order.
fn lengths(shape: AttentionShape) -> [usize; 9] {
    let (d, several) = (shape.head_dim, (shape.heads / shape.kv_heads).max(2));
    let along_tokens = d.div_ceil(WIDTH) * TILE / 2 * WIDTH;
    let (tile, band) = (TILE * TILE, LANES * 2 * PAIRS);
    [several * d / 2 * TILE, along_tokens, d * TILE / 2, band, tile, tile / 2, tile / 2, tile, several * d * WIDTH]
}

impl Scratch {
    /// For tiles of `shape`.
    pub fn new(shape: AttentionShape) -> Self {
        let [along_d, along_tokens, transposed, band, tile, p, ds, ds_rows, sums] = lengths(shape);
        Self {
            along_d: Aligned::zeros(along_d),
            along_tokens: Aligned::zeros(along_tokens),
            transposed: [(); 2].map(|()| Aligned::zeros(transposed)),
            band: Aligned::zeros(band),
            scores: Aligned::zeros(tile),
            gradients: Aligned::zeros(tile),
            p: Aligned::zeros(p),
            ds: Aligned::zeros(ds),
            ds_rows: Aligned::zeros(ds_rows),
            sums: Aligned::zeros(sums),
        }
    }

    /// Bytes that [`Self::new`] takes.
    pub fn bytes(shape: AttentionShape) -> u64 {
        let [along_d, along_tokens, transposed, band, tile, p, ds, ds_rows, sums] = lengths(shape);
        (4 * (along_d + along_tokens + 2 * transposed + 2 * tile + p + ds + sums) + 2 * (band + ds_rows)) as u64
    }
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

    /// Brings rows of `d` values into the caches.
    fn prefetch(&self, tokens: Range<usize>, d: usize) {
        tokens.for_each(|token| prefetch(&self.data[token * self.stride + self.column..][..d]));
    }
}

fn tiles(range: Range<usize>, width: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(width).map(move |start| start..(start + width).min(end))
}

/// Tiles of `width` tokens of every document, with the document.
fn tiles_of_documents(boundaries: &[u32], width: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let documents = boundaries.windows(2).map(|pair| pair[0] as usize..pair[1] as usize);
    documents.flat_map(move |document| tiles(document.clone(), width).map(move |tile| (tile, document.clone())))
}

/// A tile of tokens as the right operand of a product along D: its tokens are the columns, in parts.
fn along_d(isa: Isa, tile: Rows, tokens: usize, d: usize, panel: &mut [u32], band: &mut [bf16]) {
    for (columns, panel) in tiles(0..tokens, part(isa)).zip(panel.chunks_exact_mut(d / 2 * part(isa))) {
        let width = columns.len().next_multiple_of(LANES);
        fill(isa, &Right::Turned(&tile), 0..d, columns, &mut panel[..d / 2 * width], width, band);
    }
}

/// True if every one of these queries sees every one of these keys, of the same document.
fn see_all(visible: Visible, queries: &Range<usize>, keys: &Range<usize>) -> bool {
    keys.end <= queries.start + 1 && visible.keys(keys.start, queries.end - 1).start == keys.start
}

/// Parts of so many columns, in whole vectors.
fn parts(isa: Isa, columns: usize) -> impl Iterator<Item = Range<usize>> {
    tiles(0..columns.next_multiple_of(LANES), part(isa))
}

/// A bit for each of `keys` that a query sees, for every query.
fn keys_seen(visible: Visible, document_start: usize, queries: &Range<usize>, keys: &Range<usize>) -> [u64; TILE] {
    if see_all(visible, queries, keys) {
        return [bits(0..keys.len()); TILE];
    }
    let mut seen = [0; TILE];
    for (seen, query) in seen.iter_mut().zip(queries.clone()) {
        *seen = bits(keys_in_tile(visible, document_start, query, keys));
    }
    seen
}

/// A bit for each of `queries` that sees a key, for every key.
fn queries_seen(visible: Visible, keys: &Range<usize>, queries: &Range<usize>) -> [u64; TILE] {
    if see_all(visible, queries, keys) {
        return [bits(0..queries.len()); TILE];
    }
    let mut seen = [0; TILE];
    for (seen, key) in seen.iter_mut().zip(keys.clone()) {
        *seen = bits(queries_in_tile(visible, key, queries.end, queries));
    }
    seen
}

fn bits(range: Range<usize>) -> u64 {
    let before = |bit: usize| 1u64.checked_shl(bit as u32).unwrap_or(0).wrapping_sub(1);
    before(range.end) & !before(range.start)
}

/// The rows in which one of these columns counts, from a whole part on.
fn rows_with(seen: &[u64], columns: &Range<usize>) -> Range<usize> {
    let counts = |row: &u64| row & bits(columns.clone()) != 0;
    let first = seen.iter().position(counts).unwrap_or(seen.len());
    first / PART * PART..seen.iter().rposition(counts).map_or(0, |last| last + 1)
}

/// Rounds sums `[d, WIDTH]`, whose columns are tokens, to `d` columns of `out` from `column` on, a row for each token
/// and times its factor if there are any. `buffer` has room for a tile.
fn store_transposed(
    isa: Isa,
    sums: &[f32],
    factors: Option<&[f32; WIDTH]>,
    tokens: &Range<usize>,
    d: usize,
    buffer: &mut [f32],
    out: &mut Tile<bf16>,
    column: usize,
) {
    let first = tokens.start - out.rows.start;
    for columns in tiles(0..d, WIDTH) {
        let buffer: &mut [u32] = bytemuck::cast_slice_mut(buffer);
        for start in columns.clone().step_by(LANES) {
            // Columns beyond the last are not stored.
            let row = |i: usize| {
                let row = (start + i).min(columns.end - 1);
                bytemuck::cast_slice(&sums[row * WIDTH..][..tokens.len().next_multiple_of(LANES)])
            };
            layout::transpose(isa, &std::array::from_fn(row), &mut buffer[start - columns.start..], WIDTH);
        }
        let buffer: &[f32] = bytemuck::cast_slice(buffer);
        for (row, values) in buffer.chunks_exact(WIDTH).take(tokens.len()).enumerate() {
            let (values, to) = (&values[..columns.len()], &mut out.row(first + row)[column..][columns.clone()]);
            match factors {
                Some(factors) => round_scaled(to, values, factors[row]),
                None => round_row(values, to),
            }
        }
    }
}

/// A panel of pairs of `rows` rows in `width` columns.
fn panel(isa: Isa, data: &mut [u32], rows: usize, width: usize) -> Panel<'_> {
    let pairs = rows.div_ceil(2);
    Panel { data: &mut data[..pairs * width], places: Places { pairs, tile: isa.panel_tile(width) } }
}

fn scaling(shape: AttentionShape) -> Scaling {
    Scaling { scale: shape.scale() as f32, cap: shape.soft_cap }
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
    let (rows, documents): (Vec<_>, Vec<_>) = tiles_of_documents(boundaries, TILE).unzip();
    let [out] = grid(out, shape.out(), [(&rows, &columns(group * shape.head_dim))]);
    let [lse] = grid(lse, shape.heads, [(&rows, &columns(group))]);
    // The last queries see the most keys and are taken first, so that no thread begins with them at the end.
    let tasks = out.into_iter().zip(lse).enumerate().rev().collect();
    each(scratch, tasks, |scratch, (task, (mut out, mut lse)): (usize, (Tile<bf16>, Tile<f32>))| {
        let start = documents[task / kv_heads].start;
        forward_group(isa, qkv, shape, visible, task % kv_heads, start, scratch, &mut out, &mut lse);
    });
}

fn forward_group(
    isa: Isa,
    qkv: &[bf16],
    shape: AttentionShape,
    visible: Visible,
    kv_head: usize,
    document_start: usize,
    scratch: &mut Scratch,
    out: &mut Tile<bf16>, // [queries, D of every member of the group]
    lse: &mut Tile<f32>,  // [queries, members]
) {
    let (d, group, stride) = (shape.head_dim, shape.heads / shape.kv_heads, shape.qkv());
    let queries = out.rows.clone();
    let head = |column| Head { data: qkv, stride, column };
    let (keys, values) = (head(shape.key_column(kv_head * group)), head(shape.value_column(kv_head * group)));
    let Scratch { along_d: q, transposed: [v, _], band, scores, p, sums, .. } = scratch;
    let q_len = d / 2 * TILE;
    for (member, q) in q.chunks_exact_mut(q_len).take(group).enumerate() {
        let rows = head((kv_head * group + member) * d).rows(queries.clone());
        along_d(isa, rows, queries.len(), d, q, band);
    }
    sums[..group * d * WIDTH].fill(0.0);
    let (mut max, mut sum) = (vec![[f32::NEG_INFINITY; WIDTH]; group], vec![[0.0f32; WIDTH]; group]);
    for tile in tiles(keys_of_task(visible, document_start, &queries, TILE), TILE) {
        // Rows that are far apart are no stream that the processor sees.
        let next = tile.end..(tile.end + TILE).min(queries.end);
        [keys, values].iter().for_each(|head| head.prefetch(next.clone(), d));
        let k = keys.rows(tile.clone());
        transpose(isa, values.rows(tile.clone()), tile.len(), d, v, TILE / 2, band);
        let v: &[bf16] = bytemuck::cast_slice(v);
        let seen = &queries_seen(visible, &tile, &queries)[..tile.len()];
        for member in 0..group {
            let (q, sums) = (&q[member * q_len..][..q_len], &mut sums[member * d * WIDTH..][..d * WIDTH]);
            let mut corrections = [1.0; WIDTH];
            for (columns, q) in parts(isa, queries.len()).zip(q.chunks_exact(d / 2 * part(isa))) {
                let (width, rows) = (columns.len(), rows_with(seen, &columns));
                if rows.is_empty() {
                    continue;
                }
                let (k_rows, q) = (&k.data[rows.start * k.stride..], &q[..d / 2 * width]);
                isa::multiply(isa, k_rows, k.stride, rows.len(), q, width, &mut scores[columns.start..], false);
                let (max, sum) = (&mut max[member], &mut sum[member]);
                let running = Softmax { max, sum, corrections: &mut corrections };
                let p_panel = panel(isa, p, rows.len(), width);
                softmax_columns(isa, scores, &seen[rows.clone()], columns.clone(), scaling(shape), running, p_panel);
                let sums = &mut sums[columns.start..];
                let corrections = &corrections[columns];
                if corrections.iter().any(|&factor| factor != 1.0) {
                    correct_columns(sums, corrections);
                }
                let p = &p[..rows.len().div_ceil(2) * width];
                isa::multiply(isa, &v[rows.start..], TILE, d, p, width, sums, true);
            }
        }
    }
    for member in 0..group {
        let inverse = sum[member].map(|sum| 1.0 / sum);
        let sums = &sums[member * d * WIDTH..][..d * WIDTH];
        store_transposed(isa, sums, Some(&inverse), &queries, d, scores, out, member * d);
        for row in 0..queries.len() {
            lse.row(row)[member] = max[member][row] + sum[member][row].ln();
        }
    }
}

#[cfg(test)]
mod tests;
