//! Tensors, rates and states of AdamW, which updates all tensors in one launch. Formulas: [`crate::reference::adamw`]
//! and [`crate::optim8bit`], bit for bit.

use super::check::Operation;
use crate::device::{View, ViewMut};
use crate::error::Result;
use crate::optim::AdamW;
use crate::sys;
use half::bf16;
use std::marker::PhantomData;

/// Elements of a tensor that are updated together: parts that begin at its multiples give the bits of the whole.
pub const CHUNK: usize = sys::QK_ADAMW_CHUNK as usize;
/// u64 words of a [`GradientState`] in device memory.
pub const STATE_LEN: usize = size_of::<sys::qk_gradient_state>() / 8;
/// f32 values of one rate in device memory.
pub const RATE_LEN: usize = size_of::<sys::qk_adamw_rate>() / 4;

/// The two moments of one tensor of n elements. All zero before the first update.
#[derive(Debug)]
pub enum States<'a> {
    /// `[n]` each
    F32 { m: ViewMut<'a, f32>, v: ViewMut<'a, f32> },
    /// Codes `[n]` and scales `[ceil(n / 256)]`: [`crate::optim8bit`].
    Blockwise8 { m: ViewMut<'a, u8>, m_absmax: ViewMut<'a, f32>, v: ViewMut<'a, u8>, v_absmax: ViewMut<'a, f32> },
    /// Not on the device: the gradient counts in the norm, and an update is refused.
    Elsewhere,
}

/// One trainable tensor of n elements in device memory.
#[derive(Debug)]
pub struct Tensor<'a> {
    /// `[n]`: the f32 master copy; no elements where it is elsewhere too, as the states are
    pub value: ViewMut<'a, f32>,
    /// `[n]`: written with the rounded new value
    pub working: Option<ViewMut<'a, bf16>>,
    /// `[n]`
    pub gradient: View<'a, f32>,
    /// The moments m and v.
    pub states: States<'a>,
    /// Index into the rates of an update.
    pub rate: usize,
}

impl Tensor<'_> {
    /// True if the master copy is on the device, as it has to be beside states that are.
    fn has_value(&self) -> bool {
        !(self.value.is_empty() && matches!(self.states, States::Elsewhere))
    }

    fn len(&self) -> usize {
        if self.has_value() { self.value.len() } else { self.gradient.len() }
    }
}

/// The tensors of one optimizer, checked.
#[derive(Debug)]
pub struct Tensors<'a> {
    pub(super) described: Vec<sys::qk_adamw_tensor>,
    /// Above every tensor's rate.
    rates: usize,
    shape: String,
    memory: PhantomData<Tensor<'a>>,
}

/// The result of [`Tensors::gradient_norm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GradientState {
    /// L2 over all gradients, before clipping.
    pub norm: f64,
    /// The factor of every gradient in the update.
    pub scale: f32,
    /// The first tensor with a gradient that is not finite; the update then does nothing.
    pub not_finite: Option<usize>,
}

impl GradientState {
    /// From its words in device memory.
    pub fn from_words(words: [u64; STATE_LEN]) -> Self {
        // qk_gradient_state: double, float, int32, little-endian as every device is.
        let tensor = (words[1] >> 32) as u32 as i32;
        Self {
            norm: f64::from_bits(words[0]),
            scale: f32::from_bits(words[1] as u32),
            not_finite: usize::try_from(tensor).ok(),
        }
    }
}

/// The rates of one update as the device reads them, `[settings * RATE_LEN]`.
pub fn rates(settings: &[AdamW]) -> Vec<f32> {
    let rate = |settings: &AdamW| {
        let s = settings.scalars::<f32>();
        [s.decay, s.step_size, s.root, s.beta1, s.rest1, s.beta2, s.rest2, s.epsilon]
    };
    settings.iter().flat_map(rate).collect()
}

fn chunks(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.map(|n| n.div_ceil(CHUNK)).sum()
}

/// u64 words of the table of tensors of these lengths: 80 bytes a tensor, 4 a chunk.
pub fn table_len(lengths: &[usize]) -> usize {
    (lengths.len() * 80 + chunks(lengths.iter().copied()) * 4).div_ceil(8)
}

/// u64 words of workspace of [`Tensors::gradient_norm`] over tensors of these lengths.
pub fn workspace_len(lengths: &[usize]) -> usize {
    chunks(lengths.iter().copied())
}

