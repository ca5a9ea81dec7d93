//! Arrays that leave the device for the host and return with other values, beside the kernels.

use super::driver::{Driver, Queue};
use super::event::Event;
use super::pinned::{HostMemory, PinnedMemory};
use super::{Buffer, Device, Implementation};
use crate::error::{CudaError, Result};
use std::collections::VecDeque;
use std::rc::Rc;

/// Pieces on their way to the host at a time, and as many back.
const SLOTS: usize = 4;

/// Groups of arrays of f32 to which the host gives other values, while the device does other work that does not use
/// them. They go through pinned memory piece by piece, so that its size does not depend on theirs.
///
/// ```text
/// begin ─▶ values … put_back ─▶ finish
/// ```
///
/// Groups arrive, and are put back, in the order in which they were begun. Their arrays are kept until `finish`.
pub struct RoundTrip {
    // First, so that their copies are waited for before the arrays are dropped.
    to_host: Vec<Slot>,
    to_device: Vec<Slot>,
    driver: Rc<Implementation>,
    /// Arrays that were begun, in that order
    held: Vec<Buffer<f32>>,
    /// Groups of which pieces are not queued yet
    coming: VecDeque<Group>,
    /// Pieces that were queued and have not arrived
    in_flight: VecDeque<Piece>,
    /// Values of the group whose pieces arrive
    arrived: Vec<f32>,
    /// Groups that are in flight or with the host: the place after their last array, and their values
    away: VecDeque<(usize, usize)>,
    /// Groups of those that the host has, from the first on
    given: usize,
    reading: Cursor,
    writing: Cursor,
    /// Pieces that were queued so far, each way
    queued: [usize; 2],
    /// Events of groups whose copies are queued
    spare: Vec<Event>,
}

/// Pinned memory for one piece at a time.
struct Slot {
    driver: Rc<Implementation>,
    memory: PinnedMemory<f32>,
    /// The last copy is done.
    copied: Event,
}

/// Arrays that arrive together.
struct Group {
    /// The work that was queued before they were begun is done.
    computed: Event,
    /// Place of the array after its last one
    end: usize,
    /// Values that are not queued yet
    left: usize,
}

struct Piece {
    slot: usize,
    len: usize,
    /// Values of its group that come after it
    left: usize,
}

/// A place in the arrays, one after the other.
#[derive(Clone, Copy, Default)]
struct Cursor {
    array: usize,
    element: usize,
}

impl Cursor {
    /// Parts of the arrays before `end` with the next `count` values, fewer if there are no more, as array, first
    /// element and length. The cursor moves behind them.
    fn parts(&mut self, held: &[Buffer<f32>], end: usize, count: usize) -> Vec<(usize, usize, usize)> {
        let (mut parts, mut room) = (Vec::new(), count);
        while room > 0 && self.array < end {
            let left = held[self.array].len() - self.element;
            let len = left.min(room);
            if len > 0 {
                parts.push((self.array, self.element, len));
            }
            room -= len;
            match len == left {
                true => *self = Self { array: self.array + 1, element: 0 },
                false => self.element += len,
            }
        }
        parts
    }
}

impl Slot {
    fn new(driver: &Rc<Implementation>, len: usize, kind: HostMemory) -> Result<Self> {
        let memory = PinnedMemory::new(driver, len, kind)?;
        Ok(Self { driver: driver.clone(), memory, copied: Event::new(driver)? })
    }

    /// Bytes from this value on.
    fn at(&self, value: usize) -> *mut u8 {
        self.memory.address().wrapping_add(value * size_of::<f32>())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The copy uses memory that is freed next. An error would be that of an earlier call.
        if self.driver.bind().is_ok() {
            let _ = self.copied.wait();
        }
    }
}

/// Bytes of an array from this value on.
fn at(array: &Buffer<f32>, value: usize) -> *mut u8 {
    array.address().wrapping_add(value * size_of::<f32>())
}

impl RoundTrip {
    /// Values of pinned host memory that it has for pieces of `piece` values.
    pub const fn pinned_len(piece: usize) -> usize {
        2 * SLOTS * piece
    }

    /// For pieces of `piece` values.
    ///
    /// # Panics
    ///
    /// If that is 0.
    pub fn new(device: &Device, piece: usize) -> Result<Self> {
        Self::new_in(device, piece, HostMemory::Pinned)
    }

    /// For pieces of `piece` values, through host memory of this kind. Panics if that is 0.
    pub fn new_in(device: &Device, piece: usize, kind: HostMemory) -> Result<Self> {
        assert!(piece > 0, "a piece has values");
        let driver = device.driver().clone();
        let slots = || (0..SLOTS).map(|_| Slot::new(&driver, piece, kind)).collect::<Result<Vec<_>>>();
        Ok(Self {
            to_host: slots()?,
            to_device: slots()?,
            driver,
            held: Vec::new(),
            coming: VecDeque::new(),
            in_flight: VecDeque::new(),
            arrived: Vec::new(),
            away: VecDeque::new(),
            given: 0,
            reading: Cursor::default(),
            writing: Cursor::default(),
            queued: [0; 2],
            spare: Vec::new(),
        })
    }

    /// Begins to copy a group of arrays to the host, as they are after what is queued now on the device's stream.
    pub fn begin(&mut self, arrays: Vec<Buffer<f32>>) -> Result<()> {
        let left = arrays.iter().map(Buffer::len).sum();
        self.held.extend(arrays);
        self.driver.bind()?;
        let mut computed = self.spare.pop().map_or_else(|| Event::new(&self.driver), Ok)?;
        computed.record(Queue::Compute)?;
        self.coming.push_back(Group { computed, end: self.held.len(), left });
        self.away.push_back((self.held.len(), left));
        self.queue_reads()
    }

