//! Settings of the data.

use super::columns::Columns;
use crate::config::TooLong;

#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Tokens of a row at most.
    pub max_length: usize,
    pub too_long: TooLong,
    /// Token ids of the model: 0..vocab_size.
    pub vocab_size: usize,
    /// What ends a text, by the model's own config; the tokenizer's EOS counts too. Tokenised rows that mask it are
    /// refused.
    pub eos_token_ids: Vec<u32>,
    pub columns: Columns,
    /// Rows taken of each file at most, the first of them.
    pub max_samples: Option<usize>,
}
