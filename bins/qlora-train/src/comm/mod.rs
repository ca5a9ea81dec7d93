//! Processes that train one model together: their ranks, sums over all of them, and agreement.
//!
//! Every process runs the same steps and calls the same operations in the same order; rank 0 alone writes and speaks.
//! Each operation is collective: it returns when all ranks have joined it, or fails with the name of the one that has
//! not.

pub mod agreement;
mod failure;
#[doc(hidden)]
pub mod fuzzing;
mod joined;
pub mod launch;
mod link;
pub mod measure;
#[cfg(any(test, feature = "mpi"))]
mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
mod places;
mod rendezvous;
mod tcp;
#[cfg(any(test, feature = "mpi"))]
mod watchdog;
mod watched;
mod wire;

pub use agreement::Signs;
pub use joined::Joined;
pub use rendezvous::Timeouts;
pub use tcp::Tcp;
pub use watched::Watched;

use crate::error::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Values of gradients that are summed at a time; the last tensor of a bucket may exceed it.
pub const BUCKET: usize = 1 << 20;

/// The processes of a run.
pub trait Communicator {
    /// This process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn world_size(&self) -> usize;

    /// Number of this process among those of its machine, and the count of those.
    fn on_this_machine(&self) -> (usize, usize);

    /// Number of processes that share the processors that this one may use: a launcher may give each its own.
    fn on_these_processors(&self) -> usize {
        self.on_this_machine().1
    }

    /// Number of a rank's machine: equal for the ranks of one machine.
    fn machine_of(&self, rank: usize) -> usize {
        if self.on_this_machine().1 == self.world_size() { 0 } else { rank }
    }

    /// Number of machines.
    fn machines(&self) -> usize {
        1
    }

    /// "rank 1 (node-2, process 4711)"
    fn name_of(&self, rank: usize) -> String {
        format!("rank {rank}")
    }

    /// Replaces every value by its sum over the ranks, in both arrays as one operation. The sums are in the order of
    /// the ranks and the same bits everywhere. Failed: a rank is gone, or its arrays are of another length.
    fn all_reduce_sum(&mut self, gradients: &mut [f32], totals: &mut [f64]) -> Result<()>;

    /// Number of gradient values at which a sum begins: equal on all ranks.
    fn bucket(&self) -> usize {
        BUCKET
    }

    /// The communicator for a thread that adds up beside the backward pass; none: sums are made after it.
    fn beside(&mut self) -> Option<&mut (dyn Communicator + Send)> {
        None
    }

    /// Fails where a rank is known to be gone, without waiting for any.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Time in which a living rank must join an operation.
    fn patience(&self) -> Duration {
        Duration::from_secs(1800)
    }

    /// Gathers the bytes that every rank gives, in the order of the ranks; `what` names them in errors.
    fn all_gather(&mut self, what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// The bytes that rank 0 gives; the others' do not count.
    fn broadcast(&mut self, what: &str, own: Vec<u8>) -> Result<Vec<u8>>;
}

/// True if this is the process that writes and speaks.
pub fn is_first(comm: &dyn Communicator) -> bool {
    comm.rank() == 0
}

/// The value that rank 0 finds, on all ranks. `find` is called on rank 0 only.
pub fn from_first<T: Serialize + DeserializeOwned>(
    comm: &mut dyn Communicator,
    what: &str,
    find: impl FnOnce() -> Result<T>,
) -> Result<T> {
    if comm.world_size() == 1 {
        return find();
    }
    let found = if is_first(comm) { Some(find()?) } else { None };
    let bytes = found.as_ref().map(serde_json::to_vec).transpose().context(|| what.to_owned())?;
    let bytes = comm.broadcast(what, bytes.unwrap_or_default())?;
    match found {
        Some(found) => Ok(found),
        None => serde_json::from_slice(&bytes).context(|| format!("{what}, as rank 0 sent it")),
    }
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

    fn on_this_machine(&self) -> (usize, usize) {
        (0, 1)
    }

    fn all_reduce_sum(&mut self, _gradients: &mut [f32], _totals: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&mut self, _what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn broadcast(&mut self, _what: &str, own: Vec<u8>) -> Result<Vec<u8>> {
        Ok(own)
    }
}
