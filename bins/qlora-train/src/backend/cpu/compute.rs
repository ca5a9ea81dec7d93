//! The operations, each handed to the module that computes it: in f32, and on bf16 values.

use super::bf16::attention::backward::Sums;
use super::bf16::linear::{Group, LowRank, Segment};
use super::bf16::lora_gradients::Gradients;
use super::bf16::operands::segments;
use super::head_norm::{HeadNorm, HeadRotation, normed_columns};
use super::memory::{Held, Value};
use super::table::TableGradient;
use super::{Cpu, CpuBuffer, CpuVector, Precision, attention, bf16, cache, elementwise, linear, loss, magnitude};
use crate::backend::{BufferShape, CheckedBatch, Compute, MaybeTrained, Op, Rotation, TableShape, Trace};
use crate::error::{Error, Result};
use qlora_kernels::rng::Dropout;
use qlora_kernels::rope::RopeTable;
use qlora_kernels::shape::{AttentionShape, Visible};
use rayon::prelude::*;
use std::ops::Range;
use std::time::Instant;

/// The norms of queries and keys, rotated by the positions of `tokens`.
fn head_norm<'a>(
    shape: AttentionShape,
    eps: f32,
    weights: [&'a CpuVector; 2],
    rotation: Option<Rotation>,
    ropes: &'a [(usize, Held<RopeTable<f32>>)],
    batch: &'a CheckedBatch,
    tokens: &Range<usize>,
) -> HeadNorm<'a> {
    let rotation = rotation.map(|Rotation { table, before_norm }| {
        let (positions, table) = (&batch.positions[tokens.clone()], &ropes[table].1);
        HeadRotation { positions, table, before_norm }
    });
    HeadNorm { shape, eps, weights: weights.map(|weight| &**weight), rotation }
}

/// Tokens whose logits are computed together, so that the output layer is read once for all of them: as many as are
/// computed as each would be alone.
const LOGITS_TOGETHER: usize = 4;

/// The logits of `tokens` among the rows of `x`, which `logits` writes of several rows.
fn each_few<T: Copy>(
    x: &[T],
    width: usize,
    tokens: &[usize],
    out: &mut [Vec<f32>],
    mut logits: impl FnMut(&[T], &mut [f32]) -> Result<()>,
) -> Result<()> {
    for (tokens, out) in tokens.chunks(LOGITS_TOGETHER).zip(out.chunks_mut(LOGITS_TOGETHER)) {
        let rows: Vec<T> = tokens.iter().flat_map(|token| &x[token * width..][..width]).copied().collect();
        if let [out] = out {
            logits(&rows, out)?;
            continue;
        }
        let vocab = out[0].len();
        let mut all = vec![0.0; tokens.len() * vocab];
        logits(&rows, &mut all)?;
        out.iter_mut().zip(all.chunks_exact(vocab)).for_each(|(out, logits)| out.copy_from_slice(logits));
    }
    Ok(())
}

impl Compute for Cpu {
    fn batch(&self) -> &CheckedBatch {
        &self.batch
    }

    fn rounded(&self, x: f32) -> f32 {
        match self.precision {
            Precision::F32 => x,
            Precision::Bf16(_) => half::bf16::from_f32(x).to_f32(),
        }
    }

    fn set_batch(&mut self, batch: CheckedBatch) -> Result<()> {
        self.batch = batch;
        Ok(())
    }

