//! The rotary position embedding, in place. Formula: [`crate::reference::rope`].

use super::check::{Operation, struct_size};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// Rotation angles of every position, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct RopeTable<'a> {
    /// R / 2, of the R elements of a head that are rotated
    pub half: usize,
    /// `[positions, R / 2]`
    pub cosines: View<'a, f32>,
    /// `[positions, R / 2]`
    pub sines: View<'a, f32>,
}

impl RopeTable<'_> {
    /// Refuses a table that is not one for heads of `head_dim` elements.
    pub(super) fn check(&self, operation: &Operation, head_dim: usize) -> Result<()> {
        let (half, entries) = (self.half, self.cosines.len());
        operation.check(half > 0 && half <= head_dim / 2, || {
            format!("the table rotates {} elements, expected 2 to {head_dim}", half.saturating_mul(2))
        })?;
        operation.check(entries > 0 && entries.is_multiple_of(half), || {
            format!("the table has {entries} cosines, expected a multiple of {half}")
        })?;
        operation.length("the sines", self.sines.len(), entries)
    }
}

/// Rotates the first `heads` heads of every row of `x` in place, of each the first R of its `head_dim` elements;
/// `inverse` is the gradient. A row whose position is beyond the table becomes NaN, as far as it is rotated.
pub fn rope(
    x: ViewMut<'_, bf16>,
    ldx: usize,
    heads: usize,
    head_dim: usize,
    positions: View<'_, u32>,
    table: RopeTable<'_>,
    inverse: bool,
    stream: Stream,
) -> Result<()> {
    let m = positions.len();
    let (half, entries) = (table.half, table.cosines.len());
    let operation = Operation { name: "rope", shape: format!("M {m}, {heads} heads of {head_dim}") };
    table.check(&operation, head_dim)?;
    let width = operation.size(&[heads, head_dim])?;
    operation.check(ldx >= width, || format!("x has a stride of {ldx}, expected at least {width}"))?;
    let needed = if m == 0 { 0 } else { operation.size(&[m - 1, ldx])?.saturating_add(width) };
    operation.check(x.len() >= needed, || format!("x has {} elements, expected at least {needed}", x.len()))?;
    let small = |what: &str, value: usize| {
        u32::try_from(value).map_err(|_| operation.argument(format!("{what} is {value}, which is too large")))
    };
    let args = sys::qk_rope_args {
        struct_size: struct_size::<sys::qk_rope_args>(),
        head_dim: small("D", head_dim)?,
        heads: small("the number of heads", heads)?,
        inverse: inverse.into(),
        m: operation.dimension("M", m)?,
        ldx: operation.dimension("ldx", ldx)?,
        x: x.address().cast(),
        positions: positions.address(),
        cosines: table.cosines.address(),
        sines: table.sines.address(),
        table_positions: operation.dimension("positions", entries / half)?,
        rotary_dim: small("R", 2 * half)?,
        reserved: 0,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_rope(&args, stream.as_raw())) })
}
