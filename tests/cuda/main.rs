//! The kernels of `cuda/` against `reference` and `nf4`: on the first GPU (feature `cuda`), or emulated (feature
//! `emulation`). One executable, so that it can be carried to a GPU machine that has no Rust.

#![allow(unsafe_code)]
#![cfg(not(kernels = "absent"))]

mod adamw;
mod attention;
mod attention_cache;
#[cfg(kernels = "emulated")]
mod counters;
mod cross_entropy;
mod cross_entropy_values;
mod dispatch;
#[cfg(kernels = "emulated")]
mod emulation;
#[cfg(kernels = "cuda")]
mod interop;
#[cfg(kernels = "emulated")]
mod launch_counts;
mod layer;
mod layer_gradients;
mod layer_strides;
mod linear;
mod linear_dx;
mod linear_dx_values;
mod linear_values;
mod long_contraction;
mod low_rank;
mod low_rank_values;
mod nf4;
mod property;
mod ptx_parity;
#[cfg(kernels = "emulated")]
mod real_shapes;
mod strides;
mod test_kernels;
mod token_rows;
mod trained;
