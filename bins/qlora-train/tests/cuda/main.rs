//! Training on the CUDA backend, emulated or on a GPU, against the CPU backend.
#![cfg(any(feature = "cuda", feature = "emulation"))]

mod commands;
mod curve;
mod faults;
#[path = "../data/fixture.rs"]
#[allow(dead_code, reason = "shared with the tests of the data")]
mod fixture;
mod generation;
mod planning;
mod refusals;
mod runs;
mod sources;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the CPU backend's tests")]
mod support;
mod training;
