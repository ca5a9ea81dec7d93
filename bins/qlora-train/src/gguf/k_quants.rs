//! Blocks of 256 values with a scale for every 16 or 32 of them (the K-quants of llama.cpp), and the block of 32 that
//! replaces them where rows are no multiple of 256.
//!
//! | type | bytes of a block | element |
//! |---|---|---|
//! | Q5_0 | d, 4 bytes of fifth bits, 16 × two nibbles | `d · (q − 16)`, q of 5 bits |
//! | Q4_K | d, m, 12 bytes of scales, 128 × two nibbles | `d · s · q − m · t`, s and t of 6 bits for each 32 |
//! | Q5_K | d, m, 12 bytes of scales, 32 bytes of fifth bits, 128 × two nibbles | the same, q of 5 bits |
//! | Q6_K | 128 × two nibbles, 64 bytes of upper bits, 16 × i8, d | `d · s · (q − 32)`, s for each 16, q of 6 bits |
//!
//! Levels are searched for as llama.cpp does it without an importance matrix: over some scales about the one that spans
//! the values, each refined by least squares, the one with the least weighted error is taken. Sums are in f32 and in
//! the order of the values: tests/golden/check_gguf.py compares the bytes with llama.cpp's.

use half::f16;

pub(super) const SUPER_BLOCK: usize = 256;
/// Values that share a scale and a minimum in Q4_K and Q5_K, and a scale in Q6_K.
const GROUP: usize = 32;
const SMALL_GROUP: usize = 16;
/// Below it a group of Q6_K counts as zeros.
const LEAST: f32 = 1e-15;

/// The levels of a group: `scale · level − minimum`.
struct Fit {
    scale: f32,
    minimum: f32,
    levels: [u8; GROUP],
}

fn level(value: f32, most: i32) -> i32 {
    (value.round_ties_even() as i32).clamp(0, most)
}

/// Levels from 0 to `most`. The scales that are tried span the values with `most + first` to
/// `most + first + 0.1 · steps` levels.
fn fit(x: &[f32], weights: &[f32], most: i32, first: f32, steps: i32) -> Fit {
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        sum_w += w;
        sum_x += w * x;
    }
    let mut least = x.iter().fold(x[0], |least, &x| if x < least { x } else { least }).min(0.0);
    let largest = x.iter().fold(x[0], |largest, &x| if x > largest { x } else { largest });
    let mut best = Fit { scale: 0.0, minimum: -least, levels: [0; GROUP] };
    if largest == least {
        return best;
    }
    let levels_of = |inverse: f32, least: f32| {
        let mut levels = [0u8; GROUP];
        levels.iter_mut().zip(x).for_each(|(l, x)| *l = level(inverse * (x - least), most) as u8);
        levels
    };
    let error_of = |levels: &[u8; GROUP], scale: f32, least: f32| {
        let mut error = 0.0f32;
        for ((l, x), w) in levels.iter().zip(x).zip(weights) {
            let off = scale * f32::from(*l) + least - x;
            error += w * (off * off);
        }
        error
    };
    let inverse = most as f32 / (largest - least);
    best.scale = 1.0 / inverse;
    best.levels = levels_of(inverse, least);
    let mut least_error = error_of(&best.levels, best.scale, least);
    for step in 0..=steps {
        // The next levels begin at the best minimum so far.
        let levels = levels_of((first + 0.1 * step as f32 + most as f32) / (largest - least), least);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((l, x), w) in levels.iter().zip(x).zip(weights) {
            let l = f32::from(*l);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        let mut minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if minimum > 0.0 {
            (minimum, scale) = (0.0, sum_xl / sum_l2);
        }
        let error = error_of(&levels, scale, minimum);
        if error < least_error {
            (least_error, least) = (error, minimum);
            best = Fit { scale, minimum: -minimum, levels };
        }
    }
    best
}

/// The 6-bit scale and minimum of group `j` in the 12 bytes of Q4_K and Q5_K.
fn group_scales(packed: &[u8], j: usize) -> (u8, u8) {
    match j < 4 {
        true => (packed[j] & 63, packed[j + 4] & 63),
        false => (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4),
    }
}

