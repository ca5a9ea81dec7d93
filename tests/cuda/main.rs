//! The kernels of `cuda/` against `reference` and `nf4`: on the first GPU (feature `cuda`), or emulated (feature `emulation`). One
//! executable, so that it can be carried to a GPU machine that has no Rust.

#![allow(unsafe_code)]
#![cfg(not(kernels = "absent"))]

#[path = "../support/adamw.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod adamw_operation;
#[path = "../support/attention_operation.rs"]
mod attention_operation;
#[path = "../support/cache_operation.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod cache_operation;
#[path = "../support/cross_entropy.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod cross_entropy_operation;
#[path = "../support/device.rs"]
mod device;
#[path = "../support/dispatched.rs"]
mod dispatched;
#[path = "../support/dispatched_dx.rs"]
mod dispatched_dx;
#[path = "../support/layer_operations.rs"]
mod layer_operations;
#[path = "../support/linear_dx.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod linear_dx_operation;
#[path = "../support/linear.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod linear_operation;
#[path = "../support/logits_operation.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod logits_operation;
#[path = "../support/low_rank.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod low_rank_operation;
#[path = "../support/nf4_operations.rs"]
mod nf4_operations;
#[path = "../support/operation.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod operation;
#[path = "../support/values.rs"]
mod values;

mod adamw;
mod attention;
mod attention_cache;
mod cross_entropy;
mod cross_entropy_values;
mod dispatch;
#[cfg(kernels = "emulated")]
mod emulation;
mod layer;
mod layer_gradients;
mod linear;
mod linear_dx;
mod linear_dx_values;
mod linear_values;
mod low_rank;
mod low_rank_values;
mod nf4;
mod twins;
