//! A training run: its steps, snapshots, output directory and record.

mod announce;
mod answering;
mod checkpoints;
mod identity;
mod initial_adapter;
mod locked_dir;
mod names;
mod observer;
pub mod output_dir;
mod owned;
mod progress;
pub mod readiness;
pub mod record;
mod resume;
mod run;
mod sharing;
mod snapshot;
mod standing;
mod steps;
mod summing;
mod tensor_changes;
mod trained_adapter;
mod trained_card;
mod watch;

pub use identity::Identity;
pub(crate) use identity::commits_to_follow;
pub(crate) use initial_adapter::initial_adapter;
pub use run::{TrainOutcome, train, train_among};
pub use snapshot::Snapshot;
pub use summing::Sums;
