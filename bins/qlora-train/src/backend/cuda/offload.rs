//! Layers' inputs in host memory, from the forward pass to the backward pass.
//!
//! A copy takes `2·H` bytes a token and layer each way, while a layer computes about `26·H²` FLOPs a token: at H = 8192
//! the link has 200 times as long as the copy takes at 25 GB/s.

use super::memory::DeviceMemory;
use super::operands::{CudaBuffer, CudaOffloaded, Storage};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, OffloadSlot};
use std::collections::VecDeque;

/// Copies to the host in flight. Each keeps its device buffer until it is done, while the layers after it compute.
const IN_FLIGHT: usize = 1;

/// The plan's line.
const NAME: &str = "layers' inputs in host memory";

/// Slots of pinned host memory, made in the first step.
#[derive(Default)]
pub struct Offload {
    slots: Vec<Slot>,
    /// Slots without a buffer.
    free: Vec<usize>,
    /// Slots whose buffer is on its way to the host, oldest first.
    in_flight: VecDeque<usize>,
}

enum Slot {
    Running(OffloadSlot<bf16>),
    /// In a dry run: the buffer that is on its way.
    DryRun(Option<Buffer<bf16>>),
}

impl Offload {
    /// A slot without a buffer.
    fn vacant(&mut self, memory: &DeviceMemory, len: usize) -> Result<usize> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let made = memory.offload_slot(NAME, len)?;
        self.slots.push(made.map_or(Slot::DryRun(None), Slot::Running));
        Ok(self.slots.len() - 1)
    }

    /// Work queued next follows the copy of this slot, whose device memory is given back.
    fn settle(&mut self, slot: usize) -> Result<()> {
        match &mut self.slots[slot] {
            Slot::Running(slot) => Ok(slot.wait_offload()?),
            Slot::DryRun(buffer) => {
                *buffer = None;
                Ok(())
            }
        }
    }

    pub fn offload(&mut self, memory: &DeviceMemory, buffer: CudaBuffer) -> Result<CudaOffloaded> {
        let CudaBuffer { data: Storage::Bf16(data), tokens, width, .. } = buffer else {
            return Ok(CudaOffloaded::OnDevice(buffer));
        };
        let slot = self.vacant(memory, data.len())?;
        match &mut self.slots[slot] {
            Slot::Running(slot) => slot.offload(data)?,
            Slot::DryRun(buffer) => *buffer = Some(data),
        }
        self.in_flight.push_back(slot);
        if self.in_flight.len() > IN_FLIGHT
            && let Some(oldest) = self.in_flight.pop_front()
        {
            self.settle(oldest)?;
        }
        Ok(CudaOffloaded::OnHost { slot, tokens, width, prefetched: false })
    }

    /// Keeps a buffer on the device. One on its way to the host is given back, as if this one followed it there.
    pub fn keep(&mut self, buffer: CudaBuffer) -> Result<CudaOffloaded> {
        while let Some(oldest) = self.in_flight.pop_front() {
            self.settle(oldest)?;
        }
        Ok(CudaOffloaded::OnDevice(buffer))
    }

    pub fn prefetch(&mut self, memory: &DeviceMemory, offloaded: CudaOffloaded) -> Result<CudaOffloaded> {
        let CudaOffloaded::OnHost { slot, tokens, width, prefetched: false } = offloaded else { return Ok(offloaded) };
        if let Some(at) = self.in_flight.iter().position(|&other| other == slot) {
            self.in_flight.remove(at);
            self.settle(slot)?;
        }
        let buffer = memory.take("residual stream", tokens * width)?;
        match &mut self.slots[slot] {
            Slot::Running(slot) => slot.prefetch(buffer)?,
            Slot::DryRun(coming) => *coming = Some(buffer),
        }
        Ok(CudaOffloaded::OnHost { slot, tokens, width, prefetched: true })
    }

    pub fn wait(&mut self, memory: &DeviceMemory, offloaded: CudaOffloaded) -> Result<CudaBuffer> {
        match self.prefetch(memory, offloaded)? {
            CudaOffloaded::OnDevice(buffer) => Ok(buffer),
            CudaOffloaded::OnHost { slot, tokens, width, .. } => {
                let data = match &mut self.slots[slot] {
                    Slot::Running(slot) => slot.wait_prefetch()?,
                    Slot::DryRun(buffer) => buffer.take().expect("what was offloaded comes back once"),
                };
                self.free.push(slot);
                Ok(CudaBuffer { data: Storage::Bf16(data), first: 0, tokens, width })
            }
        }
    }
}
