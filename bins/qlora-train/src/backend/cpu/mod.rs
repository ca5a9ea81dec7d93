//! The embedded default: f32 throughout, frozen weights dequantised panel by panel.
//!
//! Work is split into pieces whose sizes are constants, and every sum over tokens or panels runs in order, so a result
//! does not depend on the number of threads.

mod attention;
mod cache;
mod elementwise;
mod gemm;
mod linear;
mod loss;
mod operands;
mod operations;
mod optimizer;
mod workspace;

pub use workspace::Workspace;

use crate::backend::batch::Current;
use crate::backend::dims::Dims;
pub use operands::{CpuBuffer, CpuParam, Dense};
use qlora_kernels::reference::RopeTable;
use std::collections::HashMap;
use std::time::Instant;

/// Tokens of one task of a parallel operation.
const TOKEN_CHUNK: usize = 256;

pub struct Cpu {
    dims: Dims,
    workspace: Workspace,
    batch: Current,
    rope: Option<RopeTable<f32>>,
    /// Buffers that were freed, by width; they are handed out again before new ones are made.
    pool: HashMap<usize, Vec<Vec<f32>>>,
    /// Of the last batch, summed over its supervised tokens.
    loss: f64,
    marks: Vec<Instant>,
    bytes: u64,
}

impl Cpu {
    pub fn new(dims: Dims) -> Self {
        let workspace = Workspace::new(&dims);
        let bytes = workspace.bytes();
        let batch = Current::default();
        Self { dims, workspace, batch, rope: None, pool: HashMap::new(), loss: 0.0, marks: Vec::new(), bytes }
    }

    fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }
}
