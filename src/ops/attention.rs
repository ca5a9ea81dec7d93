//! Causal attention over documents that do not see each other. Formula: [`crate::reference::attention`].

use super::check::Operation;
use super::rows::RowsMut;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::shape::AttentionShape;
use crate::sys;
use half::bf16;

/// The widths of a head that the kernels are built for.
pub const HEAD_DIMS: [usize; 4] = [64, 96, 128, 256];

/// The inputs of both passes.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// `head_dim` is one of [`HEAD_DIMS`].
    pub shape: AttentionShape,
    /// M, tokens
    pub m: usize,
    /// `[m, qkv]`: H queries, Hkv keys and Hkv values of D each
    pub qkv: View<'a, bf16>,
    /// `[documents + 1]`, ascending from 0 to m
    pub boundaries: View<'a, u32>,
    /// A query sees this many keys at most, itself included.
    pub window: Option<usize>,
}

/// `out` `[m, H·D]`, `lse` `[m, H]`.
pub fn attention<'a>(
    input: &Attention<'_>,
    out: impl Into<RowsMut<'a>>,
    lse: ViewMut<'_, f32>,
    stream: Stream,
) -> Result<()> {
    let ((operation, mut args), out) = (check("attention", input)?, out.into());
    args.ldout = out.check(&operation, "out", input.m, input.shape.out())?;
    operation.length("lse", lse.len(), input.m * input.shape.heads)?;
    (args.out, args.lse) = (out.view.address().cast(), lse.address());
    // SAFETY: every length was checked against the shape; `args` is read before the return. The boundaries' values are
    // the caller's; a kernel clamps what it reads to the m rows.
    operation.status(unsafe { call!(qk_attention(&args, stream.as_raw())) })
}

/// The C field, of which 0 is no window.
pub(super) fn window_of(operation: &Operation, window: Option<usize>) -> Result<i64> {
    match window {
        None => Ok(0),
        Some(0) => Err(operation.argument("a window of 0 keys".into())),
        Some(window) => operation.dimension("the window", window),
    }
}

/// The C field, of which 0 is no cap.
pub(super) fn soft_cap_of(operation: &Operation, soft_cap: Option<f32>) -> Result<f32> {
    match soft_cap {
        None => Ok(0.0),
        Some(cap) if cap > 0.0 && cap.is_finite() => Ok(cap),
        Some(cap) => Err(operation.argument(format!("a soft cap of {cap}, expected a number above 0"))),
    }
}

pub(super) fn check(name: &'static str, input: &Attention<'_>) -> Result<(Operation, sys::qk_attention_args)> {
    let Attention { shape, m, .. } = *input;
    let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
    let operation =
        Operation { name, shape: format!("M {m}, {heads} heads of {head_dim}, {kv_heads} key and value heads") };
    let small = |what: &str, value: usize| {
        let fits = u32::try_from(value).ok().filter(|&value| (1..=65_535).contains(&value));
        fits.ok_or_else(|| operation.argument(format!("{what} is {value}, expected 1 to 65535")))
    };
    let (heads, kv_heads, head_dim) = (small("H", heads)?, small("Hkv", kv_heads)?, small("head_dim", head_dim)?);
    let qkv = m.checked_mul(shape.qkv()).ok_or_else(|| operation.argument("too many elements".into()))?;
    operation.length("qkv", input.qkv.len(), qkv)?;
    operation.check(input.boundaries.len() >= 2, || "the boundaries have no document".into())?;
    let args = sys::qk_attention_args {
        struct_size: size_of::<sys::qk_attention_args>() as u32,
        head_dim,
        heads,
        kv_heads,
        m: operation.dimension("M", m)?,
        documents: operation.dimension("documents", input.boundaries.len() - 1)?,
        cu_seqlens: input.boundaries.address(),
        window: window_of(&operation, input.window)?,
        qkv: input.qkv.address().cast(),
        ldqkv: operation.dimension("the row", shape.qkv())?,
        out: std::ptr::null_mut(),
        lse: std::ptr::null_mut(),
        dout: std::ptr::null(),
        dqkv: std::ptr::null_mut(),
        soft_cap: soft_cap_of(&operation, shape.soft_cap)?,
        reserved: 0,
        ldout: 0,
        lddqkv: 0,
    };
    Ok((operation, args))
}
