//! Pairs of bf16 numbers, as panels hold them.

use half::bf16;

/// Columns of a panel at most.
pub const WIDTH: usize = 64;

/// Two neighbors along a contraction, as the panels hold them: the earlier one in the low half.
pub fn pair(low: bf16, high: bf16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}
