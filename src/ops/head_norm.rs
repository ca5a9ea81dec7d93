//! RMSNorm of every head of q and k, or of all of q and all of k, and their rotation in the same pass. Formulas:
//! [`crate::reference::head_norm`], [`crate::reference::rope`].

use super::RopeTable;
use super::check::{Operation, struct_size};
use super::rows::RowsMut;
use crate::device::{Stream, View};
use crate::error::Result;
use crate::shape::AttentionShape;
use crate::sys;
use half::bf16;

/// Inputs of the norm and its gradient. Both weights are as wide as a head, or each as wide as all heads of its kind.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// Numbers of heads H and Hkv, and D
    pub shape: AttentionShape,
    /// Added to the mean square.
    pub eps: f32,
    /// `[m, (H + 2·Hkv)·D]`: rows q‖k‖v
    pub x: View<'a, bf16>,
    /// `[D]` or `[H·D]`
    pub q_weight: View<'a, f32>,
    /// `[D]` or `[Hkv·D]`
    pub k_weight: View<'a, f32>,
    /// None: q and k are not rotated here.
    pub rotation: Option<HeadRotation<'a>>,
}

/// The rotation of q and k, of each head the first R elements, without rounding between it and the norm.
#[derive(Clone, Copy, Debug)]
pub struct HeadRotation<'a> {
    /// `[m]`; a row whose position is beyond the table becomes NaN.
    pub positions: View<'a, u32>,
    /// Cosines and sines of every position.
    pub table: RopeTable<'a>,
    /// Rotates the norm's input instead of its output
    pub before_norm: bool,
}

/// `y` = the rows of x with q and k normalized, and rotated; v is copied.
pub fn head_norm<'a>(input: HeadNorm<'_>, y: impl Into<RowsMut<'a>>, stream: Stream) -> Result<()> {
    launch("head_norm", input, std::ptr::null(), y.into(), stream)
}

/// Turns `dy`, the gradient of y, into that of x.
pub fn head_norm_backward<'a>(input: HeadNorm<'_>, dy: impl Into<RowsMut<'a>>, stream: Stream) -> Result<()> {
    let dy = dy.into();
    let address = dy.view.address().cast_const();
    launch("head_norm_backward", input, address, dy, stream)
}

fn launch(name: &'static str, input: HeadNorm<'_>, dy: *const bf16, y: RowsMut<'_>, stream: Stream) -> Result<()> {
    let AttentionShape { heads, kv_heads, head_dim, .. } = input.shape;
    let mut operation = Operation { name, shape: format!("{heads} and {kv_heads} heads of {head_dim}") };
    let width = operation.size(&[heads.saturating_add(kv_heads.saturating_mul(2)), head_dim])?;
    let m = input.x.len().checked_div(width).unwrap_or(0);
    operation.shape = format!("M {m}, {}", operation.shape);
    let count = operation.size(&[m, width])?;
    let whole_width = input.q_weight.len() != head_dim || input.k_weight.len() != head_dim;
    let of = |heads: usize| if whole_width { heads.saturating_mul(head_dim) } else { head_dim };
    for (what, found, expected) in [
        ("x", input.x.len(), count),
        ("the weight of q", input.q_weight.len(), of(heads)),
        ("the weight of k", input.k_weight.len(), of(kv_heads)),
    ] {
        operation.length(what, found, expected)?;
    }
    let small = |what: &str, value: usize| {
        u32::try_from(value).map_err(|_| operation.argument(format!("{what} is {value}, which is too large")))
    };
    let stride = operation.dimension("the width of a row", width)?;
    let ldy = y.check(&operation, "y", m, width)?;
    if let Some(HeadRotation { positions, table, .. }) = &input.rotation {
        operation.length("the positions", positions.len(), m)?;
        table.check(&operation, head_dim)?;
    }
    let rotation = input.rotation.map(|HeadRotation { positions, table, before_norm }| {
        let order = if before_norm { sys::QK_ROTATION_BEFORE_NORM } else { sys::QK_ROTATION_AFTER_NORM };
        (order, positions.address(), table)
    });
    let table = rotation.map(|(_, _, table)| table);
    let args = sys::qk_head_norm_args {
        struct_size: struct_size::<sys::qk_head_norm_args>(),
        head_dim: small("D", head_dim)?,
        heads: small("the number of heads", heads)?,
        kv_heads: small("the number of key heads", kv_heads)?,
        eps: input.eps,
        reserved: 0,
        m: operation.dimension("M", m)?,
        ldx: stride,
        ldy: if ldy == 0 { stride } else { ldy },
        x: input.x.address().cast(),
        q_weight: input.q_weight.address(),
        k_weight: input.k_weight.address(),
        dy: dy.cast(),
        y: y.view.address().cast(),
        whole_width: whole_width.into(),
        reserved2: 0,
        rotation: rotation.map_or(sys::QK_ROTATION_NONE, |(order, _, _)| order),
        rotary_dim: small("R", table.map_or(0, |table| 2 * table.half))?,
        positions: rotation.map_or(std::ptr::null(), |(_, positions, _)| positions),
        cosines: table.map_or(std::ptr::null(), |table| table.cosines.address()),
        sines: table.map_or(std::ptr::null(), |table| table.sines.address()),
        table_positions: operation.dimension("positions", table.map_or(0, |table| table.cosines.len() / table.half))?,
    };
    // SAFETY: every length was checked against the shape, dy is null or y; `args` is read before the return.
    operation.status(unsafe { call!(qk_head_norm(&args, stream.as_raw())) })
}

#[cfg(all(test, not(kernels = "absent")))]
mod tests;
