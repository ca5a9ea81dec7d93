//! Supervised fine-tuning: the mean cross-entropy of the supervised tokens, weighted where rows have weights.

use super::{Objective, WeightedBatch};
use crate::data::{MicroBatch, Row, UNSUPERVISED};

/// Every supervised token has the weight that its row gives it, or 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sft;

impl Objective for Sft {
    fn micro_batch(&self, rows: &mut dyn Iterator<Item = &Row>) -> WeightedBatch {
        let rows: Vec<&Row> = rows.collect();
        let tokens = MicroBatch::new(rows.iter().copied());
        let weighted = rows.iter().any(|row| !row.weights.is_empty());
        let weights = weighted.then(|| rows.iter().flat_map(|row| of_targets(row)).collect());
        WeightedBatch { tokens, weights }
    }
}

/// The weights of a row's targets, which are its labels shifted by one; 0 where nothing is learned.
fn of_targets(row: &Row) -> impl Iterator<Item = f32> + '_ {
    (1..=row.len()).map(|at| match row.labels.get(at) {
        Some(&label) if label != UNSUPERVISED => row.weight(at),
        _ => 0.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::total_weight;

    #[test]
    fn the_total_weight_is_the_number_of_supervised_tokens() {
        let (input_ids, labels) = (vec![1, 2, 3, 4], vec![-100, 2, -100, 4]);
        let row = Row { input_ids, labels, weights: Vec::new(), file: 0, line: 1, task: None };
        let batch = Sft.micro_batch(&mut [&row, &row].into_iter());
        assert_eq!((batch.batch().supervised(), &batch.weights), (4, &None));
        assert_eq!(total_weight(&[batch.batch(), batch.batch()]), 8.0);
    }

    #[test]
    fn weights_are_shifted_with_the_labels_and_begin_anew_in_every_row() {
        let row = |labels: &[i32], weights: &[f32]| {
            let (labels, weights) = (labels.to_vec(), weights.to_vec());
            Row { input_ids: vec![1; labels.len()], labels, weights, file: 0, line: 1, task: None }
        };
        let rows = [row(&[1, 1, -100, 1], &[9.0, 0.25, 9.0, 2.0]), row(&[1, 1], &[]), row(&[1, 1], &[9.0, 0.5])];
        let batch = Sft.micro_batch(&mut rows.iter());
        assert_eq!(batch.weights.as_deref(), Some(&[0.25, 0.0, 2.0, 0.0, 1.0, 0.0, 0.5, 0.0][..]));
        assert_eq!((batch.batch().supervised(), total_weight(&[batch.batch()])), (4, 3.75));
    }
}
