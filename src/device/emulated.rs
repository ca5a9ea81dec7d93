//! The emulation's driver: device memory is the host's, and a launch is over when it returns.
//!
//! Every second copy beside the kernels is made at once and the others only when something waits for them, as a GPU may
//! do it: memory that is used or freed meanwhile shows. A device that is late does so with all that is on its stream as
//! well ([`emulation::run_late`]): what is read, written or freed without waiting for the stream shows then. It models
//! streams that do not wait for the default one: a copy that is none of theirs comes before what they have.

use super::capture::Step;
use super::driver::{DeviceInfo, Driver, MemInfo, Queue};
use super::emulation;
use super::queues::{Mark, Queues};
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
/// Bytes of that memory that other processes have.
const TAKEN: &str = "QLORA_EMULATION_TAKEN";
/// Bytes that the emulated GPU pins at most of what it allocates itself.
const PINNED: &str = "QLORA_EMULATION_PINNED";
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
    /// Bytes that are pinned, and that may be
    pinned: Cell<u64>,
    pinned_limit: u64,
}

pub struct Event {
    recorded: Option<Mark>,
    at: Instant,
}

/// The range of an arena whose parts have fixed addresses; otherwise parts have memory of their own.
pub struct Slab {
    fixed: Option<(*mut u8, usize)>,
    queues: Rc<Queues>,
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Some((address, bytes)) = self.fixed {
            drain(&self.queues);
            // SAFETY: allocated in `slab`, freed once, and work that uses it is over.
            unsafe { release(address, bytes) }
        }
    }
}

/// Does the work of the kernels' queue, and what that waits for: what is left frees memory, or uses what is freed next.
/// An error would be that of an earlier call.
fn drain(queues: &Queues) {
    while queues.reach(queues.end(Queue::Compute)).is_err() {}
}

impl Emulated {
    fn new(is_late: bool, pinned_limit: u64) -> Self {
        let (copies, pinned) = (Cell::new(0), Cell::new(0));
        Self { queues: Queues::with_streams(), is_late, copies, pinned, pinned_limit }
    }

    /// Work in the order of the kernels, which is done at once unless the device is late or records it.
    fn compute(&self, work: impl Fn() + 'static) -> Result<()> {
        let done = move || -> Result<()> {
            work();
            Ok(())
        };
        self.queues.put_or_record(Queue::Compute, Rc::new(done));
        self.go_on()
    }

