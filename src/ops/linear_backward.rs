//! The backward pass of the fused linear layer with respect to its input:
//! `dX = mask(Σ T_s · A_s) + Σ dY_s · deq(W_s)`, `T_s = bf16(scale · dY_s · B_s)`, f32 sums, dX rounded once.

use super::check::Operation;
use super::linear::Path;
use super::operand::{self, Dropout, Lora, Operands, TILE_K, Weight, rows};
use crate::device::{Stream, View, ViewMut};
use crate::error::Result;
use crate::sys;
use half::bf16;

/// One row segment of an operand, seen from the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct SegmentBackward<'a> {
    /// N, out features
    pub n: usize,
    pub weight: Weight<'a>,
    pub lora: Option<Lora<'a>>,
    /// At least `(m - 1) * lddy + n` elements
    pub dy: View<'a, bf16>,
    /// Elements from row to row of dy, at least n.
    pub lddy: usize,
}

/// What the segments share.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// M, tokens
    pub m: usize,
    /// K, in features
    pub k: usize,
    /// `[m, lora_columns]` of [`lora_dy_b`], or none: computed inside, in the workspace.
    pub t: Option<View<'a, bf16>>,
    /// That of the forward pass.
    pub dropout: Option<Dropout>,
}

/// Where [`dx`] goes.
#[derive(Debug)]
pub struct InputGradient<'a> {
    /// At least `(m - 1) * lddx + k` elements
    pub dx: ViewMut<'a, bf16>,
    /// Elements from row to row of dx, at least k.
    pub lddx: usize,
    /// dX becomes bf16(dX + gradient), else bf16(gradient).
    pub accumulate: bool,
}

/// Columns of T (and of S): every segment's rank, rounded up to 8.
pub fn lora_columns(segments: &[SegmentBackward<'_>]) -> usize {
    operand::lora_columns(segments.iter().map(|segment| segment.lora.as_ref()))
}

/// Elements of workspace that [`dx`] needs.
pub fn workspace_len(backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> usize {
    if backward.t.is_some() { 0 } else { backward.m * lora_columns(segments) }
}

/// The kernel that [`dx`] will take.
pub fn path(backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> Result<Path> {
    Call::new("linear_dx_path", backward, segments)?;
    let whole = backward.k.is_multiple_of(TILE_K)
        && segments.iter().all(|segment| segment.lddy.is_multiple_of(8) && segment.weight.has_fast_blocks());
    Ok(if whole { Path::TensorCore } else { Path::Generic })
}

/// `t` `[m, lora_columns]` = bf16(scale · dY · B) of every segment; padding columns become zero.
pub fn lora_dy_b(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    t: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let call = Call::new("lora_dy_b", &Backward { t: None, ..*backward }, segments)?;
    call.operation.length("t", t.len(), backward.m * lora_columns(segments))?;
    // SAFETY: `Call::new` checked every length against the shapes, and the line above that of `t`.
    call.operation.status(unsafe { call!(qk_lora_dy_b(&call.linear(), t.address().cast(), stream.as_raw())) })
}

/// Writes dX. All weights are NF4, or all dense. `workspace` has at least [`workspace_len`] elements.
pub fn dx(
    backward: &Backward<'_>,
    segments: &[SegmentBackward<'_>],
    gradient: InputGradient<'_>,
    workspace: ViewMut<'_, bf16>,
    stream: Stream,
) -> Result<()> {
    let needed = workspace_len(backward, segments);
    let dense = segments.iter().filter(|segment| matches!(segment.weight, Weight::Dense(_))).count();
    let mut call = Call::new("linear_dx", backward, segments)?;
    let operation = &call.operation;
    operation.check(dense == 0 || dense == segments.len(), || "NF4 and dense segments do not mix".into())?;
    rows(operation, "dx", gradient.dx.len(), backward.m, backward.k, gradient.lddx)?;
    operation.check(workspace.len() >= needed, || {
        format!("the workspace has {} elements, expected at least {needed}", workspace.len())
    })?;
    call.input.dx = gradient.dx.address().cast();
    call.input.lddx = call.operation.dimension("lddx", gradient.lddx)?;
    call.input.accumulate = gradient.accumulate.into();
    let (linear, bytes) = (call.linear(), workspace.len() * size_of::<bf16>());
    // SAFETY: `Call::new` checked every length against the shapes, the lines above those of dx and the workspace.
    let status = unsafe {
        match dense {
            0 => call!(qk_linear_dx(&linear, workspace.address().cast(), bytes, stream.as_raw())),
            _ => call!(qk_linear_dx_dense(&linear, workspace.address().cast(), bytes, stream.as_raw())),
        }
    };
    call.operation.status(status)
}

/// The structs of one call; the C side reads them before it returns. What only some functions read or write, they set
/// themselves.
pub(super) struct Call {
    pub operation: Operation,
    pub input: sys::qk_linear_backward_args,
    pub segments: Vec<sys::qk_segment_backward>,
    operands: Operands,
}

impl Call {
    /// The structs, with every length checked; x, dx, s and the gradients of A and B are not set.
    pub fn new(name: &'static str, backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> Result<Self> {
        let &Backward { m, k, t, dropout } = backward;
        let operation = operand::operation(name, m, k, segments.iter().map(|segment| segment.n))?;
        if let Some(t) = &t {
            operation.length("t", t.len(), m * lora_columns(segments))?;
        }
        let mut operands = Operands::default();
        let input = sys::qk_linear_backward_args {
            struct_size: size_of::<sys::qk_linear_backward_args>() as u32,
            num_segments: segments.len() as u32,
            m: operation.dimension("M", m)?,
            k: operation.dimension("K", k)?,
            x: std::ptr::null(),
            ldx: 0,
            dx: std::ptr::null_mut(),
            lddx: 0,
            accumulate: 0,
            reserved: 0,
            segments: std::ptr::null(),
            s: std::ptr::null(),
            t: t.map_or(std::ptr::null(), |t| t.address().cast()),
            dropout: operands.dropout(&operation, dropout, m)?,
        };
        let mut call = Self { operation, input, segments: Vec::new(), operands };
        for segment in segments {
            call.push(m, k, segment)?;
        }
        Ok(call)
    }

    fn push(&mut self, m: usize, k: usize, segment: &SegmentBackward<'_>) -> Result<()> {
        let (operation, n) = (&self.operation, segment.n);
        rows(operation, "dy", segment.dy.len(), m, n, segment.lddy)?;
        let (nf4, dense) = self.operands.weight(operation, &segment.weight, n, k)?;
        let lora = match &segment.lora {
            Some(lora) => self.operands.lora(operation, lora, m, n, k)?,
            None => std::ptr::null(),
        };
        self.segments.push(sys::qk_segment_backward {
            struct_size: size_of::<sys::qk_segment_backward>() as u32,
            reserved: 0,
            n: operation.dimension("N", n)?,
            nf4,
            dense,
            lora,
            dy: segment.dy.address().cast(),
            lddy: operation.dimension("lddy", segment.lddy)?,
            da: std::ptr::null_mut(),
            db: std::ptr::null_mut(),
        });
        Ok(())
    }

    pub fn linear(&self) -> sys::qk_linear_backward_args {
        sys::qk_linear_backward_args { segments: self.segments.as_ptr(), ..self.input }
    }
}
