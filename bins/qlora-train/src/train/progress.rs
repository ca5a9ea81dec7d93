//! State that a run carries from one step to the next, beside the model and `trainer_state.json`.

use crate::model::optimizer_step::{Accumulated, StepReport};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Part of a checkpoint: sums are kept as they are, so that a resumed run logs the same figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Gradients of the step that the run was stopped in
    pub accumulation: Accumulated,
    /// Since the last logged loss.
    pub since_log: Losses,
    pub whole_run: Losses,
    /// The step after which the run was evaluated last.
    pub evaluated_at: Option<u64>,
    /// Evaluations since the best figure.
    pub without_improvement: u64,
    /// True if the run ends before its last step, because the figure that it is judged by is no longer better.
    pub stopped_early: bool,
}

/// Sum of weight x loss over supervised tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    pub sum: f64,
    /// Sum of the weights: the tokens, where each counts 1.
    #[serde(alias = "tokens")]
    pub weight: f64,
}

impl Losses {
    pub fn add(&mut self, report: &StepReport) {
        self.sum += report.loss * report.weight;
        self.weight += report.weight;
    }

    pub fn mean(&self) -> f64 {
        if self.weight > 0.0 { self.sum / self.weight } else { 0.0 }
    }
}

/// Tokens per second over the steps of this process after the first, which also touches every page and file for the
/// first time. Evaluations and checkpoints do not count.
#[derive(Default)]
pub struct Speed {
    tokens: usize,
    time: Duration,
    /// The first step is over.
    warm: bool,
}

impl Speed {
    /// Called when a step ends, with the time that it took.
    pub fn add(&mut self, tokens: usize, time: Duration) {
        if self.warm {
            self.tokens += tokens;
            self.time += time;
        }
        self.warm = true;
    }

    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.tokens as f64 / self.time.as_secs_f64().max(1e-9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_that_of_the_steps_after_the_first() {
        let mut speed = Speed::default();
        speed.add(100, Duration::from_secs(50));
        assert_eq!(speed.tokens_per_second(), None);
        speed.add(100, Duration::from_secs(1));
        speed.add(300, Duration::from_secs(3));
        assert_eq!(speed.tokens_per_second(), Some(100.0));
    }
}
