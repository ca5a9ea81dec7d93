//! Operands that the forward and the backward pass of the linear layer share: weights, LoRA pairs and dropout, and
//! their C structs.

use super::check::Operation;
use super::nf4;
use crate::device::View;
use crate::error::Result;
use crate::sys;
use half::bf16;
use std::ffi::c_void;
use std::ptr::null;

/// The frozen weight of a segment, `[n, k]`.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    Nf4(nf4::Weight<'a>),
    /// `[n * k]`, row-major
    Dense(View<'a, bf16>),
}

/// Features of a tile of the fast kernels, and the block size that they read.
pub(super) const TILE_K: usize = 64;
impl Weight<'_> {
    /// True if the fast kernels read it.
    pub(super) fn has_fast_blocks(&self) -> bool {
        match self {
            Self::Nf4(weight) => weight.block_size == TILE_K,
            Self::Dense(_) => true,
        }
    }
}

/// A LoRA pair of one segment, or several of which each token takes its own.
#[derive(Clone, Copy, Debug)]
pub struct Lora<'a> {
    /// 1 to 256
    pub r: usize,
    /// alpha / r, or alpha / √r
    pub scale: f32,
    /// `[r, k]`, or `[count, r, k]`
    pub a: View<'a, bf16>,
    /// `[n, r]`, or `[count, n, r]`
    pub b: View<'a, bf16>,
    /// None: one adapter, for every token.
    pub adapters: Option<Adapters<'a>>,
}

/// Several LoRA pairs, one after the other in A and B, all of rank r: one of a lower rank is padded with zeros.
#[derive(Clone, Copy, Debug)]
pub struct Adapters<'a> {
    /// Number of adapters.
    pub count: usize,
    /// `[m]`: the adapter of each token, 0 to count; any other, as -1: none.
    pub index: View<'a, i32>,
    /// `[count]`, or none: [`Lora::scale`] is that of all.
    pub scales: Option<View<'a, f32>>,
}

/// Dropout of the low-rank path's input: the mask of [`crate::rng::Dropout`], which forward and backward both draw.
#[derive(Clone, Copy, Debug)]
pub struct Dropout<'a> {
    /// In [0, 1).
    pub p: f32,
    /// Seed of the run, the key of the generator
    pub seed: u64,
    /// layer · 16 + input
    pub dropout_id: u32,
    /// step · accumulation + micro
    pub dropout_step: u32,
    /// The mask's token of the first row; the last row's is below 2³².
    pub first_token: u64,
    /// `[1]`: read in place of `dropout_step` when the kernel runs, so that a captured graph draws another mask each
    /// time
    pub step_on_device: Option<View<'a, u32>>,
}

/// The structs to which those of one call point; boxed, so that they do not move.
#[derive(Default)]
pub(super) struct Operands {
    #[expect(clippy::vec_box, reason = "others point to them, so that they must not move")]
    nf4: Vec<Box<sys::qk_nf4>>,
    #[expect(clippy::vec_box, reason = "as above")]
    lora: Vec<Box<sys::qk_lora>>,
    dropout: Option<Box<sys::qk_dropout>>,
}

impl Operands {
    /// The fields `nf4` and `dense` of a segment, checked against `[n, k]`.
    pub fn weight(
        &mut self,
        operation: &Operation,
        weight: &Weight<'_>,
        n: usize,
        k: usize,
    ) -> Result<(*const sys::qk_nf4, *const c_void)> {
        match weight {
            Weight::Nf4(weight) => {
                operation.check(weight.n == n && weight.k == k, || {
                    format!("the weight is [{}, {}], expected [{n}, {k}]", weight.n, weight.k)
                })?;
                self.nf4.push(Box::new(weight.describe(operation)?));
                Ok((last(&self.nf4), null()))
            }
            Weight::Dense(weight) => {
                operation.length("the weight", weight.len(), operation.size(&[n, k])?)?;
                Ok((null(), weight.address().cast()))
            }
        }
    }

