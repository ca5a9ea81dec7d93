//! The output layer of a few tokens, in f32: what the next token is chosen by.

use super::check::Operation;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// The inputs of [`logits`].
#[derive(Clone, Copy, Debug)]
pub struct OutputLayer<'a> {
    /// M, rows of `hidden`
    pub m: usize,
    /// H. Multiples of 8 are fast.
    pub h: usize,
    /// V, rows of `head`
    pub vocab: usize,
    /// `[m, h]`: after the last norm
    pub hidden: View<'a, bf16>,
    /// `[vocab, h]`
    pub head: View<'a, bf16>,
}

/// Each of `logits`, `[vocab]`, = head · hidden of the row of the same place in `tokens`, summed in f32 and not rounded
/// to bf16. The output layer is read once for 16 tokens, and a token's bits do not depend on the others.
pub fn logits(layer: &OutputLayer<'_>, tokens: &[u32], logits: &mut [ViewMut<'_, f32>], stream: Stream) -> Result<()> {
    let OutputLayer { m, h, vocab, .. } = *layer;
    let count = tokens.len();
    let operation = Operation { name: "logits", shape: format!("{count} of M {m}, H {h}, vocabulary {vocab}") };
    operation.length("hidden", layer.hidden.len(), operation.size(&[m, h])?)?;
    operation.length("the output layer", layer.head.len(), operation.size(&[vocab, h])?)?;
    operation.check(logits.len() == count, || format!("{} outputs for {count} tokens", logits.len()))?;
    operation.check(count <= 65_535, || format!("{count} tokens, expected at most 65535"))?;
    for output in logits.iter() {
        operation.length("an output", output.len(), vocab)?;
    }
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= m) {
        return Err(operation.argument(format!("token {token}, expected less than M")));
    }
    let outputs: Vec<*mut f32> = logits.iter_mut().map(|output| output.address()).collect();
    let args = sys::qk_logits_args {
        struct_size: size_of::<sys::qk_logits_args>() as u32,
        num_tokens: count as u32,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        vocab: operation.dimension("the vocabulary", vocab)?,
        hidden: layer.hidden.address().cast(),
        head: layer.head.address().cast(),
        tokens: tokens.as_ptr(),
        logits: outputs.as_ptr(),
    };
    // SAFETY: every length was checked against the shape; `args` and the two arrays are read before the return.
    operation.status(unsafe { call!(qk_logits(&args, stream.as_raw())) })
}
