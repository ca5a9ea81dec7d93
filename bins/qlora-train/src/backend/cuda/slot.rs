//! Host memory for one buffer at a time, which leaves the device and returns; in a dry run the buffer on its way.

use super::memory::DeviceMemory;
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, OffloadSlot};

pub enum Slot {
    Running(Box<OffloadSlot<bf16>>),
    DryRun(Option<Buffer<bf16>>),
}

impl Slot {
    /// For buffers of `len` elements, under `name` in the plan.
    pub fn new(memory: &DeviceMemory, name: &'static str, len: usize) -> Result<Self> {
        Ok(memory.offload_slot(name, len)?.map_or(Self::DryRun(None), |slot| Self::Running(Box::new(slot))))
    }

    /// Begins to copy a buffer to the host.
    pub fn offload(&mut self, data: Buffer<bf16>) -> Result<()> {
        match self {
            Self::Running(slot) => slot.offload(data)?,
            Self::DryRun(buffer) => *buffer = Some(data),
        }
        Ok(())
    }

    /// Work queued next follows the copy to the host, whose device memory is given back.
    pub fn wait_offload(&mut self) -> Result<()> {
        match self {
            Self::Running(slot) => slot.wait_offload()?,
            Self::DryRun(buffer) => *buffer = None,
        }
        Ok(())
    }

    /// The values in the slot. The host waits for the last copy; none in a dry run.
    pub fn values(&self) -> Result<&[bf16]> {
        match self {
            Self::Running(slot) => Ok(slot.values()?),
            Self::DryRun(_) => Ok(&[]),
        }
    }

    /// Puts values in, once the last copy is done, for which the host waits.
    pub fn set(&mut self, values: &[bf16]) -> Result<()> {
        match self {
            Self::Running(slot) => Ok(slot.set(0, values)?),
            Self::DryRun(_) => Ok(()),
        }
    }

    /// Begins to copy what the slot holds into `buffer`.
    pub fn prefetch(&mut self, buffer: Buffer<bf16>) -> Result<()> {
        match self {
            Self::Running(slot) => slot.prefetch(buffer)?,
            Self::DryRun(coming) => *coming = Some(buffer),
        }
        Ok(())
    }

    pub fn wait_prefetch(&mut self) -> Result<Buffer<bf16>> {
        match self {
            Self::Running(slot) => Ok(slot.wait_prefetch()?),
            Self::DryRun(buffer) => Ok(buffer.take().expect("what was offloaded comes back once")),
        }
    }
}
