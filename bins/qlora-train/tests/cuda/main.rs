//! Training on the CUDA backend, emulated or on a GPU, against the CPU backend.
#![cfg(any(feature = "cuda", feature = "emulation"))]

mod adalora;
mod by_row;
mod commands;
mod curve;
mod disk_inputs;
mod faults;
mod generation;
mod graphs;
mod host_copies;
mod late_stream;
mod linear_rows;
mod loading;
mod methods;
mod nccl;
mod not_pinned;
mod paged_states;
mod peft;
mod planning;
mod refusals;
mod runs;
mod sources;
mod token_rows;
mod training;
