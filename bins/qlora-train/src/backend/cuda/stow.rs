//! Layers' inputs in host memory, from the forward pass to the backward pass.
//!
//! A copy takes `2·H` bytes a token and layer each way, while a layer computes about `26·H²` FLOPs a token: at H = 8192 the link has
//! 200 times as long as the copy takes at 25 GB/s.

use super::Cuda;
use super::memory::Memory;
use super::operands::{CudaBuffer, CudaStowed, Storage};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, OffloadSlot};
use std::collections::VecDeque;

/// Inputs whose way to the host may overlap with the layers after them; each holds its memory on the device until then.
const UNDER_WAY: usize = 1;

/// The plan's line.
const NAME: &str = "layers' inputs in host memory";

/// Host memory for layers' inputs, made in the first step.
#[derive(Default)]
pub struct StowMemory {
    stashes: Vec<Stowing>,
    /// Stashes without an input.
    free: Vec<usize>,
    /// Stashes whose input is on its way to the host, oldest first.
    under_way: VecDeque<usize>,
}

enum Stowing {
    Running(OffloadSlot<bf16>),
    /// The buffer that is on its way.
    Planned(Option<Buffer<bf16>>),
}

impl StowMemory {
    /// A stash without an input.
    fn vacant(&mut self, memory: &Memory, len: usize) -> Result<usize> {
        if let Some(stash) = self.free.pop() {
            return Ok(stash);
        }
        let made = memory.stash(NAME, len)?;
        self.stashes.push(made.map_or(Stowing::Planned(None), Stowing::Running));
        Ok(self.stashes.len() - 1)
    }

    /// What is queued next follows the copy of this stash, whose memory on the device is given back.
    fn settle(&mut self, index: usize) -> Result<()> {
        match &mut self.stashes[index] {
            Stowing::Running(stash) => Ok(stash.wait_offload()?),
            Stowing::Planned(buffer) => {
                *buffer = None;
                Ok(())
            }
        }
    }
}

impl Cuda {
    pub(super) fn put_away(&mut self, buffer: CudaBuffer) -> Result<CudaStowed> {
        if !self.dims.offload {
            return Ok(CudaStowed::Here(buffer));
        }
        let CudaBuffer { data: Storage::Bf16(data), width } = buffer else {
            return Ok(CudaStowed::Here(buffer));
        };
        let index = self.stowed.vacant(&self.memory, data.len())?;
        match (&mut self.stowed.stashes[index], self.memory.device()) {
            (Stowing::Running(stash), Some(_)) => stash.offload(data)?,
            (planned, _) => *planned = Stowing::Planned(Some(data)),
        }
        self.stowed.under_way.push_back(index);
        if self.stowed.under_way.len() > UNDER_WAY
            && let Some(oldest) = self.stowed.under_way.pop_front()
        {
            self.stowed.settle(oldest)?;
        }
        Ok(CudaStowed::Away { stash: index, width, coming: false })
    }

    pub(super) fn bring_back(&mut self, stowed: CudaStowed) -> Result<CudaStowed> {
        let CudaStowed::Away { stash: index, width, coming: false } = stowed else { return Ok(stowed) };
        if let Some(at) = self.stowed.under_way.iter().position(|&stash| stash == index) {
            self.stowed.under_way.remove(at);
            self.stowed.settle(index)?;
        }
        let buffer = self.memory.take("residual stream", self.dims.tokens * width)?;
        match (&mut self.stowed.stashes[index], self.memory.device()) {
            (Stowing::Running(stash), Some(_)) => stash.prefetch(buffer)?,
            (planned, _) => *planned = Stowing::Planned(Some(buffer)),
        }
        Ok(CudaStowed::Away { stash: index, width, coming: true })
    }

    pub(super) fn brought_back(&mut self, stowed: CudaStowed) -> Result<CudaBuffer> {
        match self.bring_back(stowed)? {
            CudaStowed::Here(buffer) => Ok(buffer),
            CudaStowed::Away { stash: index, width, .. } => {
                let data = match &mut self.stowed.stashes[index] {
                    Stowing::Running(stash) => stash.wait_prefetch()?,
                    Stowing::Planned(buffer) => buffer.take().expect("what was put away comes back once"),
                };
                self.stowed.free.push(index);
                Ok(CudaBuffer { data: Storage::Bf16(data), width })
            }
        }
    }
}
