//! Frozen linear layers with a low-rank term.

use super::gemm::TOKENS;
use super::gemm::pack::Scaled;
use super::gemm::panels::multiply;
use super::gemm::product::{Left, Product, Right};
use super::workspace::Workspace;
use super::{Cpu, CpuParam, TOKEN_CHUNK};
use crate::backend::batch::adapter_runs;
use crate::backend::{LinearGroup, Lora, Segment};
use qlora_kernels::rng::Dropout;
use rayon::prelude::*;

/// The segments with the column where their output begins and the column where their low-rank term begins.
fn placed(group: &LinearGroup<Cpu>) -> impl Iterator<Item = (usize, usize, &Segment<Cpu>)> {
    group.segments.iter().scan((0, 0), |(n, r), segment| {
        let at = (*n, *r);
        *n += segment.n;
        *r += segment.lora.as_ref().map_or(0, columns_of);
        Some((at.0, at.1, segment))
    })
}

/// Columns of S of one layer: the ranks of all its pairs.
fn columns_of(lora: &Lora<Cpu>) -> usize {
    lora.pairs() * lora.r
}

/// The width of S and T.
pub fn columns(group: &LinearGroup<Cpu>) -> usize {
    group.segments.iter().filter_map(|segment| segment.lora.as_ref()).map(columns_of).sum()
}

/// B of the pairs that tokens of these adapters take, each with its first column of the layer's part of S.
fn taken_pairs<'a>(lora: &'a Lora<Cpu>, n: usize, adapters: &[i32]) -> Vec<(usize, Scaled<'a>)> {
    let (r, len) = (lora.r, n * lora.r);
    let pair =
        move |index: usize| (index * r, Scaled { data: &lora.b.value[index * len..][..len], stride: r, factor: 1.0 });
    match &lora.several {
        None => vec![pair(0)],
        Some(several) => (0..several.count).filter(|&index| adapters.contains(&(index as i32))).map(pair).collect(),
    }
}

fn apply_dropout(x: &mut [f32], k: usize, first_token: usize, dropout: &Dropout) {
    for (row, x) in x.chunks_exact_mut(k).enumerate() {
        for (quad, x) in x.chunks_mut(4).enumerate() {
            let factors = dropout.factors((first_token + row) as u32, quad as u32);
            x.iter_mut().zip(factors).for_each(|(x, f)| *x *= f);
        }
    }
}

/// `x` itself without dropout, otherwise a masked copy of it in `scratch`. Its rows are those of the batch from
/// `first_token` on.
fn dropped<'a>(
    x: &'a [f32],
    k: usize,
    first_token: usize,
    dropout: Option<Dropout>,
    scratch: &'a mut [f32],
) -> &'a [f32] {
    let Some(dropout) = dropout.filter(|d| !d.is_identity()) else { return x };
    let out = &mut scratch[..x.len()];
    out.par_chunks_mut(TOKEN_CHUNK * k).zip(x.par_chunks(TOKEN_CHUNK * k)).enumerate().for_each(|(chunk, (out, x))| {
        out.copy_from_slice(x);
        apply_dropout(out, k, first_token + chunk * TOKEN_CHUNK, &dropout);
    });
    out
}

/// `S = scale·dropout(X)·Aᵀ`. Of several pairs a token has only the columns of its own; the others are zero.
pub fn lora_down(
    workspace: &mut Workspace,
    x: &[f32], // [M, K]
    first_token: usize,
    group: &LinearGroup<Cpu>,
    dropout: Option<Dropout>,
    adapters: &[i32], // [M]; read where a layer has several pairs
    s: &mut [f32],    // [M, Σr]
) {
    let (k, width) = (group.k, columns(group));
    let x = dropped(x, k, first_token, dropout, &mut workspace.dropped);
    for (_, column, segment) in placed(group) {
        let Some(lora) = &segment.lora else { continue };
        let Some(several) = &lora.several else {
            let a = Scaled { data: lora.a.operand(), stride: k, factor: lora.scale };
            let product = Product::new(Left::Rows { data: x, stride: k }, k, Right::Turned(&a));
            let columns = column..column + lora.r;
            multiply(&mut workspace.panels, s, width, x.len() / k, columns, false, &[product]);
            continue;
        };
        let own = column..column + columns_of(lora);
        s.par_chunks_exact_mut(width).with_min_len(16).for_each(|s| s[own.clone()].fill(0.0));
        let (r, len) = (lora.r, lora.r * k);
        for (pair, rows) in adapter_runs(adapters, several.count) {
            let a = Scaled { data: &lora.a.value[pair * len..][..len], stride: k, factor: several.scales[pair] };
            let left = Left::Rows { data: &x[rows.start * k..rows.end * k], stride: k };
            let (product, first) = (Product::new(left, k, Right::Turned(&a)), column + pair * r);
            let s = &mut s[rows.start * width..rows.end * width];
            multiply(&mut workspace.panels, s, width, rows.len(), first..first + r, false, &[product]);
        }
    }
}

