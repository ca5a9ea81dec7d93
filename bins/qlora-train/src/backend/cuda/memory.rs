//! Device memory of a run, all of it from one arena, or the record of a dry run.

use crate::backend::PlannedBuffer;
use crate::error::{Context, Error, Result};
use qlora_kernels::device::{
    Arena, Buffer, Device, Element, MemoryEnd, OffloadSlot, PeakUsage, PinnedBuffer, ReadbackStaging, RoundTrip,
    Stream, UploadStaging, View,
};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The plan's line of what is held only while weights are loaded, on the device and in pinned memory.
pub const ON_THE_WAY: &str = "weights on the way";

pub struct DeviceMemory {
    /// None: a dry run, which takes and gives back as the run does and computes nothing.
    /// Shared with whoever opened it.
    device: Option<Rc<Device>>,
    arena: Arena,
    /// Pinned host memory, by name
    pinned: RefCell<Vec<PlannedBuffer>>,
}

impl DeviceMemory {
    pub fn dry_run() -> Self {
        Self { device: None, arena: Arena::planned(), pinned: RefCell::default() }
    }

    /// Refused: a GPU without that many free bytes.
    pub fn new(device: Rc<Device>, bytes: u64) -> Result<Self> {
        let arena = Arena::new(&device, bytes).usage_context(|| {
            format!("the GPU has no room for the {bytes} bytes that were planned (another process may use it)")
        })?;
        Ok(Self { device: Some(device), arena, pinned: RefCell::default() })
    }

    pub fn device(&self) -> Option<&Device> {
        self.device.as_deref()
    }

    /// What operations are queued on.
    ///
    /// # Panics
    ///
    /// In a dry run, which computes nothing.
    pub fn stream(&self) -> Stream {
        self.device.as_ref().expect("a dry run computes nothing").stream()
    }

    /// Any bits; `name` is that of the plan's line.
    pub fn take<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        self.take_at(MemoryEnd::Low, name, len)
    }

    /// Like [`take`](Self::take), from either end.
    pub fn take_at<T: Element>(&self, end: MemoryEnd, name: &'static str, len: usize) -> Result<Buffer<T>> {
        Ok(self.arena.alloc_at(end, name, len)?)
    }

    pub fn zeros<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.take(name, len)?;
        self.clear(&mut buffer)?;
        Ok(buffer)
    }

    /// Overwrites all elements with zero bits.
    pub fn clear<T: Element>(&self, buffer: &mut Buffer<T>) -> Result<()> {
        match &self.device {
            Some(device) => Ok(device.clear(buffer)?),
            None => Ok(()),
        }
    }

    /// `data` while running: `len` elements.
    pub fn upload<T: Element>(&self, name: &'static str, len: usize, data: Option<&[T]>) -> Result<Buffer<T>> {
        self.upload_at(MemoryEnd::Low, name, len, data)
    }

    /// Like [`upload`](Self::upload), from either end.
    pub fn upload_at<T: Element>(
        &self,
        end: MemoryEnd,
        name: &'static str,
        len: usize,
        data: Option<&[T]>,
    ) -> Result<Buffer<T>> {
        let mut buffer = self.take_at(end, name, len)?;
        if let Some(device) = &self.device {
            let data = data.expect("a run has what it uploads");
            assert_eq!(data.len(), len, "{name}");
            device.write(&mut buffer, data)?;
        }
        Ok(buffer)
    }

    pub fn write<T: Element>(&self, buffer: &mut Buffer<T>, data: &[T]) -> Result<()> {
        match &self.device {
            Some(device) => Ok(device.write(buffer, data)?),
            None => Ok(()),
        }
    }

    /// Zeros in a dry run.
    pub fn download<T: Element + Default>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        match &self.device {
            Some(device) => Ok(device.download(buffer)?),
            None => Ok(vec![T::default(); buffer.len()]),
        }
    }

    /// Counts `len` elements of pinned host memory under `name`.
    pub fn count_pinned<T>(&self, name: &str, len: usize) {
        let (bytes, mut pinned) = ((len * size_of::<T>()) as u64, self.pinned.borrow_mut());
        match pinned.iter_mut().find(|line| line.name == name) {
            Some(line) => line.bytes += bytes,
            None => pinned.push(PlannedBuffer { name: name.to_owned(), bytes }),
        }
    }

    /// What `make` makes of pinned host memory for `len` elements; nothing in a dry run.
    fn pinned<T, P>(
        &self,
        name: &str,
        len: usize,
        make: impl FnOnce(&Device) -> qlora_kernels::Result<P>,
    ) -> Result<Option<P>> {
        self.count_pinned::<T>(name, len);
        self.device().map(make).transpose().context(|| {
            format!("{} bytes of pinned host memory for {name} (`ulimit -l` may limit it)", len * size_of::<T>())
        })
    }

    fn upload_staging<T: Element>(&self, len: usize) -> Result<Option<UploadStaging<T>>> {
        self.pinned::<T, _>("batches and rates on their way", len, |device| UploadStaging::new(device, len))
    }

    pub fn readback<T: Element>(&self, len: usize) -> Result<Option<ReadbackStaging<T>>> {
        self.pinned::<T, _>("batches and rates on their way", len, |device| ReadbackStaging::new(device, len))
    }

    pub fn offload_slot<T: Element>(&self, name: &'static str, len: usize) -> Result<Option<OffloadSlot<T>>> {
        self.pinned::<T, _>(name, len, |device| OffloadSlot::new(device, len))
    }

    pub fn round_trip(&self, name: &'static str, piece: usize) -> Result<Option<RoundTrip>> {
        self.pinned::<f32, _>(name, RoundTrip::pinned_len(piece), |device| RoundTrip::new(device, piece))
    }

    /// `data` while running: `len` elements that the device reads where they are.
    pub fn pin<T: Element>(
        &self,
        name: &'static str,
        len: usize,
        data: Option<&[T]>,
    ) -> Result<Option<PinnedBuffer<T>>> {
        self.pinned::<T, _>(name, len, |device| {
            let data = data.expect("a run has what it pins");
            assert_eq!(data.len(), len, "{name}");
            PinnedBuffer::new(device, data)
        })
    }

    pub fn is_dry_run(&self) -> bool {
        self.device.is_none()
    }

    pub fn peak(&self) -> PeakUsage {
        self.arena.peak()
    }

    /// Lines of the plan, of pinned host memory.
    pub fn planned_on_host(&self) -> Vec<PlannedBuffer> {
        PlannedBuffer::lines(self.pinned.borrow().iter().map(|line| (line.name.as_str(), line.bytes)))
    }
}

