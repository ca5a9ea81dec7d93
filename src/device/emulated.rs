//! The emulation's driver: device memory is the host's, and a launch is over when it returns.
//!
//! Every second copy beside the kernels is made at once and the others only when something waits for them, as a GPU may
//! do it: memory that is used or freed meanwhile shows. A device that is late does so with all that is on its stream as
//! well ([`emulation::run_late`]): what is read, written or freed without waiting for the stream shows then. It models
//! streams that do not wait for the default one: a copy that is none of theirs comes before what they have.

use super::driver::{DeviceInfo, Driver, MemInfo, Queue};
use super::emulation;
use super::queues::{Point, Queues};
use crate::error::{CudaError, Result};
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::rc::Rc;
use std::time::Instant;

/// Bytes of memory that the emulated GPU has.
const MEMORY: &str = "QLORA_EMULATION_MEMORY";
/// The launch from which on the emulated GPU is lost, and the error that launches then return.
const LOST: &str = "QLORA_EMULATION_LOST";
/// With "refused" the emulated GPU pins no memory that was allocated elsewhere, as some systems do not.
const PINNING: &str = "QLORA_EMULATION_PINNING";
/// With "late" the work on streams is done when something waits for it.
const STREAM: &str = "QLORA_EMULATION_STREAM";
const MEMORY_BYTES: u64 = 64 << 30;
const NAME: &str = "the emulation on the host (no GPU)";

pub struct Emulated {
    queues: Rc<Queues>,
    is_late: bool,
    /// Copies beside the kernels that were asked for so far.
    copies: Cell<u64>,
}

pub struct Event {
    recorded: Option<Point>,
    at: Instant,
}

impl Emulated {
    fn new(is_late: bool) -> Self {
        let queues = if is_late { Queues::with_streams() } else { Rc::default() };
        Self { queues, is_late, copies: Cell::new(0) }
    }

    /// Work in the order of the kernels, which is done at once unless the device is late.
    fn compute(&self, work: impl FnOnce() + 'static) -> Result<()> {
        self.queues.put(Queue::Compute, move || {
            work();
            Ok(())
        });
        if self.is_late { Ok(()) } else { self.synchronize() }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        // What is left frees memory. An error would be that of an earlier call.
        while self.synchronize().is_err() {}
    }
}

/// # Safety
///
/// `alloc` gave it for as many bytes. It is freed once.
unsafe fn release(address: *mut u8, bytes: usize) {
    if let Ok(layout) = layout(bytes) {
        // SAFETY: `alloc` gave it with this layout, as the caller promises.
        unsafe { dealloc(address, layout) }
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
        let is_late = match std::env::var(STREAM).as_deref() {
            Err(_) => emulation::is_late(),
            Ok("late") => true,
            Ok(text) => return Err(CudaError::Device(format!("{STREAM}: {text:?}, expected late"))),
        };
        match ordinal {
            0 => Ok(Self::new(is_late)),
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
            // Those that the emulated kernels choose their tiles by.
            multiprocessors: 108,
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
        self.queues.reach(self.queues.end(Queue::Compute))
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
        while self.synchronize().is_err() {}
        // SAFETY: the caller's promise.
        unsafe { release(address, bytes) }
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
        let _ = self.compute(move || unsafe { release(address, bytes) });
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        self.alloc(bytes)
    }

    unsafe fn free_pinned(&self, address: *mut u8, bytes: usize) {
        // SAFETY: `alloc_pinned` had it from `alloc`.
        unsafe { release(address, bytes) }
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
        // SAFETY: the caller's promise.
        self.compute(move || unsafe { std::ptr::write_bytes(address, 0, bytes) })
    }

    unsafe fn write(&self, to: *mut u8, from: &[u8]) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the caller's promise; a slice of the host is not device memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    unsafe fn read(&self, to: *mut u8, from: *const u8, bytes: usize) -> Result<()> {
        self.synchronize()?;
        // SAFETY: the caller's promise; memory is initialized since `alloc`.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, queue: Queue, to: *mut u8, from: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        let copy = move || unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
        if queue == Queue::Compute {
            return self.compute(copy);
        }
        self.queues.put(queue, move || {
            copy();
            Ok(())
        });
        self.copies.set(self.copies.get() + 1);
        match self.copies.get().is_multiple_of(2) {
            true => self.queues.reach(self.queues.end(queue)),
            false => Ok(()),
        }
    }

    /// None where launches are over when they return.
    fn raw(&self, queue: Queue) -> *mut c_void {
        if self.is_late { self.queues.stream(queue) } else { null_mut() }
    }

    fn event(&self, _timed: bool) -> Result<Event> {
        Ok(Event { recorded: None, at: Instant::now() })
    }

    fn record(&self, event: &mut Event, queue: Queue) -> Result<()> {
        *event = Event { recorded: Some(self.queues.end(queue)), at: Instant::now() };
        Ok(())
    }

    fn queue_waits(&self, queue: Queue, event: &Event) -> Result<()> {
        let Some(point) = event.recorded else { return Ok(()) };
        self.queues.wait(queue, point);
        if queue == Queue::Compute && !self.is_late { self.synchronize() } else { Ok(()) }
    }

    fn is_done(&self, event: &Event) -> Result<bool> {
        let Some(point) = event.recorded else { return Ok(true) };
        let is_done = self.queues.is_reached(point);
        if self.is_late {
            // It goes on while the host does something else.
            self.queues.reach(point)?;
        }
        Ok(is_done)
    }

    fn host_waits(&self, event: &Event) -> Result<()> {
        event.recorded.map_or(Ok(()), |point| self.queues.reach(point))
    }

    fn elapsed(&self, start: &Event, end: &Event) -> Result<f64> {
        Ok((end.at - start.at).as_secs_f64())
    }
}
