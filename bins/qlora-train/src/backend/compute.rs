//! Operations of a device.

use super::{CheckedBatch, Memory, Op, Optimizer, Trace, Weights};
use crate::error::Result;
use qlora_kernels::shape::AttentionShape;
use std::ops::Range;

/// The operations of a device. The model calls [`Backend::run`](super::Backend::run).
pub trait Compute: Memory + Weights + Optimizer {
    /// The batch that operations work on.
    fn batch(&self) -> &CheckedBatch;
    /// Makes `batch` the one that operations work on, and takes it to the device.
    fn set_batch(&mut self, batch: CheckedBatch) -> Result<()>;
    /// The number as activations hold it.
    fn rounded(&self, x: f32) -> f32;
    /// Workspace that `op` needs beside its operands; part of the dry run.
    fn reserve(&mut self, _op: &Op<'_, Self>) -> Result<()> {
        Ok(())
    }
    /// Workspace that text of up to so many rows side by side needs beside operands, whatever the batches are: made
    /// before what comes and goes, it takes the same memory in whichever order a run computes.
    fn reserve_text(&mut self, _shape: AttentionShape, _rows: usize) -> Result<()> {
        Ok(())
    }
    /// Computes `op` for these tokens. Not called in a dry run.
    fn compute(&mut self, tokens: &Range<usize>, op: &mut Op<'_, Self>) -> Result<()>;
    /// Like [`Backend::loss_sum`](super::Backend::loss_sum). Not called in a dry run.
    fn read_loss(&mut self) -> Result<f64>;
    /// Like [`Backend::losses`](super::Backend::losses). Not called in a dry run.
    fn read_losses(&mut self) -> Result<Vec<f64>>;

    /// How linear layers were computed so far, in words, where there is more than one way.
    fn linear_rows(&self) -> Vec<String> {
        Vec::new()
    }

    fn trace(&mut self) -> &mut Trace;
    /// Records a timing event after all work queued so far.
    fn record_event(&mut self) -> Result<()>;
    /// Seconds from each event to the next, which are forgotten.
    fn elapsed(&mut self) -> Result<Vec<f64>>;
    /// The values of these tokens' rows; waits for all work queued so far. Not called in a dry run.
    fn values(&mut self, buffer: &Self::Buffer, tokens: &Range<usize>) -> Result<Vec<f32>>;
}
