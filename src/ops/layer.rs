//! The parts of a Llama layer beside its linear layers: embedding, RMSNorm, rotary embedding, SwiGLU. bf16 in and out,
//! f32 sums, each result rounded once. Formulas: [`crate::reference`].

use super::check::Operation;
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// `out` `[m, h]` = the rows of `table` `[vocab, h]` that `ids` `[m]` name; a row whose id is not below `vocab` becomes
/// NaN.
pub fn embedding(
    ids: View<'_, u32>,
    table: View<'_, bf16>,
    vocab: usize,
    h: usize,
    out: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let m = ids.len();
    let operation = Operation { name: "embedding", shape: format!("M {m}, H {h}, vocabulary {vocab}") };
    operation.length("the table", table.len(), operation.size(&[vocab, h])?)?;
    operation.length("out", out.len(), operation.size(&[m, h])?)?;
    let args = sys::qk_embedding_args {
        struct_size: size::<sys::qk_embedding_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        vocab: operation.dimension("the vocabulary", vocab)?,
        ids: ids.address(),
        table: table.address().cast(),
        out: out.address().cast(),
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_embedding(&args, stream.as_raw())) })
}

/// What [`rms_norm`] reads.
#[derive(Debug)]
pub enum Residual<'a> {
    /// `[m, h]`: the norm of x.
    Plain(View<'a, bf16>),
    /// x and delta `[m, h]`, sum `[m, h]`: sum = bf16(x + delta), and the norm of that.
    Add { x: View<'a, bf16>, delta: View<'a, bf16>, sum: ViewMut<'a, bf16> },
    /// x and delta `[m, h]`: the sum is written over x, and the norm is that of the sum.
    AddInPlace { x: ViewMut<'a, bf16>, delta: View<'a, bf16> },
}

/// `y` `[m, h]` = RMSNorm of the (summed) residual stream, h being the length of `weight`.
pub fn rms_norm(
    input: Residual<'_>,
    weight: View<'_, f32>,
    eps: f32,
    y: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let h = weight.len();
    let m = y.len().checked_div(h).unwrap_or(0);
    let operation = Operation { name: "rms_norm", shape: format!("M {m}, H {h}") };
    operation.check(h > 0, || "the weight is empty".into())?;
    let count = operation.size(&[m, h])?;
    operation.length("y", y.len(), count)?;
    let none = std::ptr::null();
    let (x, delta, sum) = match &input {
        Residual::Plain(x) => {
            operation.length("x", x.len(), count)?;
            (x.address(), none, std::ptr::null_mut())
        }
        Residual::Add { x, delta, sum } => {
            operation.length("x", x.len(), count)?;
            operation.length("delta", delta.len(), count)?;
            operation.length("the sum", sum.len(), count)?;
            (x.address(), delta.address(), sum.address())
        }
        Residual::AddInPlace { x, delta } => {
            operation.length("x", x.len(), count)?;
            operation.length("delta", delta.len(), count)?;
            (x.address().cast_const(), delta.address(), x.address())
        }
    };
    let args = sys::qk_rms_norm_args {
        struct_size: size::<sys::qk_rms_norm_args>(),
        eps,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        x: x.cast(),
        delta: delta.cast(),
        weight: weight.address(),
        sum: sum.cast(),
        y: y.address().cast(),
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_rms_norm(&args, stream.as_raw())) })
}

/// `dx` `[m, h]` = (or, with `accumulate`, +=) the gradient of RMSNorm at `x` `[m, h]` for `dy` `[m, h]`.
pub fn rms_norm_backward(
    dy: View<'_, bf16>,
    x: View<'_, bf16>,
    weight: View<'_, f32>,
    eps: f32,
    accumulate: bool,
    dx: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let h = weight.len();
    let m = x.len().checked_div(h).unwrap_or(0);
    let operation = Operation { name: "rms_norm_backward", shape: format!("M {m}, H {h}") };
    operation.check(h > 0, || "the weight is empty".into())?;
    let count = operation.size(&[m, h])?;
    for (what, len) in [("x", x.len()), ("dy", dy.len()), ("dx", dx.len())] {
        operation.length(what, len, count)?;
    }
    let args = sys::qk_rms_norm_backward_args {
        struct_size: size::<sys::qk_rms_norm_backward_args>(),
        eps,
        m: operation.dimension("M", m)?,
        h: operation.dimension("H", h)?,
        dy: dy.address().cast(),
        x: x.address().cast(),
        weight: weight.address(),
        dx: dx.address().cast(),
        accumulate: accumulate.into(),
        reserved: 0,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_rms_norm_backward(&args, stream.as_raw())) })
}