    /// The field `lora` of a segment `[n, k]` that m tokens go through.
    pub fn lora(
        &mut self,
        operation: &Operation,
        lora: &Lora<'_>,
        m: usize,
        n: usize,
        k: usize,
    ) -> Result<*const sys::qk_lora> {
        operation.check((1..=sys::QK_MAX_R as usize).contains(&lora.r), || {
            format!("the LoRA rank is {}, expected 1 to {}", lora.r, sys::QK_MAX_R)
        })?;
        let count = lora.adapters.map_or(1, |adapters| adapters.count);
        operation
            .check((1..=i32::MAX as usize).contains(&count), || format!("{count} adapters, expected at least 1"))?;
        operation.length("A", lora.a.len(), operation.size(&[count, lora.r, k])?)?;
        operation.length("B", lora.b.len(), operation.size(&[count, n, lora.r])?)?;
        if let Some(adapters) = &lora.adapters {
            operation.length("the adapter index", adapters.index.len(), m)?;
            if let Some(scales) = &adapters.scales {
                operation.length("the adapters' scales", scales.len(), count)?;
            }
        }
        self.lora.push(Box::new(sys::qk_lora {
            struct_size: size_of::<sys::qk_lora>() as u32,
            r: lora.r as u32,
            scale: lora.scale,
            num_adapters: count as u32,
            a: lora.a.address().cast(),
            b: lora.b.address().cast(),
            adapter_index: lora.adapters.map_or(null(), |adapters| adapters.index.address()),
            scales: lora.adapters.and_then(|adapters| adapters.scales).map_or(null(), |scales| scales.address()),
        }));
        Ok(last(&self.lora))
    }

    /// The field `dropout` of an operand of m tokens.
    pub fn dropout(
        &mut self,
        operation: &Operation,
        dropout: Option<Dropout<'_>>,
        m: usize,
    ) -> Result<*const sys::qk_dropout> {
        let Some(Dropout { p, seed, dropout_id, dropout_step, first_token, step_on_device }) = dropout else {
            return Ok(null());
        };
        operation.check((0.0..1.0).contains(&p), || format!("dropout is {p}, expected at least 0 and less than 1"))?;
        operation.check((m as u64).checked_add(first_token).is_some_and(|end| end <= 1 << 32), || {
            format!("{m} tokens from {first_token} on, expected none from 2^32 on")
        })?;
        if let Some(step) = step_on_device {
            operation.length("step of dropout", step.len(), 1)?;
        }
        let dropout = sys::qk_dropout {
            struct_size: size_of::<sys::qk_dropout>() as u32,
            p,
            seed,
            dropout_id,
            dropout_step,
            first_token: first_token as i64,
            step_on_device: step_on_device.map_or(null(), |step| step.address()),
        };
        Ok(&raw const **self.dropout.insert(Box::new(dropout)))
    }
}

fn last<T>(boxes: &[Box<T>]) -> *const T {
    boxes.last().map_or(null(), |last| &raw const **last)
}

/// A strided matrix `[m, columns]` in `len` elements.
pub(super) fn rows(
    operation: &Operation,
    what: &str,
    len: usize,
    m: usize,
    columns: usize,
    stride: usize,
) -> Result<()> {
    operation.check(stride >= columns, || format!("{what} has a stride of {stride}, expected at least {columns}"))?;
    let needed = match m {
        0 => Some(0),
        _ => (m - 1).checked_mul(stride).and_then(|last| last.checked_add(columns)),
    };
    operation.check(needed.is_some_and(|needed| len >= needed), || {
        format!("{what} has {len} elements, expected at least {m} rows of {columns}, {stride} apart")
    })
}

/// The segments' number and the shape that errors name.
pub(super) fn operation(
    name: &'static str,
    m: usize,
    k: usize,
    widths: impl ExactSizeIterator<Item = usize>,
) -> Result<Operation> {
    let count = widths.len();
    let widths: Vec<String> = widths.map(|n| n.to_string()).collect();
    let operation = Operation { name, shape: format!("M {m}, K {k}, N {}", widths.join(" + ")) };
    operation.check((1..=sys::QK_MAX_SEGMENTS as usize).contains(&count), || {
        format!("{count} segments, expected 1 to {}", sys::QK_MAX_SEGMENTS)
    })?;
    Ok(operation)
}

/// Columns of S and T: every segment's rank, rounded up to 8.
pub(super) fn lora_columns<'a>(loras: impl Iterator<Item = Option<&'a Lora<'a>>>) -> usize {
    loras.flatten().map(|lora| lora.r.next_multiple_of(8)).sum()
}
