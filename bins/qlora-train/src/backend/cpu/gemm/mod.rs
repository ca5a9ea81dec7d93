//! Matrix products on the CPU: packed panels, few rows, small operands.

pub mod bf16_rows;
pub mod gemv;
pub mod nf4;
pub mod pack;
pub mod panels;
pub mod prefetch;
pub mod product;
pub mod simd;
pub mod small;
pub mod tiles;

/// Steps of a contraction that are summed on their own.
pub const CHUNK: usize = 512;
/// Steps of a sum over tokens that are summed on their own.
pub const TOKENS: usize = 256;
/// Columns of a panel at most.
pub const WIDTH: usize = 64;
/// Values of a panel at most.
pub const PANEL: usize = CHUNK * WIDTH;
/// Interleaved partial sums of a row's product: element i of a part is added to the one of number i modulo this.
pub const LANES: usize = 64;
/// NF4 codes that are looked up together.
pub const GROUP: usize = 32;
