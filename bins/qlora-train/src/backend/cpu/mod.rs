//! The embedded default: f32 throughout, frozen weights dequantised panel by panel.
//!
//! Work is split into pieces whose sizes are constants, and every sum over tokens or panels runs in order, so a result
//! does not depend on the number of threads.

mod attention;
pub(super) mod batch;
mod cache;
mod dots;
mod elementwise;
mod linear;
mod loss;
mod matmul;
mod nf4;
mod operands;
mod operations;
mod optimizer;
mod pack;
mod panels;
mod small;
mod vectorized;
mod workspace;

pub use workspace::{Dims, Workspace};

use batch::Current;
pub use operands::{CpuBuffer, CpuParam, Dense};
use qlora_kernels::reference::RopeTable;
use std::collections::HashMap;

/// Tokens of one task of a parallel operation.
const TOKEN_CHUNK: usize = 256;

pub struct Cpu {
    dims: Dims,
    workspace: Workspace,
    batch: Current,
    rope: Option<RopeTable<f32>>,
    /// Buffers that were freed, by width; they are handed out again before new ones are made.
    pool: HashMap<usize, Vec<Vec<f32>>>,
    bytes: u64,
}

impl Cpu {
    pub fn new(dims: Dims) -> Self {
        let workspace = Workspace::new(&dims);
        let bytes = workspace.bytes();
        Self { dims, workspace, batch: Current::default(), rope: None, pool: HashMap::new(), bytes }
    }

    fn tokens(&self) -> usize {
        self.batch.input_ids.len()
    }
}
