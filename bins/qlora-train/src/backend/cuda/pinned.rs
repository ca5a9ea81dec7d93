//! Linear weights of layers in pinned host memory, and the device memory of two layers that they are copied to for use.
//!
//! A layer's arrays lie one after the other, so that one copy brings them. It runs while the layer before computes: at
//! H = 8192 a layer in NF4 has about 0.4 GB, which take 17 ms at 25 GB/s, and computes about `26·H²` FLOPs a token.
//!
//! Processes of one machine may have the layers in memory that they share: one after the other in a file.

use super::memory::DeviceMemory;
use super::shared::SharedWeights;
use crate::backend::WEIGHTS_ON_HOST;
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::{Buffer, Element, OffloadSlot, PinnedBuffer, View};

#[cfg(all(test, feature = "emulation", target_os = "linux"))]
mod tests;

/// Layers on the device at a time: the one that computes and the one that comes.
const SLOTS: usize = 2;

/// An array begins at a multiple of this, as one in device memory of its own does.
const ALIGNMENT: usize = 256;

/// The plan's line, beside [`WEIGHTS_ON_HOST`].
const ON_DEVICE: &str = "layers' weights in use";

/// An array of a frozen weight.
pub enum WeightArray<T: Element> {
    Device(Buffer<T>),
    /// `len` elements from this byte of a layer on
    Pinned {
        layer: usize,
        first: usize,
        len: usize,
    },
}

impl<T: Element + Default + bytemuck::Pod> WeightArray<T> {
    pub fn view<'a>(&'a self, pinned: &'a PinnedWeights) -> View<'a, T> {
        match *self {
            Self::Device(ref data) => data.view(),
            Self::Pinned { layer, first, len } => pinned.view(layer).skip(first).first(len * size_of::<T>()).cast(),
        }
    }

    pub fn pinned_layer(&self) -> Option<usize> {
        match *self {
            Self::Device(_) => None,
            Self::Pinned { layer, .. } => Some(layer),
        }
    }

    /// Appends the array to those of its layer.
    pub fn append_to(&mut self, arrays: &mut LayerArrays, memory: &DeviceMemory) -> Result<()> {
        let Self::Device(data) = self else { return Ok(()) };
        let (layer, first, len) = (arrays.layer, arrays.len.next_multiple_of(ALIGNMENT), data.len());
        arrays.len = first + len * size_of::<T>();
        if arrays.is_kept {
            arrays.bytes.resize(first, 0);
            arrays.bytes.extend_from_slice(bytemuck::cast_slice(&memory.download(data)?));
        }
        *self = Self::Pinned { layer, first, len };
        Ok(())
    }
}

/// The arrays of one layer on their way to pinned memory.
pub struct LayerArrays {
    layer: usize,
    len: usize,
    /// This process writes them: not in a dry run, nor where another one does
    is_kept: bool,
    /// Empty where they are not kept
    bytes: Vec<u8>,
}

#[derive(Default)]
pub struct PinnedWeights {
    layers: Vec<PinnedLayer>,
    /// At most [`SLOTS`]
    slots: Vec<Slot>,
    /// The layer that operations use.
    current: Option<usize>,
    /// The copy that the layers are in, where processes share one
    shared: Option<SharedWeights>,
    /// Elements of the output layer that follows the layers there
    table: Option<usize>,
}

struct PinnedLayer {
    /// None in a dry run, and of a layer in a shared copy that is not whole yet
    offload_slot: Option<OffloadSlot<u8>>,
    len: usize,
}

struct Slot {
    /// The layer that is there or on its way.
    layer: Option<usize>,
    /// `None`: a layer is on its way
    buffer: Option<Buffer<u8>>,
}

impl PinnedWeights {
    /// Puts the layers that come into a copy that processes share.
    pub fn share(&mut self, copy: Option<SharedWeights>) {
        self.shared = copy;
    }

    /// Pins the weights of one layer, which `append` adds to its arrays; their device memory is freed.
    pub fn pin(&mut self, memory: &DeviceMemory, append: impl FnOnce(&mut LayerArrays) -> Result<()>) -> Result<()> {
        let layer = self.layers.len();
        let is_mine = self.shared.as_ref().is_none_or(|shared| shared.writes(layer));
        let is_kept = memory.device().is_some() && is_mine;
        let mut arrays = LayerArrays { layer, len: 0, is_kept, bytes: Vec::new() };
        append(&mut arrays)?;
        let LayerArrays { len, mut bytes, .. } = arrays;
        // So that the next one begins as an array does, wherever it lies.
        let len = len.next_multiple_of(ALIGNMENT);
        if is_kept {
            bytes.resize(len, 0);
        }
        let offload_slot = match &mut self.shared {
            Some(shared) => {
                memory.count_pinned::<u8>(WEIGHTS_ON_HOST, len);
                shared.append(len, is_kept.then_some(&bytes[..]))?;
                None
            }
            None => offloaded(memory, len, &bytes)?,
        };
        self.layers.push(PinnedLayer { offload_slot, len });
        // Now, so that they do not lie between the buffers of a step.
        if self.slots.len() < SLOTS {
            self.slots.push(Slot { layer: None, buffer: Some(memory.alloc(ON_DEVICE, len)?) });
        }
        Ok(())
    }

