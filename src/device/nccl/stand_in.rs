//! A stand-in for NCCL in the emulation: the ranks add up in the host's memory, by the way that they have for it.
//!
//! Every second group of sums is made at once and the others only when something waits for them, as a GPU may do it: a
//! gradient that is not final when its sum begins, or is used before the sum is waited for, shows.

use super::calls::{Calls, Handle, ID_BYTES, MISSING, Others};
use crate::device::queues;
use crate::error::{CudaError, Result};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr::NonNull;

/// Faults that it has: `missing`, as if there were no library, or `fails:N`, from the group of sums of that number on
/// (1 is that of joining).
const FAULT: &str = "QLORA_EMULATION_NCCL";

#[derive(Default)]
pub struct StandIn {
    fails_at: Option<u64>,
    groups: Cell<u64>,
    /// Arrays whose sums are not made yet, in order, each with the stream that it waits for.
    queued: RefCell<Vec<(*mut f32, usize, *mut c_void)>>,
    /// True while the last call is reported as under way.
    is_under_way: Cell<bool>,
}

impl StandIn {
    /// The sums of all that is queued, as one.
    fn add_up(&self, others: &mut dyn Others) -> Result<()> {
        let queued = self.queued.take();
        if queued.is_empty() {
            return Ok(());
        }
        let mut values = Vec::with_capacity(queued.iter().map(|(_, len, _)| len).sum());
        for &(address, len, stream) in &queued {
            queues::finish(stream)?;
            // SAFETY: `all_reduce` was promised that the array stays allocated, and is used by nothing else, until now.
            values.extend_from_slice(unsafe { std::slice::from_raw_parts(address, len) });
        }
        others.sum(&mut values)?;
        let mut rest = &values[..];
        for (address, len, _) in queued {
            let (own, more) = rest.split_at(len);
            // SAFETY: as above; `own` is of another allocation.
            unsafe { std::ptr::copy_nonoverlapping(own.as_ptr(), address, len) };
            rest = more;
        }
        Ok(())
    }
}

impl Calls for StandIn {
    fn load() -> Result<Self> {
        let fault = std::env::var(FAULT).unwrap_or_default();
        if fault == "missing" {
            return Err(CudaError::Device(MISSING.into()));
        }
        let fails_at = match fault.strip_prefix("fails:").map(str::parse::<u64>) {
            None if fault.is_empty() => None,
            Some(Ok(number)) => Some(number),
            _ => return Err(CudaError::Device(format!("{FAULT}: {fault:?}, expected missing or fails:N"))),
        };
        Ok(Self { fails_at, ..Self::default() })
    }

    fn version(&self) -> Result<String> {
        Ok("(its stand-in in the emulation)".into())
    }

    fn unique_id(&self) -> Result<[u8; ID_BYTES]> {
        Ok([0x5a; ID_BYTES])
    }

    fn init_rank(&self, id: &[u8; ID_BYTES], rank: usize, world_size: usize) -> Result<Handle> {
        if *id != self.unique_id()? || rank >= world_size {
            return Err(CudaError::Device(format!("NCCL: rank {rank} of {world_size}: invalid argument")));
        }
        self.is_under_way.set(true);
        Ok(NonNull::<c_void>::dangling().as_ptr())
    }

    unsafe fn is_call_done(&self, _comm: Handle) -> Result<bool> {
        Ok(!self.is_under_way.replace(false))
    }

    unsafe fn all_reduce(&self, _comm: Handle, arrays: &[(*mut f32, usize)], stream: *mut c_void) -> Result<()> {
        let number = self.groups.get() + 1;
        self.groups.set(number);
        if self.fails_at.is_some_and(|at| number >= at) {
            return Err(CudaError::Device("NCCL: a sum of gradients: unhandled system error".into()));
        }
        self.queued.borrow_mut().extend(arrays.iter().map(|&(address, len)| (address, len, stream)));
        self.is_under_way.set(true);
        Ok(())
    }

    fn run(&self, others: &mut dyn Others, waits: bool) -> Result<()> {
        if waits || self.groups.get().is_multiple_of(2) { self.add_up(others) } else { Ok(()) }
    }

    unsafe fn abort(&self, _comm: Handle) {
        self.queued.borrow_mut().clear();
    }

    unsafe fn destroy(&self, _comm: Handle) {
        assert!(self.queued.borrow().is_empty(), "a communicator with sums on their way is aborted");
    }
}
