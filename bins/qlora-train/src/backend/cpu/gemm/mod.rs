//! Matrix products on the CPU: packed panels, few rows, small operands.

pub mod gemv;
pub mod nf4;
pub mod pack;
pub mod panels;
pub mod simd;
pub mod small;
pub mod tiles;
