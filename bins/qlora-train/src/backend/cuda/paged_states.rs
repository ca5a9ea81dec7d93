//! AdamW's states in pinned host memory, with or without the f32 master copies, and the device memory of the two pieces
//! that are there at a time: while one is updated, the next one comes and the one before it goes back.
//!
//! A piece holds arrays of several tensors, or of a part of one. They lie one after the other, in the host's memory as
//! on the device, so that one copy moves a piece. A step moves everything once each way, both ways at the same time: 8
//! bytes an element in f32 and 2 in 8 bits, and 4 of a master copy.

use super::memory::DeviceMemory;
use crate::backend::{OptimizerState, Paging, StateFormat};
use crate::error::Result;
use bytemuck::{cast_slice, cast_slice_mut};
use qlora_kernels::device::{Buffer, Element, OffloadSlot, ViewMut};
use qlora_kernels::ops::adamw::{CHUNK, States};
use qlora_kernels::optim8bit::BLOCK_SIZE;
use std::ops::Range;

/// Pieces on the device at a time.
const SLOTS: usize = 2;

/// An array begins at a multiple of this, as one in device memory of its own does.
const ALIGNMENT: usize = 256;

/// The plan's lines: of states in host memory, and of the pieces on the device.
const OF_STATES: [&str; 2] = ["AdamW states in host memory", "AdamW states in use"];
const WITH_MASTERS: [&str; 2] = ["AdamW states and masters in host memory", "AdamW states and masters in use"];

/// Consecutive elements of a tensor in one piece: the master copy where it waits, m, v, and in 8 bits the absmax of
/// both.
#[derive(Clone, Copy)]
pub struct Part {
    piece: usize,
    /// First byte in the piece
    at: usize,
    has_master: bool,
    is_blockwise: bool,
    /// The first element: a multiple of [`CHUNK`]
    pub first: usize,
    /// Elements
    pub len: usize,
}

impl Part {
    /// Bytes of the arrays, each with those up to the next one.
    fn bytes(has_master: bool, is_blockwise: bool, len: usize) -> usize {
        let of_moment = if is_blockwise { len.next_multiple_of(ALIGNMENT) } else { 0 };
        let of_floats = 4 * if is_blockwise { len.div_ceil(BLOCK_SIZE) } else { len };
        master_bytes(has_master, len) + 2 * (of_moment + of_floats.next_multiple_of(ALIGNMENT))
    }

    /// The arrays on the device, in the memory of a piece of which `from` bytes were skipped, and what follows them.
    pub fn views<'a>(self, rest: ViewMut<'a, u8>, from: usize) -> Views<'a> {
        let (mut master, mut rest) = (None, rest.skip(self.at - from));
        if self.has_master {
            let (values, after) = array(rest, self.len);
            (master, rest) = (Some(values), after);
        }
        if !self.is_blockwise {
            let (m, rest) = array(rest, self.len);
            let (v, rest) = array(rest, self.len);
            return (master, States::F32 { m, v }, rest);
        }
        let blocks = self.len.div_ceil(BLOCK_SIZE);
        let (m, rest) = array(rest, self.len);
        let (v, rest) = array(rest, self.len);
        let (m_absmax, rest) = array(rest, blocks);
        let (v_absmax, rest) = array(rest, blocks);
        (master, States::Blockwise8 { m, m_absmax, v, v_absmax }, rest)
    }

    /// First byte in the piece, and the one after the last.
    pub fn range(self) -> (usize, usize) {
        (self.at, self.at + Self::bytes(self.has_master, self.is_blockwise, self.len))
    }

    fn elements(&self) -> Range<usize> {
        self.first..self.first + self.len
    }

    /// The arrays in a tensor's whole state, as bytes, each with its first byte in the piece.
    fn arrays<'a>(&self, state: &'a mut OptimizerState) -> Vec<(usize, &'a mut [u8])> {
        let elements = self.elements();
        let blocks = elements.start / BLOCK_SIZE..elements.end.div_ceil(BLOCK_SIZE);
        let arrays: Vec<&mut [u8]> = match state {
            OptimizerState::F32 { m, v } => {
                vec![cast_slice_mut(&mut m[elements.clone()]), cast_slice_mut(&mut v[elements])]
            }
            OptimizerState::Blockwise8 { m, m_absmax, v, v_absmax } => vec![
                &mut m[elements.clone()],
                &mut v[elements],
                cast_slice_mut(&mut m_absmax[blocks.clone()]),
                cast_slice_mut(&mut v_absmax[blocks]),
            ],
        };
        let begins = |next: &mut usize, array: &&mut [u8]| {
            Some(std::mem::replace(next, *next + array.len().next_multiple_of(ALIGNMENT)))
        };
        let first = self.at + master_bytes(self.has_master, self.len);
        let firsts: Vec<usize> = arrays.iter().scan(first, begins).collect();
        firsts.into_iter().zip(arrays).collect()
    }
}

