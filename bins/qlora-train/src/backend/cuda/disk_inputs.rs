//! Layers' inputs on disk, from the forward pass to the backward pass.
//!
//! An input goes through a slot of host memory, from which it is copied for the thread that writes it: the slot is free
//! while the disk is at work, and the next layer computes. In the backward pass the thread reads the input of the layer
//! below while that of the layer above is copied to the device.

use super::memory::DeviceMemory;
use super::slot::Slot;
use crate::backend::INPUTS_OF_THREAD;
use crate::backend::input_file::{InputFile, Values};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::Buffer;

/// The plan's line.
const NAME: &str = "layers' inputs on their way to disk";

/// Slots that take turns: one is copied while the other is written, or read.
const SLOTS: usize = 2;

impl Values for Vec<bf16> {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(self)
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(self)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Job {
    Write,
    /// From this place
    Read(u64),
}

pub struct DiskInputs {
    pub file: InputFile<Vec<bf16>>,
    is_dry_run: bool,
    /// None, until the first input comes
    slots: Vec<Slot>,
    turn: usize,
    /// Elements of an input
    len: usize,
    /// Bytes of the rows that the batch has
    bytes: usize,
    /// An input between its slot and the file; empty while the thread has it
    values: Vec<bf16>,
    /// The thread's current job
    job: Option<Job>,
    /// Slot and place of the input that is on its way to the host
    leaving: Option<(usize, u64)>,
    /// Places of the inputs in the order of their layers: the last is needed first
    waiting: Vec<u64>,
}

impl DiskInputs {
    pub fn new(is_dry_run: bool) -> Self {
        Self {
            file: InputFile::new(is_dry_run),
            is_dry_run,
            slots: Vec::new(),
            turn: 0,
            len: 0,
            bytes: 0,
            values: Vec::new(),
            job: None,
            leaving: None,
            waiting: Vec::new(),
        }
    }

    /// The plan's line of the memory that the thread has.
    pub fn of_thread(&self) -> Option<(&'static str, u64)> {
        (!self.slots.is_empty()).then_some((INPUTS_OF_THREAD, (self.len * size_of::<bf16>()) as u64))
    }

    /// Begins to copy an input to the host, of which the first `used` elements are those of the batch, and to write the
    /// one before. Returns its place.
    pub fn offload(&mut self, memory: &DeviceMemory, data: Buffer<bf16>, used: usize) -> Result<u64> {
        if self.slots.is_empty() {
            self.len = data.len();
            for _ in 0..SLOTS {
                self.slots.push(Slot::new(memory, NAME, self.len)?);
            }
            self.values = vec![bf16::ZERO; if self.is_dry_run { 0 } else { self.len }];
        }
        self.bytes = used * size_of::<bf16>();
        let place = self.file.place(self.len * size_of::<bf16>())?;
        let slot = self.take_turn();
        self.slots[slot].offload(data)?;
        self.begin_write()?;
        self.leaving = Some((slot, place));
        self.waiting.push(place);
        Ok(place)
    }

    /// Begins to write the input that is on its way to the host, and gives its device memory back.
    pub fn begin_write(&mut self) -> Result<()> {
        let Some((slot, place)) = self.leaving.take() else { return Ok(()) };
        self.slots[slot].wait_offload()?;
        if self.is_dry_run {
            return Ok(());
        }
        self.finish()?;
        let mut values = std::mem::take(&mut self.values);
        values.copy_from_slice(self.slots[slot].values()?);
        self.file.write(place, values, self.bytes)?;
        self.job = Some(Job::Write);
        Ok(())
    }

    /// Begins to copy an input to the device, and to read the one of the layer below. Returns its slot.
    pub fn prefetch(&mut self, memory: &DeviceMemory, place: u64) -> Result<usize> {
        self.begin_write()?;
        let (slot, buffer) = (self.take_turn(), memory.alloc("residual stream", self.len)?);
        self.waiting.retain(|&other| other != place);
        if self.job != Some(Job::Read(place)) {
            self.read(place)?;
        }
        self.finish()?;
        self.slots[slot].set(&self.values)?;
        self.slots[slot].prefetch(buffer)?;
        if let Some(&below) = self.waiting.last() {
            self.read(below)?;
        }
        Ok(slot)
    }

    /// The input in this slot, whose place is free then.
    pub fn wait(&mut self, slot: usize, place: u64) -> Result<Buffer<bf16>> {
        self.file.free(place);
        self.slots[slot].wait_prefetch()
    }

    fn take_turn(&mut self) -> usize {
        self.turn = (self.turn + 1) % SLOTS;
        self.turn
    }

    /// Begins to read, once the thread has done what it does.
    fn read(&mut self, place: u64) -> Result<()> {
        if self.is_dry_run {
            return Ok(());
        }
        self.finish()?;
        self.file.read(place, std::mem::take(&mut self.values), self.bytes)?;
        self.job = Some(Job::Read(place));
        Ok(())
    }

    /// Has the values back from the thread.
    fn finish(&mut self) -> Result<()> {
        if self.job.take().is_some() {
            self.values = self.file.finish()?;
        }
        Ok(())
    }
}