/// Rotation angles of every position, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct RopeTable<'a> {
    /// D / 2
    pub half: usize,
    /// `[positions, D / 2]`
    pub cosines: View<'a, f32>,
    /// `[positions, D / 2]`
    pub sines: View<'a, f32>,
}

/// Rotates the first `heads` heads of every row of `x` in place; `inverse` is the gradient. A row whose position is
/// beyond the table becomes NaN.
pub fn rope(
    x: ViewMut<'_, bf16>,
    ldx: usize,
    heads: usize,
    positions: View<'_, u32>,
    table: RopeTable<'_>,
    inverse: bool,
    stream: Stream,
) -> Result<()> {
    let m = positions.len();
    let (half, entries) = (table.half, table.cosines.len());
    let operation = Operation { name: "rope", shape: format!("M {m}, {heads} heads of {}", 2 * half) };
    operation.check(half > 0 && entries > 0 && entries.is_multiple_of(half), || {
        format!("the table has {entries} cosines, expected a multiple of {half}")
    })?;
    operation.length("the sines", table.sines.len(), entries)?;
    let width = operation.size(&[heads, 2 * half])?;
    operation.check(ldx >= width, || format!("x has a stride of {ldx}, expected at least {width}"))?;
    let needed = if m == 0 { 0 } else { operation.size(&[m - 1, ldx])?.saturating_add(width) };
    operation.check(x.len() >= needed, || format!("x has {} elements, expected at least {needed}", x.len()))?;
    let small = |what: &str, value: usize| {
        u32::try_from(value).map_err(|_| operation.argument(format!("{what} is {value}, which is too large")))
    };
    let args = sys::qk_rope_args {
        struct_size: size::<sys::qk_rope_args>(),
        head_dim: small("D", 2 * half)?,
        heads: small("the number of heads", heads)?,
        inverse: inverse.into(),
        m: operation.dimension("M", m)?,
        ldx: operation.dimension("ldx", ldx)?,
        x: x.address().cast(),
        positions: positions.address(),
        cosines: table.cosines.address(),
        sines: table.sines.address(),
        table_positions: operation.dimension("positions", entries / half)?,
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_rope(&args, stream.as_raw())) })
}

/// `out` `[m, i]` = silu(gate) ∘ up of `gate_up` `[m, 2·i]`.
pub fn swiglu(gate_up: View<'_, bf16>, i: usize, out: ViewMut<'_, bf16>, stream: Stream) -> Result<()> {
    let (operation, m) = swiglu_shape("swiglu", gate_up.len(), i)?;
    operation.length("out", out.len(), gate_up.len() / 2)?;
    let args = sys::qk_swiglu_args {
        struct_size: size::<sys::qk_swiglu_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        i: operation.dimension("I", i)?,
        gate_up: gate_up.address().cast_mut().cast(),
        out: out.address().cast(),
        dout: std::ptr::null(),
    };
    // SAFETY: every length was checked; the forward function only reads `gate_up`; `args` is read before the return.
    operation.status(unsafe { call!(qk_swiglu(&args, stream.as_raw())) })
}

/// Turns `gate_up` `[m, 2·i]` into its gradient for `dout` `[m, i]`; `out` `[m, i]`, if wanted, gets the forward
/// result.
pub fn swiglu_backward(
    dout: View<'_, bf16>,
    gate_up: ViewMut<'_, bf16>,
    i: usize,
    out: Option<ViewMut<'_, bf16>>,
    stream: Stream,
) -> Result<()> {
    let (operation, m) = swiglu_shape("swiglu_backward", gate_up.len(), i)?;
    operation.length("dout", dout.len(), gate_up.len() / 2)?;
    if let Some(out) = &out {
        operation.length("out", out.len(), gate_up.len() / 2)?;
    }
    let args = sys::qk_swiglu_args {
        struct_size: size::<sys::qk_swiglu_args>(),
        reserved: 0,
        m: operation.dimension("M", m)?,
        i: operation.dimension("I", i)?,
        gate_up: gate_up.address().cast(),
        out: out.as_ref().map_or(std::ptr::null_mut(), |out| out.address().cast()),
        dout: dout.address().cast(),
    };
    // SAFETY: every length was checked against the shape; `args` is read before the return.
    operation.status(unsafe { call!(qk_swiglu_backward(&args, stream.as_raw())) })
}

fn swiglu_shape(name: &'static str, len: usize, i: usize) -> Result<(Operation, usize)> {
    let m = len.checked_div(2 * i).unwrap_or(0);
    let operation = Operation { name, shape: format!("M {m}, I {i}") };
    operation
        .check(i > 0 && len.is_multiple_of(2 * i), || format!("gate_up has {len} elements, expected rows of 2·{i}"))?;
    Ok((operation, m))
}
