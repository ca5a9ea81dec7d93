//! The norms of the rows of W + scale·B·A, which magnitudes (DoRA) take the place of. Formula:
//! [`crate::reference::magnitude_norms`].

use super::check::{Operation, struct_size};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// A row's squares, and what the low-rank term adds to them.
#[derive(Clone, Copy, Debug)]
pub struct RowSquares<'a> {
    /// Rank of the low-rank term
    pub r: usize,
    /// That of the LoRA pair.
    pub scale: f32,
    /// `[n]`: of [`super::row_squares()`]
    pub squares: View<'a, f32>,
    /// `[r, n]`: the output of [`super::linear_forward()`] with A as its r tokens and half the scale in its LoRA pair,
    /// so that it is A·(W + scale/2·B·A)ᵀ
    pub z: View<'a, bf16>,
    /// `[n, r]`
    pub b: View<'a, bf16>,
}

/// `norms` `[n]` = √(squares + 2·scale·Σⱼ z\[j\]·b\[·, j\]), 0 where rounding makes that negative.
pub fn magnitude_norms(rows: &RowSquares<'_>, norms: ViewMut<'_, f32>, stream: Stream) -> Result<()> {
    let (n, r) = (norms.len(), rows.r);
    let operation = Operation { name: "magnitude_norms", shape: format!("N {n}, r {r}") };
    operation.check((1..=sys::QK_MAX_R as usize).contains(&r), || {
        format!("the LoRA rank is {r}, expected 1 to {}", sys::QK_MAX_R)
    })?;
    operation.length("the squares", rows.squares.len(), n)?;
    operation.length("z", rows.z.len(), operation.size(&[r, n])?)?;
    operation.length("B", rows.b.len(), operation.size(&[n, r])?)?;
    let args = sys::qk_magnitude_norms_args {
        struct_size: struct_size::<sys::qk_magnitude_norms_args>(),
        r: r as u32,
        n: operation.dimension("N", n)?,
        z: rows.z.address().cast(),
        b: rows.b.address().cast(),
        squares: rows.squares.address(),
        norms: norms.address(),
        scale: rows.scale,
        reserved: 0,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_magnitude_norms(&args, stream.as_raw())) })
}
