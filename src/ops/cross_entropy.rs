//! The output layer, the softmax cross-entropy and its gradient in one operation, so that nobody holds `[M, V]` logits.
//! Formulas: [`crate::reference::linear_cross_entropy`].

use super::attention::soft_cap_of;
use super::check::Operation;
use super::lora_gradients::{Product, partial_bytes};
use crate::device::{Stream, View, ViewMut};
use crate::error::{CudaError, Result};
use crate::sys;
use half::bf16;
use std::ptr::{null, null_mut};

/// u64 words of a [`LossState`] in device memory.
pub const STATE_LEN: usize = size_of::<sys::qk_loss_state>() / 8;

/// Tokens whose logits exist at one time, if there is no reason for another number: 525 MB of them for a vocabulary of
/// 128,256.
pub const CHUNK: usize = 1024;

/// The findings of [`cross_entropy`] over all tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossState {
    /// Σ of the weighted losses: of 256 rows at a time, in order, in f64. NaN if one is not finite, or if there are
    /// other than [`Shape::supervised`] supervised tokens.
    pub sum: f64,
    /// The first row whose loss or weight is not finite.
    pub not_finite: Option<usize>,
    /// Supervised tokens, as the device counted them.
    pub supervised: usize,
}

impl LossState {
    /// From its words in device memory.
    pub fn from_words(words: [u64; STATE_LEN]) -> Self {
        // qk_loss_state: double, int32, uint32, little-endian as every device is.
        Self {
            sum: f64::from_bits(words[0]),
            not_finite: usize::try_from(words[1] as u32 as i32).ok(),
            supervised: (words[1] >> 32) as usize,
        }
    }
}

/// Sizes of the operation, which decide its workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// M, tokens
    pub m: usize,
    /// H, the width of the hidden states. Multiples of 64 are fast.
    pub h: usize,
    /// V, rows of the output layer
    pub vocab: usize,
    /// Tokens whose target is not negative and whose weight is not 0: only those cost anything.
    pub supervised: usize,
    /// Tokens whose logits exist at one time, at least 1, best a multiple of 128. No bit of the result depends on it.
    pub chunk: usize,
}

/// The inputs of the operation.
#[derive(Clone, Copy, Debug)]
pub struct CrossEntropy<'a> {
    /// Sizes of the operands.
    pub shape: Shape,
    /// Multiplies the gradient and no loss: 1 / supervised tokens of the whole optimizer step, for a mean.
    pub gradient_scale: f32,
    /// `[m, h]`: after the last norm
    pub hidden: View<'a, bf16>,
    /// `[vocab, h]`
    pub head: View<'a, bf16>,
    /// `[m]`. Negative: none. From `vocab` on: the row's loss and gradient are NaN.
    pub targets: View<'a, i32>,
    /// `[m]`: multiplies each token's loss in the sum and in the gradient, of either sign; `None`: 1 each. A token of
    /// weight 0 is not supervised; weights of negative targets are not read.
    pub weights: Option<View<'a, f32>>,
    /// Logits z are bounded by `cap · tanh(z / cap)`; above 0.
    pub soft_cap: Option<f32>,
}

/// The gradient of the output layer, added to what is there, of all rows or of some.
#[derive(Debug)]
pub struct HeadGradient<'a> {
    /// Rows of the output layer, each once, at least one and each below [`Shape::vocab`]; `None`: all
    pub rows: Option<View<'a, u32>>,
    /// `[rows, h]`, or `[vocab, h]` of all rows
    pub gradient: ViewMut<'a, f32>,
}

/// Bytes of workspace of [`cross_entropy`], with a gradient or without. They do not depend on m, and grow with
/// `supervised` and `chunk`, so that those of the longest batch serve every one.
pub fn workspace_bytes(shape: &Shape, gradient: bool) -> Result<usize> {
    bytes_of(shape, gradient, None)
}

/// Bytes of workspace of [`cross_entropy_with_head`], for the gradient of `rows` rows; `None`: of all.
pub fn workspace_bytes_with_head(shape: &Shape, rows: Option<usize>) -> Result<usize> {
    bytes_of(shape, true, Some(rows))
}