fn pack_scales(scales: &[u8; 8], minimums: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0u8; 12];
    for j in 0..4 {
        packed[j] = scales[j] | scales[j + 4] >> 4 << 6;
        packed[j + 4] = minimums[j] | minimums[j + 4] >> 4 << 6;
        packed[j + 8] = scales[j + 4] & 15 | (minimums[j + 4] & 15) << 4;
    }
    packed
}

/// A block of Q4_K (`bits` 4) or Q5_K (`bits` 5).
pub(super) fn encode_with_minimums(block: &[f32], bits: u32, out: &mut Vec<u8>) {
    let most = (1 << bits) - 1;
    let (first, steps) = if bits == 4 { (-1.0, 20) } else { (-0.5, 15) };
    let fits: Vec<Fit> = block
        .chunks(GROUP)
        .map(|x| {
            let squares = x.iter().fold(0.0f32, |sum, x| sum + x * x);
            let mean = (squares / GROUP as f32).sqrt();
            let weights: Vec<f32> = x.iter().map(|x| mean + x.abs()).collect();
            fit(x, &weights, most, first, steps)
        })
        .collect();
    let largest = |of: &dyn Fn(&Fit) -> f32| fits.iter().fold(0.0f32, |largest, fit| largest.max(of(fit)));
    let (max_scale, max_minimum) = (largest(&|fit| fit.scale), largest(&|fit| fit.minimum));
    let inverse = |largest: f32| if largest > 0.0 { 63.0 / largest } else { 0.0 };
    let (inverse_scale, inverse_minimum) = (inverse(max_scale), inverse(max_minimum));
    let (mut scales, mut minimums) = ([0u8; 8], [0u8; 8]);
    for (j, fit) in fits.iter().enumerate() {
        scales[j] = level(inverse_scale * fit.scale, 63) as u8;
        minimums[j] = level(inverse_minimum * fit.minimum, 63) as u8;
    }
    let (d, m) = (f16::from_f32(max_scale / 63.0), f16::from_f32(max_minimum / 63.0));
    let mut levels = [0u8; SUPER_BLOCK];
    for (j, (x, fit)) in block.chunks(GROUP).zip(&fits).enumerate() {
        let step = d.to_f32() * f32::from(scales[j]);
        let minimum = m.to_f32() * f32::from(minimums[j]);
        for (i, &x) in x.iter().enumerate() {
            levels[j * GROUP + i] = match step != 0.0 {
                true => level((x + minimum) / step, most) as u8,
                false => fit.levels[i],
            };
        }
    }
    out.extend(d.to_le_bytes());
    out.extend(m.to_le_bytes());
    out.extend(pack_scales(&scales, &minimums));
    if bits == 5 {
        let fifth = |i: usize| (0..8).fold(0u8, |bits, group| bits | (levels[group * GROUP + i] >> 4) << group);
        out.extend((0..GROUP).map(fifth));
    }
    for pair in levels.chunks(2 * GROUP) {
        out.extend((0..GROUP).map(|i| pair[i] & 15 | pair[i + GROUP] << 4));
    }
}

pub(super) fn decode_with_minimums(block: &[u8], bits: u32, values: &mut Vec<f32>) {
    let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let (d, m, scales) = (half_at(0), half_at(2), &block[4..16]);
    let (fifth, nibbles) = if bits == 5 { (Some(&block[16..48]), &block[48..]) } else { (None, &block[16..]) };
    for group in 0..8 {
        let (scale, minimum) = group_scales(scales, group);
        let (scale, minimum) = (d * f32::from(scale), m * f32::from(minimum));
        for i in 0..GROUP {
            let low = nibbles[group / 2 * GROUP + i] >> (group % 2 * 4) & 15;
            let high = fifth.map_or(0, |fifth| (fifth[i] >> group & 1) << 4);
            values.push(scale * f32::from(low | high) - minimum);
        }
    }
}