    /// Puts the output layer after the layers of a copy that processes share. False: there is none.
    pub fn append_table(
        &mut self,
        memory: &DeviceMemory,
        name: &'static str,
        len: usize,
        values: Option<&[bf16]>,
    ) -> Result<bool> {
        let Some(shared) = &mut self.shared else { return Ok(false) };
        memory.count_pinned::<bf16>(name, len);
        let own = values.filter(|_| shared.writes(self.layers.len()));
        shared.append(len * size_of::<bf16>(), own.map(bytemuck::cast_slice))?;
        self.table = Some(len);
        Ok(true)
    }

    /// Pins the copy that processes share, once all of them have written their layers. Returns the output layer, if it
    /// is there.
    pub fn finish(&mut self, memory: &DeviceMemory) -> Result<Option<PinnedBuffer<bf16>>> {
        let (Some(shared), Some(device)) = (&self.shared, memory.device()) else { return Ok(None) };
        let copy = shared.pinned(device)?;
        let mut first = 0;
        for layer in &mut self.layers {
            layer.offload_slot = Some(OffloadSlot::shared(&copy, first, layer.len)?);
            first += layer.len;
        }
        Ok(self.table.map(|len| PinnedBuffer::shared(&copy, first, len)).transpose()?)
    }

    fn slot_of(&self, layer: usize) -> Option<usize> {
        self.slots.iter().position(|slot| slot.layer == Some(layer))
    }

    /// Work queued next finds in this slot what was on its way there.
    fn wait_prefetch(&mut self, slot: usize) -> Result<()> {
        let Slot { layer: Some(layer), buffer: buffer @ None } = &mut self.slots[slot] else { return Ok(()) };
        let offload_slot = self.layers[*layer].offload_slot.as_mut().expect("in a dry run nothing is on its way");
        *buffer = Some(offload_slot.wait_prefetch()?);
        Ok(())
    }

    /// Begins to copy a layer to the slot that operations do not use, after what is queued now. Returns the slot.
    pub fn prefetch(&mut self, memory: &DeviceMemory, layer: usize) -> Result<usize> {
        if let Some(slot) = self.slot_of(layer) {
            return Ok(slot);
        }
        let vacant = self.slots.iter().position(|slot| slot.layer.is_none());
        let slot = vacant.or_else(|| self.slots.iter().position(|slot| slot.layer != self.current));
        let slot = slot.expect("there is a slot beside that of the current layer");
        self.wait_prefetch(slot)?;
        let Slot { layer: of, buffer } = &mut self.slots[slot];
        let PinnedLayer { offload_slot, len } = &mut self.layers[layer];
        *of = Some(layer);
        // Layers whose weights are held in different ways differ in length.
        if buffer.as_ref().is_some_and(|buffer| buffer.len() != *len) {
            *buffer = None;
            *buffer = Some(memory.alloc(ON_DEVICE, *len)?);
        }
        if let Some(offload_slot) = offload_slot {
            offload_slot.prefetch(buffer.take().expect("it was waited for"))?;
        } else {
            assert!(memory.is_dry_run(), "a copy that processes share is whole before it is used");
        }
        Ok(slot)
    }

    /// Operations that are queued next use this layer.
    pub fn wait(&mut self, memory: &DeviceMemory, layer: usize) -> Result<()> {
        let slot = self.prefetch(memory, layer)?;
        self.wait_prefetch(slot)?;
        self.current = Some(layer);
        Ok(())
    }

    fn view(&self, layer: usize) -> View<'_, u8> {
        assert_eq!(self.current, Some(layer), "a layer's weights are waited for before they are used");
        let slot = self.slot_of(layer).expect("the current layer has a slot");
        self.slots[slot].buffer.as_ref().expect("it was waited for").view()
    }
}

/// A layer of `len` bytes in pinned memory of this process; none in a dry run.
fn offloaded(memory: &DeviceMemory, len: usize, bytes: &[u8]) -> Result<Option<OffloadSlot<u8>>> {
    let mut offload_slot = memory.offload_slot(WEIGHTS_ON_HOST, len)?;
    offload_slot.as_mut().map_or(Ok(()), |offload_slot| offload_slot.set(0, bytes))?;
    Ok(offload_slot)
}
