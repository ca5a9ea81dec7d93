//! What a run holds on the device, all of it from one arena; or what it would hold.

use crate::backend::plan::PlannedBuffer;
use crate::error::{Context, Error, Result};
use qlora_kernels::cuda::ranges::Peak;
use qlora_kernels::cuda::{Arena, Buffer, Device, Element, Inbox, Outbox, Stream};

pub struct Memory {
    /// None: a plan, which takes and gives back as the run does and computes nothing.
    device: Option<Device>,
    arena: Arena,
}

impl Memory {
    pub fn planning() -> Self {
        Self { device: None, arena: Arena::planned() }
    }

    /// Refused: a GPU without that many free bytes.
    pub fn new(device: Device, bytes: u64) -> Result<Self> {
        let arena = Arena::new(&device, bytes).or_refuse(|| {
            format!("the GPU has no room for the {bytes} bytes that were planned (another process may use it)")
        })?;
        Ok(Self { device: Some(device), arena })
    }

    pub fn device(&self) -> Option<&Device> {
        self.device.as_ref()
    }

    /// What operations are queued on; none while planning.
    pub fn stream(&self) -> Option<Stream> {
        self.device.as_ref().map(Device::stream)
    }

    /// Any bits; `name` is that of the plan's line.
    pub fn take<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        Ok(self.arena.take(name, len)?)
    }

    pub fn zeros<T: Element>(&self, name: &'static str, len: usize) -> Result<Buffer<T>> {
        let mut buffer = self.take(name, len)?;
        if let Some(device) = &self.device {
            device.clear(&mut buffer)?;
        }
        Ok(buffer)
    }

    /// `data` while running: `len` elements.
    pub fn upload<T: Element>(&self, name: &'static str, len: usize, data: Option<&[T]>) -> Result<Buffer<T>> {
        let mut buffer = self.take(name, len)?;
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

    /// Zeros while planning.
    pub fn download<T: Element + Default>(&self, buffer: &Buffer<T>) -> Result<Vec<T>> {
        match &self.device {
            Some(device) => Ok(device.download(buffer)?),
            None => Ok(vec![T::default(); buffer.len()]),
        }
    }

    pub fn inbox<T: Element>(&self, len: usize) -> Result<Option<Inbox<T>>> {
        let inbox = self.device.as_ref().map(|device| Inbox::new(device, len)).transpose();
        inbox.or_fail(|| format!("{len} elements of pinned host memory"))
    }

    pub fn outbox<T: Element>(&self, len: usize) -> Result<Option<Outbox<T>>> {
        let outbox = self.device.as_ref().map(|device| Outbox::new(device, len)).transpose();
        outbox.or_fail(|| format!("{len} elements of pinned host memory"))
    }

    pub fn peak(&self) -> Peak {
        self.arena.peak()
    }

    /// The lines of a plan: what is held when most is, largest first.
    pub fn planned(&self) -> Vec<PlannedBuffer> {
        let peak = self.arena.peak();
        let mut lines: Vec<PlannedBuffer> =
            peak.names.iter().map(|(name, &bytes)| PlannedBuffer { name: (*name).to_owned(), bytes }).collect();
        let between = peak.bytes - peak.names.values().sum::<u64>();
        if between > 0 {
            lines.push(PlannedBuffer { name: "gaps between buffers".to_owned(), bytes: between });
        }
        lines.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        lines
    }
}

/// Puts an array into a buffer through its inbox; nothing while planning.
pub fn send<T: Element>(
    memory: &Memory,
    inbox: &mut Option<Inbox<T>>,
    data: &[T],
    buffer: &mut Buffer<T>,
) -> Result<()> {
    match (memory.device(), inbox) {
        (Some(device), Some(inbox)) => Ok(inbox.send(device, data, buffer)?),
        _ => Ok(()),
    }
}

/// Begins to fetch a buffer; nothing while planning.
pub fn fetch<T: Element>(memory: &Memory, outbox: &mut Option<Outbox<T>>, buffer: &Buffer<T>) -> Result<()> {
    match (memory.device(), outbox) {
        (Some(device), Some(outbox)) => Ok(outbox.fetch(device, buffer)?),
        _ => Ok(()),
    }
}

/// What a process cannot go on after is said to be so.
pub fn failed(error: &qlora_kernels::cuda::CudaError) -> Error {
    let lost = match error.is_lost() {
        true => {
            ". This process cannot use the GPU any more; checkpoints are untouched, and `--resume-from-checkpoint` goes on from the newest"
        }
        false => "",
    };
    Error::Failed(format!("the GPU: {error}{lost}"))
}
