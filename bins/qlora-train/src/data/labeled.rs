//! Token ids of a row with labels and weights.

/// Token ids, labels and weights of a row; all as long as the ids, but the weights may be empty: 1 each.
pub(super) type LabeledIds = (Vec<u32>, Vec<i32>, Vec<f32>);
