//! Processes that train one model together: who is who, and the sum over all of them.

pub mod launch;

use crate::error::Result;

/// The processes of a run. Each computes the gradients of its own micro-batches; one call per step makes them those of
/// all.
pub trait Communicator {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn world_size(&self) -> usize;

    /// Replaces every value by its sum over the ranks, in both arrays as one operation. The sums are in the order of
    /// the ranks and the same bits everywhere. Failed: a rank is gone.
    fn all_reduce_sum(&mut self, gradients: &mut [f32], totals: &mut [f64]) -> Result<()>;
}

/// A run in one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleProcess;

impl Communicator for SingleProcess {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce_sum(&mut self, _gradients: &mut [f32], _totals: &mut [f64]) -> Result<()> {
        Ok(())
    }
}
