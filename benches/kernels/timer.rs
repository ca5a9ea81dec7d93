//! Times device work: events around replays of a CUDA graph, and the bandwidth of a plain copy on the same device in
//! the same run, against which memory-bound kernels are judged.

#![allow(unsafe_code)]

use cudarc::driver::{CudaContext, result, sys};
use lab::operation::sets;
use qlora_kernels::device::{Buffer, Device, DeviceInfo, Stream, context};
use qlora_kernels::{CudaError, Result};
use std::sync::Arc;

/// A stream and two events on the first GPU.
pub struct Timer {
    context: Arc<CudaContext>,
    stream: sys::CUstream,
    start: sys::CUevent,
    end: sys::CUevent,
    facts: DeviceInfo,
}

/// Launches that were recorded once and can be replayed.
pub struct Graph<'a> {
    timer: &'a Timer,
    executable: sys::CUgraphExec,
    launches: usize,
}

fn failed(what: &'static str) -> impl Fn(result::DriverError) -> CudaError {
    move |error| CudaError::Device(format!("{what}: {error:?}"))
}

impl Timer {
    /// An error, not a panic, where there is no driver or no GPU.
    pub fn new() -> Result<Self> {
        Self::at(0)
    }

    /// A timer on the GPU of this number.
    pub fn at(ordinal: usize) -> Result<Self> {
        let context = context(ordinal)?;
        context.bind_to_thread().map_err(failed("the context cannot be bound"))?;
        let facts = Device::open_at(ordinal)?.info()?;
        let event = || {
            result::event::create(sys::CUevent_flags_enum::CU_EVENT_DEFAULT).map_err(failed("an event cannot be made"))
        };
        let (start, end) = (event()?, event()?);
        // Not the default stream, which cannot be recorded into a graph.
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("a stream cannot be made"))?;
        Ok(Self { context, stream, start, end, facts })
    }

    pub fn facts(&self) -> &DeviceInfo {
        &self.facts
    }

    /// The stream that is timed.
    pub fn stream(&self) -> Stream {
        // SAFETY: a stream of the primary context, which is current since `new`; every user of it borrows this timer.
        unsafe { Stream::from_raw(self.stream.cast()) }
    }

    /// Sets of buffers, of `bytes` each, that take three times the L2 together: then no launch finds its operands in
    /// the cache.
    pub fn sets(&self, bytes: usize) -> usize {
        sets(self.facts.l2_bytes, bytes)
    }

    /// Waits for everything queued, on all streams.
    pub fn synchronize(&self) -> Result<()> {
        self.context.synchronize().map_err(failed("waiting for the device"))
    }

    /// Records `launch(0)`, …, `launch(launches - 1)` into a graph. Each is run once before, so that nothing is loaded
    /// while recording.
    pub fn record(&self, launches: usize, mut launch: impl FnMut(usize, Stream) -> Result<()>) -> Result<Graph<'_>> {
        self.synchronize()?;
        (0..launches).try_for_each(|i| launch(i, self.stream()))?;
        self.synchronize()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: this timer's stream, on which nothing is queued.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("recording cannot begin"))?;
        let queued = (0..launches).try_for_each(|i| launch(i, self.stream()));
        // SAFETY: ends what was begun above, also after an error.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        queued?;
        let graph = graph.map_err(failed("the launches cannot be recorded"))?;
        let flags = sys::CUgraphInstantiate_flags_enum::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
        // SAFETY: the graph was just recorded; it is destroyed once, whatever came of it.
        let executable = unsafe {
            let executable = result::graph::instantiate(graph, flags);
            let _ = result::graph::destroy(graph);
            executable
        };
        let executable = executable.map_err(failed("the graph cannot be instantiated"))?;
        Ok(Graph { timer: self, executable, launches })
    }

    /// Seconds of the work that `queue` puts on the stream, by events around it.
    pub fn seconds(&self, queue: impl FnOnce(Stream) -> Result<()>) -> Result<f64> {
        let record = |event| {
            // SAFETY: this timer's event and stream.
            unsafe { result::event::record(event, self.stream) }.map_err(failed("an event cannot be recorded"))
        };
        record(self.start)?;
        queue(self.stream())?;
        record(self.end)?;
        // SAFETY: both events were recorded; waiting comes first.
        let milliseconds = unsafe {
            result::event::synchronize(self.end).map_err(failed("the timed work"))?;
            result::event::elapsed(self.start, self.end).map_err(failed("the time between two events"))?
        };
        Ok(f64::from(milliseconds) / 1e3)
    }

    /// Bytes a second, read and written counted, of a copy from device memory to device memory: the median of 11.
    pub fn copy_bandwidth(&self, device: &Device) -> Result<f64> {
        let bytes = (3 * self.facts.l2_bytes).max(512 << 20);
        let data = vec![0x5au8; bytes];
        let (from, mut to): (Buffer<u8>, Buffer<u8>) = (device.upload(&data)?, device.upload(&data)?);
        drop(data);
        self.synchronize()?;
        let mut copy = || {
            let (from, to) = (from.view().address() as sys::CUdeviceptr, to.view_mut().address() as sys::CUdeviceptr);
            self.seconds(|_| {
                // SAFETY: both have `bytes` bytes and live until the copy is done, which `seconds` waits for.
                unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }.map_err(failed("a copy"))
            })
        };
        copy()?;
        let mut seconds = (0..11).map(|_| copy()).collect::<Result<Vec<f64>>>()?;
        seconds.sort_by(f64::total_cmp);
        Ok(2.0 * bytes as f64 / seconds[seconds.len() / 2])
    }
}

impl Graph<'_> {
    /// Seconds of one launch of the graph's, over `replays` of all of them.
    pub fn seconds_per_launch(&self, replays: usize) -> Result<f64> {
        let seconds = self.timer.seconds(|_| {
            (0..replays).try_for_each(|_| {
                // SAFETY: the executable graph lives, and so does the stream that the timer lends.
                unsafe { result::graph::launch(self.executable, self.timer.stream) }.map_err(failed("a replay"))
            })
        })?;
        Ok(seconds / (replays * self.launches).max(1) as f64)
    }

    pub fn launches(&self) -> usize {
        self.launches
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        // SAFETY: instantiated in `record`, destroyed once, after what runs of it. An error here has no one to go to.
        let _ = unsafe { (self.timer.synchronize(), result::graph::exec_destroy(self.executable)) };
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once, after what they are in use for. An error here has no one to go to.
        let _ = unsafe {
            (
                self.synchronize(),
                result::event::destroy(self.start),
                result::event::destroy(self.end),
                result::stream::destroy(self.stream),
            )
        };
    }
}
