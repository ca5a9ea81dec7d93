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
mod weights;
mod workspace;

use crate::backend::run_shape::RunShape;
use crate::backend::{CheckedBatch, Operands, Trace};
pub use bf16::isa::Isa;
use loss::LossSum;
pub use memory::CpuBuffer;
use memory::{Held, HostMemory, Value};
use operands::CpuWeight;
pub use operands::{CpuParam, CpuTable, CpuVector, Dense};
pub use peak::{peak_flops, read_bandwidth};
use qlora_kernels::rope::RopeTable;
use std::rc::Rc;
use std::time::Instant;
use streaming::Streaming;
use workspace::Workspace;

/// Tokens of one task of a parallel operation.
const TOKEN_CHUNK: usize = 256;

/// What the operations compute in.
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
    type Offloaded = CpuBuffer;
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
        let (workspace, workspace_bf16) = match precision {
            Precision::F32 => {
                let workspace = if memory.is_dry_run() { Workspace::default() } else { Workspace::new(&dims) };
                (memory.hold("workspace", Workspace::bytes_for(&dims), workspace), None)
            }
            Precision::Bf16(isa) => {
                let made = (!memory.is_dry_run()).then(|| bf16::workspace::Workspace::new(isa, &dims));
                let held = memory.hold("workspace", bf16::workspace::Workspace::bytes_for(&dims), made);
                (memory.hold("workspace", 0, Workspace::default()), Some(held))
            }
        };
        Self {
            precision,
            workspace,
            workspace_bf16,
            dims,
            streaming: Streaming::new(memory.clone()),
            memory,
            batch: CheckedBatch::default(),
            ropes: Vec::new(),
            loss: LossSum::default(),
            events: Vec::new(),
            trace: Trace::default(),
        }
    }
}
