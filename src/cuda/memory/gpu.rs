//! A GPU's memory, its streams and events.

use super::{Capacity, CudaError, Element, Result, Stream};
use crate::cuda::transfer::Pinned;
use cudarc::driver::{CudaContext, result, sys};
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::Arc;

/// A GPU and its default stream, on which calls are in order.
pub struct Device {
    context: Arc<CudaContext>,
    copies: Rc<CopyStreams>,
}

/// Two streams that wait for no other by themselves, and nor does the default stream for them.
struct CopyStreams {
    context: Arc<CudaContext>,
    to_device: sys::CUstream,
    from_device: sys::CUstream,
}

/// Memory of its own, or a part of an arena's.
pub struct Memory<T: Element> {
    address: *mut T,
    owner: Owner,
}

enum Owner {
    Itself(Arc<CudaContext>),
    Arena { _allocation: Arc<Allocation> },
}

/// An arena's memory.
pub struct Block(Arc<Allocation>);

struct Allocation {
    context: Arc<CudaContext>,
    address: sys::CUdeviceptr,
    bytes: u64,
}

fn failed(what: &str, error: result::DriverError) -> CudaError {
    CudaError::driver(what, error.0 as i32, format!("{error:?}"))
}

fn allocate(bytes: usize) -> Result<sys::CUdeviceptr> {
    // SAFETY: the caller bound the context; at least one byte is asked for.
    unsafe { result::malloc_sync(bytes.max(1)) }
        .map_err(|error| failed(&format!("{bytes} bytes of device memory"), error))
}

/// An error here would repeat one that a call has returned.
fn free(context: &Arc<CudaContext>, address: sys::CUdeviceptr) {
    if context.bind_to_thread().is_ok() {
        // SAFETY: allocated by `allocate`, freed once; waits for the work that uses it.
        let _ = unsafe { result::free_sync(address) };
    }
}

impl Device {
    pub fn open(ordinal: usize) -> Result<Self> {
        let context = crate::cuda::typed::context(ordinal)?;
        context.bind_to_thread().map_err(|error| failed("the context cannot be bound", error))?;
        let stream = || {
            result::stream::create(result::stream::StreamKind::NonBlocking)
                .map_err(|error| failed("a stream cannot be made", error))
        };
        let copies = CopyStreams { to_device: stream()?, from_device: stream()?, context: context.clone() };
        Ok(Self { context, copies: Rc::new(copies) })
    }

    pub fn name(&self) -> String {
        self.context.name().unwrap_or_else(|error| format!("a GPU without a name ({error:?})"))
    }

    /// Made that of this device: the default stream is one of whichever context is current.
    pub fn stream(&self) -> Stream {
        // An error here is that of the call that follows.
        let _ = self.bind();
        Stream::DEFAULT
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(|error| failed("the context cannot be bound", error))
    }

    pub fn capacity(&self) -> Result<Capacity> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|error| failed("the device's memory", error))?;
        Ok(Capacity { free: free as u64, total: total as u64 })
    }

    pub fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the default stream of the context that was just bound.
        unsafe { result::stream::synchronize(null_mut()) }.map_err(|error| failed("waiting for the device", error))
    }

    /// Any bits.
    pub fn room<T: Element>(&self, len: usize) -> Result<Memory<T>> {
        self.bind()?;
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| CudaError::Device(format!("a buffer of {len} elements is too large")))?;
        Ok(Memory { address: allocate(bytes)? as *mut T, owner: Owner::Itself(self.context.clone()) })
    }

    pub fn block(&self, bytes: u64) -> Result<Block> {
        self.bind()?;
        let len = usize::try_from(bytes).map_err(|_| CudaError::Device(format!("{bytes} bytes are too many")))?;
        Ok(Block(Arc::new(Allocation { address: allocate(len)?, context: self.context.clone(), bytes })))
    }

    pub fn write<T: Element>(&self, memory: &mut Memory<T>, data: &[T]) -> Result<()> {
        self.bind()?;
        if data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller checked that there are as many elements; the copy is in the order of the default stream.
        unsafe { result::memcpy_htod_sync(memory.address as sys::CUdeviceptr, bytes_of(data)) }
            .map_err(|error| failed("copy to the device", error))
    }

    pub fn clear<T: Element>(&self, memory: &mut Memory<T>, len: usize) -> Result<()> {
        self.bind()?;
        if len == 0 {
            return Ok(());
        }
        let bytes = len * size_of::<T>();
        // SAFETY: the memory's own bytes; zero bits are an `Element`. In the order of the default stream.
        unsafe { result::memset_d8_async(memory.address as sys::CUdeviceptr, 0, bytes, null_mut()) }
            .map_err(|error| failed("clearing device memory", error))
    }

    pub fn download<T: Element>(&self, memory: &Memory<T>, len: usize) -> Result<Vec<T>> {
        self.bind()?;
        let mut data: Vec<T> = Vec::with_capacity(len);
        if len > 0 {
            let bytes = len * size_of::<T>();
            // SAFETY: the vector has room for these bytes; any bits are an `Element`. The copy is in the order of the default
            // stream and ends before it returns.
            unsafe {
                let room = std::slice::from_raw_parts_mut(data.as_mut_ptr().cast::<u8>(), bytes);
                result::memcpy_dtoh_sync(room, memory.address as sys::CUdeviceptr)
                    .map_err(|error| failed("copy from the device", error))?;
                data.set_len(len);
            }
        }
        Ok(data)
    }
}

