//! Dispatch of linear layers: the row of the kernels' table that computes those of one input, and what that row needs
//! beside their operands.

use super::memory::DeviceMemory;
use crate::backend::run_shape::{LinearRows, RunShape};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, ViewMut};
use qlora_kernels::ops::cublaslt::{CublasLt, WORKSPACE_BYTES};
use qlora_kernels::ops::dispatch::{Dispatch, Pass, Row, Shape};
use qlora_kernels::ops::{linear_dx_product, linear_product};

/// The plan's lines.
const LIBRARY: &str = "cuBLASLt's workspace";
const OPERANDS: &str = "dequantized weights of one product";

/// Linear layers of one input, in the numbers that rows are chosen and sized by.
pub struct Layers<'a> {
    /// Their names, for people
    pub label: &'a str,
    pub k: usize,
    /// N and r of each, r 0 without a low-rank term
    pub segments: Vec<(usize, usize)>,
    /// Weights of bf16
    pub is_dense: bool,
    pub has_bias: bool,
}

impl Layers<'_> {
    /// Σ N
    fn n(&self) -> usize {
        self.segments.iter().map(|(n, _)| n).sum()
    }

    /// Columns of S and T: each rank is rounded up to 8.
    fn columns(&self) -> usize {
        self.segments.iter().map(|(_, r)| r.next_multiple_of(8)).sum()
    }
}

/// The rows that linear layers are computed by, and their memory.
pub struct LinearMemory {
    rows: LinearRows,
    /// Dropout on the low-rank path's input
    dropout: bool,
    /// None where no batch is long enough, and in a dry run
    library: Option<CublasLt>,
    /// The library's workspace in a dry run
    _planned: Option<Buffer<u8>>,
    /// Operands of one product: each overwrites those of the one before, in the order of the stream.
    operands: Buffer<bf16>,
    taken: Vec<Taken>,
}

/// A kind of product that was computed, and how often.
struct Taken {
    label: String,
    n: usize,
    k: usize,
    pass: Pass,
    row: Row,
    count: usize,
}

impl LinearMemory {
    pub fn new(memory: &DeviceMemory, dims: &RunShape) -> Result<Self> {
        let (mut library, mut planned) = (None, None);
        if dims.linear.may_dequantize(dims.tokens) {
            let own = memory.alloc(LIBRARY, WORKSPACE_BYTES)?;
            match memory.device() {
                Some(_) => library = Some(CublasLt::with_workspace(own)?),
                None => planned = Some(own),
            }
        }
        let operands = memory.alloc(OPERANDS, 0)?;
        let (rows, dropout) = (dims.linear, dims.dropout);
        Ok(Self { rows, dropout, library, _planned: planned, operands, taken: Vec::new() })
    }

    /// The row of a batch of `batch` tokens. It does not depend on the batch's cut into tiles.
    fn row(&self, layers: &Layers<'_>, pass: Pass, batch: usize) -> Row {
        let (n, k, columns) = (layers.n(), layers.k, layers.columns());
        self.rows.of(&Shape { pass, m: batch, n, k, columns, dropout: self.dropout })
    }

    /// Columns behind the input of these layers, or behind their outputs' gradients, that save a copy of those.
    pub fn room(&self, layers: &Layers<'_>, pass: Pass, dims: &RunShape) -> usize {
        let computed = pass == Pass::Forward || dims.training;
        let dequantizes = computed && self.row(layers, pass, dims.tokens) == Row::Dequantize;
        if dequantizes { layers.columns() } else { 0 }
    }

    /// Room for the operands of these layers' products over the longest tile: weights, and inputs that are copied
    /// because nothing but the residual stream holds them.
    pub fn reserve(&mut self, memory: &DeviceMemory, dims: &RunShape, layers: &Layers<'_>) -> Result<()> {
        let &Layers { k, ref segments, is_dense, has_bias, .. } = layers;
        let dequantizes = |pass| self.row(layers, pass, dims.tokens) == Row::Dequantize;
        let mut needed = 0;
        if dequantizes(Pass::Forward) {
            let has_room = !(dims.reads_stream && k == dims.hidden);
            needed = linear_product::workspace_len_of(dims.tile, k, segments, is_dense, has_bias, has_room);
        }
        if dims.training && dequantizes(Pass::Dx) {
            needed = needed.max(linear_dx_product::workspace_len_of(dims.tile, k, segments, is_dense, true));
        }
        if needed > self.operands.len() {
            // Its memory first.
            self.operands = memory.alloc(OPERANDS, 0)?;
            self.operands = memory.alloc(OPERANDS, needed)?;
        }
        Ok(())
    }

    /// The row that computes these layers of a batch of `batch` tokens, and its workspace.
    pub fn take(&mut self, layers: &Layers<'_>, pass: Pass, batch: usize) -> (Dispatch<'_>, ViewMut<'_, bf16>) {
        let row = if self.library.is_some() { self.row(layers, pass, batch) } else { Row::Fused };
        let (n, k) = (layers.n(), layers.k);
        match self.taken.iter_mut().find(|taken| (taken.n, taken.k, taken.pass, taken.row) == (n, k, pass, row)) {
            Some(taken) => taken.count += 1,
            None => self.taken.push(Taken { label: layers.label.to_owned(), n, k, pass, row, count: 1 }),
        }
        match (&self.library, row) {
            (Some(library), Row::Dequantize) => (Dispatch::DequantizeCublasLt(library), self.operands.view_mut()),
            _ => (Dispatch::Fused, self.operands.view_mut().first(0)),
        }
    }

    /// Number of times that a pass was computed by a row.
    pub fn count(&self, pass: Pass, row: Row) -> usize {
        self.taken.iter().filter(|taken| taken.pass == pass && taken.row == row).map(|taken| taken.count).sum()
    }

    /// The rows of every kind of product so far, and the library's algorithms, in words.
    pub fn in_words(&self) -> Vec<String> {
        let of = |Taken { label, n, k, pass, row, .. }: &Taken| {
            let pass = if *pass == Pass::Forward { "forward" } else { "dX" };
            format!("{label}, N {n}, K {k}, {pass}: {row}")
        };
        let mut words: Vec<String> = self.taken.iter().map(of).collect();
        if let Some(library) = &self.library {
            words.push(format!("cuBLASLt {}", library.version()));
            words.extend(library.algorithms());
        }
        words
    }
}
