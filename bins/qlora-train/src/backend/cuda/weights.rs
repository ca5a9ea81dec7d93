//! Frozen weights, from the checkpoint to the device.

use super::memory::PieceStaging;
use super::operands::TableMemory;
use super::pinned::WeightArray;
use super::rope::Rope;
use super::{Cuda, CudaTable, CudaVector, CudaWeight};
use super::{limits, linear};
use crate::backend::weights::ReadPieces;
use crate::backend::{LinearGroup, Quantization, Residency, StateFormat, Weights};
use crate::error::Result;
use crate::files::tensor::{HostTensor, StoredType, TensorData, WeightSource};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use qlora_kernels::device::MemoryEnd;
use qlora_kernels::nf4::Nf4Options;
use qlora_kernels::ops::dispatch::Pass;
use qlora_kernels::rope::RopeTable;

/// The plan's line of the gradients of modules that are trained whole.
const WHOLE_GRADIENTS: &str = "gradients of whole modules";

/// In bf16; other types are rounded to it.
fn to_bf16(tensor: HostTensor) -> Vec<bf16> {
    match tensor.data {
        TensorData::Bf16(values) => values,
        _ => rounded(&tensor.into_f32()),
    }
}

pub(super) fn rounded(values: &[f32]) -> Vec<bf16> {
    let mut rounded = vec![bf16::ZERO; values.len()];
    rounded.convert_from_f32_slice(values);
    rounded
}

/// The layer that these groups are of, if its weights wait in host memory.
fn layer_of(groups: &[&LinearGroup<Cuda>]) -> Option<usize> {
    groups.iter().flat_map(|group| &group.segments).find_map(|segment| segment.weight.pinned_layer())
}

impl Weights for Cuda {
    fn weight(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        quantization: Quantization,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<WeightSource>,
    ) -> Result<CudaWeight> {
        let stored = self.memory.device().map(|_| read()).transpose()?;
        let Quantization::Nf4 { block_size, double_quant } = quantization else {
            let values = match stored {
                Some(WeightSource::Tensor(tensor)) => Some(to_bf16(tensor)),
                Some(_) => unreachable!("a weight that is stored in NF4 is held in NF4"),
                None => None,
            };
            let weight = self.memory.upload_at(self.weights_end, "weights", n * k, values.as_deref())?;
            return Ok(CudaWeight::Dense(WeightArray::Device(weight)));
        };
        self.load_nf4(name, [n, k], &Nf4Options { block_size, double_quant }, stored)
    }

    fn quantizes(&self) -> bool {
        true
    }

    fn quantized(
        &mut self,
        name: &str,
        n: usize,
        k: usize,
        options: &Nf4Options,
        read: &mut ReadPieces<'_>,
    ) -> Result<CudaWeight> {
        self.quantized_nf4(name, [n, k], options, read)
    }

    fn begin_layer(&mut self, residency: Residency) {
        // Weights that soon leave the device lie apart from those that stay.
        self.weights_end = if residency == Residency::Pinned { MemoryEnd::High } else { MemoryEnd::Low };
    }

    fn pin_weights(&mut self, groups: [&mut LinearGroup<Self>; 4]) -> Result<()> {
        let mut segments = groups.into_iter().flat_map(|group| &mut group.segments);
        let memory = &self.memory;
        self.pinned.pin(memory, |arrays| segments.try_for_each(|segment| segment.weight.append_to(arrays, memory)))
    }

    fn weights_loaded(&mut self) -> Result<()> {
        self.pieces = PieceStaging::default();
        if let Some(table) = self.pinned.finish(&self.memory)? {
            self.output_layer.keep(Some(table));
        }
        Ok(())
    }

    fn prefetch_weights(&mut self, groups: [&LinearGroup<Self>; 4]) -> Result<()> {
        let Some(layer) = layer_of(&groups) else { return Ok(()) };
        self.pinned.prefetch(&self.memory, layer).map(|_| ())
    }

    fn wait_weights(&mut self, groups: [&LinearGroup<Self>; 4]) -> Result<()> {
        let Some(layer) = layer_of(&groups) else { return Ok(()) };
        self.pinned.wait(&self.memory, layer)
    }

