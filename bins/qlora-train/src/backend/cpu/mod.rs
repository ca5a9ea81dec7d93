//! The embedded default: f32 throughout, frozen weights dequantized panel by panel.
//!
//! Work is split into pieces whose sizes are constants, and every sum over tokens or panels runs in order, so a result
//! does not depend on the number of threads.

mod attention;
mod cache;
mod compute;
mod elementwise;
mod gemm;
mod linear;
mod loss;
mod memory;
mod operands;
mod optimizer;
mod weights;
mod workspace;

use crate::backend::dims::Dims;
use crate::backend::{CheckedBatch, Operands, Trace};
use linear::CpuWeight;
use loss::LossSum;
pub use memory::CpuBuffer;
use memory::{Held, HostMemory};
pub use operands::{CpuParam, Dense};
use qlora_kernels::rope::RopeTable;
use std::rc::Rc;
use std::time::Instant;
use workspace::Workspace;

/// Tokens of one task of a parallel operation.
const TOKEN_CHUNK: usize = 256;

pub struct Cpu {
    dims: Dims,
    memory: Rc<HostMemory>,
    workspace: Held<Workspace>,
    batch: CheckedBatch,
    /// With how many positions they are for
    rope: Option<(usize, Held<RopeTable<f32>>)>,
    loss: LossSum,
    events: Vec<Instant>,
    trace: Trace,
}

impl Operands for Cpu {
    type Buffer = CpuBuffer;
    type Weight = Held<CpuWeight>;
    type Table = Held<Dense>;
    type Vector = Held<Vec<f32>>;
    type Param = CpuParam;
    type Offloaded = CpuBuffer;
}

impl Cpu {
    pub fn new(dims: Dims) -> Self {
        let workspace = Workspace::new(&dims);
        Self::with(dims, HostMemory::new(false), workspace)
    }

    /// Holds nothing and computes nothing; its [`planned`](crate::backend::Memory::planned) memory is what a run would hold.
    pub fn dry_run(dims: Dims) -> Self {
        Self::with(dims, HostMemory::new(true), Workspace::default())
    }

    fn with(dims: Dims, memory: Rc<HostMemory>, workspace: Workspace) -> Self {
        Self {
            workspace: memory.hold("workspace", Workspace::bytes_for(&dims), workspace),
            dims,
            memory,
            batch: CheckedBatch::default(),
            rope: None,
            loss: LossSum::default(),
            events: Vec::new(),
            trace: Trace::default(),
        }
    }
}
