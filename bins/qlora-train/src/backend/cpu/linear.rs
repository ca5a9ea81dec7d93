//! Frozen linear layers with a low-rank term. A weight is dequantised once per operation, panel by panel, by all
//! threads; then every thread multiplies its own tokens with the panel.

use super::matmul::{Mat, matmul};
use super::workspace::Workspace;
use super::{Cpu, Dense, TOKEN_CHUNK};
use crate::backend::{LinearGroup, Segment};
use qlora_kernels::nf4::Nf4Matrix;
use qlora_kernels::philox::Dropout;
use rayon::prelude::*;
use std::ops::Range;

/// Sums over tokens run in chunks of this many.
pub const GRADIENT_CHUNK: usize = 256;
/// A panel holds about this many values (4 MiB): it stays in the last-level cache while it is multiplied.
const PANEL_VALUES: usize = 1 << 20;
/// Rows that one task dequantises.
const PANEL_TASK_ROWS: usize = 32;

pub enum CpuWeight {
    Nf4(Nf4Matrix),
    Dense(Dense),
}

impl CpuWeight {
    pub fn bytes(&self) -> u64 {
        match self {
            CpuWeight::Nf4(matrix) => matrix.bytes() as u64,
            CpuWeight::Dense(dense) => dense.bytes(),
        }
    }

    fn dequantize_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        match self {
            CpuWeight::Nf4(matrix) => matrix.dequantize_rows(rows, out),
            CpuWeight::Dense(dense) => dense.widen_rows(rows, out),
        }
    }
}

/// Rows of a panel of an `[n, k]` matrix.
pub fn panel_rows(n: usize, k: usize) -> usize {
    (PANEL_VALUES / k / PANEL_TASK_ROWS * PANEL_TASK_ROWS).max(PANEL_TASK_ROWS).min(n)
}

/// Calls `body(rows, panel)` for the panels of an `[n, k]` matrix in order; `fill` writes rows of it.
pub fn for_each_panel(
    scratch: &mut [f32],
    n: usize,
    k: usize,
    fill: impl Fn(Range<usize>, &mut [f32]) + Sync,
    mut body: impl FnMut(Range<usize>, &[f32]),
) {
    let step = panel_rows(n, k);
    for start in (0..n).step_by(step) {
        let rows = start..(start + step).min(n);
        let panel = &mut scratch[..rows.len() * k];
        panel.par_chunks_mut(PANEL_TASK_ROWS * k).enumerate().for_each(|(task, out)| {
            let first = start + task * PANEL_TASK_ROWS;
            fill(first..first + out.len() / k, out);
        });
        body(rows, panel);
    }
}

/// The segments with the column where their output begins and the column where their low-rank term begins.
fn placed(group: &LinearGroup<Cpu>) -> impl Iterator<Item = (usize, usize, &Segment<Cpu>)> {
    group.segments.iter().scan((0, 0), |(n, r), segment| {
        let at = (*n, *r);
        *n += segment.n;
        *r += segment.lora.as_ref().map_or(0, |l| l.r);
        Some((at.0, at.1, segment))
    })
}

