//! Tiles of scores of attention, each in one function: a call for each row would take as long as its work.
//!
//! Scores and gradients of probabilities are rows of [`WIDTH`] values, of which `columns` count, in whole vectors. What
//! becomes of them is bf16, in pairs of rows: the right operand of a product whose contraction runs over the rows.
//! `seen` has, for every row, a bit for each column that counts; the others become zero, and so does a row that an odd
//! number of them leaves without a pair. Every function has a scalar twin that gives the same bits.

#![allow(unsafe_code)]

use super::fused::flushed;
use super::isa::{Isa, LANES};
use super::pairs::{Panel, WIDTH, pair};
use super::rows::round;
use crate::backend::cpu::elementwise::exp_up_to_88;
use crate::backend::cpu::gemm::simd::vectorized;
use crate::backend::cpu::soft_cap::{capped, slope_of_capped};
use half::bf16;
use std::ops::Range;

/// Scores become exponents by it: times `scale`, and capped.
#[derive(Clone, Copy)]
pub struct Scaling {
    pub scale: f32,
    pub cap: Option<f32>,
}

impl Scaling {
    fn of(self, score: f32) -> f32 {
        self.cap.map_or(score * self.scale, |cap| capped(cap, score * self.scale))
    }
}

/// A running softmax of queries, an entry for each.
pub struct Softmax<'a> {
    pub max: &'a mut [f32; WIDTH],
    pub sum: &'a mut [f32; WIDTH],
    /// Factors of what was summed before
    pub corrections: &'a mut [f32; WIDTH],
}

/// Factor of what was summed below another maximum.
fn correction(before: f32, max: f32) -> f32 {
    // Nothing was summed below −∞.
    if before == max || before == f32::NEG_INFINITY { 1.0 } else { (before - max).exp() }
}

/// Log-sum-exps of queries and rowsum(dO ∘ O).
#[derive(Clone, Copy)]
pub struct OfQueries<'a> {
    pub lse: &'a [f32],
    pub delta: &'a [f32],
}

/// Gradients of scores: as the right operand of a product over queries, and as the left one of a product over keys, in
/// rows of [`WIDTH`].
pub struct OfScores<'a> {
    pub panel: Panel<'a>,
    pub rows: &'a mut [bf16],
}

/// Rows that are read, those that count and some more, which have no effect.
fn rows_read(count: usize) -> usize {
    count.next_multiple_of(2 * LANES)
}

fn check(scores: &[f32], seen: &[u64], columns: &Range<usize>, panel: &Panel) {
    let whole = |column: usize| column.is_multiple_of(LANES) && column <= WIDTH;
    assert!(columns.start < columns.end && whole(columns.start) && whole(columns.end), "columns {columns:?}");
    assert!(!seen.is_empty() && seen.len() <= WIDTH, "{} rows of scores", seen.len());
    assert!(scores.len() >= rows_read(seen.len()) * WIDTH, "scores out of bounds");
    assert!(panel.places.tile.is_multiple_of(LANES), "a vector lies in one tile");
    let last = panel.places.at((seen.len() - 1) / 2, columns.len() - LANES);
    assert!(panel.data.len() >= last + LANES, "a panel of {} pairs", panel.places.pairs);
}

/// True if all columns of all rows that are read count.
#[cfg(target_arch = "x86_64")]
fn is_whole(seen: &[u64], columns: &Range<usize>) -> bool {
    let all = seen.iter().fold(!0, |all, seen| all & seen) >> columns.start;
    rows_read(seen.len()) == seen.len() && all.trailing_ones() as usize >= columns.len()
}

