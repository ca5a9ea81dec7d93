//! What `train` reports.

use super::Finished;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct TrainOutcome {
    pub steps: u64,
    /// Mean over the supervised tokens of the whole run.
    pub train_loss: f64,
    /// Of the adapter that was written.
    pub eval_loss: Option<f64>,
    /// Non-padding tokens over the steps after the first; None where there was only one.
    pub tokens_per_second: Option<f64>,
    pub peak_bytes: u64,
    pub adapter: PathBuf,
}

impl TrainOutcome {
    pub fn new(finished: Finished, output: &Path) -> Self {
        let Finished { steps, train_loss, eval_loss, tokens_per_second, peak_bytes } = finished;
        Self { steps, train_loss, eval_loss, tokens_per_second, peak_bytes, adapter: output.to_owned() }
    }
}