/// `head`: the rows whose gradient of the output layer is wanted; `None`: no such gradient, `Some(None)`: all.
fn bytes_of(shape: &Shape, gradient: bool, head: Option<Option<usize>>) -> Result<usize> {
    let operation = shape.operation("cross_entropy_workspace_size");
    shape.describe(&operation)?;
    let (supervised, chunk) = (shape.supervised, shape.chunk.min(shape.supervised));
    let mut total = 0usize;
    let mut part = |dimensions: &[usize]| {
        let bytes = operation.size(dimensions)?.checked_next_multiple_of(256);
        let sum = bytes.and_then(|bytes| total.checked_add(bytes));
        total = sum.ok_or_else(|| operation.argument("too many elements".into()))?;
        Ok::<(), CudaError>(())
    };
    // The rows with a target; those rows of hidden; maxima and sums of 64 logits each; the targets' logits; the logits.
    part(&[supervised, size_of::<i32>()])?;
    part(&[chunk, shape.h.div_ceil(64) * 64, size_of::<bf16>()])?;
    part(&[chunk, shape.vocab.div_ceil(64), 2 * size_of::<f32>()])?;
    part(&[chunk, size_of::<f32>()])?;
    if gradient {
        part(&[chunk, shape.vocab.div_ceil(8) * 8, size_of::<f32>()])?;
    }
    if let Some(rows) = head {
        if let Some(rows) = rows {
            // Gradients of their logits, one behind the other.
            part(&[chunk, rows.div_ceil(8) * 8, size_of::<bf16>()])?;
        }
        // Sums over tokens, where the output layer is too small to keep a GPU busy with one block for each of its
        // tiles.
        let (ld, ranks) = (shape.h.div_ceil(64) * 64, rows.unwrap_or(shape.vocab).div_ceil(8) * 8);
        part(&[partial_bytes(chunk, std::iter::once(Product { ld, columns: shape.h, ranks, adapters: 1 }))])?;
    }
    Ok(total)
}

/// `losses` `[m]` = logsumexp(z) − z\[target\] with z = hidden · headᵀ, 0 where not supervised; `state` `[STATE_LEN]` =
/// a [`LossState`]; `dhidden` `[m, h]` = gradient_scale · weight · (softmax(z) − onehot(target)) · head, zero where not
/// supervised. `workspace` has at least [`workspace_bytes`].
///
/// Logits, softmax and losses are f32. The gradient of the logits is rounded to bf16 once, and so is `dhidden`. Logits
/// that are not finite in f32 make the row's loss NaN or infinite.
pub fn cross_entropy(
    input: &CrossEntropy<'_>,
    losses: ViewMut<'_, f32>,
    state: ViewMut<'_, u64>,
    dhidden: Option<ViewMut<'_, bf16>>,
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    launch(input, losses, state, dhidden, None, workspace, stream)
}

/// [`cross_entropy`] with the gradient of an output layer that is trained, or of some of its rows: `dhead` += the
/// gradient of the logits, rounded to bf16, transposed, times hidden, summed in f32 over 256 supervised tokens at a
/// time. `workspace` has at least [`workspace_bytes_with_head`].
pub fn cross_entropy_with_head(
    input: &CrossEntropy<'_>,
    losses: ViewMut<'_, f32>,
    state: ViewMut<'_, u64>,
    dhidden: ViewMut<'_, bf16>,
    dhead: HeadGradient<'_>,
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    launch(input, losses, state, Some(dhidden), Some(dhead), workspace, stream)
}

