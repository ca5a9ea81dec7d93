//! Pairs of bf16 numbers, as panels hold them.

use half::bf16;

/// Columns of a panel at most.
pub const WIDTH: usize = 64;

/// A part of a panel that rows are written to, two at a time.
pub struct Panel<'a> {
    pub data: &'a mut [u32],
    pub places: Places,
}

/// Places of the pairs of a panel: `pairs` of them for each tile of `tile` columns, the tiles one after the other.
#[derive(Clone, Copy)]
pub struct Places {
    pub pairs: usize,
    pub tile: usize,
}

impl Places {
    /// The place of one pair of rows in one column; the rest of the tile's columns follow it.
    pub fn at(self, pair: usize, column: usize) -> usize {
        (column / self.tile * self.pairs + pair) * self.tile + column % self.tile
    }
}

/// Two neighbors along a contraction, as the panels hold them: the earlier one in the low half.
pub fn pair(low: bf16, high: bf16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

/// Numbers of the values of two vectors of 32 in the order of their pairs: of the first half of the pairs, and of the
/// second.
#[cfg(target_arch = "x86_64")]
pub static PAIRS_OF_TWO: [[u16; 32]; 2] = {
    let mut numbers = [[0; 32]; 2];
    let mut i = 0;
    while i < 64 {
        numbers[i / 32][i % 32] = (i / 2 + i % 2 * 32) as u16;
        i += 1;
    }
    numbers
};