fn bytes_of<T: Element>(data: &[T]) -> &[u8] {
    // SAFETY: the bytes of `data` are initialised (`Element` has no padding).
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast::<u8>(), size_of_val(data)) }
}

impl Block {
    pub fn part<T: Element>(&self, offset: u64, len: usize) -> Result<Memory<T>> {
        assert!(offset + (len * size_of::<T>()) as u64 <= self.0.bytes, "an arena's part lies within it");
        let address = (self.0.address + offset) as *mut T;
        Ok(Memory { address, owner: Owner::Arena { _allocation: self.0.clone() } })
    }
}

impl<T: Element> Memory<T> {
    pub fn address(&self) -> *mut T {
        self.address
    }
}

impl<T: Element> Drop for Memory<T> {
    fn drop(&mut self) {
        if let Owner::Itself(context) = &self.owner {
            free(context, self.address as sys::CUdeviceptr);
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        free(&self.context, self.address);
    }
}

impl Drop for CopyStreams {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `open`, destroyed once; what is queued on them still runs. An error here has no one to go to.
            let _ = unsafe { (result::stream::destroy(self.to_device), result::stream::destroy(self.from_device)) };
        }
    }
}

/// An event of a context.
struct Event {
    context: Arc<CudaContext>,
    event: sys::CUevent,
}

impl Event {
    fn new(device: &Device, flags: sys::CUevent_flags_enum) -> Result<Self> {
        device.bind()?;
        let event = result::event::create(flags).map_err(|error| failed("an event cannot be made", error))?;
        Ok(Self { context: device.context.clone(), event })
    }

