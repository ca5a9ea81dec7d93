//! A training run: its steps, snapshots, output directory and record.

mod answering;
mod checkpoints;
mod identity;
mod locked_dir;
mod names;
mod observer;
pub mod output_dir;
mod owned;
mod progress;
pub mod record;
mod resume;
mod run;
mod snapshot;
mod steps;
mod trained_adapter;
mod watch;

pub use identity::Identity;
pub use run::{TrainOutcome, train};
pub use snapshot::Snapshot;
