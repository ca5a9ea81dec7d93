//! The kernels on the memory and streams of other crates.

pub mod cudarc;
