//! Steps and tokens of a run that is planned.

use super::world::World;
use crate::arch::Arch;
use crate::bench::RowShape;
use crate::bench::layers::Sample;
use crate::config::Settings;
use crate::data::Rows;
use crate::session::TrainingData;

/// The amount of work of a run, on average over its steps.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSize {
    pub steps: u64,
    /// Tokens that are trained on, over all steps
    pub tokens: f64,
    /// Tokens of validation rows, over all evaluations
    pub evaluated: f64,
    /// Micro-batches of a step, of all processes
    pub micro_batches: f64,
    /// Part of a step's tokens that the process with the most of them computes
    pub busiest: f64,
    /// Micro-batches that stand for all of them, the best choice first
    pub samples: Vec<Sample>,
    /// Rows of a batch that is evaluated
    pub evaluation: Vec<RowShape>,
}

impl RunSize {
    /// The size of a run over these rows, from its first epoch.
    pub fn of(settings: &Settings, arch: &Arch, data: &TrainingData, world: World) -> Self {
        let schedule = &data.schedule;
        let (steps, per_epoch) = (schedule.total_steps(), schedule.steps_per_epoch());
        let seen = steps.min(per_epoch).max(1);
        let row = |row: usize| shape_of(&data.rows, row);
        let (mut first, mut most) = (Vec::new(), 0);
        for step in schedule.steps(0).take(seen as usize) {
            let of_step = step.micro_batches.into_iter().map(|rows| rows.into_iter().map(row).collect::<Vec<_>>());
            let of_step: Vec<Vec<RowShape>> = of_step.collect();
            most += most_of_a_process(&of_step, world.size);
            first.extend(of_step);
        }
        let tokens: usize = first.iter().map(|rows| tokens_of(rows)).sum();
        let validation: usize = data.validation.lengths().sum();
        let evaluations = settings.eval_steps.times(steps, per_epoch).max(1) + u64::from(settings.eval_on_start);
        Self {
            steps,
            tokens: tokens as f64 * steps as f64 / seen as f64,
            evaluated: validation as f64 * evaluations as f64,
            micro_batches: first.len() as f64 / seen as f64,
            busiest: most as f64 / tokens.max(1) as f64,
            samples: Sample::of(arch, &first),
            evaluation: first_batch(&data.validation, data.tokens),
        }
    }

    /// The size of a run without known rows: the steps that the settings name, each as long as they allow.
    pub fn of_settings(settings: &Settings, arch: &Arch, world: World) -> Option<Self> {
        let steps = settings.max_steps.0? as u64;
        let (rows, length) = (settings.per_device_train_batch_size, settings.max_length);
        let of_step = settings.gradient_accumulation_steps;
        let micro_batches = of_step as f64;
        let row = RowShape { length, learned: length.saturating_sub(1) };
        Some(Self {
            steps,
            tokens: steps as f64 * micro_batches * (rows * length) as f64,
            evaluated: 0.0,
            micro_batches,
            busiest: of_step.div_ceil(world.size) as f64 / micro_batches,
            samples: Sample::of(arch, &[vec![row; rows]]),
            evaluation: Vec::new(),
        })
    }

    /// Tokens of a micro-batch, on average
    pub fn micro_batch_tokens(&self) -> f64 {
        self.tokens / (self.steps.max(1) as f64 * self.micro_batches)
    }
}

fn tokens_of(rows: &[RowShape]) -> usize {
    rows.iter().map(|row| row.length).sum()
}

/// Tokens of a step for the busiest of `processes`, which take its micro-batches in turn.
fn most_of_a_process(micro_batches: &[Vec<RowShape>], processes: usize) -> usize {
    let of_process =
        |rank: usize| micro_batches.iter().skip(rank).step_by(processes).map(|rows| tokens_of(rows)).sum::<usize>();
    (0..processes.min(micro_batches.len())).map(of_process).max().unwrap_or(0)
}

/// A row of which as many tokens are learned. It is at least a token and one that it predicts.
fn shape_of(rows: &Rows, row: usize) -> RowShape {
    let length = rows.tokens(row).max(2);
    RowShape { length, learned: rows.supervised(row).clamp(1, length - 1) }
}

/// The rows of the first batch of an evaluation: at most `capacity` tokens.
fn first_batch(rows: &Rows, capacity: usize) -> Vec<RowShape> {
    let mut tokens = 0;
    let fits = |row: &RowShape| {
        tokens += row.length;
        tokens <= capacity
    };
    (0..rows.len()).map(|row| shape_of(rows, row)).take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Row;

    #[test]
    fn processes_take_micro_batches_in_turn() {
        let of = |lengths: &[usize], processes: usize| {
            let row = |&length: &usize| vec![RowShape { length, learned: 1 }];
            most_of_a_process(&lengths.iter().map(row).collect::<Vec<_>>(), processes)
        };
        assert_eq!([1, 2, 3, 9].map(|processes| of(&[50, 10, 20, 30, 5], processes)), [115, 75, 80, 50]);
        assert_eq!(of(&[], 4), 0);
    }

    #[test]
    fn rows_that_are_evaluated_side_by_side_fit_a_batch() {
        let row = |length: usize, learned: usize| Row {
            input_ids: vec![1; length],
            labels: (0..length).map(|at| if at + learned < length { -100 } else { 1 }).collect(),
            weights: Vec::new(),
            file: 0,
            line: 1,
            task: None,
        };
        let rows = Rows::from(vec![row(8, 3), row(4, 3), row(9, 1)]);
        let shape = |length, learned| RowShape { length, learned };
        assert_eq!(first_batch(&rows, 12), [shape(8, 3), shape(4, 3)]);
        assert_eq!((first_batch(&rows, 100).len(), first_batch(&rows, 7).len()), (3, 0));
        assert_eq!(shape_of(&Rows::from(vec![row(1, 0)]), 0), shape(2, 1));
    }
}
