//! Frozen weights, from the checkpoint to the device.

use super::operands::{AbsmaxMemory, Nf4Memory, TableMemory};
use super::pinned::WeightArray;
use super::rope::Rope;
use super::{Cuda, CudaTable, CudaVector, CudaWeight};
use super::{limits, linear};
use crate::backend::weights::quantize;
use crate::backend::{LinearGroup, Quantization, Residency, StateFormat, Weights};
use crate::error::Result;
use crate::files::random::RandomNf4;
use crate::files::tensor::{HostTensor, StoredType, TensorData, WeightSource};
use crate::refuse;
use half::bf16;
use half::slice::HalfFloatSliceExt;
use qlora_kernels::nf4::{Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Matrix, Nf4Options};
use qlora_kernels::ops::absmax_transpose;
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::rope::RopeTable;
use qlora_kernels::weights::{Nf4Weight, transposed};
use std::sync::Arc;

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

/// Where the codes of a weight come from.
enum Codes<'a> {
    Stored(&'a [u8]),
    /// What [`Cuda::keep_pattern`] keeps, repeated, from this byte on
    Random {
        first: usize,
    },
}

impl Cuda {
    /// What random weights repeat, on the device beside the arena: a plan reads no weight and does not know of it.
    fn keep_pattern(&mut self, random: &RandomNf4) -> Result<()> {
        let known = self.pattern.as_ref().is_some_and(|(bytes, _)| Arc::ptr_eq(bytes, &random.bytes));
        if let (false, Some(device)) = (known, self.memory.device()) {
            self.pattern = Some((random.bytes.clone(), device.upload(&random.bytes)?));
        }
        Ok(())
    }

    /// `values` while running.
    fn load_nf4(
        &mut self,
        n: usize,
        k: usize,
        &Nf4Options { block_size, double_quant }: &Nf4Options,
        values: Option<(Codes, &Absmax)>,
    ) -> Result<Nf4Memory> {
        let (memory, name, blocks) = (&self.memory, "NF4 weights", (n * k).div_ceil(block_size));
        let layout = Nf4Weight::fastest_layout(n, k, block_size);
        let (codes, stored_absmax) = values.unzip();
        let absmax = if double_quant {
            let parts = stored_absmax.map(|absmax| match absmax {
                Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset, .. } => {
                    (&codes[..], &nested_absmax[..], nested_map.as_slice(), [*offset])
                }
                Absmax::F32(_) => unreachable!("checked"),
            });
            let stored = parts.as_ref().map(|parts| parts.0);
            let codes = match layout {
                Layout::RowMajor => memory.upload(name, blocks, stored)?,
                Layout::Transposed => {
                    let stored = memory.upload("weights on the way", blocks, stored)?;
                    let mut ordered = memory.take(name, blocks)?;
                    if memory.device().is_some() {
                        let (stored, ordered) = (stored.view(), ordered.view_mut());
                        absmax_transpose(stored, ordered, n, k / block_size, memory.stream())?;
                    }
                    ordered
                }
            };
            AbsmaxMemory::DoubleQuantized {
                codes: WeightArray::Device(codes),
                nested_absmax: WeightArray::Device(memory.upload(
                    name,
                    blocks.div_ceil(NESTED_BLOCK_SIZE),
                    parts.as_ref().map(|parts| parts.1),
                )?),
                nested_map: WeightArray::Device(memory.upload(name, 256, parts.as_ref().map(|parts| parts.2))?),
                offset: WeightArray::Device(memory.upload(name, 1, parts.as_ref().map(|parts| &parts.3[..]))?),
            }
        } else {
            let ordered = stored_absmax.map(|absmax| match (absmax, layout) {
                (Absmax::F32(absmax), Layout::RowMajor) => absmax.clone(),
                (Absmax::F32(absmax), Layout::Transposed) => transposed(absmax, n),
                (Absmax::DoubleQuantized { .. }, _) => unreachable!("checked"),
            });
            AbsmaxMemory::F32(WeightArray::Device(memory.upload(name, blocks, ordered.as_deref())?))
        };
        let len = (n * k).div_ceil(2);
        let codes = match codes {
            Some(Codes::Random { first }) => {
                let mut codes = memory.take(name, len)?;
                if let (Some(device), Some((_, pattern))) = (memory.device(), &self.pattern) {
                    device.repeat(&mut codes, pattern, first)?;
                }
                codes
            }
            Some(Codes::Stored(codes)) => memory.upload(name, len, Some(codes))?,
            None => memory.take(name, len)?,
        };
        Ok(Nf4Memory { n, k, block_size, layout, codes: WeightArray::Device(codes), absmax })
    }
}

