//! Exports of what was trained, for other programs.

mod check;
mod gguf;
mod logits;
mod measure;
mod merge;
mod parts;
mod uniform;

pub use check::{Engine, Subject, Verdict};
pub use gguf::{Exported, GgufType, ToMerge, export_adapter, export_model, has_gguf};
pub use logits::{LogitChange, logit_change};
pub use measure::{Measured, Measurements, measure};
pub use merge::{MergeBase, MergeMemory, MergeOptions, Merged, merge, merge_memory};
pub use parts::{Part, trained_on, trained_options};
pub use uniform::export_uniform;
