//! Operands of the operations: buffers, frozen weights, trainable tensors.

use super::memory::DeviceMemory;
use super::paged_states::PagedTensor;
use super::pinned::{LayerArrays, PinnedWeights, WeightArray};
use crate::backend::{BufferShape, MaybeTrained, OptimizerState, TableShape};
use crate::error::{Error, Result};
use half::bf16;
use qlora_kernels::device::{Buffer, PinnedBuffer, View, ViewMut};
use qlora_kernels::ops::{Rows, RowsMut, linear, nf4};
use std::ops::Range;

/// `[tokens, width]`, rows `stride` elements apart
pub struct CudaBuffer {
    pub(super) data: Storage,
    pub(super) first: usize,
    pub(super) tokens: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

/// bf16 for activations, f32 for the log-sum-exp.
pub(super) enum Storage {
    Bf16(Buffer<bf16>),
    F32(Buffer<f32>),
}

impl BufferShape for CudaBuffer {
    fn tokens(&self) -> Range<usize> {
        self.first..self.first + self.tokens
    }

    fn width(&self) -> usize {
        self.width
    }

    fn stride(&self) -> usize {
        self.stride
    }

    fn move_to(&mut self, first: usize) {
        self.first = first;
    }
}

impl CudaBuffer {
    fn bf16(&self) -> &Buffer<bf16> {
        match &self.data {
            Storage::Bf16(data) => data,
            Storage::F32(_) => panic!("an activation was expected, this buffer is f32"),
        }
    }

    fn bf16_mut(&mut self) -> &mut Buffer<bf16> {
        match &mut self.data {
            Storage::Bf16(data) => data,
            Storage::F32(_) => panic!("an activation was expected, this buffer is f32"),
        }
    }

    /// These tokens' rows of an activation, dense.
    pub(super) fn rows(&self, tokens: &Range<usize>) -> Result<View<'_, bf16>> {
        self.check_dense()?;
        Ok(self.strided(tokens)?.0)
    }

    pub(super) fn rows_mut(&mut self, tokens: &Range<usize>) -> Result<ViewMut<'_, bf16>> {
        self.check_dense()?;
        Ok(self.strided_mut(tokens)?.0)
    }

    /// These tokens' rows, and how far apart they are.
    pub(super) fn strided(&self, tokens: &Range<usize>) -> Result<(View<'_, bf16>, usize)> {
        let elements = self.elements(tokens)?;
        Ok((self.bf16().view().skip(elements.start).first(elements.len()), self.stride))
    }

    pub(super) fn strided_mut(&mut self, tokens: &Range<usize>) -> Result<(ViewMut<'_, bf16>, usize)> {
        let (elements, stride) = (self.elements(tokens)?, self.stride);
        Ok((self.bf16_mut().view_mut().skip(elements.start).first(elements.len()), stride))
    }

    /// These tokens' rows, dense or not.
    pub(super) fn apart(&self, tokens: &Range<usize>) -> Result<Rows<'_>> {
        self.strided(tokens).map(|(rows, stride)| Rows::apart(rows, stride))
    }

    pub(super) fn apart_mut(&mut self, tokens: &Range<usize>) -> Result<RowsMut<'_>> {
        self.strided_mut(tokens).map(|(rows, stride)| RowsMut::apart(rows, stride))
    }

    /// True if a product may put `columns` columns behind those of each row.
    pub(super) fn has_room(&self, columns: usize) -> bool {
        self.stride >= self.width + columns && self.stride.is_multiple_of(8)
    }

    pub(super) fn check_dense(&self) -> Result<()> {
        match self.stride == self.width {
            true => Ok(()),
            false => Err(Error::Failed(format!(
                "rows of {} values, {} apart, were given to an operation that needs them side by side",
                self.width, self.stride
            ))),
        }
    }

    /// All rows, whatever they are of.
    pub(super) fn all(&self) -> View<'_, bf16> {
        self.bf16().view()
    }

    pub(super) fn all_mut(&mut self) -> ViewMut<'_, bf16> {
        self.bf16_mut().view_mut()
    }

    /// These tokens' rows of a buffer that `alloc_f32` made.
    pub(super) fn f32_rows(&self, tokens: &Range<usize>) -> Result<View<'_, f32>> {
        let elements = self.elements(tokens)?;
        match &self.data {
            Storage::F32(data) => Ok(data.view().skip(elements.start).first(elements.len())),
            Storage::Bf16(_) => panic!("an f32 buffer was expected, this one is bf16"),
        }
    }

    pub(super) fn f32_rows_mut(&mut self, tokens: &Range<usize>) -> Result<ViewMut<'_, f32>> {
        let elements = self.elements(tokens)?;
        match &mut self.data {
            Storage::F32(data) => Ok(data.view_mut().skip(elements.start).first(elements.len())),
            Storage::Bf16(_) => panic!("an f32 buffer was expected, this one is bf16"),
        }
    }
}

