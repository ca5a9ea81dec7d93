//! The gradient of the fused linear layer with respect to its input:
//! `dX = mask(Σ T_s · A_s) + Σ dY_s · deq(W_s)`, `T_s = bf16(scale · dY_s · B_s)`, f32 sums, dX rounded once.

use super::linear::Path;
use super::linear_backward::{Backward, Call, SegmentBackward, lora_columns};
use super::operand::{TILE_K, Weight, rows};
use crate::device::{Stream, ViewMut};
use crate::error::Result;
use half::bf16;

/// The destination of dX.
#[derive(Debug)]
pub struct InputGradient<'a> {
    /// At least `(m - 1) * lddx + k` elements
    pub dx: ViewMut<'a, bf16>,
    /// Elements from row to row of dx, at least k.
    pub lddx: usize,
    /// dX becomes bf16(dX + gradient), otherwise bf16(gradient).
    pub accumulate: bool,
}

/// Elements of workspace that [`linear_dx`] needs.
pub fn workspace_len(backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> usize {
    if backward.t.is_some() { 0 } else { backward.m * lora_columns(segments) }
}

/// The kernel that [`linear_dx`] will take.
pub fn path(backward: &Backward<'_>, segments: &[SegmentBackward<'_>]) -> Result<Path> {
    Call::new("linear_dx_path", backward, segments)?;
    let whole = backward.k.is_multiple_of(TILE_K)
        && segments.iter().all(|segment| segment.lddy.is_multiple_of(8) && segment.weight.has_fast_blocks());
    Ok(if whole { Path::TensorCore } else { Path::Generic })
}

/// Blocks of [`linear_dx`] of NF4 weights on tensor cores: how many, and how many of them a multiprocessor has at once.
/// By the table of the kernels (`TileTimes`), in hundredths of the time of a large tile, which is 128 tokens by 256
/// columns; a small one is 64 by 128.
pub(super) fn blocks(m: usize, k: usize, multiprocessors: usize) -> (usize, usize) {
    let time = |blocks: usize, resident: usize, together: usize, alone: usize| {
        let last = match blocks % (multiprocessors * resident) {
            0 => 0,
            rest if rest <= multiprocessors => alone,
            _ => together,
        };
        blocks / (multiprocessors * resident) * together + last
    };
    let (large, small) = (m.div_ceil(128) * k.div_ceil(256), m.div_ceil(64) * k.div_ceil(128));
    let is_large = time(large, 1, 100, 100) <= time(small, 2, 60, 40);
    if is_large { (large, 1) } else { (small, 2) }
}

/// The share of the time of [`linear_dx`] of NF4 weights on tensor cores in which multiprocessors have no block: 256
/// blocks on 84 multiprocessors are 80 short of a fourth wave.
///
/// # Panics
///
/// Without a multiprocessor.
pub fn idle_share(m: usize, k: usize, multiprocessors: usize) -> f64 {
    let (blocks, resident) = blocks(m, k, multiprocessors);
    let places = multiprocessors * resident;
    1.0 - blocks as f64 / (blocks.div_ceil(places) * places) as f64
}

/// Writes dX. All weights are NF4, or all dense. `workspace` has at least [`workspace_len`] elements.
pub fn linear_dx(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_wave_of_blocks_leaves_multiprocessors_idle() {
        let is = |share: f64, expected: f64| assert!((share - expected).abs() < 1e-12, "{share}, expected {expected}");
        // 256 large tiles are 3.05 waves on 84, 1.8 on 142, 1.94 on 132, and two whole ones on 128.
        for (multiprocessors, idle, all) in
            [(84, 80.0, 336.0), (142, 28.0, 284.0), (132, 8.0, 264.0), (128, 0.0, 256.0)]
        {
            is(idle_share(2048, 4096, multiprocessors), idle / all);
        }
        // 64 large tiles find 84 idle; 256 small ones, of which two fit, are through sooner on 142, and not on 84.
        is(idle_share(512, 4096, 84), 20.0 / 84.0);
        is(idle_share(512, 4096, 142), 28.0 / 284.0);
        is(idle_share(1, 64, 84), 167.0 / 168.0);
    }
}
