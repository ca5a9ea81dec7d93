//! The output layer where it waits in pinned host memory: it is on the device while operations use it, in memory that
//! is the blocks' before and after.
//!
//! A copy has `2·V·H` bytes: at V = 128,256 and H = 8192 2.1 GB, which take 84 ms at 25 GB/s.

use super::memory::DeviceMemory;
use super::operands::{CudaTable, TableMemory};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, MemoryEnd, PinnedBuffer, View};

/// The plan's line of the copy on the device.
const IN_USE: &str = "lm_head in use";

#[derive(Default)]
pub struct OutputLayer {
    /// None in a dry run, and of a copy that processes share until it is whole
    on_host: Option<PinnedBuffer<bf16>>,
    on_device: Option<Buffer<bf16>>,
}

impl OutputLayer {
    pub fn keep(&mut self, on_host: Option<PinnedBuffer<bf16>>) {
        self.on_host = on_host;
    }

    /// Queues the copy to the device: what is queued next finds it there.
    pub fn bring(&mut self, memory: &DeviceMemory, table: &CudaTable) -> Result<()> {
        let TableMemory::Waiting = table.data else { return Ok(()) };
        // An operation that failed has left it.
        self.release();
        let mut buffer = memory.alloc_at(MemoryEnd::High, IN_USE, table.vocab * table.hidden)?;
        match &mut self.on_host {
            Some(on_host) => on_host.copy_to(&mut buffer)?,
            None => assert!(memory.is_dry_run(), "a copy that processes share is whole before it is used"),
        }
        self.on_device = Some(buffer);
        Ok(())
    }

    pub fn release(&mut self) {
        self.on_device = None;
    }

    /// The values of a table as products read them.
    pub fn values<'a>(&'a self, table: &'a CudaTable) -> View<'a, bf16> {
        match table.data {
            TableMemory::Waiting => self.on_device.as_ref().expect("lm_head is waited for before it is used").view(),
            _ => table.data.view(),
        }
    }

    /// The values of a table of which only some rows are read: those of one that waits are read where they are.
    pub fn rows<'a>(&'a self, table: &'a CudaTable) -> View<'a, bf16> {
        match table.data {
            TableMemory::Waiting => self.on_host.as_ref().expect("it is there while running").view(),
            _ => table.data.view(),
        }
    }
}
