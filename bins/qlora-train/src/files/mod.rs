//! Files and their contents: crash-safe writing, tensors, JSON, sizes.

pub mod atomic;
pub(crate) mod dir;
pub mod failpoint;
pub(crate) mod file_state;
pub(crate) mod hash;
pub mod home;
pub(crate) mod json;
pub(crate) mod memory_file;
pub mod random;
pub(crate) mod regular;
pub(crate) mod safetensors;
pub(crate) mod scratch;
pub mod shell;
pub mod tensor;
pub mod units;
pub(crate) mod worker;
pub(crate) mod xxh64;
