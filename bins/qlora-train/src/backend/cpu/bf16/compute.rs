//! The operations on bf16 values, each handed to the module that computes it.

use super::attention;
use super::cache;
use super::gemm::Stored;
use super::isa::{self, Isa};
use super::linear::{Gradients, Group, LowRank, Segment, padded};
use super::loss;
use super::rows::{self, round};
use super::workspace::Workspace;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::compute::each_head;
use crate::backend::cpu::operands::{CpuWeight, Dense};
use crate::backend::{BufferShape, LinearGroup, Op};
use crate::error::Result;
use crate::files::tensor::TensorData;
use half::bf16;
use qlora_kernels::rng::Dropout;
use rayon::prelude::*;
use std::ops::Range;

impl Stored for CpuWeight {
    fn read(&self, isa: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        match self {
            CpuWeight::Nf4(matrix) => matrix.read(isa, row, columns, out),
            CpuWeight::Dense(dense) => Stored::read(dense, isa, row, columns, out),
            CpuWeight::Unread => unreachable!("nothing is computed in a dry run"),
        }
    }

    fn dot(&self, isa: Isa, row: usize, columns: Range<usize>, x: &[bf16], scratch: &mut [bf16]) -> f32 {
        match self {
            CpuWeight::Nf4(matrix) => matrix.dot(isa, row, columns, x, scratch),
            CpuWeight::Dense(dense) => dense.dot(isa, row, columns, x, scratch),
            CpuWeight::Unread => unreachable!("nothing is computed in a dry run"),
        }
    }
}

impl Stored for Dense {
    fn read(&self, _: Isa, row: usize, columns: Range<usize>, out: &mut [bf16]) {
        let first = row * self.cols + columns.start;
        let range = first..first + out.len();
        match &self.tensor.data {
            TensorData::Bf16(values) => out.copy_from_slice(&values[range]),
            TensorData::F16(values) => {
                out.iter_mut().zip(&values[range]).for_each(|(out, x)| *out = round(x.to_f32()));
            }
            TensorData::F32(values) => rows::round_row(&values[range], out),
        }
    }

    fn dot(&self, isa: Isa, row: usize, columns: Range<usize>, x: &[bf16], scratch: &mut [bf16]) -> f32 {
        if let TensorData::Bf16(values) = &self.tensor.data {
            return isa::dot(isa, x, &values[row * self.cols..][columns]);
        }
        let values = &mut scratch[..columns.len()];
        Stored::read(self, isa, row, columns, values);
        isa::dot(isa, x, values)
    }
}

/// The width of S and T.
pub fn low_rank_columns(group: &LinearGroup<Cpu>) -> usize {
    group.segments.iter().filter_map(|s| s.lora.as_ref()).map(|lora| padded(lora.r)).sum()
}

fn segments(group: &LinearGroup<Cpu>) -> Vec<Segment<'_>> {
    let segments = group.segments.iter().map(|segment| Segment {
        n: segment.n,
        weight: &*segment.weight,
        bias: segment.bias.as_ref().map(|bias| &bias[..]),
        lora: segment.lora.as_ref().map(|lora| LowRank {
            r: lora.r,
            scale: lora.scale,
            a: &lora.a.value,
            b: &lora.b.value,
        }),
    });
    segments.collect()
}

