//! The current batch on the device.

use super::memory::{DeviceMemory, StagedBuffer};
use crate::backend::CheckedBatch;
use crate::error::Result;

/// With room for the longest batch.
pub struct BatchMemory {
    /// `[tokens]`
    pub input_ids: StagedBuffer<u32>,
    /// `[tokens]`
    pub positions: StagedBuffer<u32>,
    /// `[tokens + 1]`
    pub boundaries: StagedBuffer<u32>,
    /// `[tokens]`
    pub targets: StagedBuffer<i32>,
    /// `[tokens]`
    pub weights: StagedBuffer<f32>,
}

impl BatchMemory {
    pub fn new(memory: &DeviceMemory, tokens: usize) -> Result<Self> {
        let name = "batch";
        Ok(Self {
            input_ids: StagedBuffer::new(memory, name, tokens)?,
            positions: StagedBuffer::new(memory, name, tokens)?,
            boundaries: StagedBuffer::new(memory, name, tokens + 1)?,
            targets: StagedBuffer::new(memory, name, tokens)?,
            weights: StagedBuffer::new(memory, name, tokens)?,
        })
    }

    pub fn set(&mut self, batch: &CheckedBatch) -> Result<()> {
        self.input_ids.set(&batch.input_ids)?;
        self.positions.set(&batch.positions)?;
        self.boundaries.set(&batch.boundaries)?;
        if !batch.weights.is_empty() {
            self.weights.set(&batch.weights)?;
        }
        self.targets.set(&batch.targets)
    }
}
