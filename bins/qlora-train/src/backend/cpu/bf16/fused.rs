//! The multiply-add of the instructions on bf16 numbers, for their scalar twins.

/// An f32 as the instructions take and give it: a subnormal one is zero, with its sign.
#[inline(always)]
pub fn flushed(x: f32) -> f32 {
    const EXPONENT: u32 = 0x7F80_0000;
    const SIGN: u32 = 0x8000_0000;
    let bits = x.to_bits();
    f32::from_bits(if bits & EXPONENT == 0 { bits & SIGN } else { bits })
}

/// `x · y + sum`, rounded once.
#[inline(always)]
pub fn fused(x: f32, y: f32, sum: f32) -> f32 {
    flushed(flushed(x).mul_add(flushed(y), flushed(sum)))
}

/// The earlier and the later number of a pair.
#[inline(always)]
pub fn halves(pair: u32) -> (f32, f32) {
    (f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnormal_numbers_are_zero_where_they_are_read_and_where_they_are_written() {
        const LEAST: f32 = f32::MIN_POSITIVE;
        for (x, expected) in [(LEAST, LEAST), (-LEAST, -LEAST), (LEAST.next_down(), 0.0), (-f32::from_bits(1), -0.0)] {
            assert_eq!(flushed(x).to_bits(), f32::to_bits(expected), "{x:e}");
        }
        assert!(flushed(f32::NAN).is_nan() && flushed(f32::INFINITY) == f32::INFINITY);
        // A factor, the sum before and the result.
        assert_eq!(fused(LEAST / 2.0, 4.0, 1e-37), 1e-37);
        assert_eq!(fused(LEAST, 1.0, LEAST / 2.0), LEAST);
        assert_eq!(fused(LEAST, 0.5, 0.0).to_bits(), 0);
        assert_eq!(fused(-LEAST, 0.5, 0.0).to_bits(), f32::to_bits(-0.0));
        // One rounding: the product alone would lose its last bit.
        let x = 1.0 + 2f32.powi(-12);
        assert_eq!(fused(x, x, -1.0), 2f32.powi(-11) + 2f32.powi(-24));
        assert_eq!(halves(0x4000_3F80), (1.0, 2.0));
    }
}