    fn compute(&mut self, tokens: &Range<usize>, op: &mut Op<'_, Self>) -> Result<()> {
        if let Precision::Bf16(_) = self.precision {
            return self.compute_bf16(tokens, op);
        }
        let Self { batch, workspace, ropes, .. } = self;
        let first = tokens.start;
        match op {
            Op::Embed { table, scale, out } => {
                let (table, width, scale) = (table.rows(), table.cols(), *scale);
                let rows = out.rows_mut(tokens)?.par_chunks_exact_mut(width).zip(&batch.input_ids[tokens.clone()]);
                rows.with_min_len(16).try_for_each(|(out, &id)| {
                    table.with(id as usize, |matrix, row| matrix.row(row, out))?;
                    if scale != 1.0 {
                        out.iter_mut().for_each(|x| *x *= scale);
                    }
                    Ok::<_, Error>(())
                })?;
            }
            Op::RmsNorm { x, weight, eps, out } => {
                elementwise::rms_norm(x.rows(tokens)?, weight, *eps, out.rows_mut(tokens)?);
            }
            Op::AddRmsNorm { x, delta, sum, weight, eps, out } => {
                elementwise::add(x.rows(tokens)?, delta.rows(tokens)?, sum.rows_mut(tokens)?);
                elementwise::rms_norm(sum.rows(tokens)?, weight, *eps, out.rows_mut(tokens)?);
            }
            Op::RmsNormAdd { x, delta, weight, eps, sum } => {
                elementwise::rms_norm(delta.rows(tokens)?, weight, *eps, sum.rows_mut(tokens)?);
                elementwise::add_to(x.rows(tokens)?, sum.rows_mut(tokens)?);
            }
            Op::RmsNormBackward { dy, x, weight, eps, accumulate, dx } => {
                let (dy, x, dx) = (dy.rows(tokens)?, x.rows(tokens)?, dx.rows_mut(tokens)?);
                elementwise::rms_norm_backward(dy, x, weight, *eps, *accumulate, dx);
            }
            Op::LoraDown { x, group, dropout, s } => {
                let (x, adapters) = (x.rows(tokens)?, batch.adapters_of(tokens));
                linear::lora_down(workspace, x, first, group, *dropout, adapters, s.rows_mut(tokens)?);
            }
            Op::Linear { x, s, group, y } => {
                let s = s.map(|s| s.rows(tokens)).transpose()?;
                let adapters = batch.adapters_of(tokens);
                linear::forward(workspace, x.rows(tokens)?, s, group, adapters, y.rows_mut(tokens)?);
            }
            Op::LoraDyB { dy, group, t } => {
                linear::lora_dy_b(workspace, dy.rows(tokens)?, group, t.rows_mut(tokens)?);
            }
            Op::LinearDx { dy, t, group, dropout, accumulate, dx } => {
                let t = t.map(|t| t.rows(tokens)).transpose()?;
                linear::dx(workspace, dy.rows(tokens)?, t, first, group, *dropout, *accumulate, dx.rows_mut(tokens)?);
            }
            Op::LoraGradients { x, dy, s, t, group, dropout } => {
                let (x, dy, s, t) = (x.rows(tokens)?, dy.rows(tokens)?, s.rows(tokens)?, t.rows(tokens)?);
                linear::lora_gradients(workspace, x, dy, s, t, first, group, *dropout);
            }
            Op::HeadNorm { qkv, weights, eps, shape, rotation, out } => {
                let norm = head_norm(*shape, *eps, *weights, *rotation, ropes, batch, tokens);
                norm.forward(qkv.rows(tokens)?, out.rows_mut(tokens)?);
            }
            Op::HeadNormBackward { qkv, weights, eps, shape, rotation, dqkv } => {
                let norm = head_norm(*shape, *eps, *weights, *rotation, ropes, batch, tokens);
                norm.backward(qkv.rows(tokens)?, dqkv.rows_mut(tokens)?);
            }
            Op::Rope { qkv, shape, table, inverse } => {
                let (_, table) = &ropes[*table];
                let positions = &batch.positions[tokens.clone()];
                elementwise::rope(qkv.rows_mut(tokens)?, *shape, positions, table, *inverse);
            }
            Op::Attention { qkv, shape, window, out, lse } => {
                let (out, lse) = (out.rows_mut(tokens)?, lse.rows_mut(tokens)?);
                let visible = Visible::new(*window);
                attention::forward(workspace, qkv.rows(tokens)?, &batch.boundaries, *shape, visible, out, lse);
            }
            Op::AttentionBackward { dout, qkv, out, lse, shape, window, dqkv } => {
                let (dout, qkv, out) = (dout.rows(tokens)?, qkv.rows(tokens)?, out.rows(tokens)?);
                let (lse, dqkv) = (lse.rows(tokens)?, dqkv.rows_mut(tokens)?);
                let (visible, boundaries) = (Visible::new(*window), &batch.boundaries);
                attention::backward(workspace, dout, qkv, out, lse, boundaries, *shape, visible, dqkv);
            }
            Op::AppendToCache { qkv, shape, starts, cache } => {
                cache::append(qkv.rows(tokens)?, batch, *shape, starts, cache.all_mut());
            }
            Op::AttentionOverCache { qkv, cache, shape, window, starts, out } => {
                let (qkv, out) = (qkv.rows(tokens)?, out.rows_mut(tokens)?);
                cache::attention(qkv, cache.all(), batch, *shape, Visible::new(*window), starts, out);
            }
            Op::Swiglu { gate_up, activation, out } => {
                let width = out.width();
                elementwise::swiglu(gate_up.rows(tokens)?, out.rows_mut(tokens)?, width, *activation);
            }
            Op::SwigluBackward { dout, activation, gate_up, out } => {
                let (width, out) = (dout.width(), out.as_mut().map(|out| out.rows_mut(tokens)).transpose()?);
                elementwise::swiglu_backward(dout.rows(tokens)?, gate_up.rows_mut(tokens)?, out, width, *activation);
            }
            Op::CrossEntropy { x, head, weight, soft_cap, dx } => {
                let dx = dx.as_mut().map(|dx| dx.rows_mut(tokens)).transpose()?;
                let (targets, weights) = (&batch.targets[tokens.clone()], batch.weights_of(tokens));
                if first == 0 {
                    self.loss = loss::LossSum::default();
                }
                let (x, shape, loss) = (x.rows(tokens)?, [head.vocab(), head.cols()], &mut self.loss);
                let parts: &loss::EachPart = &|take| head.each_part(&mut |rows, matrix| take(rows, matrix));
                let (none, weight, cap) = (TableGradient::none(), *weight, *soft_cap);
                loss::linear_cross_entropy(workspace, x, parts, shape, none, targets, weights, weight, cap, dx, loss)?;
            }
            Op::TrainedCrossEntropy { x, head, weight, soft_cap, dx } => {
                let (targets, weights) = (&batch.targets[tokens.clone()], batch.weights_of(tokens));
                if first == 0 {
                    self.loss = loss::LossSum::default();
                }
                let (x, shape, loss) = (x.rows(tokens)?, [head.vocab(), head.cols()], &mut self.loss);
                let dx = Some(dx.rows_mut(tokens)?);
                let ((head, to), weight, cap) = (head.parts(), *weight, *soft_cap);
                let whole: &loss::EachPart = &|take| {
                    take(0..shape[0], &head);
                    Ok(())
                };
                loss::linear_cross_entropy(workspace, x, whole, shape, to, targets, weights, weight, cap, dx, loss)?;
            }
            Op::Magnitude { group, y } => magnitude::forward(group, y.rows_mut(tokens)?),
            Op::MagnitudeBackward { dy, z, group } => magnitude::backward(group, dy.rows(tokens)?, z.rows_mut(tokens)?),
            Op::EmbedBackward { dout, scale, table } => {
                let (dout, ids, width) = (dout.rows(tokens)?, &batch.input_ids[tokens.clone()], table.cols());
                elementwise::embed_backward(dout, ids, *scale, width, table.parts().1);
            }
            Op::NormGradient { dy, x, eps, weight } => {
                let (dy, x, inverse) =
                    (dy.rows(tokens)?, x.rows(tokens)?, |x: &[f32]| elementwise::inverse_rms(x, *eps));
                if let Some(param) = weight.param_mut() {
                    elementwise::rms_norm_gradient(dy, x, inverse, param.parts().1);
                }
            }
            Op::HeadNormGradients { dqkv, qkv, eps, shape, weights } => {
                let (dy, x) = (dqkv.rows(tokens)?, qkv.rows(tokens)?);
                for (weight, columns) in weights.iter_mut().zip(normed_columns(*shape)) {
                    let inverse = |x: &[f32]| elementwise::inverse_rms(x, *eps);
                    if let Some(param) = weight.param_mut() {
                        elementwise::head_norm_gradient(dy, x, shape.qkv(), columns, inverse, param.parts().1);
                    }
                }
            }
            Op::Logits { x, head, tokens, out } => {
                let (x, shape) = (x.rows(&(0..batch.tokens()))?, [head.vocab(), head.cols()]);
                let parts: &loss::EachPart = &|take| head.each_part(&mut |rows, matrix| take(rows, matrix));
                each_few(x, head.cols(), tokens, out, |rows, out| {
                    loss::project(&mut workspace.panels, rows, parts, shape, out)
                })?;
            }
        }
        Ok(())
    }

