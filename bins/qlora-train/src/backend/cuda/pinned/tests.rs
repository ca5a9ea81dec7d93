//! Layers that are streamed as a step does it, on a device that does its work late.

use super::*;
use crate::files::memory_file;
use qlora_kernels::device::emulation::{Forgotten, forget, run_late};
use qlora_kernels::device::{Device, SharedPinned};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

/// Bytes of a layer of Llama 3 70B in NF4.
const LARGE: usize = 421 << 20;
const LAYERS: usize = 4;
/// Bytes from the beginning of a layer to that of the next, in the same random bytes.
const STEP: usize = 17 * ALIGNMENT;
/// Bytes that are compared at a time.
const PIECE: usize = 8 << 20;

struct Streamed {
    pinned: PinnedWeights,
    /// The bytes that the last operations read
    seen: Buffer<u8>,
    piece: Buffer<u8>,
    memory: DeviceMemory,
    file: File,
    len: usize,
}

impl Streamed {
    fn new(len: usize) -> Self {
        let (file, all) = (memory_file::create().unwrap(), len + LAYERS * STEP);
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()
        };
        for first in (0..all).step_by(PIECE) {
            let bytes: Vec<u8> = (0..PIECE.min(all - first).div_ceil(8)).flat_map(|_| next()).collect();
            file.write_all_at(&bytes, first as u64).unwrap();
        }
        let piece = PIECE.min(len);
        let memory = DeviceMemory::new(Rc::new(Device::open().unwrap()), (3 * len + piece) as u64, false).unwrap();
        let copy = Rc::new(SharedPinned::new(memory.device().unwrap(), &file, all).unwrap());
        let layer = |layer: usize| {
            let offload_slot = Some(OffloadSlot::shared(&copy, layer * STEP, len).unwrap());
            PinnedLayer { offload_slot, len }
        };
        let slot = |_| Slot { layer: None, buffer: Some(memory.alloc(ON_DEVICE, len).unwrap()) };
        let layers = (0..LAYERS).map(layer).collect();
        let pinned = PinnedWeights { layers, slots: (0..SLOTS).map(slot).collect(), ..PinnedWeights::default() };
        let (seen, piece) = (memory.alloc("seen", len).unwrap(), memory.alloc("piece", piece).unwrap());
        Self { pinned, seen, piece, memory, file, len }
    }

    fn wait(&mut self, layer: usize) {
        self.pinned.wait(&self.memory, layer).unwrap();
    }

    fn prefetch(&mut self, layer: usize) {
        self.pinned.prefetch(&self.memory, layer).unwrap();
    }

    /// Queues operations of a layer: they read all of its bytes.
    fn compute(&mut self, layer: usize) {
        let slot = self.pinned.slot_of(layer).unwrap();
        let from = self.pinned.slots[slot].buffer.as_ref().unwrap();
        self.memory.device().unwrap().repeat(&mut self.seen, from, 0).unwrap();
    }

    /// True if the last operations read the bytes of this layer. The device's stream is waited for.
    fn saw(&mut self, layer: usize) -> bool {
        let mut expected = vec![0; self.piece.len()];
        (0..self.len).step_by(expected.len()).all(|first| {
            let len = expected.len().min(self.len - first);
            self.memory.device().unwrap().repeat(&mut self.piece, &self.seen, first).unwrap();
            self.file.read_exact_at(&mut expected[..len], (layer * STEP + first) as u64).unwrap();
            self.memory.download(&self.piece).unwrap()[..len] == expected[..len]
        })
    }

    /// True if the layers of a forward and a backward pass were computed from their own bytes. Forward nothing waits
    /// for a layer's operations before the copy to its memory is queued; backward they are waited for at once.
    fn pass(&mut self) -> bool {
        let mut is_right = true;
        for layer in 0..LAYERS {
            self.wait(layer);
            if layer + 1 < LAYERS {
                self.prefetch(layer + 1);
            }
            if layer > 0 {
                is_right &= self.saw(layer - 1);
            }
            self.compute(layer);
        }
        is_right &= self.saw(LAYERS - 1);
        for layer in (0..LAYERS).rev() {
            self.wait(layer);
            self.compute(layer);
            is_right &= self.saw(layer);
            if layer > 0 {
                self.prefetch(layer - 1);
            }
        }
        is_right
    }
}

#[test]
fn layers_of_the_size_of_a_70b_model_are_computed_from_their_own_bytes() {
    run_late(true);
    assert!(Streamed::new(LARGE).pass());
}

/// A layer that is computed before its copy is there, and one that the next copy overwrites before it is computed.
#[test]
fn a_wait_that_is_missing_is_seen() {
    run_late(true);
    for forgotten in [None, Some(Forgotten::OfCompute), Some(Forgotten::OfCopies)] {
        let mut streamed = Streamed::new(1 << 20);
        forget(forgotten);
        let is_right = streamed.pass();
        forget(None);
        assert_eq!(is_right, forgotten.is_none(), "{forgotten:?}");
    }
}
