//! Supervised fine-tuning: the mean cross-entropy of the tokens that a row's labels name.

use super::{Objective, WeightedBatch};
use crate::data::{MicroBatch, Row};

/// Every supervised token counts the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sft;

impl Objective for Sft {
    fn micro_batch(&self, rows: &mut dyn Iterator<Item = &Row>) -> WeightedBatch {
        WeightedBatch { tokens: MicroBatch::new(rows), weights: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::total_weight;

    #[test]
    fn the_total_weight_is_the_number_of_supervised_tokens() {
        let (input_ids, labels) = (vec![1, 2, 3, 4], vec![-100, 2, -100, 4]);
        let row = Row { input_ids, labels, file: 0, line: 1, task: None };
        let batch = Sft.micro_batch(&mut [&row, &row].into_iter());
        assert_eq!(batch.batch().supervised(), 4);
        assert_eq!(total_weight(&[batch.batch(), batch.batch()]), 8.0);
    }
}