/// From scores, whose rows are keys and whose columns queries, to exponentials `p` of the scaled scores below the
/// largest so far.
pub fn softmax_columns(
    isa: Isa,
    scores: &[f32],
    seen: &[u64],
    columns: Range<usize>,
    scaling: Scaling,
    running: Softmax,
    p: Panel,
) {
    check(scores, seen, &columns, &p);
    if isa.has_vectors() {
        // SAFETY: the processor has the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        return match (scaling.cap, is_whole(seen, &columns)) {
            (None, true) => unsafe { x86::softmax_columns::<false, true>(scores, seen, columns, scaling, running, p) },
            (None, false) => unsafe {
                x86::softmax_columns::<false, false>(scores, seen, columns, scaling, running, p)
            },
            (Some(_), _) => unsafe { x86::softmax_columns::<true, false>(scores, seen, columns, scaling, running, p) },
        };
    }
    let keys = seen.len();
    for query in columns.clone() {
        let seen = |key: usize| seen.get(key).is_some_and(|seen| seen >> query & 1 != 0);
        let score = |key: usize| scaling.of(scores[key * WIDTH + query]);
        let larger = |max: f32, key: usize| if seen(key) && score(key) > max { score(key) } else { max };
        let max = (0..keys).fold(running.max[query], larger);
        let exponential = |key: usize| if seen(key) { exp_up_to_88(score(key) - max) } else { 0.0 };
        // The sum of each 16th key, and then of these.
        let of_each = |first: usize| (first..keys).step_by(LANES).fold(0.0, |sum, key| sum + exponential(key));
        let total = (0..LANES).fold(0.0, |sum, first| sum + of_each(first));
        running.corrections[query] = correction(running.max[query], max);
        running.sum[query] = running.sum[query] * running.corrections[query] + total;
        running.max[query] = max;
        for key in (0..keys).step_by(2) {
            let at = p.places.at(key / 2, query - columns.start);
            p.data[at] = pair(converted(exponential(key)), converted(exponential(key + 1)));
        }
    }
}

vectorized! {
    /// Multiplies the first columns of every row of [`WIDTH`] by a factor for each of them.
    pub fn correct_columns<'a>(rows: &'a mut [f32], factors: &'a [f32]) {
        for row in rows.chunks_mut(WIDTH) {
            for (x, factor) in row.iter_mut().zip(factors) {
                *x *= factor;
            }
        }
    }
}

/// From scores and the gradients of their probabilities, whose rows are queries and whose columns keys, to
/// probabilities `p` and gradients of scores `ds`.
pub fn gradient_rows(
    isa: Isa,
    scores: &[f32],
    gradients: &[f32],
    seen: &[u64],
    columns: Range<usize>,
    scaling: Scaling,
    queries: OfQueries,
    p: Panel,
    ds: OfScores,
) {
    check(scores, seen, &columns, &p);
    check(gradients, seen, &columns, &ds.panel);
    assert!(ds.rows.len() >= rows_read(seen.len()) * WIDTH, "rows out of bounds");
    assert!(queries.lse.len() >= rows_read(seen.len()) && queries.delta.len() >= rows_read(seen.len()), "queries");
    if isa.has_vectors() {
        // SAFETY: the processor has the instructions; the bounds were checked above.
        #[cfg(target_arch = "x86_64")]
        return match (scaling.cap, is_whole(seen, &columns)) {
            (None, true) => unsafe {
                x86::gradient_rows::<false, true>(scores, gradients, seen, columns, scaling, queries, p, ds)
            },
            (None, false) => unsafe {
                x86::gradient_rows::<false, false>(scores, gradients, seen, columns, scaling, queries, p, ds)
            },
            (Some(_), _) => unsafe {
                x86::gradient_rows::<true, false>(scores, gradients, seen, columns, scaling, queries, p, ds)
            },
        };
    }
    for key in columns.clone() {
        for query in (0..seen.len()).step_by(2) {
            let both = [query, query + 1].map(|query| {
                if seen.get(query).is_none_or(|seen| seen >> key & 1 == 0) {
                    return [bf16::ZERO; 2];
                }
                let score = scaling.of(scores[query * WIDTH + key]);
                let p = exp_up_to_88(score - queries.lse[query]);
                let ds = scaling.scale * p * (gradients[query * WIDTH + key] - queries.delta[query]);
                [p, scaling.cap.map_or(ds, |cap| ds * slope_of_capped(cap, score))].map(converted)
            });
            p.data[p.places.at(query / 2, key - columns.start)] = pair(both[0][0], both[1][0]);
            ds.panel.data[ds.panel.places.at(query / 2, key - columns.start)] = pair(both[0][1], both[1][1]);
            for (query, [_, ds_value]) in (query..seen.len()).zip(both) {
                ds.rows[query * WIDTH + key] = ds_value;
            }
        }
    }
}

