//! Gradients of low-rank terms beside dX, whose last blocks leave multiprocessors idle. Both read T and dY; neither
//! reads what the other writes.

use super::memory::DeviceMemory;
use crate::error::Result;
use qlora_kernels::device::{SideStream, Stream};

/// Share of dX's time from which on idle multiprocessors are worth that streams wait for each other.
const WORTH: f64 = 1.0 / 16.0;

#[derive(Default)]
pub struct Beside {
    /// With the GPU's multiprocessors; made for the first dX
    side: Option<(SideStream, usize)>,
    /// Nothing but dX was queued since the fork.
    forked: bool,
    count: usize,
}

impl Beside {
    /// Forks before dX is queued, if `idle_share` of the device's multiprocessors makes it worth it.
    pub fn fork(&mut self, memory: &DeviceMemory, idle_share: impl Fn(usize) -> f64) -> Result<()> {
        let (side, multiprocessors) = match &mut self.side {
            Some(side) => side,
            none => {
                let device = memory.opened()?;
                none.insert((SideStream::new(&device)?, device.info()?.multiprocessors))
            }
        };
        self.forked = idle_share(*multiprocessors) >= WORTH;
        if self.forked { Ok(side.fork()?) } else { Ok(()) }
    }

    /// True if the operation before this one was dX, with a fork, which ends now.
    pub fn take_fork(&mut self) -> bool {
        std::mem::take(&mut self.forked)
    }

    /// Queues work beside dX, and what comes after on both streams follows it.
    pub fn run(&mut self, work: impl FnOnce(Stream) -> Result<()>) -> Result<()> {
        let Some((side, _)) = &mut self.side else { unreachable!("there was a fork") };
        self.count += 1;
        work(side.wait_fork()?)?;
        Ok(side.join()?)
    }

    /// Number of times that gradients were computed beside dX.
    pub fn count(&self) -> usize {
        self.count
    }
}
