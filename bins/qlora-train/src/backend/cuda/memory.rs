//! Device memory of a run, all of it from one arena, or the record of a dry run.

use super::host_memory::{HostArrays, Size};
use crate::backend::PlannedBuffer;
use crate::error::{Context, Error, Result};
use qlora_kernels::device::{
    Arena, Buffer, Device, Element, HostMemory, MemoryEnd, OffloadSlot, PeakUsage, PinnedBuffer, ReadbackStaging,
    RoundTrip, Stream, UploadStaging, View,
};
use std::ops::Range;
use std::rc::Rc;

/// The plan's line of what is held only while weights are loaded, on the device and in pinned memory.
pub const ON_THE_WAY: &str = "weights on the way";

pub struct DeviceMemory {
    /// None: a dry run, which allocates and frees as the run does and computes nothing. Others may share the device.
    device: Option<Rc<Device>>,
    arena: Arena,
    /// Host memory that copies go through
    on_host: HostArrays,
}

impl DeviceMemory {
    pub fn dry_run() -> Self {
        Self { device: None, arena: Arena::planned(), on_host: HostArrays::default() }
    }

    /// Refused: a GPU without that many free bytes.
    pub fn new(device: Rc<Device>, bytes: u64, graphs: bool) -> Result<Self> {
        let arena = match graphs {
            true => Arena::with_fixed_addresses(&device, bytes),
            false => Arena::new(&device, bytes),
        };
        let arena = arena.usage_context(|| {
            format!("the GPU has no room for the {bytes} bytes that were planned (another process may use it)")
        })?;
        Ok(Self { device: Some(device), arena, on_host: HostArrays::default() })
    }

    pub fn device(&self) -> Option<&Device> {
        self.device.as_deref()
    }

    /// The device of a run.
    pub fn opened(&self) -> Result<Rc<Device>> {
        self.device.clone().ok_or_else(|| Error::Failed("a dry run has no device".to_owned()))
    }

    /// A hash of what is in use, and one of the places that were given since it was last forgotten.
    pub fn state(&self) -> u64 {
        self.arena.state()
    }

    pub fn given(&self) -> u64 {
        self.arena.given()
    }

    pub fn forget_given(&self) {
        self.arena.forget_given();
    }

    /// The stream that operations are queued on.
    ///
    /// # Panics
    ///
    /// In a dry run, which computes nothing.
    pub fn stream(&self) -> Stream {
        self.device.as_ref().expect("a dry run computes nothing").stream()
    }

    /// `len` elements of any bits; `name` is that of the plan's line.
    pub fn alloc<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        self.alloc_at(MemoryEnd::Low, name, len)
    }

    /// `len` elements of any bits from either end; `name` is that of the plan's line.
    pub fn alloc_at<T: Element>(&self, end: MemoryEnd, name: &'static str, len: usize) -> Result<Buffer<T>> {
        Ok(self.arena.alloc_at(end, name, len)?)
    }

    pub fn zeros<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.alloc(name, len)?;
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

    /// `data` while running: `len` elements, from either end.
    pub fn upload_at<T: Element>(
        &self,
        end: MemoryEnd,
        name: &'static str,
        len: usize,
        data: Option<&[T]>,
    ) -> Result<Buffer<T>> {
        let mut buffer = self.alloc_at(end, name, len)?;
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

    /// Limits the bytes of host memory that large arrays are pinned in.
    pub fn pin_at_most(&self, limit: Option<u64>) {
        self.on_host.pin_at_most(limit);
    }

    /// Counts `len` elements of pinned host memory under `name`.
    pub fn count_pinned<T>(&self, name: &str, len: usize) {
        self.on_host.count(name, (len * size_of::<T>()) as u64, HostMemory::Pinned);
    }

    /// The result of `make` with host memory for `len` elements; none in a dry run.
    fn on_host<T, P>(
        &self,
        name: &str,
        len: usize,
        size: Size,
        make: impl Fn(&Device, HostMemory) -> qlora_kernels::Result<P>,
    ) -> Result<Option<P>> {
        let make = self.device().map(|device| move |kind| make(device, kind));
        self.on_host.make(name, (len * size_of::<T>()) as u64, size, make)
    }

    fn upload_staging<T: Element>(&self, len: usize) -> Result<Option<UploadStaging<T>>> {
        let make = |device: &Device, kind| UploadStaging::new_in(device, len, kind);
        self.on_host::<T, _>("batches and rates on their way", len, Size::Small, make)
    }

    pub fn readback<T: Element>(&self, len: usize) -> Result<Option<ReadbackStaging<T>>> {
        let make = |device: &Device, kind| ReadbackStaging::new_in(device, len, kind);
        self.on_host::<T, _>("batches and rates on their way", len, Size::Small, make)
    }

    pub fn offload_slot<T: Element>(&self, name: &'static str, len: usize) -> Result<Option<OffloadSlot<T>>> {
        self.on_host::<T, _>(name, len, Size::Large, |device, kind| OffloadSlot::new_in(device, len, kind))
    }

    pub fn round_trip(&self, name: &'static str, piece: usize) -> Result<Option<RoundTrip>> {
        let make = |device: &Device, kind| RoundTrip::new_in(device, piece, kind);
        self.on_host::<f32, _>(name, RoundTrip::pinned_len(piece), Size::Small, make)
    }

    /// `data` while running: `len` elements that the device reads where they are.
    pub fn pin<T: Element>(
        &self,
        name: &'static str,
        len: usize,
        data: Option<&[T]>,
    ) -> Result<Option<PinnedBuffer<T>>> {
        self.host_buffer(name, len, data, Size::InPlace)
    }

    /// `data` while running: `len` elements that are copied to the device for use.
    pub fn keep_on_host<T: Element>(
        &self,
        name: &'static str,
        len: usize,
        data: Option<&[T]>,
    ) -> Result<Option<PinnedBuffer<T>>> {
        self.host_buffer(name, len, data, Size::Large)
    }

    fn host_buffer<T: Element>(
        &self,
        name: &'static str,
        len: usize,
        data: Option<&[T]>,
        size: Size,
    ) -> Result<Option<PinnedBuffer<T>>> {
        self.on_host::<T, _>(name, len, size, |device, kind| {
            let data = data.expect("a run has what it keeps in host memory");
            assert_eq!(data.len(), len, "{name}");
            PinnedBuffer::new_in(device, data, kind)
        })
    }

    pub fn is_dry_run(&self) -> bool {
        self.device.is_none()
    }

    pub fn peak(&self) -> PeakUsage {
        self.arena.peak()
    }

    /// Lines of the plan, of host memory that copies go through.
    pub fn planned_on_host(&self) -> Vec<PlannedBuffer> {
        self.on_host.lines()
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
            // The old buffer is freed first.
            self.staging = None;
            let more = len - self.len;
            let make = |device: &Device, kind| UploadStaging::new_in(device, len, kind);
            self.staging = memory.on_host::<u8, _>(ON_THE_WAY, more, Size::Small, make)?;
            self.len = len;
        }
        Ok(self.staging.as_mut())
    }
}

/// Begins to fetch a buffer; nothing in a dry run.
pub fn fetch<T: Element>(readback: &mut Option<ReadbackStaging<T>>, buffer: &Buffer<T>) -> Result<()> {
    readback.as_mut().map_or(Ok(()), |readback| Ok(readback.read_back(buffer)?))
}

/// The error for users. It says so where the process cannot use the GPU any more.
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
