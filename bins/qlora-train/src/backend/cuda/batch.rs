//! The current batch on the device.

use super::memory::{DeviceMemory, Incoming};
use crate::backend::CheckedBatch;
use crate::error::Result;

/// With room for the longest batch.
pub struct BatchMemory {
    /// `[tokens]`
    pub input_ids: Incoming<u32>,
    /// `[tokens]`
    pub positions: Incoming<u32>,
    /// `[tokens + 1]`
    pub boundaries: Incoming<u32>,
    /// `[tokens]`
    pub targets: Incoming<i32>,
    /// `[tokens]`
    pub weights: Incoming<f32>,
}

impl BatchMemory {
    pub fn new(memory: &DeviceMemory, tokens: usize) -> Result<Self> {
        let name = "batch";
        Ok(Self {
            input_ids: Incoming::new(memory, name, tokens)?,
            positions: Incoming::new(memory, name, tokens)?,
            boundaries: Incoming::new(memory, name, tokens + 1)?,
            targets: Incoming::new(memory, name, tokens)?,
            weights: Incoming::new(memory, name, tokens)?,
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
