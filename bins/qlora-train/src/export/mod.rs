//! Exports of what was trained, for other programs.

mod check;
mod gguf;
mod measure;
mod merge;
mod uniform;

pub use check::{Engine, Subject, Verdict};
pub use gguf::{Exported, GgufType, ToMerge, export_adapter, export_model, has_gguf};
pub use measure::{Measured, Measurements, measure};
pub use merge::{MergeBase, MergeOptions, Merged, merge, trained_options};
pub use uniform::export_uniform;
