//! The emulation's driver: device memory is the host's, and a launch is over when it returns.
//!
//! Every second copy beside the kernels is made at once and the others only when something waits for them, as a GPU may
//! do it: memory that is used or freed meanwhile shows.

use super::driver::{DeviceInfo, Driver, MemInfo, Queue};
use super::emulation;
use crate::error::{CudaError, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::time::Instant;

/// Bytes of memory that the emulated GPU has.
const MEMORY: &str = "QLORA_EMULATION_MEMORY";
/// The launch from which on the emulated GPU is lost, and the error that launches then return.
const LOST: &str = "QLORA_EMULATION_LOST";
/// With "refused" the emulated GPU pins no memory that was allocated elsewhere, as some systems do not.
const PINNING: &str = "QLORA_EMULATION_PINNING";
const MEMORY_BYTES: u64 = 64 << 30;
const NAME: &str = "the emulation on the host (no GPU)";

#[derive(Default)]
pub struct Emulated {
    /// Copies that were asked for so far.
    copies: Cell<u64>,
    /// Those of them that are not made yet, in order.
    pending: RefCell<Vec<Copy>>,
}

struct Copy {
    queue: Queue,
    number: u64,
    to: *mut u8,
    from: *const u8,
    bytes: usize,
}

pub struct Event {
    /// The queue, and how many copies had been asked for.
    recorded: Option<(Queue, u64)>,
    at: Instant,
}

impl Emulated {
    /// Makes the pending copies of `queue` up to this number.
    fn make(&self, queue: Queue, up_to: u64) {
        self.pending.borrow_mut().retain(|copy| {
            let due = copy.queue == queue && copy.number <= up_to;
            if due {
                // SAFETY: `copy` was promised that both stay allocated, and are not used, until something waits for the
                // copy.
                unsafe { std::ptr::copy_nonoverlapping(copy.from, copy.to, copy.bytes) };
            }
            !due
        });
    }
}

/// Exactly as long as was asked for, so that AddressSanitizer sees the first byte past the end.
fn layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes.max(1), 256)
        .map_err(|_| CudaError::Device(format!("{bytes} bytes of device memory are too many")))
}

impl Driver for Emulated {
    type Event = Event;
    /// A part is memory of its own.
    type Slab = ();

    fn open(ordinal: usize) -> Result<Self> {
        if let Ok(text) = std::env::var(LOST) {
            let numbers =
                text.split_once(':').and_then(|(launch, code)| Some((launch.parse().ok()?, code.parse().ok()?)));
            let numbers =
                numbers.ok_or_else(|| CudaError::Device(format!("{LOST}: {text:?}, expected LAUNCH:CODE")))?;
            emulation::lose(numbers.0, numbers.1);
        }
        match ordinal {
            0 => Ok(Self::default()),
            _ => Err(CudaError::Device(format!("there is no GPU {ordinal}: the emulation has one, number 0"))),
        }
    }

    fn cuda_version() -> Result<String> {
        Err(CudaError::Device("this build emulates a GPU, for tests: it calls no driver".into()))
    }

    fn name(&self) -> String {
        NAME.into()
    }

    /// Each process has one of its own.
    fn identity(&self) -> Result<String> {
        Ok(format!("emulated in process {}", std::process::id()))
    }

    fn info(&self) -> Result<DeviceInfo> {
        Ok(DeviceInfo {
            gpu: NAME.into(),
            cuda: "none".into(),
            compute_capability: (8, 0),
            multiprocessors: 1,
            l2_bytes: 0,
            memory_bytes: self.mem_info()?.total as usize,
        })
    }

    fn mem_info(&self) -> Result<MemInfo> {
        let total = match std::env::var(MEMORY) {
            Err(_) => MEMORY_BYTES,
            Ok(text) => text.parse().map_err(|_| CudaError::Device(format!("{MEMORY}: {text:?}, expected bytes")))?,
        };
        Ok(MemInfo { free: total, total })
    }

