//! Operations of a device.

use super::{CheckedBatch, Memory, Op, Optimizer, StepPart, Trace, Weights};
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
    /// Workspace that text of up to `rows` rows side by side needs beside operands, for any batches. It is made before
    /// buffers come and go, so that it takes the same memory in whichever order a run computes.
    fn reserve_text(&mut self, _shape: AttentionShape, _rows: usize) -> Result<()> {
        Ok(())
    }
    /// Computes `op` for these tokens. Not called in a dry run.
    fn compute(&mut self, tokens: &Range<usize>, op: &mut Op<'_, Self>) -> Result<()>;
    /// Does `work`, a part of a step that has the same operations on the same memory for all batches of one shape, in
    /// which the host waits for nothing. A device may record what it launches there, and launch that as one when the
    /// shape comes again. `draw` names the masks of dropout, where there are any.
    fn in_graph<T>(
        &mut self,
        _part: StepPart,
        _draw: Option<u32>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T>
    where
        Self: Sized,
    {
        work(self)
    }
    /// The sum that [`Backend::loss_sum`](super::Backend::loss_sum) returns. Not called in a dry run.
    fn read_loss(&mut self) -> Result<f64>;
    /// The losses that [`Backend::losses`](super::Backend::losses) returns. Not called in a dry run.
    fn read_losses(&mut self) -> Result<Vec<f64>>;

    /// The rows of the dispatch table that computed linear layers so far, in words, where there is more than one.
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