/// A buffer that gets new values again and again, and the pinned memory they come through; none in a dry run.
pub struct StagedBuffer<T: Element> {
    buffer: Buffer<T>,
    upload_staging: Option<UploadStaging<T>>,
}

impl<T: Element> StagedBuffer<T> {
    pub fn new(memory: &DeviceMemory, name: &'static str, len: usize) -> Result<Self> {
        Ok(Self { buffer: memory.zeros(name, len)?, upload_staging: memory.upload_staging(len)? })
    }

    /// The first values, at most as many as there is room for.
    pub fn set(&mut self, values: &[T]) -> Result<()> {
        self.upload_staging
            .as_mut()
            .map_or(Ok(()), |upload_staging| Ok(upload_staging.upload(values, &mut self.buffer)?))
    }

    pub fn view(&self) -> View<'_, T> {
        self.buffer.view()
    }

    pub fn rows(&self, rows: &Range<usize>) -> View<'_, T> {
        self.view().skip(rows.start).first(rows.len())
    }
}

/// Pinned memory that weights go through in pieces, while they are loaded.
#[derive(Default)]
pub struct PieceStaging {
    /// Bytes
    len: usize,
    staging: Option<UploadStaging<u8>>,
}

impl PieceStaging {
    /// With room for pieces of `len` bytes; none in a dry run.
    pub fn reserve(&mut self, memory: &DeviceMemory, len: usize) -> Result<Option<&mut UploadStaging<u8>>> {
        if len > self.len {
            // What there is goes first.
            self.staging = None;
            let more = len - self.len;
            self.staging = memory.pinned::<u8, _>(ON_THE_WAY, more, |device| UploadStaging::new(device, len))?;
            self.len = len;
        }
        Ok(self.staging.as_mut())
    }
}

/// Begins to fetch a buffer; nothing in a dry run.
pub fn fetch<T: Element>(readback: &mut Option<ReadbackStaging<T>>, buffer: &Buffer<T>) -> Result<()> {
    readback.as_mut().map_or(Ok(()), |readback| Ok(readback.read_back(buffer)?))
}

/// What a process cannot go on after is said to be so.
pub fn failed(error: &qlora_kernels::CudaError) -> Error {
    let lost = match error.is_lost() {
        true => {
            ". This process cannot use the GPU any more; a training run goes on from its newest checkpoint with \
             `--resume-from-checkpoint`"
        }
        false => "",
    };
    Error::Failed(format!("the GPU: {error}{lost}"))
}
