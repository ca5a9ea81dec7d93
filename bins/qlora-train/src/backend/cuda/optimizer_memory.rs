//! Device memory of the optimizer beside the tensors.

use super::memory::{DeviceMemory, StagedBuffer};
use super::paged_states::PagedStates;
use crate::backend::Paging;
use crate::error::Result;
use qlora_kernels::device::{Buffer, ReadbackStaging};
use qlora_kernels::ops::adamw::STATE_LEN;

/// The plan's line.
pub const TABLES: &str = "the optimizer's tables";

/// Memory of the optimizer beside the tensors. It is made for a set of tensors when they are first used together.
pub struct OptimizerMemory {
    /// Number of the next tensor.
    pub next_id: u64,
    /// The tensors that the following are of, in order.
    pub ids: Vec<u64>,
    pub table: Buffer<u64>,
    /// A rate for each tensor.
    pub rates: StagedBuffer<f32>,
    pub workspace: Buffer<u64>,
    pub state: Buffer<u64>,
    /// Host memory that the state is read back to; none in a dry run.
    pub readback: Option<ReadbackStaging<u64>>,
    /// The tensors' states, and master copies, that wait in host memory
    pub paged: Option<PagedStates>,
}

impl OptimizerMemory {
    pub fn new(memory: &DeviceMemory, paging: Option<Paging>) -> Result<Self> {
        Ok(Self {
            next_id: 0,
            ids: Vec::new(),
            table: memory.alloc(TABLES, 0)?,
            rates: StagedBuffer::new(memory, TABLES, 0)?,
            workspace: memory.alloc(TABLES, 0)?,
            state: memory.alloc(TABLES, STATE_LEN)?,
            readback: memory.readback(STATE_LEN)?,
            paged: paging.map(PagedStates::new),
        })
    }
}
