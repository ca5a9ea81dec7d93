//! Keys and values of earlier tokens in bf16, and attention of a few new ones over them.
//!
//! The keys that a token sees are cut into parts, so that threads share them: a running softmax over tiles of a part
//! (Dao et al. 2022), and then a sum of the parts. The cut depends on the number of keys alone.

use super::dots::{self, FEW};
use super::gemm::each_in_order;
use super::isa::Isa;
use super::pairs::WIDTH;
use super::rows::{round, round_scaled};
use super::weighted::add_weighted;
use crate::backend::CheckedBatch;
use crate::backend::cpu::cache::starts_of_tokens;
use crate::backend::cpu::elementwise::{LANES, exp, exp_up_to_88};
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::soft_cap::capped;
use half::bf16;
use qlora_kernels::shape::{AttentionShape, Visible};
use std::ops::Range;

/// Keys whose scores exist at one time.
const TILE: usize = WIDTH;
/// Parts of the keys of a token at most.
const PARTS: usize = 16;
/// The widest head.
const MAX_HEAD_DIM: usize = 256;
/// Tokens whose parts exist at one time.
const TOKENS: usize = 4;
/// Multiply-adds of scores that are not worth another thread.
const ALONE: usize = 1 << 15;

/// Copies the keys and values of the batch to their rows of `cache` `[rows, k‖v]`.
pub fn append(qkv: &[bf16], batch: &CheckedBatch, shape: AttentionShape, starts: &[u32], cache: &mut [bf16]) {
    let (width, from) = (2 * shape.kv_heads * shape.head_dim, shape.out());
    let rows = qkv.chunks_exact(shape.qkv()).zip(starts_of_tokens(batch, starts)).zip(&batch.positions);
    for ((qkv, start), &position) in rows {
        cache[(start + position as usize) * width..][..width].copy_from_slice(&qkv[from..]);
    }
}

/// A part of the keys that one token sees, for a few query heads that share a key head.
struct Part<'a> {
    token: usize,
    heads: Range<usize>,
    /// Rows of the cache
    rows: Range<usize>,
    /// Zeros that become sums of values `[parts of D, heads, WIDTH]`, the largest scores `[heads]` and the sums of
    /// exponentials below them `[heads]`
    out: &'a mut [f32],
}

/// `O = softmax(Q·Kᵀ/√D)·V` over the rows of each token's document that it sees. A result depends on nothing else in
/// the batch.
pub fn attention(
    isa: Isa,
    qkv: &[bf16],   // [M, qkv]
    cache: &[bf16], // [rows, k‖v]
    batch: &CheckedBatch,
    shape: AttentionShape,
    visible: Visible,
    starts: &[u32],
    out: &mut [bf16], // [M, H·D]
) {
    let (d, heads, group) = (shape.head_dim, shape.heads, shape.heads / shape.kv_heads);
    assert!(d <= MAX_HEAD_DIM, "head_dim {d}");
    let seen = |(start, &position): (usize, &u32)| {
        let keys = visible.keys(0, position as usize);
        start + keys.start..start + keys.end
    };
    let seen: Vec<Range<usize>> = starts_of_tokens(batch, starts).into_iter().zip(&batch.positions).map(seen).collect();
    let few: Vec<Range<usize>> = (0..heads)
        .step_by(group)
        .flat_map(|first| (0..group).step_by(FEW).map(move |i| first + i..first + group.min(i + FEW)))
        .collect();
    let per_head = d.next_multiple_of(WIDTH) + 2;
    for (number, (seen, out)) in seen.chunks(TOKENS).zip(out.chunks_mut(TOKENS * heads * d)).enumerate() {
        let count = |seen: &Range<usize>| seen.len().div_ceil(part_len(seen));
        let mut sums = vec![0.0f32; seen.iter().map(count).sum::<usize>() * heads * per_head];
        let (mut rest, mut parts) = (&mut sums[..], Vec::new());
        for (i, seen) in seen.iter().enumerate() {
            for start in seen.clone().step_by(part_len(seen)) {
                for heads in &few {
                    let (out, after) = std::mem::take(&mut rest).split_at_mut(heads.len() * per_head);
                    let rows = start..seen.end.min(start + part_len(seen));
                    parts.push(Part { token: number * TOKENS + i, heads: heads.clone(), rows, out });
                    rest = after;
                }
            }
        }
        let work = seen.iter().map(Range::len).sum::<usize>() * heads * d;
        let threads = if work <= ALONE { 1 } else { rayon::current_num_threads() };
        each_in_order(&mut vec![(); threads], parts, |(), part| attend(isa, qkv, cache, shape, part));
        let mut rest = &sums[..];
        for (seen, out) in seen.iter().zip(out.chunks_exact_mut(heads * d)) {
            let (sums, after) = rest.split_at(count(seen) * heads * per_head);
            for of in &few {
                let parts = sums.chunks_exact(heads * per_head);
                let parts = parts.map(|sums| &sums[of.start * per_head..of.end * per_head]);
                put_together(parts, d, &mut out[of.start * d..of.end * d]);
            }
            rest = after;
        }
    }
}

/// Keys of a part of those that are seen, whole tiles.
fn part_len(seen: &Range<usize>) -> usize {
    seen.len().div_ceil(PARTS).next_multiple_of(TILE)
}