/// The layer that these groups are of, if its weights wait in host memory.
fn layer_of(groups: &[&LinearGroup<Cuda>]) -> Option<usize> {
    groups.iter().flat_map(|group| &group.segments).find_map(|segment| segment.weight.pinned_layer())
}

/// 16-bit weights are quantized on the host, as on every device.
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
            let weight = self.memory.upload("weights", n * k, values.as_deref())?;
            return Ok(CudaWeight::Dense(WeightArray::Device(weight)));
        };
        let options = Nf4Options { block_size, double_quant };
        let matrix = match stored {
            Some(WeightSource::Nf4(matrix)) => matrix,
            Some(WeightSource::Tensor(tensor)) => quantize(name, n, k, &tensor, &options)?,
            Some(WeightSource::Random(random)) => {
                self.keep_pattern(&random)?;
                let codes = Codes::Random { first: random.first };
                return Ok(CudaWeight::Nf4(Box::new(self.load_nf4(n, k, &options, Some((codes, &random.absmax)))?)));
            }
            None => return Ok(CudaWeight::Nf4(Box::new(self.load_nf4(n, k, &options, None)?))),
        };
        check(name, &matrix, &options)?;
        let values = Some((Codes::Stored(matrix.codes()), matrix.absmax()));
        Ok(CudaWeight::Nf4(Box::new(self.load_nf4(n, k, &options, values)?)))
    }

    fn pin_weights(&mut self, groups: [&mut LinearGroup<Self>; 4]) -> Result<()> {
        let mut segments = groups.into_iter().flat_map(|group| &mut group.segments);
        let memory = &self.memory;
        self.pinned.pin(memory, |arrays| segments.try_for_each(|segment| segment.weight.append_to(arrays, memory)))
    }

    fn weights_loaded(&mut self) -> Result<()> {
        self.pinned.finish(&self.memory)
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
        let param = self.trained([name, WHOLE_GRADIENTS], vocab * hidden, Some(states), init)?;
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
        self.trained([name, WHOLE_GRADIENTS], len, Some(states), init).map(|param| CudaVector::Trained(Box::new(param)))
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
}

/// The kernels know one set of 16 values and one size of nested blocks: those of NF4 as bitsandbytes writes it. How a
/// weight is held was said before it was read.
fn check(name: &str, matrix: &Nf4Matrix, options: &Nf4Options) -> Result<()> {
    const INSTEAD: &str = "quantize the original 16-bit model instead, or use `--device cpu`";
    if *matrix.code() != CODE {
        refuse!(
            "{name}: the checkpoint brings 16 values of its own (quant_map), expected those of NF4 on cuda: {INSTEAD}"
        );
    }
    let (block_size, double_quant) = match matrix.absmax() {
        Absmax::DoubleQuantized { nested_block_size, .. } if *nested_block_size != NESTED_BLOCK_SIZE => refuse!(
            "{name}: found nested blocks of {nested_block_size}, expected {NESTED_BLOCK_SIZE} on cuda: {INSTEAD}"
        ),
        absmax => (matrix.block_size(), matches!(absmax, Absmax::DoubleQuantized { .. })),
    };
    if (block_size, double_quant) != (options.block_size, options.double_quant) {
        let kind = |block_size: usize, double: bool| {
            format!("blocks of {block_size}, {}", if double { "absmax in 8 bits" } else { "absmax in f32" })
        };
        refuse!(
            "{name}: found {}, expected {} as the other weights have: {INSTEAD}",
            kind(block_size, double_quant),
            kind(options.block_size, options.double_quant)
        );
    }
    Ok(())
}
