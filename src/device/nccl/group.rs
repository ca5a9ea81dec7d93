//! A process of a group whose GPUs add up.

use super::Api;
use super::calls::{Calls, Handle, ID_BYTES, Others};
use super::poll::until;
use crate::device::driver::{Driver, Queue};
use crate::device::event::Event;
use crate::device::{Buffer, Device, Implementation};
use crate::error::{CudaError, Result};
use std::rc::Rc;

/// Elements of the sum by which a group begins: it makes the connections, and takes the memory that sums need, which
/// the free memory of the device then no longer has.
const FIRST_SUM: usize = 1 << 20;

/// One of several ranks, each with a device of its own, whose arrays of f32 are added up.
///
/// The bytes of a sum are the same on all ranks and from run to run, as long as the ranks lie on the same devices, but
/// not those of a sum in the order of the ranks.
pub struct Nccl {
    calls: Api,
    driver: Rc<Implementation>,
    /// None: aborted.
    comm: Option<Handle>,
    /// Arrays whose sums are begun, in that order. Dropped after the communicator has ended.
    held: Vec<Buffer<f32>>,
    /// The work that was queued before a sum is done.
    computed: Event,
    /// All sums are done.
    summed: Event,
}

impl std::fmt::Debug for Nccl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nccl({} sums begun)", self.held.len())
    }
}

impl Nccl {
    /// The library's version. An error where there is none.
    pub fn version() -> Result<String> {
        Api::load()?.version()
    }

    /// A name for a group, which one rank makes and gives to all.
    pub fn unique_id() -> Result<Vec<u8>> {
        Ok(Api::load()?.unique_id()?.to_vec())
    }

    /// Joins the group of `id` with `device`, and waits for all `world_size` ranks. Failed: a rank is gone, two have
    /// one device, or they come to different sums.
    pub fn join(device: &Device, id: &[u8], rank: usize, world_size: usize, others: &mut dyn Others) -> Result<Self> {
        let wrong = |_| CudaError::Device(format!("NCCL: a name of {} bytes, expected {ID_BYTES}", id.len()));
        let id: &[u8; ID_BYTES] = id.try_into().map_err(wrong)?;
        let (calls, driver) = (Api::load()?, device.driver().clone());
        driver.bind()?;
        let comm = Some(calls.init_rank(id, rank, world_size)?);
        let (computed, summed) = (Event::new(&driver)?, Event::new(&driver)?);
        let mut own = Self { calls, driver, comm, held: Vec::new(), computed, summed };
        own.wait_call("joining the other GPUs", others)?;
        own.begin(vec![device.upload(&vec![1.0f32; FIRST_SUM])?], others)?;
        let sums = device.download(&own.finish(others)?[0])?;
        match sums.iter().find(|&&sum| sum != world_size as f32) {
            None => Ok(own),
            Some(sum) => Err(CudaError::Device(format!("NCCL: a sum of {world_size} ones is {sum}"))),
        }
    }

    /// Begins to replace every array by its sum over the ranks, after what is queued now. All ranks begin the same sums
    /// in the same order, with as many arrays of the same lengths. The arrays are kept until all sums are done.
    pub fn begin(&mut self, arrays: Vec<Buffer<f32>>, others: &mut dyn Others) -> Result<()> {
        let first = self.held.len();
        self.held.extend(arrays);
        let mut begun = self.queue(first);
        if begun.is_ok() {
            begun = self.wait_call("a sum of gradients", others);
        }
        if begun.is_ok() {
            begun = self.calls.run(others, false);
        }
        self.or_abort(begun)
    }

    /// Waits for all sums, and returns their arrays in the order in which they were begun. Work that is queued next
    /// finds the sums in them.
    pub fn finish(&mut self, others: &mut dyn Others) -> Result<Vec<Buffer<f32>>> {
        let done = self.wait(others);
        self.or_abort(done)?;
        Ok(std::mem::take(&mut self.held))
    }

    /// Ends all sums, whatever has become of them, and with them the group. Returns their arrays, with any values.
    pub fn abandon(&mut self) -> Vec<Buffer<f32>> {
        self.abort();
        std::mem::take(&mut self.held)
    }

    fn communicator(&self) -> Result<Handle> {
        self.comm.ok_or_else(|| CudaError::Device("NCCL: the group of GPUs has ended".into()))
    }

    /// Queues the sums of the arrays from this one on.
    fn queue(&mut self, first: usize) -> Result<()> {
        let comm = self.communicator()?;
        self.driver.bind()?;
        self.computed.record(Queue::Compute)?;
        self.computed.precedes(Queue::Sums)?;
        let arrays: Vec<_> = self.held[first..].iter().map(|array| (array.address().cast(), array.len())).collect();
        // SAFETY: `self` made the communicator and has not ended it. It keeps the arrays, of which nobody else has a
        // view, until the sums are done or the communicator was aborted.
        unsafe { self.calls.all_reduce(comm, &arrays, self.driver.raw(Queue::Sums)) }
    }

    /// Waits until the last call has been carried out: sums are queued then, and their work goes on.
    fn wait_call(&mut self, what: &str, others: &mut dyn Others) -> Result<()> {
        let comm = self.communicator()?;
        // SAFETY: `self` made the communicator and has not ended it.
        until(what, others, |_| unsafe { self.calls.is_call_done(comm) })
    }

    fn wait(&mut self, others: &mut dyn Others) -> Result<()> {
        let comm = self.communicator()?;
        self.driver.bind()?;
        self.calls.run(others, true)?;
        self.summed.record(Queue::Sums)?;
        until("a sum of gradients", others, |_| {
            // SAFETY: as in `wait_call`. A sum that fails is reported here; the device would go on.
            unsafe { self.calls.is_call_done(comm) }?;
            self.summed.is_done()
        })?;
        self.summed.precedes(Queue::Compute)
    }

    fn or_abort<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.abort();
        }
        result
    }

    fn abort(&mut self) {
        if let Some(comm) = self.comm.take() {
            // SAFETY: `self` made the communicator, and nothing uses it from now on.
            unsafe { self.calls.abort(comm) }
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if !self.held.is_empty() || self.driver.bind().is_err() {
            self.abort();
        }
        if let Some(comm) = self.comm.take() {
            // SAFETY: `self` made the communicator, nothing is queued on it, and nothing uses it from now on.
            unsafe { self.calls.destroy(comm) }
        }
    }
}

/// Groups of one rank, on the device of this build.
#[cfg(all(test, kernels = "emulated"))]
mod tests;
