//! Sizes that a backend is made for, and the code that a GPU computes linear layers by.

use super::Paging;
use qlora_kernels::ops::dispatch::{Card, Pass, Row, Shape, choose};

/// The sizes of a run, which decide its scratch memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunShape {
    /// Tokens of the longest batch.
    pub tokens: usize,
    /// Tokens that the linear layers and the MLP work on at most at one time.
    pub tile: usize,
    pub hidden: usize,
    pub vocab: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// (ΣN, K, Σr) of every kind of linear group.
    pub groups: Vec<(usize, usize, usize)>,
    /// Dropout on the low-rank path's input.
    pub dropout: bool,
    /// Each row has an adapter of its own.
    pub adapters_by_row: bool,
    /// Gradients are computed.
    pub training: bool,
    /// The output layer is trained.
    pub trains_head: bool,
    /// Rows of the output layer that are trained, where not all of them are.
    pub head_rows: usize,
    /// The output layer stays in the files of the base.
    pub head_on_disk: bool,
    /// Code that linear layers are computed by, on a GPU
    pub linear: LinearRows,
    /// A GPU launches passes as graphs.
    pub graphs: bool,
    /// Optimizer memory that comes to a GPU from the host in each update; none: all is on the GPU.
    pub paging: Option<Paging>,
    /// Linear layers read the residual stream itself, without a norm before them.
    pub reads_stream: bool,
}

/// The choice of a row of the kernels' dispatch table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinearRows {
    /// The card that rows are chosen for; the default has the fused kernels only.
    pub card: Card,
    /// A row that is taken for every layer that it can compute
    pub forced: Option<Row>,
}

impl LinearRows {
    pub fn of(&self, shape: &Shape) -> Row {
        match self.forced {
            None => choose(&self.card, shape),
            Some(Row::Dequantize) if shape.can_dequantize() => Row::Dequantize,
            Some(Row::Dequantize | Row::Fused) => Row::Fused,
        }
    }

    /// True if weights may be dequantized for batches of up to `tokens` tokens.
    pub fn may_dequantize(&self, tokens: usize) -> bool {
        // This shape meets every condition but the one on tokens.
        let least = Shape { pass: Pass::Forward, m: tokens, n: 8, k: 8, columns: 0, dropout: false };
        self.of(&least) == Row::Dequantize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forced_row_is_taken_where_it_computes_a_layer() {
        let hopper = Card { compute_capability: (9, 0), has_cublaslt: true };
        let shape = Shape { pass: Pass::Dx, m: 100, n: 64, k: 64, columns: 8, dropout: false };
        let of = |card, forced, shape| LinearRows { card, forced }.of(&shape);
        let (long, masked) = (Shape { m: 5000, ..shape }, Shape { dropout: true, ..shape });
        assert_eq!(of(hopper, None, shape), Row::Fused);
        assert_eq!(of(hopper, None, long), Row::Dequantize);
        assert_eq!(of(hopper, Some(Row::Fused), long), Row::Fused);
        assert_eq!(of(Card::default(), Some(Row::Dequantize), shape), Row::Dequantize);
        assert_eq!(of(Card::default(), Some(Row::Dequantize), masked), Row::Fused);
        assert_eq!(of(Card::default(), Some(Row::Dequantize), Shape { m: 16, ..shape }), Row::Fused);
    }

    #[test]
    fn memory_is_planned_where_a_batch_may_be_long_enough() {
        let hopper = Card { compute_capability: (9, 0), has_cublaslt: true };
        let of = |card, forced, tokens| LinearRows { card, forced }.may_dequantize(tokens);
        assert_eq!([1023, 1024].map(|tokens| of(hopper, None, tokens)), [false, true]);
        assert_eq!([16, 17].map(|tokens| of(Card::default(), Some(Row::Dequantize), tokens)), [false, true]);
        assert!(!of(hopper, Some(Row::Fused), 9000) && !LinearRows::default().may_dequantize(9000));
    }
}