    fn read_loss(&mut self) -> Result<f64> {
        Ok(self.loss.total())
    }

    fn read_losses(&mut self) -> Result<Vec<f64>> {
        Ok(self.loss.of_tokens().to_vec())
    }

    fn trace(&mut self) -> &mut Trace {
        &mut self.trace
    }

    fn record_event(&mut self) -> Result<()> {
        self.events.push(Instant::now());
        Ok(())
    }

    fn elapsed(&mut self) -> Result<Vec<f64>> {
        let events = std::mem::take(&mut self.events);
        Ok(events.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect())
    }

    fn values(&mut self, buffer: &CpuBuffer, tokens: &Range<usize>) -> Result<Vec<f32>> {
        Ok(match buffer.value() {
            Value::F32 => buffer.rows(tokens)?.to_vec(),
            Value::Bf16 => buffer.rows16(tokens)?.iter().map(|x| x.to_f32()).collect(),
        })
    }
}

impl Cpu {
    fn compute_bf16(&mut self, tokens: &Range<usize>, op: &mut Op<'_, Self>) -> Result<()> {
        let Self { batch, workspace_bf16, ropes, .. } = self;
        let Some(workspace) = workspace_bf16.as_mut().and_then(|held| held.as_mut()) else {
            unreachable!("made for bf16, and not a dry run")
        };
        let bf16::workspace::Workspace {
            isa,
            gemm,
            attention: tiles,
            gradients,
            loss: loss_scratch,
            masked,
            term,
            delta,
            dq,
        } = workspace;
        let (isa, first) = (*isa, tokens.start);
        let adapters = batch.adapters_of(tokens);
        let group_of =
            |k: usize, segments, dropout: Option<Dropout>| Group { isa, k, segments, first, dropout, adapters };
        match op {
            Op::Embed { table, scale, out } => {
                let (table, width, scale) = (table.rows(), table.cols(), *scale);
                let rows = out.rows16_mut(tokens)?.par_chunks_exact_mut(width).zip(&batch.input_ids[tokens.clone()]);
                rows.with_min_len(16).try_for_each(|(out, &id)| {
                    table.with(id as usize, |matrix, row| {
                        bf16::stored::Stored::read(matrix, isa, row, 0..width, out);
                    })?;
                    if scale != 1.0 {
                        out.iter_mut().for_each(|x| *x = bf16::rows::round(bf16::rows::widen(*x) * scale));
                    }
                    Ok::<_, Error>(())
                })?;
            }
            Op::RmsNorm { x, weight, eps, out } => {
                bf16::rows::rms_norm(x.rows16(tokens)?, weight, *eps, out.rows16_mut(tokens)?);
            }
            Op::AddRmsNorm { x, delta, sum, weight, eps, out } => {
                let (x, delta) = (x.rows16(tokens)?, delta.rows16(tokens)?);
                bf16::rows::add_rms_norm(x, delta, sum.rows16_mut(tokens)?, weight, *eps, out.rows16_mut(tokens)?);
            }
            Op::RmsNormAdd { x, delta, weight, eps, sum } => {
                let (x, delta) = (x.rows16(tokens)?, delta.rows16(tokens)?);
                bf16::rows::rms_norm_add(x, delta, weight, *eps, sum.rows16_mut(tokens)?);
            }
            Op::RmsNormBackward { dy, x, weight, eps, accumulate, dx } => {
                let (dy, x) = (dy.rows16(tokens)?, x.rows16(tokens)?);
                bf16::rows::rms_norm_backward(dy, x, weight, *eps, *accumulate, dx.rows16_mut(tokens)?);
            }
            Op::LoraDown { x, group, dropout, s } => {
                let segments = segments(group);
                group_of(group.k, &segments, *dropout).lora_down(
                    gemm,
                    x.rows16(tokens)?,
                    masked,
                    s.rows16_mut(tokens)?,
                );
            }
            Op::Linear { x, s, group, y } => {
                let (s, segments) = (s.map(|s| s.rows16(tokens)).transpose()?, segments(group));
                group_of(group.k, &segments, None).forward(gemm, x.rows16(tokens)?, s, y.rows16_mut(tokens)?);
            }
            Op::LoraDyB { dy, group, t } => {
                let segments = segments(group);
                group_of(group.k, &segments, None).lora_dy_b(gemm, dy.rows16(tokens)?, t.rows16_mut(tokens)?);
            }
            Op::LinearDx { dy, t, group, dropout, accumulate, dx } => {
                let (t, segments) = (t.map(|t| t.rows16(tokens)).transpose()?, segments(group));
                let (dy, dx) = (dy.rows16(tokens)?, dx.rows16_mut(tokens)?);
                group_of(group.k, &segments, *dropout).dx(gemm, dy, t, term, *accumulate, dx);
            }
            Op::LoraGradients { x, dy, s, t, group, dropout } => {
                // Values and gradients of a tensor are borrowed apart: the operands are views of what is only read.
                let k = group.k;
                let mut views = Vec::with_capacity(group.segments.len());
                let mut into = Vec::with_capacity(group.segments.len());
                for segment in &mut group.segments {
                    let (low_rank, gradients) = match &mut segment.lora {
                        Some(lora) => {
                            let (a, a_gradient) = lora.a.parts();
                            let (b, b_gradient) = lora.b.parts();
                            let view = LowRank { r: lora.r, scale: lora.scale, scales: None, a, b };
                            (Some(view), Some(Gradients { a: a_gradient, b: b_gradient }))
                        }
                        None => (None, None),
                    };
                    views.push(Segment { n: segment.n, weight: &*segment.weight, bias: None, lora: low_rank });
                    into.push(gradients);
                }
                let group = group_of(k, &views, *dropout);
                let (x, dy, s, t) = (x.rows16(tokens)?, dy.rows16(tokens)?, s.rows16(tokens)?, t.rows16(tokens)?);
                group.gradients(gemm, gradients, x, dy, s, t, masked, &mut into);
            }
            Op::HeadNorm { qkv, weights, eps, shape, rotation, out } => {
                let norm = head_norm(*shape, *eps, *weights, *rotation, ropes, batch, tokens);
                norm.forward(qkv.rows16(tokens)?, out.rows16_mut(tokens)?);
            }
            Op::HeadNormBackward { qkv, weights, eps, shape, rotation, dqkv } => {
                let norm = head_norm(*shape, *eps, *weights, *rotation, ropes, batch, tokens);
                norm.backward(qkv.rows16(tokens)?, dqkv.rows16_mut(tokens)?);
            }
            Op::Rope { qkv, shape, table, inverse } => {
                let (_, table) = &ropes[*table];
                bf16::rows::rope(qkv.rows16_mut(tokens)?, *shape, &batch.positions[tokens.clone()], table, *inverse);
            }
            Op::Attention { qkv, shape, window, out, lse } => {
                let (qkv, out, lse) = (qkv.rows16(tokens)?, out.rows16_mut(tokens)?, lse.rows_mut(tokens)?);
                let (visible, boundaries) = (Visible::new(*window), &batch.boundaries);
                bf16::attention::forward(isa, tiles, qkv, boundaries, *shape, visible, out, lse);
            }
            Op::AttentionBackward { dout, qkv, out, lse, shape, window, dqkv } => {
                let (dout, qkv, out) = (dout.rows16(tokens)?, qkv.rows16(tokens)?, out.rows16(tokens)?);
                let (lse, dqkv) = (lse.rows(tokens)?, dqkv.rows16_mut(tokens)?);
                let (visible, boundaries) = (Visible::new(*window), &batch.boundaries);
                let dq_len = Sums::dq_len(lse.len() / shape.heads, *shape);
                let sums = Sums { delta: &mut delta[..lse.len()], dq: &mut dq[..dq_len] };
                bf16::attention::backward::backward(
                    isa, tiles, dout, qkv, out, lse, boundaries, *shape, visible, sums, dqkv,
                );
            }
            Op::AppendToCache { qkv, shape, starts, cache } => {
                bf16::cache::append(qkv.rows16(tokens)?, batch, *shape, starts, cache.all16_mut());
            }
            Op::AttentionOverCache { qkv, cache, shape, window, starts, out } => {
                let (qkv, out) = (qkv.rows16(tokens)?, out.rows16_mut(tokens)?);
                bf16::cache::attention(isa, qkv, cache.all16(), batch, *shape, Visible::new(*window), starts, out);
            }
            Op::Swiglu { gate_up, activation, out } => {
                let width = out.width();
                bf16::rows::swiglu(gate_up.rows16(tokens)?, out.rows16_mut(tokens)?, width, *activation);
            }
            Op::SwigluBackward { dout, activation, gate_up, out } => {
                let (width, out) = (dout.width(), out.as_mut().map(|out| out.rows16_mut(tokens)).transpose()?);
                let (dout, gate_up) = (dout.rows16(tokens)?, gate_up.rows16_mut(tokens)?);
                bf16::rows::swiglu_backward(dout, gate_up, out, width, *activation);
            }
            Op::CrossEntropy { x, head, weight, soft_cap, dx } => {
                let dx = dx.as_mut().map(|dx| dx.rows16_mut(tokens)).transpose()?;
                let (targets, weights) = (&batch.targets[tokens.clone()], batch.weights_of(tokens));
                if first == 0 {
                    self.loss = Default::default();
                }
                let x = x.rows16(tokens)?;
                let (h, vocab) = (head.cols(), head.vocab());
                let parts: &bf16::loss::EachPart = &|take| head.each_part(&mut |rows, matrix| take(rows, matrix));
                let total = &mut self.loss;
                bf16::loss::cross_entropy(
                    isa,
                    gemm,
                    loss_scratch,
                    x,
                    parts,
                    h,
                    vocab,
                    TableGradient::none(),
                    targets,
                    weights,
                    *weight,
                    *soft_cap,
                    dx,
                    total,
                )?;
            }
            Op::TrainedCrossEntropy { x, head, weight, soft_cap, dx } => {
                let (targets, weights) = (&batch.targets[tokens.clone()], batch.weights_of(tokens));
                if first == 0 {
                    self.loss = Default::default();
                }
                let (x, dx) = (x.rows16(tokens)?, Some(dx.rows16_mut(tokens)?));
                let (h, vocab, total) = (head.cols(), head.vocab(), &mut self.loss);
                let (head, gradient) = head.parts();
                let whole: &bf16::loss::EachPart = &|take| {
                    take(0..vocab, &head);
                    Ok(())
                };
                bf16::loss::cross_entropy(
                    isa,
                    gemm,
                    loss_scratch,
                    x,
                    whole,
                    h,
                    vocab,
                    gradient,
                    targets,
                    weights,
                    *weight,
                    *soft_cap,
                    dx,
                    total,
                )?;
            }
            Op::Magnitude { group, y } => magnitude::forward(group, y.rows16_mut(tokens)?),
            Op::MagnitudeBackward { dy, z, group } => {
                magnitude::backward(group, dy.rows16(tokens)?, z.rows16_mut(tokens)?);
            }
            Op::EmbedBackward { dout, scale, table } => {
                let (dout, ids, width) = (dout.rows16(tokens)?, &batch.input_ids[tokens.clone()], table.cols());
                elementwise::embed_backward(dout, ids, *scale, width, table.parts().1);
            }
            Op::NormGradient { dy, x, eps, weight } => {
                let (dy, x) = (dy.rows16(tokens)?, x.rows16(tokens)?);
                if let Some(param) = weight.param_mut() {
                    let inverse = |x: &[half::bf16]| bf16::rows::inverse_rms(x, *eps);
                    elementwise::rms_norm_gradient(dy, x, inverse, param.parts().1);
                }
            }
            Op::HeadNormGradients { dqkv, qkv, eps, shape, weights } => {
                let (dy, x) = (dqkv.rows16(tokens)?, qkv.rows16(tokens)?);
                for (weight, columns) in weights.iter_mut().zip(normed_columns(*shape)) {
                    let inverse = |x: &[half::bf16]| bf16::rows::inverse_rms(x, *eps);
                    if let Some(param) = weight.param_mut() {
                        elementwise::head_norm_gradient(dy, x, shape.qkv(), columns, inverse, param.parts().1);
                    }
                }
            }
            Op::Logits { x, head, tokens, out } => {
                let x = x.rows16(&(0..batch.tokens()))?;
                let parts: &bf16::loss::EachPart = &|take| head.each_part(&mut |rows, matrix| take(rows, matrix));
                each_few(x, head.cols(), tokens, out, |rows, out| {
                    bf16::loss::logits(isa, gemm, rows, parts, head.cols(), head.vocab(), out)
                })?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_gets_its_own_logits() {
        let x: Vec<f32> = (0..7 * 3).map(|i| i as f32).collect();
        for tokens in [vec![2], vec![6, 0, 3, 3], vec![0, 1, 2, 3, 4, 5, 6, 1, 0]] {
            let mut out = vec![vec![f32::NAN; 2]; tokens.len()];
            let mut calls = 0;
            each_few(&x, 3, &tokens, &mut out, |rows, out| {
                calls += 1;
                let logits = out.chunks_exact_mut(2).zip(rows.chunks_exact(3));
                logits.for_each(|(out, row)| out.copy_from_slice(&[row.iter().sum(), row[0]]));
                Ok(())
            })
            .unwrap();
            assert_eq!(calls, tokens.len().div_ceil(LOGITS_TOGETHER));
            for (token, out) in tokens.iter().zip(&out) {
                let first = (3 * token) as f32;
                assert_eq!(out, &[3.0 * first + 3.0, first]);
            }
        }
    }
}
