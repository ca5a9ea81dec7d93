//! The machine code of the kernels in `cuda/` as data: built for every architecture, listed and parsed.

#![deny(unsafe_code)]

pub mod library;
pub mod names;
pub mod resources;
pub mod sass;