    fn bind(&self) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn alloc(&self, bytes: usize) -> Result<*mut u8> {
        let layout = layout(bytes)?;
        // SAFETY: the layout is of at least one byte.
        let address = unsafe { alloc_zeroed(layout) };
        if address.is_null() {
            handle_alloc_error(layout);
        }
        Ok(address)
    }

    unsafe fn free(&self, address: *mut u8, bytes: usize) {
        if let Ok(layout) = layout(bytes) {
            // SAFETY: `alloc` gave it with this layout, as the caller promises.
            unsafe { dealloc(address, layout) }
        }
    }

    fn slab(&self, bytes: u64) -> Result<()> {
        let free = self.mem_info()?.free;
        if bytes > free {
            return Err(CudaError::Device(format!("{bytes} bytes of device memory: the emulation has {free}")));
        }
        Ok(())
    }

    /// A value that is read before it is written must not go unnoticed: every byte is 0xff, which makes floating-point
    /// numbers NaN.
    fn part(&self, _: &(), _: u64, bytes: usize) -> Result<*mut u8> {
        let address = self.alloc(bytes)?;
        // SAFETY: as many bytes as were just allocated.
        unsafe { std::ptr::write_bytes(address, 0xff, bytes) };
        Ok(address)
    }

    unsafe fn free_part(&self, address: *mut u8, bytes: usize) {
        // SAFETY: `part` had it from `alloc`.
        unsafe { self.free(address, bytes) }
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        self.alloc(bytes)
    }

    unsafe fn free_pinned(&self, address: *mut u8, bytes: usize) {
        // SAFETY: `alloc_pinned` had it from `alloc`.
        unsafe { self.free(address, bytes) }
    }

    fn pins_read_only(&self) -> Result<bool> {
        Ok(true)
    }

    unsafe fn pin(&self, _: *mut u8, bytes: usize, _: bool) -> Result<()> {
        match std::env::var(PINNING).as_deref() {
            Ok("refused") => Err(CudaError::Device(format!("{bytes} bytes of host memory cannot be pinned"))),
            _ => Ok(()),
        }
    }

    unsafe fn unpin(&self, _: *mut u8) {}

    unsafe fn clear(&self, address: *mut u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; launches are over when they return.
        unsafe { std::ptr::write_bytes(address, 0, bytes) };
        Ok(())
    }

    unsafe fn write(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        // SAFETY: the caller's promise; a slice of the host is not device memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    unsafe fn read(&self, to: *mut u8, from: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise; memory is initialized since `alloc`.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, queue: Queue, to: *mut u8, from: *const u8, bytes: usize) -> Result<()> {
        if queue == Queue::Compute {
            // SAFETY: the caller's promise; launches are over when they return.
            unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
            return Ok(());
        }
        let number = self.copies.get() + 1;
        self.copies.set(number);
        self.pending.borrow_mut().push(Copy { queue, number, to, from, bytes });
        if number.is_multiple_of(2) {
            self.make(queue, number);
        }
        Ok(())
    }

    /// Nobody takes it: the stand-in for NCCL does what it does in the host's memory.
    fn raw(&self, _queue: Queue) -> *mut c_void {
        null_mut()
    }

    fn event(&self, _timed: bool) -> Result<Event> {
        Ok(Event { recorded: None, at: Instant::now() })
    }

    fn record(&self, event: &mut Event, queue: Queue) -> Result<()> {
        *event = Event { recorded: Some((queue, self.copies.get())), at: Instant::now() };
        Ok(())
    }

    fn queue_waits(&self, _queue: Queue, event: &Event) -> Result<()> {
        self.host_waits(event)
    }

    fn is_done(&self, event: &Event) -> Result<bool> {
        let Some((queue, number)) = event.recorded else { return Ok(true) };
        Ok(!self.pending.borrow().iter().any(|copy| copy.queue == queue && copy.number <= number))
    }

    fn host_waits(&self, event: &Event) -> Result<()> {
        if let Some((queue, number)) = event.recorded {
            self.make(queue, number);
        }
        Ok(())
    }

    fn elapsed(&self, start: &Event, end: &Event) -> Result<f64> {
        Ok((end.at - start.at).as_secs_f64())
    }
}