/// `[vocab, hidden]`, read in bf16.
pub struct CudaTable {
    pub(super) data: TableMemory,
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    /// Rows that are trained, where not all of them are
    pub(super) rows: Option<Box<OwnRows>>,
}

/// Rows of single tokens, as the optimizer leaves them. The table that products read has them too, in bf16.
pub(super) struct OwnRows {
    /// `[rows]`: tokens, ascending
    pub tokens: Buffer<u32>,
    /// `[rows, hidden]`
    pub param: CudaParam,
}

/// A table as the operations take it that find its gradient.
pub(super) struct TableParts<'a> {
    /// `[vocab, hidden]`
    pub values: View<'a, bf16>,
    /// The tokens whose rows the gradient has; none: it has all
    pub rows: Option<View<'a, u32>>,
    /// `[rows, hidden]`, or `[vocab, hidden]`; none where nothing of the table is trained
    pub gradient: Option<ViewMut<'a, f32>>,
}

impl CudaTable {
    pub(super) fn parts(&mut self) -> TableParts<'_> {
        match (&mut self.data, &mut self.rows) {
            (data, Some(own)) => {
                let OwnRows { tokens, param } = &mut **own;
                TableParts { values: data.view(), rows: Some(tokens.view()), gradient: param.for_gradient().1 }
            }
            (TableMemory::Trained(param), None) => {
                let (values, gradient) = param.for_gradient();
                TableParts { values, rows: None, gradient }
            }
            (data, None) => TableParts { values: data.view(), rows: None, gradient: None },
        }
    }
}

impl TableShape for CudaTable {
    fn vocab(&self) -> usize {
        self.vocab
    }

    fn trained_rows(&self) -> usize {
        match (&self.data, &self.rows) {
            (_, Some(own)) => own.tokens.len(),
            (TableMemory::Trained(_), None) => self.vocab,
            (_, None) => 0,
        }
    }
}

impl MaybeTrained<CudaParam> for CudaTable {
    fn param(&self) -> Option<&CudaParam> {
        match (&self.data, &self.rows) {
            (_, Some(own)) => Some(&own.param),
            (TableMemory::Trained(param), None) => Some(param),
            (_, None) => None,
        }
    }

    fn param_mut(&mut self) -> Option<&mut CudaParam> {
        match (&mut self.data, &mut self.rows) {
            (_, Some(own)) => Some(&mut own.param),
            (TableMemory::Trained(param), None) => Some(param),
            (_, None) => None,
        }
    }
}

pub(super) enum TableMemory {
    Device(Buffer<bf16>),
    /// Rows are read where they are; none in a dry run.
    Pinned(Option<PinnedBuffer<bf16>>),
    /// The output layer, which the backend has in host memory, and on the device while it is used
    Waiting,
    Trained(Box<CudaParam>),
}

impl TableMemory {
    pub fn view(&self) -> View<'_, bf16> {
        match self {
            Self::Device(data) => data.view(),
            Self::Pinned(data) => data.as_ref().expect("it is there while running").view(),
            Self::Waiting => unreachable!("what waits is read where it was brought"),
            Self::Trained(param) => param.working.view(),
        }
    }

    /// For rows that take the place of the table's own.
    pub fn view_mut(&mut self) -> ViewMut<'_, bf16> {
        match self {
            Self::Device(data) => data.view_mut(),
            Self::Pinned(data) => data.as_mut().expect("it is there while running").view_mut(),
            Self::Waiting => unreachable!("nothing of what waits is trained"),
            Self::Trained(_) => unreachable!("what is trained is written by the optimizer alone"),
        }
    }
}

/// A buffer that waits for the backward pass.
pub enum CudaOffloaded {
    OnDevice(CudaBuffer),
    /// In this slot of host memory, or on its way back.
    OnHost {
        slot: usize,
        tokens: usize,
        width: usize,
        prefetched: bool,
    },
    /// At this place in the scratch file; once it is on its way back, in this slot of host memory.
    OnDisk {
        place: u64,
        slot: Option<usize>,
        tokens: usize,
        width: usize,
    },
}

/// Norms are read in f32, biases in bf16.
pub enum CudaVector {
    Frozen {
        f32: Buffer<f32>,
        bf16: Buffer<bf16>,
    },
    /// A norm's weight, read as the optimizer left it
    Trained(Box<CudaParam>),
}

impl CudaVector {
    pub(super) fn f32(&self) -> View<'_, f32> {
        match self {
            Self::Frozen { f32, .. } => f32.view(),
            Self::Trained(param) => param.values(),
        }
    }

    /// Values that are computed again and again.
    pub(super) fn f32_mut(&mut self) -> ViewMut<'_, f32> {
        match self {
            Self::Frozen { f32, .. } => f32.view_mut(),
            Self::Trained(_) => unreachable!("what is trained is written by the optimizer alone"),
        }
    }

    pub(super) fn bf16(&self) -> View<'_, bf16> {
        match self {
            Self::Frozen { bf16, .. } => bf16.view(),
            Self::Trained(param) => param.working.view(),
        }
    }
}