impl Cpu {
    pub(in crate::backend::cpu) fn compute_bf16(&mut self, tokens: &Range<usize>, op: &mut Op<'_, Self>) -> Result<()> {
        let Self { batch, workspace_bf16, rope, .. } = self;
        let Some(workspace) = workspace_bf16.as_mut().and_then(|held| held.as_mut()) else {
            unreachable!("made for bf16, and not a dry run")
        };
        let Workspace { isa, gemm, attention: tiles, gradients, loss: loss_scratch, masked, term, delta } = workspace;
        let (isa, first) = (*isa, tokens.start);
        let group_of = |k: usize, segments, dropout: Option<Dropout>| Group { isa, k, segments, first, dropout };
        match op {
            Op::Embed { table, out } => {
                let (table, width): (&Dense, _) = (table, table.cols);
                let rows = out.rows16_mut(tokens)?.par_chunks_exact_mut(width).zip(&batch.input_ids[tokens.clone()]);
                rows.with_min_len(16).for_each(|(out, &id)| Stored::read(table, isa, id as usize, 0..width, out));
            }
            Op::RmsNorm { x, weight, eps, out } => {
                rows::rms_norm(x.rows16(tokens)?, weight, *eps, out.rows16_mut(tokens)?);
            }
            Op::AddRmsNorm { x, delta, sum, weight, eps, out } => {
                let (x, delta) = (x.rows16(tokens)?, delta.rows16(tokens)?);
                rows::add_rms_norm(x, delta, sum.rows16_mut(tokens)?, weight, *eps, out.rows16_mut(tokens)?);
            }
            Op::RmsNormBackward { dy, x, weight, eps, accumulate, dx } => {
                let (dy, x) = (dy.rows16(tokens)?, x.rows16(tokens)?);
                rows::rms_norm_backward(dy, x, weight, *eps, *accumulate, dx.rows16_mut(tokens)?);
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
            Op::LinearDx { dy, t, group, dropout, dx } => {
                let (t, segments) = (t.map(|t| t.rows16(tokens)).transpose()?, segments(group));
                group_of(group.k, &segments, *dropout).dx(gemm, dy.rows16(tokens)?, t, term, dx.rows16_mut(tokens)?);
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
                            let view = LowRank { r: lora.r, scale: lora.scale, a, b };
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
            Op::HeadNorm { qkv, weights: [q, k], eps, shape, out } => {
                let (x, y) = (qkv.rows16(tokens)?, out.rows16_mut(tokens)?);
                y.copy_from_slice(x);
                let norm = |y: &mut [bf16], x: &[bf16], w: &[f32]| rows::rms_norm_row(x, w, *eps, y);
                each_head(*shape, [q, k], y, x, norm);
            }
            Op::HeadNormBackward { qkv, weights: [q, k], eps, shape, dqkv } => {
                each_head(*shape, [q, k], dqkv.rows16_mut(tokens)?, qkv.rows16(tokens)?, |dx, x, w| {
                    let dy = dx.to_vec();
                    dx.fill(bf16::ZERO);
                    rows::rms_norm_backward_row(&dy, x, w, *eps, dx);
                });
            }
            Op::Rope { qkv, shape, inverse } => {
                let (_, table) = rope.as_ref().expect("the model sets the rotation angles when it is built");
                rows::rope(qkv.rows16_mut(tokens)?, *shape, &batch.positions[tokens.clone()], table, *inverse);
            }
            Op::Attention { qkv, shape, out, lse } => {
                let (qkv, out, lse) = (qkv.rows16(tokens)?, out.rows16_mut(tokens)?, lse.rows_mut(tokens)?);
                attention::forward(isa, tiles, qkv, &batch.boundaries, *shape, out, lse);
            }
            Op::AttentionBackward { dout, qkv, out, lse, shape, dqkv } => {
                let (dout, qkv, out) = (dout.rows16(tokens)?, qkv.rows16(tokens)?, out.rows16(tokens)?);
                let (lse, dqkv) = (lse.rows(tokens)?, dqkv.rows16_mut(tokens)?);
                let delta = &mut delta[..lse.len()];
                attention::backward(isa, tiles, dout, qkv, out, lse, &batch.boundaries, *shape, delta, dqkv);
            }
            Op::AppendToCache { qkv, shape, starts, cache } => {
                cache::append(qkv.rows16(tokens)?, batch, *shape, starts, cache.all16_mut());
            }
            Op::AttentionOverCache { qkv, cache, shape, starts, out } => {
                let (qkv, out) = (qkv.rows16(tokens)?, out.rows16_mut(tokens)?);
                cache::attention(isa, qkv, cache.all16(), batch, *shape, starts, out);
            }
            Op::Swiglu { gate_up, out } => {
                let width = out.width();
                rows::swiglu(gate_up.rows16(tokens)?, out.rows16_mut(tokens)?, width);
            }
            Op::SwigluBackward { dout, gate_up } => {
                rows::swiglu_backward(dout.rows16(tokens)?, gate_up.rows16_mut(tokens)?, dout.width());
            }
            Op::CrossEntropy { x, head, weight, dx } => {
                let dx = dx.as_mut().map(|dx| dx.rows16_mut(tokens)).transpose()?;
                let (targets, weights) = (&batch.targets[tokens.clone()], batch.weights_of(tokens));
                let head: &Dense = head;
                if first == 0 {
                    self.loss = Default::default();
                }
                let x = x.rows16(tokens)?;
                let (h, vocab) = (head.cols, head.rows());
                let total = &mut self.loss;
                loss::cross_entropy(isa, gemm, loss_scratch, x, head, h, vocab, targets, weights, *weight, dx, total);
            }
            Op::Logits { x, head, tokens, out } => {
                let head: &Dense = head;
                for (&token, out) in tokens.iter().zip(out.iter_mut()) {
                    let x = x.rows16(&(token..token + 1))?;
                    *out = loss::logits(isa, gemm, x, head, head.cols, head.rows());
                }
            }
        }
        Ok(())
    }
}
