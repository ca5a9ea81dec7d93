//! Steps and tokens of a run that is planned.

use crate::bench::layers::Rows;
use crate::config::Settings;
use crate::session::TrainingData;

/// What a run computes, on average over its steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RunSize {
    pub steps: u64,
    /// Tokens that are trained on, over all steps
    pub tokens: f64,
    /// Tokens of validation rows, over all evaluations
    pub evaluated: f64,
    /// Micro-batches of a step
    pub micro_batches: f64,
    pub rows: Rows,
}

impl RunSize {
    /// The run over these rows, by its first epoch.
    pub fn of(settings: &Settings, data: &TrainingData) -> Self {
        let schedule = &data.schedule;
        let (steps, per_epoch) = (schedule.total_steps(), schedule.steps_per_epoch());
        let seen = steps.min(per_epoch).max(1);
        let first: Vec<Vec<usize>> =
            schedule.steps(0).take(seen as usize).flat_map(|step| step.micro_batches).collect();
        let (mut rows, mut tokens, mut learned) = (0, 0, 0);
        for &row in first.iter().flatten() {
            (rows, tokens, learned) = (rows + 1, tokens + data.rows.tokens(row), learned + data.rows.supervised(row));
        }
        let validation: usize = data.validation.lengths().sum();
        let evaluations = settings.eval_steps.times(steps, per_epoch).max(1) + u64::from(settings.eval_on_start);
        Self {
            steps,
            tokens: tokens as f64 * steps as f64 / seen as f64,
            evaluated: validation as f64 * evaluations as f64,
            micro_batches: first.len() as f64 / seen as f64,
            rows: average(rows, tokens, learned, first.len()),
        }
    }

    /// Without rows, of as many steps as the settings name, each as long as they allow.
    pub fn of_settings(settings: &Settings) -> Option<Self> {
        let steps = settings.max_steps.0? as u64;
        let (rows, length) = (settings.per_device_train_batch_size, settings.max_length);
        let micro_batches = settings.gradient_accumulation_steps as f64;
        Some(Self {
            steps,
            tokens: steps as f64 * micro_batches * (rows * length) as f64,
            evaluated: 0.0,
            micro_batches,
            rows: Rows { count: rows, length, learned: length.saturating_sub(1) },
        })
    }
}

/// A micro-batch of equal rows with as many tokens as they have on average.
fn average(rows: usize, tokens: usize, learned: usize, micro_batches: usize) -> Rows {
    let of_micro_batch = |sum: usize| sum as f64 / micro_batches.max(1) as f64;
    let count = of_micro_batch(rows).round().max(1.0);
    let length = ((of_micro_batch(tokens) / count).round() as usize).max(2);
    let learned = (of_micro_batch(learned) / count).round() as usize;
    Rows { count: count as usize, length, learned: learned.clamp(1, length - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_micro_batch_has_the_tokens_of_all() {
        let rows = |count, length, learned| Rows { count, length, learned };
        assert_eq!(average(12, 1200, 300, 12), rows(1, 100, 25));
        assert_eq!(average(120, 6000, 3000, 10), rows(12, 50, 25));
        // A row is at least a token and one that it predicts.
        assert_eq!([average(1, 1, 0, 1), average(0, 0, 0, 0)], [rows(1, 2, 1); 2]);
    }
}
