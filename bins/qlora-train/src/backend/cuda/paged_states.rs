//! AdamW's states in pinned host memory, and the device memory of the two pieces that are there at a time: while one is
//! updated, the next one comes and the one before it goes back.
//!
//! A piece holds states of several tensors, or of a part of one. They lie one after the other, in the host's memory as
//! on the device, so that one copy moves them. A step moves every state once each way, both ways at the same time: 8
//! bytes an element in f32 and 2 in 8 bits.

use super::memory::DeviceMemory;
use crate::backend::{OptimizerState, StateFormat};
use crate::error::Result;
use qlora_kernels::device::{Buffer, Element, OffloadSlot, ViewMut};
use qlora_kernels::ops::adamw::{CHUNK, States};
use qlora_kernels::optim8bit::BLOCK_SIZE;

/// Pieces on the device at a time.
const SLOTS: usize = 2;

/// An array begins at a multiple of this, as one in device memory of its own does.
const ALIGNMENT: usize = 256;

/// The plan's lines.
const ON_HOST: &str = "AdamW states in host memory";
const ON_DEVICE: &str = "AdamW states in use";

/// States of consecutive elements of a tensor, all in one piece: m, v, and in 8 bits the absmax of both.
#[derive(Clone, Copy)]
pub struct Part {
    piece: usize,
    /// First byte in the piece
    at: usize,
    is_blockwise: bool,
    /// The first element: a multiple of [`CHUNK`]
    pub first: usize,
    /// Elements
    pub len: usize,
}

impl Part {
    /// Bytes of the arrays, each with those up to the next one.
    fn bytes(is_blockwise: bool, len: usize) -> usize {
        let of_moment = if is_blockwise { len.next_multiple_of(ALIGNMENT) } else { 0 };
        let of_floats = 4 * if is_blockwise { len.div_ceil(BLOCK_SIZE) } else { len };
        2 * (of_moment + of_floats.next_multiple_of(ALIGNMENT))
    }

    /// The arrays on the device, in the memory of a piece of which `from` bytes were skipped, and what follows them.
    pub fn views<'a>(self, rest: ViewMut<'a, u8>, from: usize) -> (States<'a>, ViewMut<'a, u8>) {
        let rest = rest.skip(self.at - from);
        if !self.is_blockwise {
            let (m, rest) = array(rest, self.len);
            let (v, rest) = array(rest, self.len);
            return (States::F32 { m, v }, rest);
        }
        let blocks = self.len.div_ceil(BLOCK_SIZE);
        let (m, rest) = array(rest, self.len);
        let (v, rest) = array(rest, self.len);
        let (m_absmax, rest) = array(rest, blocks);
        let (v_absmax, rest) = array(rest, blocks);
        (States::Blockwise8 { m, m_absmax, v, v_absmax }, rest)
    }

    /// First byte in the piece, and the one after the last.
    pub fn range(self) -> (usize, usize) {
        (self.at, self.at + Self::bytes(self.is_blockwise, self.len))
    }

    /// The arrays in a tensor's whole state, as bytes, each with its first byte in the piece.
    fn arrays<'a>(&self, state: &'a mut OptimizerState) -> Vec<(usize, &'a mut [u8])> {
        use bytemuck::cast_slice_mut;
        let end = self.first + self.len;
        let (elements, blocks) = (self.first..end, self.first / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE));
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
        let firsts: Vec<usize> = arrays.iter().scan(self.at, begins).collect();
        firsts.into_iter().zip(arrays).collect()
    }
}

/// The array of `len` elements that bytes begin with, and what follows it from the next multiple of [`ALIGNMENT`] on.
fn array<T: Element>(bytes: ViewMut<'_, u8>, len: usize) -> (ViewMut<'_, T>, ViewMut<'_, u8>) {
    let (array, rest) = bytes.split_first(len);
    let used = len * size_of::<T>();
    (array, rest.skip(used.next_multiple_of(ALIGNMENT) - used))
}

/// Where the states of one tensor are.
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
    /// For pieces of `piece_len` bytes.
    ///
    /// # Panics
    ///
    /// If that is less than a chunk of f32 states has.
    pub fn new(piece_len: usize) -> Self {
        assert!(piece_len >= Part::bytes(false, CHUNK), "a piece has room for a chunk");
        Self { piece_len, pieces: Vec::new(), used: piece_len, slots: Vec::new(), tables: Vec::new() }
    }

    /// Room for the states of a tensor of so many elements: zeros.
    pub fn add(&mut self, memory: &DeviceMemory, format: StateFormat, len: usize) -> Result<PagedTensor> {
        let is_blockwise = format.is_blockwise(len);
        let (mut parts, mut first) = (Vec::new(), 0);
        while first < len {
            let (room, rest) = (self.piece_len - self.used, len - first);
            let fitting = match Part::bytes(is_blockwise, rest) <= room {
                true => rest,
                false => room / Part::bytes(is_blockwise, CHUNK) * CHUNK,
            };
            if fitting == 0 {
                self.add_piece(memory)?;
                continue;
            }
            parts.push(Part { piece: self.pieces.len() - 1, at: self.used, is_blockwise, first, len: fitting });
            self.used += Part::bytes(is_blockwise, fitting);
            first += fitting;
        }
        Ok(PagedTensor { format, len, parts })
    }

    fn add_piece(&mut self, memory: &DeviceMemory) -> Result<()> {
        self.pieces.push(memory.offload_slot(ON_HOST, self.piece_len)?);
        self.used = 0;
        // Now, so that they do not lie between the buffers of a step.
        if self.slots.len() < SLOTS {
            self.slots.push(Some(memory.take(ON_DEVICE, self.piece_len)?));
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
            let held = piece.held()?;
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
