//! The code that the fuzz targets call. See `targets`.

#![deny(unsafe_code)]

#[allow(dead_code)]
#[path = "../../bins/qlora-train/tests/data/fixture.rs"]
mod fixture;
pub mod targets;
