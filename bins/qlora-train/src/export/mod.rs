//! Exports of what was trained, for other programs.

mod gguf;
mod merge;

pub use gguf::{Exported, GgufType, ToMerge, export_adapter, export_model};
pub use merge::{MergeBase, MergeOptions, Merged, merge, trained_options};
