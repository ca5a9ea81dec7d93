//! Buffers of the CPU backend, from its host memory.

use super::Cpu;
use super::memory::{CpuBuffer, Value};
use crate::backend::{Memory, PlannedBuffer};
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;

impl Memory for Cpu {
    fn is_dry_run(&self) -> bool {
        self.memory.is_dry_run()
    }

    fn capacity(&self) -> usize {
        self.dims.tokens
    }

    fn alloc_tile(&mut self, name: &'static str, tokens: usize, width: usize) -> Result<CpuBuffer> {
        Ok(self.memory.buffer(name, tokens, width, self.precision.value()))
    }

    fn alloc_f32(&mut self, _: MemoryEnd, name: &'static str, width: usize) -> Result<CpuBuffer> {
        Ok(self.memory.buffer(name, self.dims.tokens, width, Value::F32))
    }

    // The device's memory is the host's: buffers wait where they are.

    fn offload(&mut self, buffer: CpuBuffer) -> Result<CpuBuffer> {
        Ok(buffer)
    }

    fn keep(&mut self, buffer: CpuBuffer) -> Result<CpuBuffer> {
        Ok(buffer)
    }

    fn prefetch(&mut self, offloaded: CpuBuffer) -> Result<CpuBuffer> {
        Ok(offloaded)
    }

    fn wait(&mut self, offloaded: CpuBuffer) -> Result<CpuBuffer> {
        Ok(offloaded)
    }

    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn planned(&self) -> Vec<PlannedBuffer> {
        self.memory.planned()
    }

    fn trim(&mut self) {
        self.memory.trim();
    }
}
