//! Buffers of the CUDA backend, from its arena.

use super::Cuda;
use super::operands::{CudaBuffer, CudaOffloaded, Storage};
use crate::backend::{Compute, DiskTraffic, Memory, PlannedBuffer};
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;
use std::path::Path;

/// Elements that the stride of rows with room is a multiple of: each begins with a line of the caches, 128 bytes.
const ROOMY_ROWS: usize = 64;

impl Memory for Cuda {
    fn is_dry_run(&self) -> bool {
        self.memory.is_dry_run()
    }

    fn capacity(&self) -> usize {
        self.dims.tokens
    }

    fn alloc_tile(&mut self, name: &'static str, tokens: usize, width: usize) -> Result<CudaBuffer> {
        self.alloc_at(MemoryEnd::Low, name, tokens, width)
    }

    fn alloc_at(&mut self, end: MemoryEnd, name: &'static str, tokens: usize, width: usize) -> Result<CudaBuffer> {
        self.alloc_with_room(end, name, tokens, width, 0)
    }

    fn alloc_with_room(
        &mut self,
        end: MemoryEnd,
        name: &'static str,
        tokens: usize,
        width: usize,
        room: usize,
    ) -> Result<CudaBuffer> {
        let stride = if room > 0 { (width + room).next_multiple_of(ROOMY_ROWS) } else { width };
        let data = Storage::Bf16(self.memory.alloc_at(end, name, tokens * stride)?);
        Ok(CudaBuffer { data, first: 0, tokens, width, stride })
    }

    fn alloc_f32(&mut self, end: MemoryEnd, name: &'static str, width: usize) -> Result<CudaBuffer> {
        let tokens = self.dims.tokens;
        let data = Storage::F32(self.memory.alloc_at(end, name, tokens * width)?);
        Ok(CudaBuffer { data, first: 0, tokens, width, stride: width })
    }

    fn offload(&mut self, buffer: CudaBuffer) -> Result<CudaOffloaded> {
        self.offload.offload(&self.memory, buffer)
    }

    fn offload_to_disk(&mut self, buffer: CudaBuffer) -> Result<CudaOffloaded> {
        let used = self.batch().tokens();
        self.offload.offload_to_disk(&self.memory, buffer, used)
    }

    fn set_scratch_dir(&mut self, dir: &Path) {
        self.offload.disk.file.set_dir(dir);
    }

    fn keep(&mut self, buffer: CudaBuffer) -> Result<CudaOffloaded> {
        self.offload.keep(buffer)
    }

    fn prefetch(&mut self, offloaded: CudaOffloaded) -> Result<CudaOffloaded> {
        self.offload.prefetch(&self.memory, offloaded)
    }

    fn wait(&mut self, offloaded: CudaOffloaded) -> Result<CudaBuffer> {
        self.offload.wait(&self.memory, offloaded)
    }

    fn bytes(&self) -> u64 {
        self.memory.peak().bytes
    }

    fn planned(&self) -> Vec<PlannedBuffer> {
        let peak = self.memory.peak();
        let between = peak.bytes - peak.names.values().sum::<u64>();
        let gaps = (between > 0).then_some(("gaps between buffers", between));
        PlannedBuffer::lines(peak.names.iter().map(|(name, &bytes)| (*name, bytes)).chain(gaps))
    }

    fn planned_on_host(&self) -> Vec<PlannedBuffer> {
        let (lines, of_thread) = (self.memory.planned_on_host(), self.offload.disk.of_thread());
        PlannedBuffer::lines(lines.iter().map(|line| (line.name.as_str(), line.bytes)).chain(of_thread))
    }

    fn planned_on_disk(&self) -> Vec<PlannedBuffer> {
        self.offload.disk.file.planned()
    }

    fn scratch_traffic(&self) -> Option<DiskTraffic> {
        self.offload.disk.file.traffic()
    }
}