impl MaybeTrained<CudaParam> for CudaVector {
    fn param(&self) -> Option<&CudaParam> {
        match self {
            Self::Trained(param) => Some(param),
            Self::Frozen { .. } => None,
        }
    }

    fn param_mut(&mut self) -> Option<&mut CudaParam> {
        match self {
            Self::Trained(param) => Some(param),
            Self::Frozen { .. } => None,
        }
    }
}

/// A frozen linear weight `[n, k]`.
pub enum CudaWeight {
    Nf4(Box<Nf4Memory>),
    /// `[n * k]`
    Dense(WeightArray<bf16>),
}

/// An NF4 weight on the device, or in pinned memory with its layer.
pub type Nf4Memory = nf4::Arrays<WeightArray<u8>, WeightArray<f32>>;

impl CudaWeight {
    pub(super) fn view<'a>(&'a self, pinned: &'a PinnedWeights) -> linear::Weight<'a> {
        match self {
            Self::Nf4(weight) => {
                linear::Weight::Nf4(weight.map(|bytes| bytes.view(pinned), |floats| floats.view(pinned)))
            }
            Self::Dense(weight) => linear::Weight::Dense(weight.view(pinned)),
        }
    }

    /// The layer of a weight that waits in host memory.
    pub(super) fn pinned_layer(&self) -> Option<usize> {
        match self {
            Self::Nf4(weight) => weight.codes.pinned_layer(),
            Self::Dense(weight) => weight.pinned_layer(),
        }
    }

    /// Appends the weight's arrays to those of its layer.
    pub(super) fn append_to(&mut self, arrays: &mut LayerArrays, memory: &DeviceMemory) -> Result<()> {
        let weight = match self {
            Self::Nf4(weight) => weight,
            Self::Dense(weight) => return weight.append_to(arrays, memory),
        };
        weight.codes.append_to(arrays, memory)?;
        match &mut weight.absmax {
            nf4::Absmax::F32(absmax) => absmax.append_to(arrays, memory),
            nf4::Absmax::DoubleQuantized { codes, nested_absmax, nested_map, offset } => {
                codes.append_to(arrays, memory)?;
                nested_absmax.append_to(arrays, memory)?;
                nested_map.append_to(arrays, memory)?;
                offset.append_to(arrays, memory)
            }
        }
    }
}

/// A trainable tensor of n elements.
pub struct CudaParam {
    /// A number that no other tensor of this process has; names it in the optimizer's table.
    pub(super) id: u64,
    /// `[n]`: the master copy; none where it waits in host memory, beside the states
    pub(super) value: Option<Buffer<f32>>,
    /// `[n]`: the rounded copy that products read
    pub(super) working: Buffer<bf16>,
    pub(super) training: Option<Training>,
}

impl CudaParam {
    /// The working copy, and the gradient where the tensor is trained.
    pub(super) fn for_gradient(&mut self) -> (View<'_, bf16>, Option<ViewMut<'_, f32>>) {
        (self.working.view(), self.training.as_mut().map(|training| training.gradient.view_mut()))
    }

    /// The master copy of a tensor that operations read in f32.
    pub(super) fn values(&self) -> View<'_, f32> {
        here(&self.value)
    }

    /// The master copy, and the gradient where the tensor is trained.
    pub(super) fn values_for_gradient(&mut self) -> (View<'_, f32>, Option<ViewMut<'_, f32>>) {
        (here(&self.value), self.training.as_mut().map(|training| training.gradient.view_mut()))
    }
}

fn here(value: &Option<Buffer<f32>>) -> View<'_, f32> {
    value.as_ref().expect("a master copy that operations read does not wait elsewhere").view()
}

/// Gradient and optimizer states of a trained tensor.
pub(super) struct Training {
    /// `[n]`
    pub gradient: Buffer<f32>,
    pub states: StateMemory,
}

/// Memory of an [`OptimizerState`]: the device's, or the host's.
pub(super) enum StateMemory {
    F32 {
        m: Buffer<f32>,
        v: Buffer<f32>,
    },
    Blockwise8 {
        m: Buffer<u8>,
        m_absmax: Buffer<f32>,
        v: Buffer<u8>,
        v_absmax: Buffer<f32>,
    },
    /// Among the optimizer's [`PagedStates`](super::paged_states::PagedStates)
    Paged(PagedTensor),
}

impl StateMemory {
    /// Zeros of the same kind and lengths, for comparing.
    pub fn shape(&self) -> OptimizerState {
        match self {
            Self::F32 { m, v } => OptimizerState::F32 { m: vec![0.0; m.len()], v: vec![0.0; v.len()] },
            Self::Blockwise8 { m, m_absmax, v, v_absmax } => OptimizerState::Blockwise8 {
                m: vec![0; m.len()],
                m_absmax: vec![0.0; m_absmax.len()],
                v: vec![0; v.len()],
                v_absmax: vec![0.0; v_absmax.len()],
            },
            Self::Paged(states) => states.zeros(),
        }
    }
}
