//! Device memory of attention over a cache.

use super::memory::DeviceMemory;
use crate::error::Result;
use qlora_kernels::device::Buffer;

/// The plan's line.
pub const NAME: &str = "attention over the KV cache";

/// Memory of attention over a cache beside its operands. It is made before the first batch that reads a cache; later
/// batches of as many documents or fewer allocate nothing.
pub struct CacheMemory {
    /// `[documents]`: the cache's row of position 0 of each document of the batch that has tokens
    pub starts: Buffer<u32>,
    /// The contents of `starts`.
    pub uploaded: Vec<u32>,
    pub workspace: Buffer<u8>,
}

impl CacheMemory {
    pub fn new(memory: &DeviceMemory) -> Result<Self> {
        Ok(Self { starts: memory.alloc(NAME, 0)?, uploaded: Vec::new(), workspace: memory.alloc(NAME, 0)? })
    }
}
