//! Buffers: allocated before an operation, freed when they are dropped.

use super::Operands;
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;
use std::path::Path;

/// End of the names of lines of host memory beside a GPU that is not pinned.
pub const NOT_PINNED: &str = " (not pinned)";

/// One line of a memory plan: everything of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBuffer {
    pub name: String,
    pub bytes: u64,
}

impl PlannedBuffer {
    /// Lines of a plan, largest first.
    pub fn lines<'a>(sizes: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<Self> {
        let mut lines: Vec<Self> =
            sizes.into_iter().map(|(name, bytes)| Self { name: name.to_owned(), bytes }).collect();
        lines.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        lines
    }
}

/// Reads and writes of files beside the computation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DiskTraffic {
    pub bytes: u64,
    /// Seconds that they took, beside the computation
    pub seconds: f64,
    /// Seconds that the computation waited for them
    pub waited: f64,
}

/// The memory of buffers. Dropping a buffer frees its part.
pub trait Memory: Operands {
    /// True in a dry run: nothing is held or computed, and only sizes are recorded.
    fn is_dry_run(&self) -> bool;
    /// Tokens of the longest batch.
    fn capacity(&self) -> usize;
    /// A buffer of `width` values for every token of the longest batch. The name appears in the memory plan.
    fn alloc(&mut self, name: &'static str, width: usize) -> Result<Self::Buffer> {
        self.alloc_tile(name, self.capacity(), width)
    }
    /// A buffer for `tokens` tokens, from token 0 on until it is moved.
    fn alloc_tile(&mut self, name: &'static str, tokens: usize, width: usize) -> Result<Self::Buffer>;
    /// A buffer for `tokens` tokens from an end of the memory, where the device has memory of its own.
    fn alloc_at(&mut self, _: MemoryEnd, name: &'static str, tokens: usize, width: usize) -> Result<Self::Buffer> {
        self.alloc_tile(name, tokens, width)
    }
    /// A buffer for `tokens` tokens from an end, with room for `room` values behind those of each row, where the device
    /// has rows apart.
    fn alloc_with_room(
        &mut self,
        end: MemoryEnd,
        name: &'static str,
        tokens: usize,
        width: usize,
        _room: usize,
    ) -> Result<Self::Buffer> {
        self.alloc_at(end, name, tokens, width)
    }
    /// A buffer for every token of the longest batch, from an end, whose values stay f32 whatever type activations
    /// have: the log-sum-exp of attention.
    fn alloc_f32(&mut self, end: MemoryEnd, name: &'static str, width: usize) -> Result<Self::Buffer> {
        self.alloc_at(end, name, self.capacity(), width)
    }
    /// Copies a buffer to host memory, where the device has memory of its own, and frees it.
    fn offload(&mut self, buffer: Self::Buffer) -> Result<Self::Offloaded>;
    /// Writes a buffer to the scratch file, and frees it.
    fn offload_to_disk(&mut self, buffer: Self::Buffer) -> Result<Self::Offloaded>;
    /// Sets the directory of the scratch file, which is made when the first buffer goes there: until then that of the
    /// system's temporary files.
    fn set_scratch_dir(&mut self, dir: &Path);
    /// A buffer that stays where it is. One that was offloaded before it is freed.
    fn keep(&mut self, buffer: Self::Buffer) -> Result<Self::Offloaded>;
    /// Begins to copy it back, before it is needed.
    fn prefetch(&mut self, offloaded: Self::Offloaded) -> Result<Self::Offloaded>;
    /// The buffer as it was.
    fn wait(&mut self, offloaded: Self::Offloaded) -> Result<Self::Buffer>;
    /// The most that was held at one time, everything included.
    fn bytes(&self) -> u64;
    /// The buffers at that time, by name, largest first; the sum is [`bytes`](Self::bytes).
    fn planned(&self) -> Vec<PlannedBuffer>;
    /// Host memory beside it, pinned or not, by name, largest first.
    fn planned_on_host(&self) -> Vec<PlannedBuffer> {
        Vec::new()
    }
    /// The scratch file, by what is in it.
    fn planned_on_disk(&self) -> Vec<PlannedBuffer>;
    /// Bytes written to the scratch file and read from it; none where nothing was.
    fn scratch_traffic(&self) -> Option<DiskTraffic>;
    /// Gives up buffers that no operation holds.
    fn trim(&mut self) {}
}