fn launch(
    input: &CrossEntropy<'_>,
    losses: ViewMut<'_, f32>,
    state: ViewMut<'_, u64>,
    dhidden: Option<ViewMut<'_, bf16>>,
    dhead: Option<HeadGradient<'_>>,
    workspace: ViewMut<'_, u8>,
    stream: Stream,
) -> Result<()> {
    let Shape { m, h, vocab, .. } = input.shape;
    let operation = input.shape.operation("cross_entropy");
    let count = operation.size(&[m, h])?;
    operation.length("hidden", input.hidden.len(), count)?;
    operation.length("the output layer", input.head.len(), operation.size(&[vocab, h])?)?;
    operation.length("the targets", input.targets.len(), m)?;
    if let Some(weights) = &input.weights {
        operation.length("the weights", weights.len(), m)?;
    }
    operation.length("losses", losses.len(), m)?;
    operation.length("the state", state.len(), STATE_LEN)?;
    if let Some(dhidden) = &dhidden {
        operation.length("dhidden", dhidden.len(), count)?;
    }
    let num_rows = dhead.as_ref().map(|dhead| dhead.rows.map(|rows| rows.len()));
    if let Some(dhead) = &dhead {
        let rows = num_rows.flatten();
        operation.check(rows != Some(0), || "found no rows of the output layer, expected at least one".to_owned())?;
        let expected = operation.size(&[rows.unwrap_or(vocab), h])?;
        operation.length("the gradient of the output layer", dhead.gradient.len(), expected)?;
    }
    let needed = bytes_of(&input.shape, dhidden.is_some(), num_rows)?;
    let found = workspace.len();
    operation.check(found >= needed, || format!("the workspace has {found} bytes, expected at least {needed}"))?;
    let args = sys::qk_cross_entropy_args {
        gradient_scale: input.gradient_scale,
        soft_cap: soft_cap_of(&operation, input.soft_cap)?,
        hidden: input.hidden.address().cast(),
        head: input.head.address().cast(),
        targets: input.targets.address(),
        weights: input.weights.map_or(null(), |weights| weights.address()),
        losses: losses.address(),
        state: state.address().cast(),
        dhidden: dhidden.map_or(null_mut(), |dhidden| dhidden.address().cast()),
        dhead: dhead.as_ref().map_or(null_mut(), |dhead| dhead.gradient.address()),
        head_rows: dhead.as_ref().and_then(|dhead| dhead.rows).map_or(null(), |rows| rows.address()),
        num_head_rows: operation.dimension("the number of rows", num_rows.flatten().unwrap_or(0))?,
        ..input.shape.describe(&operation)?
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return. The values of targets,
    // weights and rows are the caller's: kernels count them themselves and look up none outside the vocabulary.
    operation.status(unsafe { call!(qk_cross_entropy(&args, workspace.address().cast(), found, stream.as_raw())) })
}

impl Shape {
    pub(super) fn operation(&self, name: &'static str) -> Operation {
        let Self { m, h, vocab, supervised, chunk } = self;
        Operation {
            name,
            shape: format!("M {m} ({supervised} supervised), H {h}, vocabulary {vocab}, chunks of {chunk}"),
        }
    }

    /// Without any operand.
    pub(super) fn describe(&self, operation: &Operation) -> Result<sys::qk_cross_entropy_args> {
        let Self { m, h, vocab, supervised, chunk } = *self;
        let computable = h > 0 && vocab > 0 && supervised <= m && chunk > 0;
        operation.status(if computable { sys::QK_OK } else { sys::QK_ERROR_SHAPE })?;
        Ok(sys::qk_cross_entropy_args {
            struct_size: size_of::<sys::qk_cross_entropy_args>() as u32,
            gradient_scale: 0.0,
            m: operation.dimension("M", self.m)?,
            h: operation.dimension("H", self.h)?,
            vocab: operation.dimension("the vocabulary", self.vocab)?,
            supervised: operation.dimension("the number of supervised tokens", self.supervised)?,
            chunk: operation.dimension("the chunk", self.chunk)?,
            hidden: null(),
            head: null(),
            targets: null(),
            losses: null_mut(),
            state: null_mut(),
            dhidden: null_mut(),
            weights: null(),
            soft_cap: 0.0,
            reserved: 0,
            dhead: null_mut(),
            head_rows: null(),
            num_head_rows: 0,
        })
    }
}
