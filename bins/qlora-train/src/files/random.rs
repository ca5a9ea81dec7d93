//! NF4 weights of random codes, for measuring: no file is read, and the codes are made in the memory that holds them.

use qlora_kernels::nf4::{Absmax, CODE, Nf4Matrix};
use std::sync::Arc;

/// A weight whose codes are `bytes`, repeated, from byte `first` on.
#[derive(Clone, Debug, PartialEq)]
pub struct RandomNf4 {
    /// N
    pub rows: usize,
    /// K
    pub cols: usize,
    pub block_size: usize,
    pub absmax: Absmax,
    /// One allocation, shared by all weights of a model
    pub bytes: Arc<[u8]>,
    /// Below the length of `bytes`
    pub first: usize,
}

impl RandomNf4 {
    /// The weight with its codes in the host's memory.
    ///
    /// # Panics
    ///
    /// If `absmax` is not of the weight's blocks.
    pub fn into_matrix(self) -> Nf4Matrix {
        let codes = repeated(&self.bytes, self.first, (self.rows * self.cols).div_ceil(2));
        Nf4Matrix::from_parts(self.rows, self.cols, self.block_size, CODE, codes, self.absmax)
            .expect("random weights have the scales of their blocks")
    }
}

/// `len` elements of `drawn`, repeated, from element `first` on.
pub fn repeated<T: Copy>(drawn: &[T], first: usize, len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    values.extend_from_slice(&drawn[first..][..len.min(drawn.len() - first)]);
    while values.len() < len {
        let rest = len - values.len();
        values.extend_from_slice(&drawn[..rest.min(drawn.len())]);
    }
    values
}

#[cfg(test)]
mod tests {
    use super::repeated;

    #[test]
    fn what_was_drawn_comes_round_again() {
        assert_eq!(repeated(&[1, 2, 3], 2, 10), [3, 1, 2, 3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(repeated(&[1, 2, 3], 1, 1), [2]);
        assert!(repeated(&[1, 2, 3], 0, 0).is_empty());
    }
}
