//! 8-bit blockwise optimizer states, as bitsandbytes keeps them: a byte an element, an f32 scale for every 256.
//!
//! - **Maps**: the signed dynamic map for the first moment, the unsigned one for the second
//!   ([`dynamic_map_signed`], [`dynamic_map_unsigned`]).
//! - **Quantize**: `absmax` is the block's largest magnitude; the code of `x` is the entry nearest to
//!   `x * (1 / absmax)`, ties to the even entry ([`crate::nf4::dynamic_code`]). Where `1 / absmax` overflows
//!   (absmax < 2⁻¹²⁸) `x` is divided by absmax instead; a block of zeros takes the code of 0.
//! - **A second moment above 0 never takes the code of 0**, but at least that of the smallest entry above it: the root
//!   of 0 would divide the first moment by epsilon alone. Searching bitsandbytes' way, one element of 160 moves by up
//!   to 16,000 times the learning rate on the gradients of the golden trajectory.
//! - **Dequantize**: `map[code] * absmax`.
//! - A block may be shorter only at the tensor's end.
//!
//! bitsandbytes' CUDA kernel also moves a first moment whose sign was lost to the neighboring code (and with it every
//! −0 away from 0); its CPU code, which the golden trajectory comes from, does not, and neither is it done here.

mod adamw;

pub use adamw::adamw_blockwise;

use crate::nf4::{dynamic_map_signed, dynamic_map_unsigned, normalize};
use std::sync::LazyLock;

/// Elements of one scale.
pub const BLOCK_SIZE: usize = 256;

/// Magnitudes below 2⁻²³ share the first bin: no threshold of either map lies there.
const LOWEST_BITS: u32 = 0x3400_0000;
/// Magnitudes from 1 up share the last bin.
const HIGHEST_BITS: u32 = 0x3F80_0000;

/// An ascending map of 256 entries, prepared for finding the nearest one.
///
/// The first bits of a float name its bin, and a bin holds at most one threshold between two codes: the code is the
/// bin's lower one, or the next.
pub struct Quantizer {
    map: [f32; 256],
    /// The code is `c + 1` and not `c` above `thresholds[c]`; the last is infinite.
    thresholds: [f32; 256],
    /// Mantissa bits that do not name a bin.
    shift: u32,
    /// The code of a bin's lowest value: positive bins by magnitude, then, where there are any, negative ones.
    lowest: Vec<u8>,
    /// Bins of one sign.
    bins: usize,
}

impl Quantizer {
    /// For the first moment.
    pub fn signed() -> &'static Self {
        static SIGNED: LazyLock<Quantizer> = LazyLock::new(|| Quantizer::new(dynamic_map_signed(), 17, true));
        &SIGNED
    }

    /// For the second moment, which is never negative.
    pub fn unsigned() -> &'static Self {
        static UNSIGNED: LazyLock<Quantizer> = LazyLock::new(|| Quantizer::new(dynamic_map_unsigned(), 16, false));
        &UNSIGNED
    }

    fn new(map: &[f32; 256], shift: u32, signed: bool) -> Self {
        let mut thresholds = [f32::INFINITY; 256];
        for (code, pair) in map.windows(2).enumerate() {
            let middle = (pair[0] + pair[1]) * 0.5;
            // A tie goes to the even entry.
            thresholds[code] = if code % 2 == 0 { middle } else { middle.next_down() };
        }
        if !signed {
            // A value above 0 stays above 0.
            thresholds[0] = 0.0;
        }
        let below = |x: f32| thresholds.iter().filter(|&&t| x > t).count() as u8;
        let bins = ((HIGHEST_BITS - LOWEST_BITS) >> shift) as usize + 1;
        let edge = |bin: usize| if bin == 0 { 0 } else { LOWEST_BITS + ((bin as u32) << shift) };
        let mut lowest: Vec<u8> = (0..bins).map(|bin| below(f32::from_bits(edge(bin)))).collect();
        if signed {
            let last = |bin: usize| if bin + 1 < bins { -f32::from_bits(edge(bin + 1) - 1) } else { -f32::MAX };
            lowest.extend((0..bins).map(|bin| below(last(bin))));
        }
        Self { map: *map, thresholds, shift, lowest, bins }
    }

    /// The values of the codes, ascending.
    pub fn map(&self) -> &[f32; 256] {
        &self.map
    }

    /// The code nearest to a normalized value, |x| ≤ 1.
    #[inline]
    pub fn code(&self, x: f32) -> u8 {
        let magnitude = x.to_bits() & 0x7FFF_FFFF;
        let bin = (magnitude.clamp(LOWEST_BITS, HIGHEST_BITS) - LOWEST_BITS) >> self.shift;
        let negative = if x.is_sign_negative() { self.lowest.len() - self.bins } else { 0 };
        let code = self.lowest[bin as usize + negative];
        code + u8::from(x > self.thresholds[usize::from(code)])
    }

    /// `out[i] = map[codes[i]] * absmax` of one block.
    #[inline]
    pub fn dequantize(&self, codes: &[u8], absmax: f32, out: &mut [f32]) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = self.map[usize::from(code)] * absmax;
        }
    }

    /// The codes of one block, which is left normalized, and its absmax.
    #[inline]
    pub fn quantize(&self, block: &mut [f32], codes: &mut [u8]) -> f32 {
        // Magnitudes order as their bits do.
        let absmax = f32::from_bits(block.iter().map(|x| x.to_bits() & 0x7FFF_FFFF).fold(0, u32::max));
        normalize(block, absmax);
        for (code, &x) in codes.iter_mut().zip(&*block) {
            *code = self.code(x);
        }
        absmax
    }
}
