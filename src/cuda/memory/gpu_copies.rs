//! Copies between a GPU and pinned host memory, on streams of their own, and the events that order them.

use super::gpu::{CopyStreams, Device, Memory, bytes_of, failed};
use super::{CudaError, Element, Result};
use crate::cuda::transfer;
use cudarc::driver::{CudaContext, result, sys};
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::Arc;

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
    memory: transfer::Pinned,
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
        Ok(Self {
            memory: transfer::Pinned::new(bytes)?,
            len,
            computed,
            copied,
            streams,
            element: std::marker::PhantomData,
        })
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
            result::memcpy_htod_async(memory.address() as sys::CUdeviceptr, self.0.bytes(data.len()), stream)
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
            result::memcpy_dtoh_async(self.mailbox.bytes(len), memory.address() as sys::CUdeviceptr, stream)
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

/// Pinned memory to which one buffer goes and from which it comes back.
pub struct Slot<T: Element>(Mailbox<T>);

impl<T: Element> Slot<T> {
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        Mailbox::new(device, len).map(Self)
    }

    /// Queues the copy to the host, after what computes the memory. It is not to be written or given up before [`settle`](Self::settle).
    pub fn put(&mut self, device: &Device, memory: &Memory<T>) -> Result<()> {
        device.bind()?;
        let (len, stream) = (self.0.len, self.0.streams.from_device);
        self.0.computed.record(null_mut())?;
        self.0.computed.before(stream)?;
        if len > 0 {
            // SAFETY: pinned memory that nothing else uses before `copied`; the caller checked that it has as many elements.
            let queued =
                unsafe { result::memcpy_dtoh_async(self.0.bytes(len), memory.address() as sys::CUdeviceptr, stream) };
            queued.map_err(|error| failed("copy from the device", error))?;
        }
        self.0.copied.record(stream)
    }

    /// Queues the copy back, after what uses the memory until now and after [`put`](Self::put).
    pub fn get(&mut self, device: &Device, memory: &mut Memory<T>) -> Result<()> {
        device.bind()?;
        let (len, stream) = (self.0.len, self.0.streams.to_device);
        self.0.computed.record(null_mut())?;
        self.0.computed.before(stream)?;
        self.0.copied.before(stream)?;
        if len > 0 {
            // SAFETY: pinned memory that is not written before `copied`; the caller checked that the device's has as many elements,
            // and keeps it from other uses until `settle`.
            let queued =
                unsafe { result::memcpy_htod_async(memory.address() as sys::CUdeviceptr, self.0.bytes(len), stream) };
            queued.map_err(|error| failed("copy to the device", error))?;
        }
        self.0.copied.record(stream)
    }

    /// What is queued next follows the last copy.
    pub fn settle(&mut self) -> Result<()> {
        self.0.copied.before(null_mut())
    }
}

/// Pinned host memory that the device reads in place: with unified addresses, which every supported GPU has, at the host's address.
pub struct Pinned<T: Element> {
    memory: transfer::Pinned,
    element: std::marker::PhantomData<T>,
    context: Arc<CudaContext>,
}

impl<T: Element> Drop for Pinned<T> {
    fn drop(&mut self) {
        // What is queued may still read it.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the default stream of the context that was just bound. An error would be that of an earlier call.
            let _ = unsafe { result::stream::synchronize(null_mut()) };
        }
    }
}

impl<T: Element> Pinned<T> {
    pub fn new(device: &Device, data: &[T]) -> Result<Self> {
        device.bind()?;
        let mut memory = transfer::Pinned::new(size_of_val(data))?;
        memory.bytes().copy_from_slice(bytes_of(data));
        Ok(Self { memory, element: std::marker::PhantomData, context: device.context.clone() })
    }

    pub fn address(&self) -> *const T {
        self.memory.address().cast()
    }
}
