//! A training run: its steps, snapshots, output directory and record.

mod checkpoints;
mod identity;
mod outcome;
pub mod output_dir;
mod progress;
pub mod record;
mod resume;
mod run;
mod run_identity;
mod snapshot;
mod steps;

pub use outcome::TrainOutcome;
pub use output_dir::{Finished, Found, OutputLock, check_output_dir, check_recorded_base};
pub use record::{LogEntry, RunRecord, STATE_FILE, TrainerState, write_json, write_state};
pub use run::train;
pub use run_identity::Identity;