/// A part on the device: the master copy where it came too, the states, and the memory after them.
type Views<'a> = (Option<ViewMut<'a, f32>>, States<'a>, ViewMut<'a, u8>);

/// Bytes of a master copy, with those up to the next array.
fn master_bytes(has_master: bool, len: usize) -> usize {
    if has_master { (4 * len).next_multiple_of(ALIGNMENT) } else { 0 }
}

/// The array of `len` elements that bytes begin with, and what follows it from the next multiple of [`ALIGNMENT`] on.
fn array<T: Element>(bytes: ViewMut<'_, u8>, len: usize) -> (ViewMut<'_, T>, ViewMut<'_, u8>) {
    let (array, rest) = bytes.split_first(len);
    let used = len * size_of::<T>();
    (array, rest.skip(used.next_multiple_of(ALIGNMENT) - used))
}

/// Places of one tensor's states, and of its master copy if that waits too.
pub struct PagedTensor {
    format: StateFormat,
    len: usize,
    /// In the order of their elements
    parts: Vec<Part>,
}

impl PagedTensor {
    /// States before the first update, of the tensor's kind and length.
    pub fn zeros(&self) -> OptimizerState {
        self.format.zeros(self.len)
    }

    /// The part that is in this piece.
    pub fn part_in(&self, piece: usize) -> Option<Part> {
        self.parts.iter().copied().find(|part| part.piece == piece)
    }
}

pub struct PagedStates {
    /// Master copies wait in host memory too
    pub has_masters: bool,
    /// Bytes of a piece
    piece_len: usize,
    /// None in a dry run
    pieces: Vec<Option<OffloadSlot<u8>>>,
    /// Bytes of the last piece that tensors have
    used: usize,
    /// At most [`SLOTS`], each for every [`SLOTS`]th piece; `None`: a piece is on its way
    slots: Vec<Option<Buffer<u8>>>,
    /// The update's table of each piece's tensors
    pub tables: Vec<Buffer<u64>>,
}

impl PagedStates {
    /// # Panics
    ///
    /// If a piece has no room for what a chunk has in f32.
    pub fn new(paging: Paging) -> Self {
        let Paging { piece: piece_len, has_masters, .. } = paging;
        assert!(piece_len >= Part::bytes(has_masters, false, CHUNK), "a piece has room for a chunk");
        Self { has_masters, piece_len, pieces: Vec::new(), used: piece_len, slots: Vec::new(), tables: Vec::new() }
    }

    /// Room for the states of a tensor of `len` elements, and for its master copy if that waits too: zeros.
    pub fn add(
        &mut self,
        memory: &DeviceMemory,
        format: StateFormat,
        len: usize,
        has_master: bool,
    ) -> Result<PagedTensor> {
        let is_blockwise = format.is_blockwise(len);
        let bytes = |len: usize| Part::bytes(has_master, is_blockwise, len);
        let (mut parts, mut first) = (Vec::new(), 0);
        while first < len {
            let (room, rest) = (self.piece_len - self.used, len - first);
            let fitting = if bytes(rest) <= room { rest } else { room / bytes(CHUNK) * CHUNK };
            if fitting == 0 {
                self.add_piece(memory)?;
                continue;
            }
            let (piece, at) = (self.pieces.len() - 1, self.used);
            parts.push(Part { piece, at, has_master, is_blockwise, first, len: fitting });
            self.used += bytes(fitting);
            first += fitting;
        }
        Ok(PagedTensor { format, len, parts })
    }

