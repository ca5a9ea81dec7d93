//! The laboratory of the trainer: random models and the f64 oracle of their loss, tokenizers and templates made by
//! hand, operations on token ranges, the shape of every refusal, and one function per fuzz target.

pub mod adapters;
pub mod assert_refused;
pub mod fixture;
mod fuzz_files;
pub mod fuzz_outside;
pub mod fuzz_records;
pub mod fuzz_targets;
pub mod model;
pub mod ranges;
pub mod ranks;
