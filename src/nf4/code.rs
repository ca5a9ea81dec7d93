//! The code tables: 16 NF4 values, and the 256-entry dynamic maps of 8-bit block-wise quantization.

use std::sync::LazyLock;

/// The NF4 values, ascending (Dettmers et al., "QLoRA", 2023, appendix E; the f32 values of bitsandbytes).
#[allow(clippy::excessive_precision)] // written as every other implementation writes them
pub const CODE: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// Index of 0.0 in [`CODE`]: what zero blocks and the unused last nibble of an odd number of elements hold.
pub const ZERO_CODE: u8 = 7;

/// `THRESHOLDS[i]` parts code `i` from code `i + 1`: their midpoint in f32. A value on it takes the lower code.
pub const THRESHOLDS: [f32; 15] = {
    let mut thresholds = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        thresholds[i] = (CODE[i] + CODE[i + 1]) * 0.5;
        i += 1;
    }
    thresholds
};

/// The code of a normalized value: how many thresholds it exceeds.
#[inline(always)]
pub(super) fn nf4_code(x: f32) -> u8 {
    THRESHOLDS.iter().map(|&t| u8::from(x > t)).sum()
}

/// `1 / absmax`, or `None` where that is no finite number: absmax is 0, or below 2⁻¹²⁸.
#[inline]
fn reciprocal(absmax: f32) -> Option<f32> {
    Some(1.0 / absmax).filter(|r| r.is_finite())
}

/// Divides a block by its largest magnitude, as the format wants it: multiplied by the rounded reciprocal, or divided
/// where the reciprocal overflows. A zero block stays zero.
#[inline]
pub(crate) fn normalize(block: &mut [f32], absmax: f32) {
    match reciprocal(absmax) {
        Some(r) => block.iter_mut().for_each(|x| *x *= r),
        None if absmax > 0.0 => block.iter_mut().for_each(|x| *x /= absmax),
        None => {}
    }
}

/// The signed dynamic map (7 exponent bits of 8; Dettmers, "8-Bit Approximations for Parallelism in Deep Learning",
/// 2016), ascending: what the second quantization level stores absmax with. `[127]` is 0; there is no −1.
pub fn dynamic_map_signed() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(true));
    &MAP
}

/// The unsigned dynamic map, ascending: for values that are never negative, as Adam's second moment. `[0]` is 0.
pub fn dynamic_map_unsigned() -> &'static [f32; 256] {
    static MAP: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(false));
    &MAP
}

/// Decade `i` of seven, scaled by 10^(i − 6), holds the midpoints of a division of [0.1, 1] into 2^i parts for
/// either sign, or into 2^(i + 1) parts where there is none; then 0 and 1.
///
/// Bit-exact with the map of bitsandbytes, hence the fused multiply-adds: its table is made by a `linspace` that
/// counts from whichever end is nearer and rounds once.
fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut values = Vec::with_capacity(256);
    for (i, decade) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let parts = if signed { 1usize << i } else { 2 << i };
        let step = (1.0 - 0.1f32) / parts as f32;
        let boundary = |k: usize| {
            if k < parts.div_ceil(2) { step.mul_add(k as f32, 0.1) } else { (-step).mul_add((parts - k) as f32, 1.0) }
        };
        for k in 0..parts {
            let value = decade * ((boundary(k) + boundary(k + 1)) / 2.0);
            values.push(value);
            if signed {
                values.push(-value);
            }
        }
    }
    values.extend([0.0, 1.0]);
    values.sort_by(f32::total_cmp);
    values.try_into().expect("254 midpoints, 0 and 1")
}

/// The entry of an ascending `map` nearest to `x`, by the binary search of bitsandbytes: from entry 127 in steps of
/// 64, 32 … 1, then against the f32 midpoint towards the neighbor. A tie therefore goes to the even entry.
pub fn dynamic_code(map: &[f32; 256], x: f32) -> u8 {
    let (mut lower, mut pivot, mut upper) = (0usize, 127usize, 255usize);
    for step in [64, 32, 16, 8, 4, 2, 1] {
        if x > map[pivot] {
            lower = pivot;
            pivot += step;
        } else {
            upper = pivot;
            pivot -= step;
        }
    }
    let value = map[pivot];
    let code = if x > value {
        if x > (map[upper] + value) * 0.5 { upper } else { pivot }
    } else if x < (map[lower] + value) * 0.5 {
        lower
    } else {
        pivot
    };
    code as u8
}