fn attend(isa: Isa, qkv: &[bf16], cache: &[bf16], shape: AttentionShape, part: Part) {
    let (d, few, width) = (shape.head_dim, part.heads.len(), 2 * shape.kv_heads * shape.head_dim);
    let key = shape.key_column(part.heads.start) - shape.out();
    let value = key + shape.kv_heads * d;
    let query = |member: usize| &qkv[part.token * shape.qkv() + (part.heads.start + member) * d..][..d];
    let (sums, running) = part.out.split_at_mut(d.next_multiple_of(WIDTH) * few);
    let scale = shape.scale() as f32;
    let (mut max, mut totals) = ([f32::NEG_INFINITY; FEW], [[0.0f32; LANES]; FEW]);
    let mut p = [[bf16::ZERO; TILE]; FEW];
    for rows in cache[part.rows.start * width..part.rows.end * width].chunks(TILE * width) {
        let count = rows.len() / width;
        let mut scores = [[0.0; TILE]; FEW];
        for (member, scores) in scores[..few].iter_mut().enumerate() {
            dots::dots(isa, &rows[key..], width, query(member), &mut scores[..count]);
        }
        let corrections = exponentials(&mut scores[..few], count, scale, shape.soft_cap, &mut max, &mut totals, &mut p);
        for (member, correction) in corrections[..few].iter().enumerate().filter(|(_, correction)| **correction != 1.0)
        {
            sums.chunks_exact_mut(WIDTH).skip(member).step_by(few).for_each(|sums| scale_row(sums, *correction));
        }
        add_weighted(isa, p[..few].as_flattened(), &rows[value..], width, count, d, sums);
    }
    for member in 0..few {
        (running[member], running[few + member]) = (max[member], in_halves(totals[member], |x, y| x + y));
    }
}

vectorized! {
    /// From the first `count` scores of each row to exponentials `p` of `scale · score`, capped, below the largest so
    /// far; beyond them zero. Running are the largest and the sums of exponentials, interleaved. Returns the factors of
    /// what was summed before.
    fn exponentials<'a>(
        scores: &'a mut [[f32; TILE]],
        count: usize,
        scale: f32,
        cap: Option<f32>,
        max: &'a mut [f32; FEW],
        totals: &'a mut [[f32; LANES]; FEW],
        p: &'a mut [[bf16; TILE]; FEW],
    ) -> [f32; FEW] {
        let mut corrections = [1.0; FEW];
        for (i, scores) in scores.iter_mut().enumerate() {
            scores.iter_mut().for_each(|x| *x *= scale);
            if let Some(cap) = cap {
                scores.iter_mut().for_each(|x| *x = capped(cap, *x));
            }
            scores[count..].fill(f32::NEG_INFINITY);
            let larger = |x: f32, y: f32| if y > x { y } else { x };
            let mut most = [max[i]; LANES];
            for scores in scores.as_chunks::<LANES>().0 {
                most.iter_mut().zip(scores).for_each(|(most, x)| *most = larger(*most, *x));
            }
            let most = in_halves(most, larger);
            if max[i] != most {
                corrections[i] = exp(max[i] - most);
                totals[i].iter_mut().for_each(|total| *total *= corrections[i]);
                max[i] = most;
            }
            for (scores, p) in scores.as_chunks::<LANES>().0.iter().zip(p[i].as_chunks_mut::<LANES>().0) {
                for ((score, p), total) in scores.iter().zip(p).zip(&mut totals[i]) {
                    let exponential = exp_up_to_88(score - most);
                    *total += exponential;
                    *p = round(exponential);
                }
            }
        }
        corrections
    }
}

/// One value of sixteen: of the halves' elements, then of their halves', and so on.
#[inline(always)]
fn in_halves(values: [f32; LANES], one: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| one(values[i], values[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| one(eight[i], eight[i + 4]));
    one(one(four[0], four[2]), one(four[1], four[3]))
}

vectorized! {
    fn scale_row<'a>(sums: &'a mut [f32], factor: f32) {
        sums.iter_mut().for_each(|sum| *sum *= factor);
    }
}

/// Results of a few heads of one token from what [`Part::out`] has of each part.
fn put_together<'a>(parts: impl Iterator<Item = &'a [f32]> + Clone, d: usize, out: &mut [bf16]) {
    let few = out.len() / d;
    for (member, out) in out.chunks_exact_mut(d).enumerate() {
        let parts = parts.clone().map(|part| part.split_at(d.next_multiple_of(WIDTH) * few));
        let max = parts.clone().map(|(_, running)| running[member]).fold(f32::NEG_INFINITY, f32::max);
        let (mut all, mut total) = ([0.0f32; MAX_HEAD_DIM], 0.0);
        for (sums, running) in parts {
            let factor = exp(running[member] - max);
            total += factor * running[few + member];
            let sums = sums.chunks_exact(WIDTH).skip(member).step_by(few);
            all.chunks_exact_mut(WIDTH).zip(sums).for_each(|(all, sums)| add_scaled(all, sums, factor));
        }
        round_scaled(out, &all[..d], 1.0 / total);
    }
}

vectorized! {
    fn add_scaled<'a>(sums: &'a mut [f32], values: &'a [f32], factor: f32) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += factor * value;
        }
    }
}

#[cfg(test)]
mod tests;