    /// Without times, which cost something.
    fn order(device: &Device) -> Result<Self> {
        Self::new(device, sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
    }

    fn record(&self, stream: sys::CUstream) -> Result<()> {
        // SAFETY: this event and a stream of its context.
        unsafe { result::event::record(self.event, stream) }
            .map_err(|error| failed("an event cannot be recorded", error))
    }

    /// What is queued on `stream` from now on comes after what was queued before the event.
    fn before(&self, stream: sys::CUstream) -> Result<()> {
        let flags = sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: this event and a stream of its context.
        unsafe { result::stream::wait_event(stream, self.event, flags) }
            .map_err(|error| failed("a stream cannot wait for another", error))
    }

    fn wait(&self) -> Result<()> {
        // SAFETY: this event; one that was never recorded is complete.
        unsafe { result::event::synchronize(self.event) }.map_err(|error| failed("the work on the GPU", error))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made in `new`, destroyed once. An error here has no one to go to.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

/// Pinned memory that a copy on another stream reads or writes.
struct Mailbox<T: Element> {
    memory: Pinned,
    len: usize,
    /// That what was queued on the default stream is done.
    computed: Event,
    /// That the last copy is done.
    copied: Event,
    streams: Rc<CopyStreams>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Mailbox<T> {
    fn new(device: &Device, len: usize) -> Result<Self> {
        device.bind()?;
        let bytes = len.checked_mul(size_of::<T>());
        let bytes = bytes.ok_or_else(|| CudaError::Device(format!("{len} elements of pinned memory are too many")))?;
        let (computed, copied) = (Event::order(device)?, Event::order(device)?);
        let streams = device.copies.clone();
        Ok(Self { memory: Pinned::new(bytes)?, len, computed, copied, streams, element: std::marker::PhantomData })
    }

    /// The first `len` elements, as bytes. Only while no copy is under way.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        &mut self.memory.bytes()[..len * size_of::<T>()]
    }
}

impl<T: Element> Drop for Mailbox<T> {
    fn drop(&mut self) {
        // The copy uses memory that is freed next.
        let _ = self.copied.wait();
    }
}

pub struct Inbox<T: Element>(Mailbox<T>);

impl<T: Element> Inbox<T> {
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        Mailbox::new(device, len).map(Self)
    }

    pub fn len(&self) -> usize {
        self.0.len
    }

    pub fn send(&mut self, device: &Device, data: &[T], memory: &mut Memory<T>) -> Result<()> {
        device.bind()?;
        if data.is_empty() {
            return Ok(());
        }
        let stream = self.0.streams.to_device;
        self.0.copied.wait()?;
        let bytes = self.0.bytes(data.len());
        bytes.copy_from_slice(bytes_of(data));
        // SAFETY: pinned memory that is neither written nor freed before `copied`; the caller checked that the device's has as many
        // elements, which no call on the default stream touches meanwhile.
        let queued = unsafe {
            self.0.computed.record(null_mut())?;
            self.0.computed.before(stream)?;
            result::memcpy_htod_async(memory.address as sys::CUdeviceptr, self.0.bytes(data.len()), stream)
        };
        queued.map_err(|error| failed("copy to the device", error))?;
        self.0.copied.record(stream)?;
        self.0.copied.before(null_mut())
    }
}

pub struct Outbox<T: Element> {
    mailbox: Mailbox<T>,
    fetched: usize,
}

impl<T: Element> Outbox<T> {
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        Ok(Self { mailbox: Mailbox::new(device, len)?, fetched: 0 })
    }

    pub fn len(&self) -> usize {
        self.mailbox.len
    }

    pub fn fetch(&mut self, device: &Device, memory: &Memory<T>, len: usize) -> Result<()> {
        device.bind()?;
        let stream = self.mailbox.streams.from_device;
        self.mailbox.copied.wait()?;
        self.fetched = len;
        if len == 0 {
            return Ok(());
        }
        self.mailbox.computed.record(null_mut())?;
        self.mailbox.computed.before(stream)?;
        // SAFETY: pinned memory that is neither read nor freed before `copied`; the caller checked that it has as many elements.
        unsafe {
            result::memcpy_dtoh_async(self.mailbox.bytes(len), memory.address as sys::CUdeviceptr, stream)
                .map_err(|error| failed("copy from the device", error))?;
        }
        self.mailbox.copied.record(stream)?;
        // Whoever gets the buffer's memory next, or writes to it, does so after the copy.
        self.mailbox.copied.before(null_mut())
    }

    pub fn read(&mut self) -> Result<&[T]> {
        self.mailbox.copied.wait()?;
        let bytes = self.mailbox.bytes(self.fetched);
        // SAFETY: pinned memory is aligned to a page and any bits are an `Element`; the copy into it is done.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast::<T>(), self.fetched) })
    }
}

pub struct Marks {
    device: Device,
    events: Vec<Event>,
    used: usize,
}

impl Marks {
    pub fn new(device: &Device) -> Result<Self> {
        let device = Device { context: device.context.clone(), copies: device.copies.clone() };
        Ok(Self { device, events: Vec::new(), used: 0 })
    }

    pub fn add(&mut self) -> Result<()> {
        self.device.bind()?;
        if self.used == self.events.len() {
            self.events.push(Event::new(&self.device, sys::CUevent_flags_enum::CU_EVENT_DEFAULT)?);
        }
        self.events[self.used].record(null_mut())?;
        self.used += 1;
        Ok(())
    }

    pub fn seconds(&mut self) -> Result<Vec<f64>> {
        self.device.bind()?;
        let events = &self.events[..std::mem::take(&mut self.used)];
        if let Some(last) = events.last() {
            last.wait()?;
        }
        let between = |pair: &[Event]| {
            // SAFETY: both were recorded on the default stream, and the later one is complete.
            let milliseconds = unsafe { result::event::elapsed(pair[0].event, pair[1].event) };
            milliseconds.map(|ms| f64::from(ms) / 1e3).map_err(|error| failed("the time between two events", error))
        };
        events.windows(2).map(between).collect()
    }
}
