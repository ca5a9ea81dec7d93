//! The layer of the example.

pub const N: usize = 33;
pub const K: usize = 576;
pub const R: usize = 8;
pub const BLOCK: usize = 64;
/// alpha 16 over r 8
pub const SCALE: f32 = 2.0;
