//! The current batch on the device.

use super::memory::{DeviceMemory, StagedBuffer};
use crate::backend::CheckedBatch;
use crate::error::Result;
use qlora_kernels::device::View;
use std::ops::Range;

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
    /// `[tokens]`, where each row has an adapter of its own
    pub adapters: Option<StagedBuffer<i32>>,
}

impl BatchMemory {
    pub fn new(memory: &DeviceMemory, tokens: usize, adapters_by_row: bool) -> Result<Self> {
        let name = "batch";
        let adapters = adapters_by_row.then(|| StagedBuffer::new(memory, name, tokens)).transpose()?;
        Ok(Self {
            input_ids: StagedBuffer::new(memory, name, tokens)?,
            positions: StagedBuffer::new(memory, name, tokens)?,
            boundaries: StagedBuffer::new(memory, name, tokens + 1)?,
            targets: StagedBuffer::new(memory, name, tokens)?,
            weights: StagedBuffer::new(memory, name, tokens)?,
            adapters,
        })
    }

    /// Adapters of these tokens, where each row has one of its own.
    pub fn adapters_of(&self, tokens: &Range<usize>) -> Option<View<'_, i32>> {
        self.adapters.as_ref().map(|adapters| adapters.rows(tokens))
    }

    /// Sets the batch, with boundaries of `documents` documents, of which the last may be empty.
    pub fn set(&mut self, batch: &CheckedBatch, documents: usize) -> Result<()> {
        self.input_ids.set(&batch.input_ids)?;
        self.positions.set(&batch.positions)?;
        match documents + 1 == batch.boundaries.len() {
            true => self.boundaries.set(&batch.boundaries)?,
            false => {
                let mut boundaries = batch.boundaries.clone();
                boundaries.resize(documents + 1, batch.tokens() as u32);
                self.boundaries.set(&boundaries)?;
            }
        }
        if !batch.weights.is_empty() {
            self.weights.set(&batch.weights)?;
        }
        if let Some(adapters) = &mut self.adapters {
            match batch.adapters.is_empty() {
                true => adapters.set(&vec![-1; batch.tokens()])?,
                false => adapters.set(&batch.adapters)?,
            }
        }
        self.targets.set(&batch.targets)
    }
}
