//! Arithmetic in bf16 with sums in f32.

mod amx;
pub mod attention;
mod cache;
pub mod compute;
pub mod gemm;
pub mod isa;
pub mod linear;
pub mod loss;
mod nf4;
pub mod pairs;
pub mod rows;
pub mod workspace;