    fn table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        residency: Residency,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<HostTensor>,
    ) -> Result<CudaTable> {
        let values = self.memory.device().map(|_| read()).transpose()?.map(to_bf16);
        let data = match residency {
            Residency::Pinned => TableMemory::Pinned(self.memory.pin(name, vocab * hidden, values.as_deref())?),
            Residency::Device | Residency::Disk => {
                TableMemory::Device(self.memory.upload(name, vocab * hidden, values.as_deref())?)
            }
        };
        Ok(CudaTable { data, vocab, hidden, rows: None })
    }

    fn waiting_table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        is_embedding: bool,
        _stored: StoredType,
        read: &mut dyn FnMut() -> Result<HostTensor>,
    ) -> Result<CudaTable> {
        let (memory, len) = (&self.memory, vocab * hidden);
        let values = memory.device().map(|_| read()).transpose()?.map(to_bf16);
        let on_host = match !is_embedding && self.pinned.append_table(memory, name, len, values.as_deref())? {
            true => None,
            // Its rows are read where they are.
            false if is_embedding => memory.pin(name, len, values.as_deref())?,
            false => memory.keep_on_host(name, len, values.as_deref())?,
        };
        self.output_layer.keep(on_host);
        Ok(CudaTable { data: TableMemory::Waiting, vocab, hidden, rows: None })
    }

    fn wait_table(&mut self, table: &CudaTable) -> Result<()> {
        self.output_layer.bring(&self.memory, table)
    }

    fn release_table(&mut self) {
        self.output_layer.release();
    }

    fn vector(
        &mut self,
        name: &'static str,
        len: usize,
        read: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaVector> {
        let values = self.memory.device().map(|_| read()).transpose()?;
        let in_bf16 = values.as_deref().map(rounded);
        Ok(CudaVector::Frozen {
            f32: self.memory.upload(name, len, values.as_deref())?,
            bf16: self.memory.upload(name, len, in_bf16.as_deref())?,
        })
    }

    fn trained_table(
        &mut self,
        name: &'static str,
        vocab: usize,
        hidden: usize,
        states: StateFormat,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaTable> {
        let param = self.trained([name, WHOLE_GRADIENTS], vocab * hidden, Some(states), false, init)?;
        Ok(CudaTable { data: TableMemory::Trained(Box::new(param)), vocab, hidden, rows: None })
    }

    fn trained_vector(
        &mut self,
        name: &'static str,
        len: usize,
        states: StateFormat,
        init: &mut dyn FnMut() -> Result<Vec<f32>>,
    ) -> Result<CudaVector> {
        self.reserve_norm_gradient(len)?;
        let param = self.trained([name, WHOLE_GRADIENTS], len, Some(states), true, init)?;
        Ok(CudaVector::Trained(Box::new(param)))
    }

    fn table_with_rows(
        &mut self,
        name: &'static str,
        shape: [usize; 2],
        residency: Residency,
        stored: StoredType,
        tokens: &[u32],
        states: Option<StateFormat>,
        read: &mut dyn FnMut() -> Result<(HostTensor, Option<Vec<f32>>)>,
    ) -> Result<CudaTable> {
        self.with_own_rows(name, shape, residency, stored, tokens, states, read)
    }

    fn refresh_rows(&mut self, table: &mut CudaTable) -> Result<()> {
        self.put_own_rows(table)
    }

    fn row_squares(&mut self, _name: &str, weight: &CudaWeight, n: usize, k: usize) -> Result<Vec<f32>> {
        self.squares_of_rows(weight, n, k)
    }

    fn refresh_magnitudes(&mut self, group: &mut LinearGroup<Self>) -> Result<()> {
        self.refresh_norms(group)
    }

    fn rope_table(&mut self, positions: usize, half: usize, make: &mut dyn FnMut() -> RopeTable<f32>) -> Result<usize> {
        let (memory, name, values) = (&self.memory, "rotation angles", positions * half);
        let table = memory.device().map(|_| make());
        let (cos, sin) = table.as_ref().map(|table| (&table.cos[..], &table.sin[..])).unzip();
        let (cosines, sines) = (memory.upload(name, values, cos)?, memory.upload(name, values, sin)?);
        self.ropes.push(Rope { half, positions, cosines, sines });
        Ok(self.ropes.len() - 1)
    }

    fn positions(&self) -> usize {
        self.ropes.first().map_or(0, |rope| rope.positions)
    }

    fn prepare_group(&mut self, name: &str, group: &LinearGroup<Self>) -> Result<()> {
        limits::check_group(name, group)?;
        self.reserve_gradients(group)?;
        self.linear.reserve(&self.memory, &self.dims, &linear::layers(group))
    }

    fn low_rank_columns(&self, group: &LinearGroup<Self>) -> usize {
        linear::columns(group)
    }

    fn room_for_s(&self, group: &LinearGroup<Self>) -> usize {
        self.linear.room(&linear::layers(group), Pass::Forward, &self.dims)
    }

    fn room_for_t(&self, group: &LinearGroup<Self>) -> usize {
        self.linear.room(&linear::layers(group), Pass::Dx, &self.dims)
    }
}
