//! The embedded default: f32 throughout, frozen weights dequantized panel by panel.
//!
//! Work is split into pieces whose sizes are constants, and every sum over tokens or panels runs in order, so a result
//! does not depend on the number of threads.

mod aligned;
mod attention;
mod bf16;
mod buffers;
mod cache;
mod compute;
mod elementwise;
mod gemm;
mod head_norm;
mod inputs;
mod linear;
mod loss;
mod magnitude;
mod memory;
mod numa;
mod operands;
mod optimizer;
mod peak;
mod scratch;
pub(in crate::backend) mod soft_cap;
mod streaming;
mod table;
mod table_on_disk;
#[cfg(test)]
mod tests;
mod weights;
mod workspace;

use crate::backend::run_shape::RunShape;
use crate::backend::{CheckedBatch, Operands, Trace};
pub use bf16::isa::{Isa, ORDER_OF_SUMS};
use inputs::{CpuOffloaded, Inputs};
use loss::LossSum;
pub use memory::CpuBuffer;
use memory::{Held, HostMemory, Value};
use operands::CpuWeight;
pub use operands::{CpuParam, CpuVector, Dense};
pub use peak::{peak_flops, read_bandwidth};
use qlora_kernels::rope::RopeTable;
use std::rc::Rc;
use std::time::Instant;
use streaming::Streaming;
pub use table::CpuTable;
use workspace::Workspace;

/// Tokens of one task of a parallel operation.
const TOKEN_CHUNK: usize = 256;

/// The arithmetic of the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    #[default]
    F32,
    /// bf16 values with sums in f32, by these instructions
    Bf16(Isa),
}

impl Precision {
    fn value(self) -> Value {
        match self {
            Precision::F32 => Value::F32,
            Precision::Bf16(_) => Value::Bf16,
        }
    }
}

pub struct Cpu {
    precision: Precision,
    dims: RunShape,
    memory: Rc<HostMemory>,
    workspace: Held<Workspace>,
    workspace_bf16: Option<Held<Option<bf16::workspace::Workspace>>>,
    /// Layers whose weights stay on disk
    streaming: Streaming,
    /// Layers' inputs that wait for the backward pass
    inputs: Inputs,
    batch: CheckedBatch,
    /// Each with how many positions it is for
    ropes: Vec<(usize, Held<RopeTable<f32>>)>,
    loss: LossSum,
    events: Vec<Instant>,
    trace: Trace,
}

impl Operands for Cpu {
    type Buffer = CpuBuffer;
    type Weight = Held<CpuWeight>;
    type Table = CpuTable;
    type Vector = CpuVector;
    type Param = CpuParam;
    type Offloaded = CpuOffloaded;
}

impl Cpu {
    /// Computes in f32.
    pub fn new(dims: RunShape) -> Self {
        Self::with_precision(dims, Precision::F32)
    }

    pub fn with_precision(dims: RunShape, precision: Precision) -> Self {
        Self::with(dims, precision, HostMemory::new(false))
    }

    /// Holds nothing and computes nothing; its [`planned`](crate::backend::Memory::planned) memory is what a run would
    /// hold.
    pub fn dry_run(dims: RunShape) -> Self {
        Self::dry_run_with_precision(dims, Precision::F32)
    }

    pub fn dry_run_with_precision(dims: RunShape, precision: Precision) -> Self {
        Self::with(dims, precision, HostMemory::new(true))
    }

    fn with(dims: RunShape, precision: Precision, memory: Rc<HostMemory>) -> Self {
        let (threads, runs) = (rayon::current_num_threads(), !memory.is_dry_run());
        let (workspace, workspace_bf16) = match precision {
            Precision::F32 => {
                let workspace = if runs { Workspace::new(&dims, threads) } else { Workspace::default() };
                (memory.hold("workspace", Workspace::bytes_for(&dims, threads), workspace), None)
            }
            Precision::Bf16(isa) => {
                let made = runs.then(|| bf16::workspace::Workspace::new(isa, &dims, threads));
                let held = memory.hold("workspace", bf16::workspace::Workspace::bytes_for(&dims, threads), made);
                (memory.hold("workspace", 0, Workspace::default()), Some(held))
            }
        };
        Self {
            precision,
            workspace,
            workspace_bf16,
            dims,
            streaming: Streaming::new(memory.clone()),
            inputs: Inputs::new(memory.clone()),
            memory,
            batch: CheckedBatch::default(),
            ropes: Vec::new(),
            loss: LossSum::default(),
            events: Vec::new(),
            trace: Trace::default(),
        }
    }
}
