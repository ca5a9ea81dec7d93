//! Layers' inputs in host memory or on disk, from the forward pass to the backward pass.
//!
//! A copy takes `2·H` bytes a token and layer each way, while a layer computes about `26·H²` FLOPs a token: at H = 8192
//! the link has 200 times as long as the copy takes at 25 GB/s.

use super::disk_inputs::DiskInputs;
use super::memory::DeviceMemory;
use super::operands::{CudaBuffer, CudaOffloaded, Storage};
use super::slot::Slot;
use crate::error::Result;
use std::collections::VecDeque;

/// Copies to the host in flight. Each keeps its device buffer until it is done, while the layers after it compute.
const IN_FLIGHT: usize = 1;

/// The plan's line.
const NAME: &str = "layers' inputs in host memory";

/// Slots of pinned host memory, made in the first step.
pub struct Offload {
    pub disk: DiskInputs,
    slots: Vec<Slot>,
    /// Slots without a buffer.
    free: Vec<usize>,
    /// Slots whose buffer is on its way to the host, oldest first.
    in_flight: VecDeque<usize>,
}

impl Offload {
    pub fn new(is_dry_run: bool) -> Self {
        let disk = DiskInputs::new(is_dry_run);
        Self { disk, slots: Vec::new(), free: Vec::new(), in_flight: VecDeque::new() }
    }

    /// A slot without a buffer.
    fn vacant(&mut self, memory: &DeviceMemory, len: usize) -> Result<usize> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        self.slots.push(Slot::new(memory, NAME, len)?);
        Ok(self.slots.len() - 1)
    }

    pub fn offload(&mut self, memory: &DeviceMemory, buffer: CudaBuffer) -> Result<CudaOffloaded> {
        // A copy has no room behind its rows.
        buffer.check_dense()?;
        let CudaBuffer { data: Storage::Bf16(data), tokens, width, .. } = buffer else {
            return Ok(CudaOffloaded::OnDevice(buffer));
        };
        let slot = self.vacant(memory, data.len())?;
        self.slots[slot].offload(data)?;
        self.in_flight.push_back(slot);
        if self.in_flight.len() > IN_FLIGHT
            && let Some(oldest) = self.in_flight.pop_front()
        {
            self.slots[oldest].wait_offload()?;
        }
        Ok(CudaOffloaded::OnHost { slot, tokens, width, prefetched: false })
    }

    /// Writes a buffer to disk, of which the rows of the first `used` tokens are those of the batch.
    pub fn offload_to_disk(&mut self, memory: &DeviceMemory, buffer: CudaBuffer, used: usize) -> Result<CudaOffloaded> {
        buffer.check_dense()?;
        let CudaBuffer { data: Storage::Bf16(data), tokens, width, .. } = buffer else {
            return Ok(CudaOffloaded::OnDevice(buffer));
        };
        let place = self.disk.offload(memory, data, used * width)?;
        Ok(CudaOffloaded::OnDisk { place, slot: None, tokens, width })
    }

    /// Keeps a buffer on the device. The memory of one on its way to the host is freed, as if this one followed it
    /// there.
    pub fn keep(&mut self, buffer: CudaBuffer) -> Result<CudaOffloaded> {
        while let Some(oldest) = self.in_flight.pop_front() {
            self.slots[oldest].wait_offload()?;
        }
        self.disk.begin_write()?;
        Ok(CudaOffloaded::OnDevice(buffer))
    }

    pub fn prefetch(&mut self, memory: &DeviceMemory, offloaded: CudaOffloaded) -> Result<CudaOffloaded> {
        if let CudaOffloaded::OnDisk { place, slot: None, tokens, width } = offloaded {
            let slot = Some(self.disk.prefetch(memory, place)?);
            return Ok(CudaOffloaded::OnDisk { place, slot, tokens, width });
        }
        let CudaOffloaded::OnHost { slot, tokens, width, prefetched: false } = offloaded else { return Ok(offloaded) };
        if let Some(at) = self.in_flight.iter().position(|&other| other == slot) {
            self.in_flight.remove(at);
            self.slots[slot].wait_offload()?;
        }
        let buffer = memory.alloc("residual stream", tokens * width)?;
        self.slots[slot].prefetch(buffer)?;
        Ok(CudaOffloaded::OnHost { slot, tokens, width, prefetched: true })
    }

    pub fn wait(&mut self, memory: &DeviceMemory, offloaded: CudaOffloaded) -> Result<CudaBuffer> {
        match self.prefetch(memory, offloaded)? {
            CudaOffloaded::OnDevice(buffer) => Ok(buffer),
            CudaOffloaded::OnHost { slot, tokens, width, .. } => {
                let data = self.slots[slot].wait_prefetch()?;
                self.free.push(slot);
                Ok(CudaBuffer { data: Storage::Bf16(data), first: 0, tokens, width, stride: width })
            }
            CudaOffloaded::OnDisk { place, slot, tokens, width } => {
                let data = self.disk.wait(slot.expect("its reading has begun"), place)?;
                Ok(CudaBuffer { data: Storage::Bf16(data), first: 0, tokens, width, stride: width })
            }
        }
    }
}