fn apply_dropout(x: &mut [f32], k: usize, first_token: usize, dropout: &Dropout) {
    for (row, x) in x.chunks_exact_mut(k).enumerate() {
        for (quad, x) in x.chunks_mut(4).enumerate() {
            let factors = dropout.factors((first_token + row) as u32, quad as u32);
            x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }
}

/// `x` itself without dropout, else a masked copy of it in `scratch`.
fn dropped<'a>(x: &'a [f32], k: usize, dropout: Option<Dropout>, scratch: &'a mut [f32]) -> &'a [f32] {
    let Some(dropout) = dropout.filter(|d| !d.is_identity()) else { return x };
    let out = &mut scratch[..x.len()];
    out.par_chunks_mut(TOKEN_CHUNK * k).zip(x.par_chunks(TOKEN_CHUNK * k)).enumerate().for_each(|(chunk, (out, x))| {
        out.copy_from_slice(x);
        apply_dropout(out, k, chunk * TOKEN_CHUNK, &dropout);
    });
    out
}

/// `S = scale·dropout(X)·Aᵀ`
pub fn lora_down(
    workspace: &mut Workspace,
    x: &[f32], // [M, K]
    group: &LinearGroup<Cpu>,
    dropout: Option<Dropout>,
    s: &mut [f32], // [M, Σr]
) {
    let (k, width) = (group.k, group.r());
    let x = dropped(x, k, dropout, &mut workspace.dropped);
    s.par_chunks_mut(TOKEN_CHUNK * width).zip(x.par_chunks(TOKEN_CHUNK * k)).for_each(|(s, x)| {
        let tokens = x.len() / k;
        for (_, column, segment) in placed(group) {
            if let Some(lora) = &segment.lora {
                let a = Mat::new(&lora.a.value, lora.r, k, k).transposed();
                matmul(&mut s[column..], width, false, lora.scale, Mat::new(x, tokens, k, k), a);
            }
        }
    });
}

/// `Y = X·Wᵀ + S·Bᵀ + bias`
pub fn forward(
    workspace: &mut Workspace,
    x: &[f32],         // [M, K]
    s: Option<&[f32]>, // [M, Σr]
    group: &LinearGroup<Cpu>,
    y: &mut [f32], // [M, ΣN]
) {
    let (k, n, r) = (group.k, group.n(), group.r());
    for (out_column, rank_column, segment) in placed(group) {
        let fill = |rows: Range<usize>, out: &mut [f32]| segment.weight.dequantize_rows(rows, out);
        for_each_panel(&mut workspace.panel, segment.n, k, fill, |rows, panel| {
            let w = Mat::new(panel, rows.len(), k, k).transposed();
            y.par_chunks_mut(TOKEN_CHUNK * n).zip(x.par_chunks(TOKEN_CHUNK * k)).enumerate().for_each(
                |(chunk, (y, x))| {
                    let tokens = x.len() / k;
                    let column = out_column + rows.start;
                    matmul(&mut y[column..], n, false, 1.0, Mat::new(x, tokens, k, k), w);
                    if let (Some(s), Some(lora)) = (s, &segment.lora) {
                        let s = Mat::new(&s[chunk * TOKEN_CHUNK * r + rank_column..], tokens, lora.r, r);
                        let b = Mat::new(&lora.b.value[rows.start * lora.r..], rows.len(), lora.r, lora.r);
                        matmul(&mut y[column..], n, true, 1.0, s, b.transposed());
                    }
                    if let Some(bias) = &segment.bias {
                        for y in y.chunks_exact_mut(n) {
                            y[column..].iter_mut().zip(&bias[rows.clone()]).for_each(|(y, b)| *y += b);
                        }
                    }
                },
            );
        });
    }
}

/// `T = scale·dY·B`
pub fn lora_up(
    dy: &[f32], // [M, ΣN]
    group: &LinearGroup<Cpu>,
    t: &mut [f32], // [M, Σr]
) {
    let (n, width) = (group.n(), group.r());
    t.par_chunks_mut(TOKEN_CHUNK * width).zip(dy.par_chunks(TOKEN_CHUNK * n)).for_each(|(t, dy)| {
        let tokens = dy.len() / n;
        for (out_column, rank_column, segment) in placed(group) {
            if let Some(lora) = &segment.lora {
                let dy = Mat::new(&dy[out_column..], tokens, segment.n, n);
                let b = Mat::new(&lora.b.value, segment.n, lora.r, lora.r);
                matmul(&mut t[rank_column..], width, false, lora.scale, dy, b);
            }
        }
    });
}

/// `dX = dY·W + dropout(T·A)`
pub fn backward(
    workspace: &mut Workspace,
    dy: &[f32],        // [M, ΣN]
    t: Option<&[f32]>, // [M, Σr]
    group: &LinearGroup<Cpu>,
    dropout: Option<Dropout>,
    dx: &mut [f32], // [M, K]
) {
    let (k, n, r) = (group.k, group.n(), group.r());
    let dropout = dropout.filter(|d| !d.is_identity());
    let mut first = true;
    for (out_column, _, segment) in placed(group) {
        let fill = |rows: Range<usize>, out: &mut [f32]| segment.weight.dequantize_rows(rows, out);
        for_each_panel(&mut workspace.panel, segment.n, k, fill, |rows, panel| {
            let w = Mat::new(panel, rows.len(), k, k);
            dx.par_chunks_mut(TOKEN_CHUNK * k).zip(dy.par_chunks(TOKEN_CHUNK * n)).for_each(|(dx, dy)| {
                let dy = Mat::new(&dy[out_column + rows.start..], dx.len() / k, rows.len(), n);
                matmul(dx, k, !first, 1.0, dy, w);
            });
            first = false;
        });
    }
    let Some(t) = t else { return };
    let add_low_rank = |dx: &mut [f32], t: &[f32], mut accumulate: bool| {
        let tokens = dx.len() / k;
        for (_, rank_column, segment) in placed(group) {
            if let Some(lora) = &segment.lora {
                let t = Mat::new(&t[rank_column..], tokens, lora.r, r);
                matmul(dx, k, accumulate, 1.0, t, Mat::new(&lora.a.value, lora.r, k, k));
                accumulate = true;
            }
        }
    };
    let chunks = dx.par_chunks_mut(TOKEN_CHUNK * k).zip(t.par_chunks(TOKEN_CHUNK * r));
    match dropout {
        None => chunks.for_each(|(dx, t)| add_low_rank(dx, t, true)),
        Some(dropout) => chunks.zip(workspace.dropped.par_chunks_mut(TOKEN_CHUNK * k)).enumerate().for_each(
            |(chunk, ((dx, t), scratch))| {
                let low_rank = &mut scratch[..dx.len()];
                add_low_rank(low_rank, t, false);
                apply_dropout(low_rank, k, chunk * TOKEN_CHUNK, &dropout);
                dx.iter_mut().zip(low_rank).for_each(|(dx, x)| *dx += *x);
            },
        ),
    }
}

/// `dA += Tᵀ·dropout(X)` and `dB += dYᵀ·S`, over chunks of tokens in order.
pub fn lora_gradients(
    workspace: &mut Workspace,
    x: &[f32],  // [M, K]
    dy: &[f32], // [M, ΣN]
    s: &[f32],  // [M, Σr]
    t: &[f32],  // [M, Σr]
    group: &mut LinearGroup<Cpu>,
    dropout: Option<Dropout>,
) {
    let (k, n, r) = (group.k, group.n(), group.r());
    let x = dropped(x, k, dropout, &mut workspace.dropped);
    let chunks = t.len().div_ceil(GRADIENT_CHUNK * r);
    let partials = &mut workspace.partials[..chunks * r * k];
    partials
        .par_chunks_mut(r * k)
        .zip(t.par_chunks(GRADIENT_CHUNK * r).zip(x.par_chunks(GRADIENT_CHUNK * k)))
        .for_each(|(partial, (t, x))| {
            let tokens = x.len() / k;
            matmul(partial, k, false, 1.0, Mat::new(t, tokens, r, r).transposed(), Mat::new(x, tokens, k, k));
        });
    let (mut out_column, mut rank_column) = (0, 0);
    for segment in &mut group.segments {
        if let Some(lora) = &mut segment.lora {
            let rank = lora.r;
            lora.a.gradient.par_chunks_mut(k).enumerate().for_each(|(row, da)| {
                for partial in partials.chunks_exact(r * k) {
                    let partial = &partial[(rank_column + row) * k..][..k];
                    da.iter_mut().zip(partial).for_each(|(da, p)| *da += p);
                }
            });
            lora.b.gradient.par_chunks_mut(TOKEN_CHUNK * rank).enumerate().for_each(|(task, db)| {
                let (first, rows) = (out_column + task * TOKEN_CHUNK, db.len() / rank);
                for (dy, s) in dy.chunks(GRADIENT_CHUNK * n).zip(s.chunks(GRADIENT_CHUNK * r)) {
                    let tokens = dy.len() / n;
                    let dy = Mat::new(&dy[first..], tokens, rows, n).transposed();
                    matmul(db, rank, true, 1.0, dy, Mat::new(&s[rank_column..], tokens, rank, r));
                }
            });
            rank_column += rank;
        }
        out_column += segment.n;
    }
}
