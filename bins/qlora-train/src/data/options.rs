//! Settings of the data.

use crate::config::TooLong;

#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Tokens of a row at most.
    pub max_length: usize,
    pub too_long: TooLong,
    /// Token ids of the model: 0..vocab_size.
    pub vocab_size: usize,
}
