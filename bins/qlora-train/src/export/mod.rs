//! Exports of what was trained, for other programs.

mod merge;

pub use merge::{MergeBase, MergeOptions, Merged, merge, trained_options};
