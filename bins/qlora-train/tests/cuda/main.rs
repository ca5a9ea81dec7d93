//! Training on the CUDA backend, emulated or on a GPU, against the CPU backend.
#![cfg(any(feature = "cuda", feature = "emulation"))]

mod by_row;
mod commands;
mod curve;
mod faults;
mod generation;
mod linear_rows;
mod methods;
mod nccl;
mod planning;
mod refusals;
mod runs;
mod sources;
mod training;