    fn add_piece(&mut self, memory: &DeviceMemory) -> Result<()> {
        let [on_host, on_device] = if self.has_masters { WITH_MASTERS } else { OF_STATES };
        self.pieces.push(memory.offload_slot(on_host, self.piece_len)?);
        self.used = 0;
        // Now, so that they do not lie between the buffers of a step.
        if self.slots.len() < SLOTS {
            self.slots.push(Some(memory.alloc(on_device, self.piece_len)?));
        }
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Waits for what is on its way. Zeros in a dry run.
    pub fn read(&self, tensor: &PagedTensor) -> Result<OptimizerState> {
        let mut state = tensor.zeros();
        for part in &tensor.parts {
            let Some(piece) = &self.pieces[part.piece] else { continue };
            let held = piece.values()?;
            for (at, array) in part.arrays(&mut state) {
                array.copy_from_slice(&held[at..at + array.len()]);
            }
        }
        Ok(state)
    }

    /// Overwrites the states of a tensor with others of their kind and length.
    pub fn write(&mut self, tensor: &PagedTensor, mut state: OptimizerState) -> Result<()> {
        for part in &tensor.parts {
            let Some(piece) = &mut self.pieces[part.piece] else { continue };
            for (at, array) in part.arrays(&mut state) {
                piece.set(at, array)?;
            }
        }
        Ok(())
    }

    /// The master copy of a tensor that waits here. Waits for what is on its way. Zeros in a dry run.
    pub fn read_master(&self, tensor: &PagedTensor) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; tensor.len];
        for part in &tensor.parts {
            let Some(piece) = &self.pieces[part.piece] else { continue };
            let bytes: &mut [u8] = cast_slice_mut(&mut values[part.elements()]);
            bytes.copy_from_slice(&piece.values()?[part.at..part.at + bytes.len()]);
        }
        Ok(values)
    }

    /// Overwrites the master copy of a tensor that waits here with as many values.
    pub fn write_master(&mut self, tensor: &PagedTensor, values: &[f32]) -> Result<()> {
        for part in &tensor.parts {
            let Some(piece) = &mut self.pieces[part.piece] else { continue };
            piece.set(part.at, cast_slice(&values[part.elements()]))?;
        }
        Ok(())
    }

    fn piece(&mut self, piece: usize) -> &mut OffloadSlot<u8> {
        self.pieces[piece].as_mut().expect("in a dry run nothing is on its way")
    }

    fn take(&mut self, piece: usize) -> Buffer<u8> {
        self.slots[piece % SLOTS].take().expect("a slot is for one piece at a time")
    }

    /// Begins to bring a piece to the device, after what is queued now. The one that had its slot has gone.
    pub fn prefetch(&mut self, piece: usize) -> Result<()> {
        let buffer = self.take(piece);
        Ok(self.piece(piece).prefetch(buffer)?)
    }

    /// Work that is queued next finds a piece on the device that was on its way there.
    pub fn wait(&mut self, piece: usize) -> Result<()> {
        self.slots[piece % SLOTS] = Some(self.piece(piece).wait_prefetch()?);
        Ok(())
    }

    /// A piece on the device, and the table of its tensors.
    pub fn on_device(&mut self, piece: usize) -> (&mut Buffer<u8>, Option<&Buffer<u64>>) {
        let slot = self.slots[piece % SLOTS].as_mut().expect("the piece was waited for");
        (slot, self.tables.get(piece))
    }

    /// Begins to send a piece back to the host, after what is queued now.
    pub fn offload(&mut self, piece: usize) -> Result<()> {
        let buffer = self.take(piece);
        Ok(self.piece(piece).offload(buffer)?)
    }

    /// Work that is queued next comes after a piece has gone, whose slot is free.
    pub fn wait_offload(&mut self, piece: usize) -> Result<()> {
        self.slots[piece % SLOTS] = Some(self.piece(piece).take_offloaded()?);
        Ok(())
    }
}
