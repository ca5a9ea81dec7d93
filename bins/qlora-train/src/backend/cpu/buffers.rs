//! Buffers of the CPU backend, from its host memory.

use super::Cpu;
use super::inputs::CpuOffloaded;
use super::memory::{CpuBuffer, Value};
use crate::backend::{DiskTraffic, Memory, PlannedBuffer};
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;
use std::path::Path;

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

    /// The device's memory is the host's: the buffer waits where it is.
    fn offload(&mut self, buffer: CpuBuffer) -> Result<CpuOffloaded> {
        self.keep(buffer)
    }

    fn offload_to_disk(&mut self, buffer: CpuBuffer) -> Result<CpuOffloaded> {
        self.inputs.keep_on_disk(buffer, self.batch.tokens())
    }

    fn set_scratch_dir(&mut self, dir: &Path) {
        self.inputs.file.set_dir(dir);
    }

    fn keep(&mut self, buffer: CpuBuffer) -> Result<CpuOffloaded> {
        self.inputs.wait_write()?;
        Ok(CpuOffloaded::InMemory(buffer))
    }

    fn prefetch(&mut self, offloaded: CpuOffloaded) -> Result<CpuOffloaded> {
        self.inputs.prefetch(offloaded)
    }

    fn wait(&mut self, offloaded: CpuOffloaded) -> Result<CpuBuffer> {
        self.inputs.wait(offloaded)
    }

    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn planned(&self) -> Vec<PlannedBuffer> {
        self.memory.planned()
    }

    fn planned_on_disk(&self) -> Vec<PlannedBuffer> {
        self.inputs.file.planned()
    }

    fn scratch_traffic(&self) -> Option<DiskTraffic> {
        self.inputs.file.traffic()
    }

    fn trim(&mut self) {
        self.memory.trim();
    }
}