    /// Does the queued work at once, unless the device is late or records it.
    fn go_on(&self) -> Result<()> {
        if self.is_late || self.queues.is_recorded() { Ok(()) } else { self.synchronize() }
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        drain(&self.queues);
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

/// The bytes that a variable names.
fn bytes_of(variable: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(variable) else { return Ok(None) };
    let bytes = text.parse::<u64>().map_err(|_| CudaError::Device(format!("{variable}: {text:?}, expected bytes")))?;
    Ok(Some(bytes))
}

/// Exactly as long as was asked for, so that AddressSanitizer sees the first byte past the end.
fn layout(bytes: usize) -> Result<Layout> {
    Layout::from_size_align(bytes.max(1), 256)
        .map_err(|_| CudaError::Device(format!("{bytes} bytes of device memory are too many")))
}

impl Driver for Emulated {
    type Event = Event;
    /// A part is memory of its own.
    type Slab = Slab;
    type Graph = Vec<Step>;

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
        let pinned_limit = bytes_of(PINNED)?.unwrap_or_else(emulation::pinned_limit);
        match ordinal {
            0 => Ok(Self::new(is_late, pinned_limit)),
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
        let total = bytes_of(MEMORY)?.unwrap_or(MEMORY_BYTES);
        Ok(MemInfo { free: total.saturating_sub(bytes_of(TAKEN)?.unwrap_or(0)), total })
    }

    fn bind(&self) -> Result<()> {
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        self.queues.refuse_recorded("the host waits for it")?;
        self.queues.reach(self.queues.end(Queue::Compute))
    }

    fn alloc(&self, bytes: usize) -> Result<*mut u8> {
        self.queues.refuse_recorded("memory is allocated")?;
        let layout = layout(bytes)?;
        // SAFETY: the layout is of at least one byte.
        let address = unsafe { alloc_zeroed(layout) };
        if address.is_null() {
            handle_alloc_error(layout);
        }
        Ok(address)
    }

    unsafe fn free(&self, address: *mut u8, bytes: usize) {
        let _ = self.queues.refuse_recorded("memory is freed");
        drain(&self.queues);
        // SAFETY: the caller's promise.
        unsafe { release(address, bytes) }
    }

    fn slab(&self, bytes: u64, fixed: bool) -> Result<Slab> {
        let free = self.mem_info()?.free;
        if bytes > free {
            return Err(CudaError::Device(format!("{bytes} bytes of device memory: the emulation has {free}")));
        }
        let bytes = usize::try_from(bytes).map_err(|_| CudaError::Device(format!("{bytes} bytes are too many")))?;
        let fixed = if fixed { Some((self.alloc(bytes)?, bytes)) } else { None };
        Ok(Slab { fixed, queues: self.queues.clone() })
    }

    /// A value that is read before it is written must not go unnoticed: every byte of memory of its own is 0xff, which
    /// makes floating-point numbers NaN.
    fn part(&self, slab: &Slab, offset: u64, bytes: usize) -> Result<*mut u8> {
        if let Some((address, all)) = slab.fixed {
            assert!(offset + bytes as u64 <= all as u64, "an arena's part lies within it");
            return Ok(address.wrapping_add(offset as usize));
        }
        let address = self.alloc(bytes)?;
        // SAFETY: as many bytes as were just allocated.
        unsafe { std::ptr::write_bytes(address, 0xff, bytes) };
        Ok(address)
    }

    unsafe fn free_part(&self, slab: &Slab, address: *mut u8, bytes: usize) {
        if slab.fixed.is_some() {
            return;
        }
        // Once, recorded or not: a graph that uses it is launched without it.
        self.queues.put(Queue::Compute, move || {
            // SAFETY: `part` had it from `alloc`.
            unsafe { release(address, bytes) };
            Ok(())
        });
        let _ = self.go_on();
    }

    fn alloc_pinned(&self, bytes: usize) -> Result<*mut u8> {
        let pinned = self.pinned.get() + bytes as u64;
        if pinned > self.pinned_limit {
            return Err(CudaError::Device(format!("{bytes} bytes of pinned host memory: the emulation pins no more")));
        }
        let address = self.alloc(bytes)?;
        self.pinned.set(pinned);
        Ok(address)
    }

    unsafe fn free_pinned(&self, address: *mut u8, bytes: usize) {
        self.pinned.set(self.pinned.get() - bytes as u64);
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
        if self.is_late || self.queues.is_recorded() { self.queues.stream(queue) } else { null_mut() }
    }

    fn event(&self, _timed: bool) -> Result<Event> {
        Ok(Event { recorded: None, at: Instant::now() })
    }

    fn record(&self, event: &mut Event, queue: Queue) -> Result<()> {
        *event = Event { recorded: Some(self.queues.mark(queue)), at: Instant::now() };
        Ok(())
    }

    fn queue_waits(&self, queue: Queue, event: &Event) -> Result<()> {
        let Some(mark) = event.recorded else { return Ok(()) };
        self.queues.wait_for(queue, mark)?;
        if queue == Queue::Compute { self.go_on() } else { Ok(()) }
    }

    fn is_done(&self, event: &Event) -> Result<bool> {
        let Some(mark) = event.recorded else { return Ok(true) };
        let point = self.queues.point(mark)?;
        let is_done = self.queues.is_reached(point);
        if self.is_late {
            // It goes on while the host does something else.
            self.queues.reach(point)?;
        }
        Ok(is_done)
    }

    fn host_waits(&self, event: &Event) -> Result<()> {
        event.recorded.map_or(Ok(()), |mark| self.queues.reach(self.queues.point(mark)?))
    }

    fn elapsed(&self, start: &Event, end: &Event) -> Result<f64> {
        Ok((end.at - start.at).as_secs_f64())
    }

    fn begin_capture(&self) -> Result<()> {
        self.queues.begin_capture()
    }

    fn end_capture(&self) -> Result<(Vec<Step>, usize)> {
        let steps = self.queues.end_capture()?;
        let nodes = steps.iter().filter(|step| matches!(step, Step::Do(..))).count();
        Ok((steps, nodes))
    }

    unsafe fn launch(&self, graph: &Vec<Step>) -> Result<()> {
        self.queues.launch(graph)?;
        self.go_on()
    }
}
