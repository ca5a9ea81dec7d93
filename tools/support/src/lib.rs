//! The workspace, its commands and what they fetch, for xtask and the tools.

#![deny(unsafe_code)]

pub mod artifacts;
pub mod calibration;
pub mod command;
// The build script's, which cannot use a crate that is not published.
#[path = "../../../build/compile.rs"]
pub mod compile;
pub mod cuda;
pub mod launches;
pub mod pypi;
pub mod workspace;
