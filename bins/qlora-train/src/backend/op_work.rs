//! The work of an operation in numbers, from which its speed on a card is predicted.

use serde::Serialize;

/// The description of an operation, by its kind and shapes; [`Op::work`](super::Op::work) makes it. Fields that do not
/// apply to it are 0 or empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OpWork {
    pub name: &'static str,
    /// Times that a step does this operation
    pub count: usize,
    pub tokens: usize,
    /// K, of linear layers; H, of the output layer; I, of the gradient of SwiGLU
    pub k: usize,
    /// N and r of each linear layer of the group
    pub segments: Vec<[usize; 2]>,
    /// H, Hkv and D
    pub heads: [usize; 3],
    /// Keys that a query of attention sees at most, where that is fewer than the tokens
    pub window: usize,
    pub vocab: usize,
    /// Values that are read and written for each token, where it is not products that take the time
    pub values: usize,
    /// Multiply-adds or values of all tokens, whichever takes the time: the units of a rate
    pub units: f64,
    /// FLOPs over all tokens, where it is products that take the time
    pub flops: f64,
    /// Parameters that an update changes, of an operation that makes the gradients of low-rank pairs
    pub trained: usize,
    /// The kind at whose rate it goes, where none is predicted of its own
    #[serde(skip)]
    pub at_rate_of: Option<&'static str>,
    /// It has to see all tokens of the batch at once
    #[serde(skip)]
    pub whole_batch: bool,
}

impl OpWork {
    /// An operation that takes the time of reading and writing `values` values for each token.
    pub(super) fn moving(name: &'static str, tokens: usize, values: usize) -> Self {
        let units = tokens as f64 * values as f64;
        Self { name, count: 1, tokens, values, units, ..Self::default() }
    }

    /// An operation that takes the time of its products, or that of its units.
    // In f64: more than 64 bits hold where many rows of a micro-batch are as long as the model allows.
    pub(super) fn computing(name: &'static str, tokens: usize, flops: f64, units: f64) -> Self {
        Self { name, count: 1, tokens, units, flops, ..Self::default() }
    }

    /// Adds one more operation to what a step does: to the count of an equal one, where there is one.
    pub fn add_to(mut self, all: &mut Vec<Self>) {
        let count = self.count;
        let is_same = |other: &&mut Self| {
            self.count = other.count;
            **other == self
        };
        match all.iter_mut().find(is_same) {
            Some(other) => other.count += count,
            None => all.push(Self { count, ..self }),
        }
    }
}