    /// Queues copies to the host as far as there are slots for them.
    fn queue_reads(&mut self) -> Result<()> {
        while self.in_flight.len() < SLOTS
            && let Some(group) = self.coming.front_mut()
        {
            group.computed.precedes(Queue::ToHost)?;
            let number = self.queued[0] % SLOTS;
            let slot = &mut self.to_host[number];
            let mut len = 0;
            for (array, first, count) in self.reading.parts(&self.held, group.end, slot.memory.len()) {
                let (to, from) = (slot.at(len), at(&self.held[array], first));
                // SAFETY: both have `count` values from there on. The array is kept, and used by nothing else, until
                // it is given back, before which the copy was waited for; the slot has no other piece in flight, and
                // waits for this one before its memory is freed.
                unsafe { self.driver.copy(Queue::ToHost, to, from, count * size_of::<f32>()) }?;
                len += count;
            }
            slot.copied.record(Queue::ToHost)?;
            group.left -= len;
            self.in_flight.push_back(Piece { slot: number, len, left: group.left });
            self.queued[0] += 1;
            if group.left == 0 {
                // Behind arrays without values.
                self.reading = Cursor { array: group.end, element: 0 };
                self.spare.extend(self.coming.pop_front().map(|group| group.computed));
            }
        }
        Ok(())
    }

    /// The values of the group that was begun first of those that the host does not have, one array after the other.
    /// None: they are on their way, or there is no such group. `waits`: the host waits for them; without such a group
    /// that is an error.
    pub fn values(&mut self, waits: bool) -> Result<Option<Vec<f32>>> {
        self.driver.bind()?;
        loop {
            self.queue_reads()?;
            let Some(&Piece { slot, len, left }) = self.in_flight.front() else {
                return match waits {
                    true => Err(CudaError::Device("no array is on its way to the host".into())),
                    false => Ok(None),
                };
            };
            let slot = &self.to_host[slot];
            if !waits && !slot.copied.is_done()? {
                return Ok(None);
            }
            slot.copied.wait()?;
            if self.arrived.is_empty() {
                self.arrived.reserve_exact(len + left);
            }
            self.arrived.extend_from_slice(slot.memory.first(len));
            self.in_flight.pop_front();
            if left == 0 {
                self.queue_reads()?;
                self.given += 1;
                return Ok(Some(std::mem::take(&mut self.arrived)));
            }
        }
    }

    /// Begins to put `values` in the place of those that the host was given first and has not put back. Waits only
    /// until earlier ones have left the host. Refused: another number of values, or none were given.
    pub fn put_back(&mut self, values: &[f32]) -> Result<()> {
        let Some(&(end, len)) = self.away.front().filter(|_| self.given > 0) else {
            return Err(CudaError::Device("the host has no array to put back".into()));
        };
        if len != values.len() {
            let found = values.len();
            return Err(CudaError::Device(format!("{found} values are put in the place of {len}")));
        }
        self.driver.bind()?;
        let mut rest = values;
        while !rest.is_empty() {
            let slot = &mut self.to_device[self.queued[1] % SLOTS];
            self.queued[1] += 1;
            slot.copied.wait()?;
            let (piece, others) = rest.split_at(rest.len().min(slot.memory.len()));
            slot.memory.set(piece);
            let mut done = 0;
            for (array, first, count) in self.writing.parts(&self.held, end, piece.len()) {
                let (to, from) = (at(&self.held[array], first), slot.at(done));
                // SAFETY: as in `queue_reads`; the copy of the array to the host is done, as the host had its values.
                unsafe { self.driver.copy(Queue::ToDevice, to, from, count * size_of::<f32>()) }?;
                done += count;
            }
            slot.copied.record(Queue::ToDevice)?;
            rest = others;
        }
        self.writing = Cursor { array: end, element: 0 };
        self.away.pop_front();
        self.given -= 1;
        Ok(())
    }

    /// Gives the arrays back, in the order in which they were begun. Work that is queued next on the device's stream
    /// finds in them what was put back. Refused: a group was not.
    pub fn finish(&mut self) -> Result<Vec<Buffer<f32>>> {
        if !self.away.is_empty() {
            let count = self.away.len();
            return Err(CudaError::Device(format!("groups of arrays that have not come back: {count}")));
        }
        self.driver.bind()?;
        self.to_device.iter().try_for_each(|slot| slot.copied.precedes(Queue::Compute))?;
        (self.reading, self.writing) = (Cursor::default(), Cursor::default());
        Ok(std::mem::take(&mut self.held))
    }

    /// Ends what is under way, and gives the arrays back with any values.
    pub fn abandon(&mut self) -> Vec<Buffer<f32>> {
        // An error would be that of an earlier call.
        if self.driver.bind().is_ok() {
            for slot in self.to_host.iter().chain(&self.to_device) {
                let _ = slot.copied.wait();
            }
        }
        self.spare.extend(self.coming.drain(..).map(|group| group.computed));
        self.in_flight.clear();
        self.arrived.clear();
        self.away.clear();
        self.given = 0;
        (self.reading, self.writing) = (Cursor::default(), Cursor::default());
        std::mem::take(&mut self.held)
    }
}

#[cfg(all(test, kernels = "emulated"))]
mod tests;
