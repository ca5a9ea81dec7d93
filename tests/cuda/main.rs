//! The kernels of `cuda/` against `reference` and `nf4`: on the first GPU (feature `cuda`), or emulated (feature `emulation`). One
//! executable, so that it can be carried to a GPU machine that has no Rust.

#![allow(unsafe_code)]
#![cfg(any(feature = "emulation", feature = "cuda"))]

#[path = "../support/adamw.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod adamw_operation;
#[path = "../support/device.rs"]
mod device;
#[path = "../support/linear.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod linear_operation;
#[path = "../support/nf4_operations.rs"]
mod nf4_operations;
#[path = "../support/operation.rs"]
#[allow(dead_code, reason = "what timing an operation needs is not used yet")]
mod operation;

mod adamw;
#[cfg(feature = "emulation")]
mod emulation;
mod linear;
mod linear_values;
mod nf4;
mod twins;
