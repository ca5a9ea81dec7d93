//! Buffers: allocated before an operation, given back when they are dropped.

use super::Operands;
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;

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

/// Where buffers come from. Dropping one gives its memory back.
pub trait Memory: Operands {
    /// Whether nothing is held and nothing computed, and only sizes are recorded.
    fn is_dry_run(&self) -> bool;
    /// Tokens of the longest batch.
    fn capacity(&self) -> usize;
    /// A buffer of `width` values for every token of the longest batch. The name appears in the memory plan.
    fn alloc(&mut self, name: &'static str, width: usize) -> Result<Self::Buffer> {
        self.alloc_tile(name, self.capacity(), width)
    }
    /// A buffer for `tokens` tokens, from token 0 on until it is moved.
    fn alloc_tile(&mut self, name: &'static str, tokens: usize, width: usize) -> Result<Self::Buffer>;
    /// Like [`alloc_tile`](Self::alloc_tile), from an end of the memory, where the device has memory of its own.
    fn alloc_at(&mut self, _: MemoryEnd, name: &'static str, tokens: usize, width: usize) -> Result<Self::Buffer> {
        self.alloc_tile(name, tokens, width)
    }
    /// Like [`alloc`](Self::alloc), from an end, for values that stay f32 whatever type activations have: the
    /// log-sum-exp of attention.
    fn alloc_f32(&mut self, end: MemoryEnd, name: &'static str, width: usize) -> Result<Self::Buffer> {
        self.alloc_at(end, name, self.capacity(), width)
    }
    /// Copies a buffer to host memory, where the device has memory of its own, and gives it back.
    fn offload(&mut self, buffer: Self::Buffer) -> Result<Self::Offloaded>;
    /// A buffer that stays where it is. One that was offloaded before it is given back.
    fn keep(&mut self, buffer: Self::Buffer) -> Result<Self::Offloaded>;
    /// Begins to copy it back, before it is needed.
    fn prefetch(&mut self, offloaded: Self::Offloaded) -> Result<Self::Offloaded>;
    /// The buffer as it was.
    fn wait(&mut self, offloaded: Self::Offloaded) -> Result<Self::Buffer>;
    /// The most that was held at one time, everything included.
    fn bytes(&self) -> u64;
    /// What was held then, by name, largest first; the sum is [`bytes`](Self::bytes).
    fn planned(&self) -> Vec<PlannedBuffer>;
    /// Pinned host memory beside it, by name, largest first.
    fn planned_on_host(&self) -> Vec<PlannedBuffer> {
        Vec::new()
    }
    /// Gives up buffers that no operation holds.
    fn trim(&mut self) {}
}
