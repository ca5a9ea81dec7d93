//! The operations, each handed to the module that computes it.

use super::memory::Value;
use super::{Cpu, CpuBuffer, Dense, Precision, attention, cache, elementwise, linear, loss};
use crate::backend::{BufferShape, CheckedBatch, Compute, Op, Trace};
use crate::error::Result;
use qlora_kernels::shape::AttentionShape;
use rayon::prelude::*;
use std::ops::Range;
use std::time::Instant;

/// Calls `norm` with each head of the queries and keys in rows q‖k‖v of two buffers, and with the weight for it.
pub(super) fn each_head<T: Send + Sync>(
    shape: AttentionShape,
    [q, k]: [&[f32]; 2],
    to: &mut [T],
    from: &[T],
    norm: impl Fn(&mut [T], &[T], &[f32]) + Sync,
) {
    let (width, d, heads) = (shape.qkv(), shape.head_dim, shape.heads + shape.kv_heads);
    let rows = to.par_chunks_exact_mut(width).zip(from.par_chunks_exact(width)).with_min_len(16);
    rows.for_each(|(to, from)| {
        for (head, (to, from)) in to.chunks_exact_mut(d).zip(from.chunks_exact(d)).take(heads).enumerate() {
            norm(to, from, if head < shape.heads { q } else { k });
        }
    });
}

impl Compute for Cpu {
    fn batch(&self) -> &CheckedBatch {
        &self.batch
    }

    fn set_batch(&mut self, batch: CheckedBatch) -> Result<()> {
        self.batch = batch;
        Ok(())
    }

    fn compute(&mut self, tokens: &Range<usize>, op: &mut Op<'_, Self>) -> Result<()> {
        if let Precision::Bf16(_) = self.precision {
            return self.compute_bf16(tokens, op);
        }
        let Self { batch, workspace, rope, .. } = self;
        let first = tokens.start;
        match op {
            Op::Embed { table, out } => {
                let table: &Dense = table;
                let rows = out.rows_mut(tokens)?.par_chunks_exact_mut(table.cols).zip(&batch.input_ids[tokens.clone()]);
                rows.with_min_len(16).for_each(|(out, &id)| table.widen(id as usize * table.cols, out));
            }
            Op::RmsNorm { x, weight, eps, out } => {
                elementwise::rms_norm(x.rows(tokens)?, weight, *eps, out.rows_mut(tokens)?);
            }
            Op::AddRmsNorm { x, delta, sum, weight, eps, out } => {
                elementwise::add(x.rows(tokens)?, delta.rows(tokens)?, sum.rows_mut(tokens)?);
                elementwise::rms_norm(sum.rows(tokens)?, weight, *eps, out.rows_mut(tokens)?);
            }
            Op::RmsNormBackward { dy, x, weight, eps, accumulate, dx } => {
                let (dy, x, dx) = (dy.rows(tokens)?, x.rows(tokens)?, dx.rows_mut(tokens)?);
                elementwise::rms_norm_backward(dy, x, weight, *eps, *accumulate, dx);
            }
            Op::LoraDown { x, group, dropout, s } => {
                linear::lora_down(workspace, x.rows(tokens)?, first, group, *dropout, s.rows_mut(tokens)?);
            }
            Op::Linear { x, s, group, y } => {
                let s = s.map(|s| s.rows(tokens)).transpose()?;
                linear::forward(workspace, x.rows(tokens)?, s, group, y.rows_mut(tokens)?);
            }
            Op::LoraDyB { dy, group, t } => {
                linear::lora_dy_b(workspace, dy.rows(tokens)?, group, t.rows_mut(tokens)?);
            }
            Op::LinearDx { dy, t, group, dropout, dx } => {
                let t = t.map(|t| t.rows(tokens)).transpose()?;
                linear::dx(workspace, dy.rows(tokens)?, t, first, group, *dropout, dx.rows_mut(tokens)?);
            }
            Op::LoraGradients { x, dy, s, t, group, dropout } => {
                let (x, dy, s, t) = (x.rows(tokens)?, dy.rows(tokens)?, s.rows(tokens)?, t.rows(tokens)?);
                linear::lora_gradients(workspace, x, dy, s, t, first, group, *dropout);
            }
            Op::HeadNorm { qkv, weights: [q, k], eps, shape, out } => {
                let (x, y) = (qkv.rows(tokens)?, out.rows_mut(tokens)?);
                y.copy_from_slice(x);
                let norm = |y: &mut [f32], x: &[f32], w: &[f32]| elementwise::rms_norm_row(x, w, *eps, y);
                each_head(*shape, [q, k], y, x, norm);
            }
            Op::HeadNormBackward { qkv, weights: [q, k], eps, shape, dqkv } => {
                each_head(*shape, [q, k], dqkv.rows_mut(tokens)?, qkv.rows(tokens)?, |dx, x, w| {
                    let dy = dx.to_vec();
                    dx.fill(0.0);
                    elementwise::rms_norm_backward_row(&dy, x, w, *eps, dx);
                });
            }
            Op::Rope { qkv, shape, inverse } => {
                let (_, table) = rope.as_ref().expect("the model sets the rotation angles when it is built");
                let positions = &batch.positions[tokens.clone()];
                elementwise::rope(qkv.rows_mut(tokens)?, *shape, positions, table, *inverse);
            }
            Op::Attention { qkv, shape, out, lse } => {
                let (out, lse) = (out.rows_mut(tokens)?, lse.rows_mut(tokens)?);
                attention::forward(workspace, qkv.rows(tokens)?, &batch.boundaries, *shape, out, lse);
            }
            Op::AttentionBackward { dout, qkv, out, lse, shape, dqkv } => {
                let (dout, qkv, out) = (dout.rows(tokens)?, qkv.rows(tokens)?, out.rows(tokens)?);
                let (lse, dqkv) = (lse.rows(tokens)?, dqkv.rows_mut(tokens)?);
                attention::backward(workspace, dout, qkv, out, lse, &batch.boundaries, *shape, dqkv);
            }
            Op::AppendToCache { qkv, shape, starts, cache } => {
                cache::append(qkv.rows(tokens)?, batch, *shape, starts, cache.all_mut());
            }
            Op::AttentionOverCache { qkv, cache, shape, starts, out } => {
                cache::attention(qkv.rows(tokens)?, cache.all(), batch, *shape, starts, out.rows_mut(tokens)?);
            }
            Op::Swiglu { gate_up, out } => {
                let width = out.width();
                elementwise::swiglu(gate_up.rows(tokens)?, out.rows_mut(tokens)?, width);
            }
            Op::SwigluBackward { dout, gate_up } => {
                elementwise::swiglu_backward(dout.rows(tokens)?, gate_up.rows_mut(tokens)?, dout.width());
            }
            Op::CrossEntropy { x, head, weight, dx } => {
                let dx = dx.as_mut().map(|dx| dx.rows_mut(tokens)).transpose()?;
                let (targets, weights) = (&batch.targets[tokens.clone()], batch.weights_of(tokens));
                if first == 0 {
                    self.loss = loss::LossSum::default();
                }
                let x = x.rows(tokens)?;
                loss::linear_cross_entropy(workspace, x, head, targets, weights, *weight, dx, &mut self.loss);
            }
            Op::Logits { x, head, tokens, out } => {
                for (&token, out) in tokens.iter().zip(out.iter_mut()) {
                    *out = loss::logits(workspace, x.rows(&(token..token + 1))?, head);
                }
            }
        }
        Ok(())
    }

    fn read_loss(&mut self) -> Result<f64> {
        Ok(self.loss.total())
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