/// Levels from −32 to 31 of a group, and their scale.
fn fit_symmetric(x: &[f32]) -> (f32, [i8; SMALL_GROUP]) {
    let mut extreme = 0.0f32;
    for &x in x {
        if x.abs() > extreme.abs() {
            extreme = x;
        }
    }
    let mut best_levels = [0i8; SMALL_GROUP];
    if extreme.abs() < LEAST {
        // Level 0 of the file, which is −32.
        return (0.0, [-32; SMALL_GROUP]);
    }
    let (mut scale, mut best) = (0.0f32, 0.0f32);
    for step in [0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let inverse = if step == 0 { -32.0 / extreme } else { -(32.0 + 0.1 * step as f32) / extreme };
        let mut levels = [0i8; SMALL_GROUP];
        let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
        for (l, &x) in levels.iter_mut().zip(x) {
            *l = (inverse * x).round_ties_even().clamp(-32.0, 31.0) as i8;
            let (value, w) = (f32::from(*l), x * x);
            sum_xl += w * x * value;
            sum_l2 += w * value * value;
        }
        let better = if step == 0 { true } else { sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 };
        if better {
            scale = if sum_l2 != 0.0 { sum_xl / sum_l2 } else { 0.0 };
            (best, best_levels) = (scale * sum_xl, levels);
        }
    }
    (scale, best_levels)
}

pub(super) fn encode_q6_k(block: &[f32], out: &mut Vec<u8>) {
    let fits: Vec<(f32, [i8; SMALL_GROUP])> = block.chunks(SMALL_GROUP).map(fit_symmetric).collect();
    let mut extreme = 0.0f32;
    for (scale, _) in &fits {
        if scale.abs() > extreme.abs() {
            extreme = *scale;
        }
    }
    if extreme.abs() < LEAST {
        out.resize(out.len() + 210, 0);
        return;
    }
    let inverse = -128.0 / extreme;
    let d = f16::from_f32(1.0 / inverse);
    let mut levels = [0u8; SUPER_BLOCK];
    let mut scales = [0i8; 16];
    for (j, (x, (scale, own))) in block.chunks(SMALL_GROUP).zip(&fits).enumerate() {
        scales[j] = (inverse * scale).round_ties_even().min(127.0) as i8;
        let step = d.to_f32() * f32::from(scales[j]);
        for (i, &x) in x.iter().enumerate() {
            let level = match step != 0.0 {
                true => (x / step).round_ties_even().clamp(-32.0, 31.0) as i32,
                false => i32::from(own[i]),
            };
            levels[j * SMALL_GROUP + i] = (level + 32) as u8;
        }
    }
    for half in levels.chunks(128) {
        out.extend((0..64).map(|i| half[i] & 15 | (half[i + 64] & 15) << 4));
    }
    for half in levels.chunks(128) {
        let upper = |i: usize| (0..4).fold(0u8, |bits, part| bits | (half[part * 32 + i] >> 4) << (2 * part));
        out.extend((0..32).map(upper));
    }
    out.extend(scales.map(|scale| scale as u8));
    out.extend(d.to_le_bytes());
}

pub(super) fn decode_q6_k(block: &[u8], values: &mut Vec<f32>) {
    let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
    for at in 0..SUPER_BLOCK {
        let (half, within) = (at / 128, at % 128);
        let low = block[half * 64 + within % 64] >> (within / 64 * 4) & 15;
        let high = block[128 + half * 32 + within % 32] >> (within / 32 * 2) & 3;
        let scale = f32::from(block[192 + at / SMALL_GROUP] as i8);
        values.push(d * scale * (f32::from(low | high << 4) - 32.0));
    }
}

pub(super) fn encode_q5_0(block: &[f32], out: &mut Vec<u8>) {
    let mut extreme = 0.0f32;
    for &x in block {
        if extreme.abs() < x.abs() {
            extreme = x;
        }
    }
    let d = extreme / -16.0;
    let inverse = if d != 0.0 { 1.0 / d } else { 0.0 };
    let level = |x: f32| ((x * inverse + 16.5) as i8).min(31) as u8;
    let fifth = block.iter().enumerate().fold(0u32, |bits, (i, &x)| bits | u32::from(level(x) >> 4 & 1) << i);
    out.extend(f16::from_f32(d).to_le_bytes());
    out.extend(fifth.to_le_bytes());
    out.extend((0..16).map(|i| level(block[i]) & 15 | (level(block[i + 16]) & 15) << 4));
}

pub(super) fn decode_q5_0(block: &[u8], values: &mut Vec<f32>) {
    let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for i in 0..GROUP {
        let low = block[6 + i % 16] >> (i / 16 * 4) & 15;
        let high = (fifth >> i & 1) as u8;
        values.push(d * (f32::from(low | high << 4) - 16.0));
    }
}

#[cfg(test)]
mod tests;