impl<'a> Tensors<'a> {
    /// Checks every length. The views stay borrowed for as long as the tensors are updated.
    pub fn new(tensors: Vec<Tensor<'a>>) -> Result<Self> {
        let elements: usize = tensors.iter().map(Tensor::len).sum();
        let shape = format!("{} tensors, {elements} elements", tensors.len());
        let operation = Operation { name: "adamw", shape: shape.clone() };
        operation
            .check(!tensors.is_empty() && u32::try_from(tensors.len()).is_ok(), || "no tensors, or too many".into())?;
        let mut described = Vec::with_capacity(tensors.len());
        let mut rates = 0;
        for (index, tensor) in tensors.iter().enumerate() {
            let n = tensor.len();
            let length = |what: &str, found: usize, expected: usize| {
                operation.length(&format!("{what} of tensor {index}"), found, expected)
            };
            operation.check(n > 0, || format!("tensor {index} has no element"))?;
            length("the gradient", tensor.gradient.len(), n)?;
            // The C interface wants an address, which only an update uses, and that is refused without states.
            let value = match tensor.has_value() {
                true => tensor.value.address(),
                false => tensor.gradient.address().cast_mut(),
            };
            if let Some(working) = &tensor.working {
                length("the working copy", working.len(), n)?;
            }
            let mut entry = sys::qk_adamw_tensor {
                struct_size: size_of::<sys::qk_adamw_tensor>() as u32,
                rate: u32::try_from(tensor.rate)
                    .map_err(|_| operation.argument("a rate's index is too large".into()))?,
                n: operation.dimension("n", n)?,
                value,
                working: tensor.working.as_ref().map_or(std::ptr::null_mut(), |w| w.address().cast()),
                gradient: tensor.gradient.address(),
                m: std::ptr::null_mut(),
                v: std::ptr::null_mut(),
                m_absmax: std::ptr::null_mut(),
                v_absmax: std::ptr::null_mut(),
            };
            match &tensor.states {
                States::F32 { m, v } => {
                    length("m", m.len(), n)?;
                    length("v", v.len(), n)?;
                    (entry.m, entry.v) = (m.address().cast(), v.address().cast());
                }
                States::Blockwise8 { m, m_absmax, v, v_absmax } => {
                    let blocks = n.div_ceil(sys::QK_STATE_BLOCK as usize);
                    length("m", m.len(), n)?;
                    length("v", v.len(), n)?;
                    length("absmax of m", m_absmax.len(), blocks)?;
                    length("absmax of v", v_absmax.len(), blocks)?;
                    (entry.m, entry.v) = (m.address().cast(), v.address().cast());
                    (entry.m_absmax, entry.v_absmax) = (m_absmax.address(), v_absmax.address());
                }
                States::Elsewhere => {}
            }
            rates = rates.max(tensor.rate + 1);
            described.push(entry);
        }
        Ok(Self { described, rates, shape, memory: PhantomData })
    }

    pub(super) fn operation(&self, name: &'static str) -> Operation {
        Operation { name, shape: self.shape.clone() }
    }

    /// `table` is what [`Self::table`] gave for these tensors.
    pub(super) fn describe(
        &self,
        operation: &Operation,
        table: View<'_, u64>,
        rates: View<'_, f32>,
        state: Option<View<'_, u64>>,
    ) -> Result<sys::qk_adamw_args> {
        // A table of other tensors is seldom as long.
        operation.length("the table", table.len(), table_len(&self.lengths()))?;
        operation.check(rates.len() >= self.rates * RATE_LEN && rates.len().is_multiple_of(RATE_LEN), || {
            format!("the rates have {} values, expected {RATE_LEN} for each of {} rates", rates.len(), self.rates)
        })?;
        if let Some(state) = &state {
            operation.length("the gradients' state", state.len(), STATE_LEN)?;
        }
        Ok(sys::qk_adamw_args {
            struct_size: size_of::<sys::qk_adamw_args>() as u32,
            num_tensors: self.described.len() as u32,
            tensors: self.described.as_ptr(),
            table: table.address().cast(),
            rates: rates.address().cast(),
            num_rates: (rates.len() / RATE_LEN) as u32,
            reserved: 0,
            gradient_state: state.map_or(std::ptr::null(), |state| state.address().cast()),
        })
    }

    pub(super) fn lengths(&self) -> Vec<usize> {
        self.described.iter().map(|tensor| tensor.n as usize).collect()
    }

    /// u64 words of workspace of [`gradient_norm`](Self::gradient_norm).
    pub fn workspace_len(&self) -> usize {
        workspace_len(&self.lengths())
    }
}