/// The number as the conversion instruction gives it.
fn converted(x: f32) -> bf16 {
    round(flushed(x))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, OfQueries, OfScores, Panel, Scaling, Softmax, WIDTH};
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// The bits of every row; none of the rows beyond.
    fn of_rows_read(seen: &[u64]) -> [u64; WIDTH] {
        let mut masks = [0; WIDTH];
        masks[..seen.len()].copy_from_slice(seen);
        masks
    }

    /// `exp_up_to_88` of vectors, 0 outside of their masks. Its steps wait for one another, so that several vectors are
    /// computed at once.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn exp<const N: usize>(mut masks: [__mmask16; N], mut x: [__m512; N]) -> [__m512; N] {
        let set = |x: f32| _mm512_set1_ps(x);
        for i in 0..N {
            masks[i] &= _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x[i], set(-87.3));
        }
        // The low bits of `rounded` are n.
        let (round, mut rounded) = (set(12_582_912.0), x);
        for i in 0..N {
            rounded[i] = _mm512_add_ps(_mm512_mul_ps(x[i], set(std::f32::consts::LOG2_E)), round);
        }
        let (mut n, mut f, mut p) = (x, x, [set(1.987_569_1e-4); N]);
        for i in 0..N {
            n[i] = _mm512_sub_ps(rounded[i], round);
        }
        for i in 0..N {
            // The product is exact, of 7 bits and 9.
            f[i] = _mm512_fnmadd_ps(n[i], set(0.693_359_4), x[i]);
        }
        for i in 0..N {
            f[i] = _mm512_add_ps(f[i], _mm512_mul_ps(n[i], set(2.121_944_4e-4)));
        }
        for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
            for i in 0..N {
                p[i] = _mm512_add_ps(_mm512_mul_ps(p[i], f[i]), set(coefficient));
            }
        }
        for i in 0..N {
            p[i] = _mm512_add_ps(_mm512_mul_ps(p[i], _mm512_mul_ps(f[i], f[i])), f[i]);
        }
        for i in 0..N {
            // n is added to the exponent: the result is no subnormal number.
            let y = _mm512_castps_si512(_mm512_add_ps(p[i], set(1.0)));
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(rounded[i]));
            x[i] = _mm512_castsi512_ps(_mm512_maskz_add_epi32(masks[i], y, n));
        }
        x
    }

    /// `capped`
    #[target_feature(enable = "avx512f,avx512dq")]
    fn capped(cap: f32, x: __m512) -> __m512 {
        let (cap, one, two) = (_mm512_set1_ps(cap), _mm512_set1_ps(1.0), _mm512_set1_ps(2.0));
        let [exp] = exp([!0], [_mm512_min_ps(_mm512_set1_ps(88.0), _mm512_mul_ps(two, _mm512_div_ps(x, cap)))]);
        _mm512_mul_ps(cap, _mm512_sub_ps(one, _mm512_div_ps(two, _mm512_add_ps(one, exp))))
    }

    /// Scores times their scale, capped.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    fn scaled<const CAPPED: bool>(scaling: Scaling, x: __m512) -> __m512 {
        let x = _mm512_mul_ps(x, _mm512_set1_ps(scaling.scale));
        if CAPPED { capped(scaling.cap.unwrap_or(f32::INFINITY), x) } else { x }
    }

    /// Rounds both, the first into the low halves.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn convert(low: __m512, high: __m512) -> __m512i {
        // SAFETY: vectors of the same bits.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    /// Numbers of the values of two halves in the order of their pairs.
    #[target_feature(enable = "avx512f")]
    fn by_pairs() -> __m512i {
        let order: [u16; 2 * LANES] = std::array::from_fn(|i| (i / 2 + i % 2 * LANES) as u16);
        // SAFETY: 64 bytes.
        unsafe { _mm512_loadu_si512(order.as_ptr().cast()) }
    }

    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::check`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn softmax_columns<const CAPPED: bool, const WHOLE: bool>(
        scores: &[f32],
        seen: &[u64],
        columns: Range<usize>,
        scaling: Scaling,
        running: Softmax,
        p: Panel,
    ) {
        let (order, keys, masks) = (by_pairs(), seen.len(), of_rows_read(seen));
        let Softmax { max, sum, corrections } = running;
        for at in columns.clone().step_by(LANES) {
            // SAFETY: the rows that are read lie in all operands, and the pairs of those that count in the panel.
            unsafe {
                let (scores, masks) = (scores.as_ptr().add(at), masks.as_ptr().cast::<u16>().add(at / LANES));
                let score = |row: usize| scaled::<CAPPED>(scaling, _mm512_loadu_ps(scores.add(row * WIDTH)));
                let mask = |row: usize| if WHOLE { !0 } else { *masks.add(row * (WIDTH / LANES)) };
                let before = _mm512_loadu_ps(max.as_ptr().add(at));
                let mut several = [before; 4];
                let mut key = 0;
                while key < keys {
                    for i in 0..4 {
                        several[i] = _mm512_mask_max_ps(several[i], mask(key + i), score(key + i), several[i]);
                    }
                    key += 4;
                }
                let largest =
                    _mm512_max_ps(_mm512_max_ps(several[0], several[1]), _mm512_max_ps(several[2], several[3]));
                let (to, apart) = (p.data.as_mut_ptr().add(p.places.at(0, at - columns.start)), p.places.tile);
                let mut total = _mm512_setzero_ps();
                // The sum of each 16th row, and then of these.
                let mut first = 0;
                while first < LANES && first < keys {
                    let mut sums = [_mm512_setzero_ps(); 2];
                    let mut key = first;
                    while key < keys {
                        let rows = [key, key + 1, key + LANES, key + LANES + 1];
                        let (mut x, mut of) = ([largest; 4], [0; 4]);
                        for i in 0..4 {
                            (x[i], of[i]) = (_mm512_sub_ps(score(rows[i]), largest), mask(rows[i]));
                        }
                        let x = exp(of, x);
                        sums = [_mm512_add_ps(sums[0], x[0]), _mm512_add_ps(sums[1], x[1])];
                        sums = [_mm512_add_ps(sums[0], x[2]), _mm512_add_ps(sums[1], x[3])];
                        let to = to.add(key / 2 * apart);
                        let pairs = _mm512_permutexvar_epi16(order, convert(x[0], x[1]));
                        _mm512_storeu_si512(to.cast(), pairs);
                        if WHOLE || key + LANES < keys {
                            let pairs = _mm512_permutexvar_epi16(order, convert(x[2], x[3]));
                            _mm512_storeu_si512(to.add(LANES / 2 * apart).cast(), pairs);
                        }
                        key += 2 * LANES;
                    }
                    total = _mm512_add_ps(_mm512_add_ps(total, sums[0]), sums[1]);
                    first += 2;
                }
                _mm512_storeu_ps(max.as_mut_ptr().add(at), largest);
                let mut factors = [1.0f32; LANES];
                let mut larger = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(before, largest);
                if larger != 0 {
                    let (mut from, mut to) = ([0.0f32; LANES], [0.0f32; LANES]);
                    _mm512_storeu_ps(from.as_mut_ptr(), before);
                    _mm512_storeu_ps(to.as_mut_ptr(), largest);
                    while larger != 0 {
                        let lane = larger.trailing_zeros() as usize;
                        factors[lane] = super::correction(from[lane], to[lane]);
                        larger &= larger - 1;
                    }
                }
                let factors = _mm512_loadu_ps(factors.as_ptr());
                _mm512_storeu_ps(corrections.as_mut_ptr().add(at), factors);
                let sum = sum.as_mut_ptr().add(at);
                _mm512_storeu_ps(sum, _mm512_add_ps(_mm512_mul_ps(_mm512_loadu_ps(sum), factors), total));
            }
        }
    }

    /// # Safety
    /// The processor has the features, and the bounds are those that [`super::check`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub unsafe fn gradient_rows<const CAPPED: bool, const WHOLE: bool>(
        scores: &[f32],
        gradients: &[f32],
        seen: &[u64],
        columns: Range<usize>,
        scaling: Scaling,
        queries: OfQueries,
        p: Panel,
        ds: OfScores,
    ) {
        let (order, count, masks) = (by_pairs(), seen.len(), of_rows_read(seen));
        let (scale, one) = (_mm512_set1_ps(scaling.scale), _mm512_set1_ps(1.0));
        let cap = _mm512_set1_ps(scaling.cap.unwrap_or(f32::INFINITY));
        for at in columns.clone().step_by(LANES) {
            // SAFETY: the rows that are read lie in all operands, and the pairs of those that count in the panels.
            unsafe {
                let (scores, gradients) = (scores.as_ptr().add(at), gradients.as_ptr().add(at));
                let masks = masks.as_ptr().cast::<u16>().add(at / LANES);
                let of_p = p.data.as_mut_ptr().add(p.places.at(0, at - columns.start));
                let of_ds = ds.panel.data.as_mut_ptr().add(ds.panel.places.at(0, at - columns.start));
                let rows = ds.rows.as_mut_ptr().add(at);
                let mut query = 0;
                while query < count {
                    let (mut score, mut x, mut of) = ([one; 4], [one; 4], [0; 4]);
                    for i in 0..4 {
                        let row = query + i;
                        of[i] = if WHOLE { !0 } else { *masks.add(row * (WIDTH / LANES)) };
                        score[i] = scaled::<CAPPED>(scaling, _mm512_loadu_ps(scores.add(row * WIDTH)));
                        let below = _mm512_sub_ps(score[i], _mm512_set1_ps(*queries.lse.as_ptr().add(row)));
                        x[i] = _mm512_min_ps(_mm512_set1_ps(88.0), below);
                    }
                    let x = exp(of, x);
                    let mut y = x;
                    for i in 0..4 {
                        let row = query + i;
                        let below = _mm512_sub_ps(
                            _mm512_loadu_ps(gradients.add(row * WIDTH)),
                            _mm512_set1_ps(*queries.delta.as_ptr().add(row)),
                        );
                        y[i] = _mm512_maskz_mul_ps(of[i], _mm512_mul_ps(scale, x[i]), below);
                        if CAPPED {
                            let tanh = _mm512_div_ps(score[i], cap);
                            y[i] = _mm512_maskz_mul_ps(of[i], y[i], _mm512_sub_ps(one, _mm512_mul_ps(tanh, tanh)));
                        }
                    }
                    for i in [0, 2] {
                        let row = query + i;
                        if row >= count {
                            break;
                        }
                        let both = _mm512_permutexvar_epi16(order, convert(x[i], x[i + 1]));
                        _mm512_storeu_si512(of_p.add(row / 2 * p.places.tile).cast(), both);
                        let both = convert(y[i], y[i + 1]);
                        let to = of_ds.add(row / 2 * ds.panel.places.tile);
                        _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi16(order, both));
                        let (low, high) = (_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both));
                        _mm256_storeu_si256(rows.add(row * WIDTH).cast(), low);
                        _mm256_storeu_si256(rows.add((row + 1) * WIDTH).cast(), high);
                    }
                    query += 4;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