/// `Y = X·Wᵀ + S·Bᵀ + bias`
pub fn forward(
    workspace: &mut Workspace,
    x: &[f32],         // [M, K]
    s: Option<&[f32]>, // [M, Σr]
    group: &LinearGroup<Cpu>,
    adapters: &[i32], // [M]; read where a layer has several pairs
    y: &mut [f32],    // [M, ΣN]
) {
    let (k, n, r) = (group.k, group.n(), columns(group));
    for (out_column, rank_column, segment) in placed(group) {
        let pairs = segment.lora.as_ref().map_or_else(Vec::new, |lora| taken_pairs(lora, segment.n, adapters));
        let mut products = vec![Product::new(Left::Rows { data: x, stride: k }, k, Right::Turned(&*segment.weight))];
        if let Some(s) = s {
            products.extend(pairs.iter().map(|(column, b)| {
                let left = Left::Rows { data: &s[rank_column + column..], stride: r };
                Product::new(left, b.stride, Right::Turned(b))
            }));
        }
        let columns = out_column..out_column + segment.n;
        multiply(&mut workspace.panels, y, n, x.len() / k, columns.clone(), false, &products);
        if let Some(bias) = &segment.bias {
            let bias: &[f32] = bias;
            y.par_chunks_exact_mut(n)
                .with_min_len(16)
                .for_each(|y| y[columns.clone()].iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
    }
}

/// `T = scale·dY·B`
pub fn lora_dy_b(
    workspace: &mut Workspace,
    dy: &[f32], // [M, ΣN]
    group: &LinearGroup<Cpu>,
    t: &mut [f32], // [M, Σr]
) {
    let (n, width) = (group.n(), group.r());
    for (out_column, rank_column, segment) in placed(group) {
        if let Some(lora) = &segment.lora {
            let b = Scaled { data: &lora.b.value, stride: lora.r, factor: lora.scale };
            let left = Left::Rows { data: &dy[out_column..], stride: n };
            let product = Product::new(left, segment.n, Right::upright(&b));
            let columns = rank_column..rank_column + lora.r;
            multiply(&mut workspace.panels, t, width, dy.len() / n, columns, false, &[product]);
        }
    }
}

/// `dX = dY·W + dropout(T·A)`, or += with `accumulate`.
pub fn dx(
    workspace: &mut Workspace,
    dy: &[f32],        // [M, ΣN]
    t: Option<&[f32]>, // [M, Σr]
    first_token: usize,
    group: &LinearGroup<Cpu>,
    dropout: Option<Dropout>,
    accumulate: bool,
    dx: &mut [f32], // [M, K]
) {
    let (k, n, r) = (group.k, group.n(), group.r());
    let rows = dy.len() / n;
    let dropout = dropout.filter(|d| !d.is_identity());
    let mut products: Vec<Product> = placed(group)
        .map(|(out_column, _, segment)| {
            let left = Left::Rows { data: &dy[out_column..], stride: n };
            Product::new(left, segment.n, Right::upright(&*segment.weight))
        })
        .collect();
    let terms: Vec<(Left, usize, Scaled)> = placed(group)
        .filter_map(|(_, rank_column, segment)| {
            let (t, lora) = (t?, segment.lora.as_ref()?);
            let left = Left::Rows { data: &t[rank_column..], stride: r };
            Some((left, lora.r, Scaled { data: lora.a.operand(), stride: k, factor: 1.0 }))
        })
        .collect();
    let low_rank = terms.iter().map(|(left, k, a)| Product::new(*left, *k, Right::upright(a)));
    let Some(dropout) = dropout.filter(|_| !terms.is_empty()) else {
        products.extend(low_rank);
        multiply(&mut workspace.panels, dx, k, rows, 0..k, accumulate, &products);
        return;
    };
    multiply(&mut workspace.panels, dx, k, rows, 0..k, accumulate, &products);
    let masked = &mut workspace.dropped[..rows * k];
    multiply(&mut workspace.panels, masked, k, rows, 0..k, false, &low_rank.collect::<Vec<_>>());
    let chunks = dx.par_chunks_mut(TOKEN_CHUNK * k).zip(masked.par_chunks_mut(TOKEN_CHUNK * k)).enumerate();
    chunks.for_each(|(chunk, (dx, masked))| {
        apply_dropout(masked, k, first_token + chunk * TOKEN_CHUNK, &dropout);
        dx.iter_mut().zip(masked).for_each(|(dx, x)| *dx += *x);
    });
}

/// `dA += Tᵀ·dropout(X)` and `dB += dYᵀ·S`, over chunks of tokens in order.
pub fn lora_gradients(
    workspace: &mut Workspace,
    x: &[f32],  // [M, K]
    dy: &[f32], // [M, ΣN]
    s: &[f32],  // [M, Σr]
    t: &[f32],  // [M, Σr]
    first_token: usize,
    group: &mut LinearGroup<Cpu>,
    dropout: Option<Dropout>,
) {
    let (k, n, r) = (group.k, group.n(), group.r());
    let tokens = x.len() / k;
    let x = Scaled { data: dropped(x, k, first_token, dropout, &mut workspace.dropped), stride: k, factor: 1.0 };
    let (mut out_column, mut rank_column) = (0, 0);
    for segment in &mut group.segments {
        if let Some(lora) = &mut segment.lora {
            let rank = lora.r;
            let t = Left::Columns { data: &t[rank_column..], stride: r };
            let da = Product { left: t, k: tokens, right: Right::upright(&x), chunk: TOKENS };
            multiply(&mut workspace.panels, gradient(&mut lora.a), k, rank, 0..k, true, &[da]);
            let s = Scaled { data: &s[rank_column..], stride: r, factor: 1.0 };
            let dy = Left::Columns { data: &dy[out_column..], stride: n };
            let db = Product { left: dy, k: tokens, right: Right::upright(&s), chunk: TOKENS };
            multiply(&mut workspace.panels, gradient(&mut lora.b), rank, segment.n, 0..rank, true, &[db]);
            rank_column += rank;
        }
        out_column += segment.n;
    }
}

fn gradient(param: &mut CpuParam) -> &mut [f32] {
    &mut param.training.as_mut().expect("only trained tensors have gradients").gradient
}
