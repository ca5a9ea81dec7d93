//! Arithmetic in bf16 with sums in f32.

mod amx;
pub mod attention;
pub mod cache;
mod dots;
#[cfg(test)]
mod drawn;
mod fused;
pub mod gemm;
pub mod isa;
mod layout;
pub mod linear;
pub mod lora_gradients;
pub mod loss;
mod nf4;
pub mod operands;
pub mod pairs;
pub mod rows;
mod scales;
mod scores;
pub mod stored;
#[cfg(test)]
mod tests;
mod transposed;
mod weighted;
pub mod workspace;
