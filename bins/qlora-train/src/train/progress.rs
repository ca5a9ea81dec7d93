//! State that a run carries from one step to the next, beside the model and `trainer_state.json`.

use crate::model::optimizer_step::{Accumulated, StepReport};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Part of a checkpoint: sums are kept as they are, so that a resumed run logs the same figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Gradients of the step that the run was stopped in
    pub accumulation: Accumulated,
    /// Since the last logged loss.
    pub since_log: Losses,
    pub whole_run: Losses,
    /// The step after which the validation rows were evaluated last.
    pub evaluated_at: Option<u64>,
    /// Evaluations since the lowest loss.
    pub without_improvement: u64,
    /// True if the run ends before its last step, because the validation loss no longer falls.
    pub stopped_early: bool,
}

/// Sum over supervised tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    pub sum: f64,
    pub tokens: u64,
}

impl Losses {
    pub fn add(&mut self, report: &StepReport) {
        self.sum += report.loss * report.supervised as f64;
        self.tokens += report.supervised as u64;
    }

    pub fn mean(&self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }
}

/// Tokens per second over the steps of this process after the first, which also touches every page and file for the
/// first time.
#[derive(Default)]
pub struct Speed {
    tokens: usize,
    /// The end of the first step.
    from: Option<Instant>,
}

impl Speed {
    /// Called when a step ends.
    pub fn add(&mut self, tokens: usize) {
        match self.from {
            Some(_) => self.tokens += tokens,
            None => self.from = Some(Instant::now()),
        }
    }

    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.from?.elapsed().as_secs_f64();
        (self.tokens > 0).then(|| self.tokens as f64 / seconds.max(1e-9))
    }
}
