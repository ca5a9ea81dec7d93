//! The operations, each a call of one kernel.

use super::operands::{CudaBuffer, CudaVector, Storage};
use super::{Cuda, in_graph, linear, loss, magnitude};
use crate::backend::{BufferShape, CheckedBatch, Compute, Op, Rotation, StepPart, Trace};
use crate::error::Result;
use half::bf16;
use qlora_kernels::device::EventTimer;
use qlora_kernels::ops::attention::Attention;
use qlora_kernels::ops::dispatch::{Pass, Row};
use qlora_kernels::ops::{self, HeadNorm, HeadRotation, Residual, linear_dx};
use qlora_kernels::ops::{attention, attention_backward};
use qlora_kernels::shape::AttentionShape;
use std::ops::Range;

impl Cuda {
    fn head_norm<'a>(
        &'a self,
        tokens: &Range<usize>,
        shape: AttentionShape,
        eps: f32,
        qkv: &'a CudaBuffer,
        [q, k]: [&'a CudaVector; 2],
        rotation: Option<Rotation>,
    ) -> Result<HeadNorm<'a>> {
        let rotation = rotation.map(|Rotation { table, before_norm }| HeadRotation {
            positions: self.on_device.positions.rows(tokens),
            table: self.ropes[table].table(),
            before_norm,
        });
        let (q_weight, k_weight) = (q.f32(), k.f32());
        Ok(HeadNorm { shape, eps, x: qkv.rows(tokens)?, q_weight, k_weight, rotation })
    }
}

impl Compute for Cuda {
    fn batch(&self) -> &CheckedBatch {
        &self.batch
    }

    fn rounded(&self, x: f32) -> f32 {
        bf16::from_f32(x).to_f32()
    }

    fn set_batch(&mut self, batch: CheckedBatch) -> Result<()> {
        self.batch = batch;
        // Two documents at least begin at different tokens, but empty ones may be any number.
        self.batch_documents.clear();
        self.batch_documents.extend(self.batch.boundaries.windows(2).map(|bounds| bounds[0] < bounds[1]));
        self.batch.boundaries.dedup();
        let documents = self.batch.boundaries.len().saturating_sub(1);
        self.documents = self.graphs.documents(documents, self.dims.tokens);
        self.on_device.set(&self.batch, self.documents)
    }

    fn in_graph<T>(
        &mut self,
        part: StepPart,
        draw: Option<u32>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        in_graph::in_graph(self, part, draw, work)
    }

    fn reserve(&mut self, op: &Op<'_, Self>) -> Result<()> {
        match op {
            Op::AppendToCache { shape, starts, .. } | Op::AttentionOverCache { shape, starts, .. } => {
                self.reserve_cache(*shape, starts)
            }
            Op::Logits { head, tokens, .. } => self.loss.reserve_logits(&self.memory, head.vocab, tokens.len()),
            _ => Ok(()),
        }
    }

    fn reserve_text(&mut self, shape: AttentionShape, rows: usize) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        self.reserve_attention(shape, rows)?;
        self.loss.reserve_logits(&self.memory, self.dims.vocab, rows)
    }

    fn compute(&mut self, tokens: &Range<usize>, op: &mut Op<'_, Self>) -> Result<()> {
        if self.graphs.is_replaying() {
            return Ok(());
        }
        let (m, stream, forked) = (tokens.len(), self.memory.stream(), self.beside.take_fork());
        let step = self.graphs.step();
        match op {
            Op::Embed { table, scale, out } => {
                let ids = self.on_device.input_ids.rows(tokens);
                let (table, vocab, h) = (self.output_layer.rows(table), table.vocab, table.hidden);
                ops::embedding(ids, table, vocab, h, *scale, out.rows_mut(tokens)?, stream)?;
            }
            Op::RmsNorm { x, weight, eps, out } => {
                let x = Residual::Plain(x.rows(tokens)?);
                ops::rms_norm(x, weight.f32(), *eps, out.apart_mut(tokens)?, stream)?;
            }
            Op::AddRmsNorm { x, delta, sum, weight, eps, out } => {
                let (x, delta, sum) = (x.rows(tokens)?, delta.rows(tokens)?, sum.rows_mut(tokens)?);
                let residual = Residual::Add { x, delta, sum };
                ops::rms_norm(residual, weight.f32(), *eps, out.apart_mut(tokens)?, stream)?;
            }
            Op::RmsNormAdd { x, delta, weight, eps, sum } => {
                let residual = Residual::After { delta: delta.rows(tokens)?, x: x.rows(tokens)? };
                ops::rms_norm(residual, weight.f32(), *eps, sum.rows_mut(tokens)?, stream)?;
            }
            Op::RmsNormBackward { dy, x, weight, eps, accumulate, dx } => {
                let (dy, x, weight) = (dy.apart(tokens)?, x.rows(tokens)?, weight.f32());
                ops::rms_norm_backward(dy, x, weight, *eps, *accumulate, dx.apart_mut(tokens)?, stream)?;
            }
            Op::LoraDown { x, group, dropout, s } => {
                let unused = self.empty.view_mut();
                let index = self.on_device.adapters_of(tokens);
                let mask = linear::mask(*dropout, tokens, step);
                linear::lora_down(tokens, x, group, &self.pinned, mask, index, s, unused, stream)?;
            }
            Op::Linear { x, s, group, y } => {
                let row = self.linear.take(&linear::layers(group), Pass::Forward, self.batch.tokens());
                let (index, paths) = (self.on_device.adapters_of(tokens), &mut self.linear_paths);
                linear::forward(tokens, x, *s, group, &self.pinned, index, y, row, stream, paths)?;
            }
            Op::LoraDyB { dy, group, t } => linear::lora_dy_b(tokens, dy, group, &self.pinned, t, stream)?,
            Op::LinearDx { dy, t, group, dropout, accumulate, dx } => {
                let row = self.linear.take(&linear::layers(group), Pass::Dx, self.batch.tokens());
                if row.0.row() == Row::Fused {
                    let idle_share = |processors| linear_dx::idle_share(m, group.k, processors);
                    self.beside.fork(&self.memory, idle_share)?;
                }
                let mask = linear::mask(*dropout, tokens, step);
                linear::dx(tokens, dy, *t, group, &self.pinned, mask, *accumulate, dx, row, stream)?;
            }
            Op::LoraGradients { x, dy, s, t, group, dropout } => {
                let (operands, workspace, pinned) = ([*x, *dy, *s, *t], self.gradients.view_mut(), &self.pinned);
                let mask = linear::mask(*dropout, tokens, step);
                let work = |stream| linear::gradients(tokens, operands, group, pinned, mask, workspace, stream);
                if forked { self.beside.run(work)? } else { work(stream)? }
            }
            Op::HeadNorm { qkv, weights, eps, shape, rotation, out } => {
                let input = self.head_norm(tokens, *shape, *eps, qkv, *weights, *rotation)?;
                ops::head_norm(input, out.rows_mut(tokens)?, stream)?;
            }
            Op::HeadNormBackward { qkv, weights, eps, shape, rotation, dqkv } => {
                let input = self.head_norm(tokens, *shape, *eps, qkv, *weights, *rotation)?;
                ops::head_norm_backward(input, dqkv.apart_mut(tokens)?, stream)?;
            }
            Op::Rope { qkv, shape, table, inverse } => {
                let table = self.ropes[*table].table();
                let heads = shape.heads + shape.kv_heads;
                let positions = self.on_device.positions.rows(tokens);
                let (x, ldx) = qkv.strided_mut(tokens)?;
                ops::rope(x, ldx, heads, shape.head_dim, positions, table, *inverse, stream)?;
            }
            Op::Attention { qkv, shape, window, out, lse } => {
                let boundaries = self.on_device.boundaries.rows(&(0..self.documents + 1));
                let input = Attention { shape: *shape, m, qkv: qkv.rows(tokens)?, boundaries, window: *window };
                attention(&input, out.apart_mut(tokens)?, lse.f32_rows_mut(tokens)?, stream)?;
            }
            Op::AttentionBackward { dout, qkv, out, lse, shape, window, dqkv } => {
                let boundaries = self.on_device.boundaries.rows(&(0..self.documents + 1));
                let input = Attention { shape: *shape, m, qkv: qkv.rows(tokens)?, boundaries, window: *window };
                let (dout, out, lse) = (dout.rows(tokens)?, out.apart(tokens)?, lse.f32_rows(tokens)?);
                let workspace = self.attention.view_mut();
                attention_backward(&input, dout, out, lse, dqkv.apart_mut(tokens)?, workspace, stream)?;
            }
            Op::AppendToCache { qkv, shape, cache, .. } => self.append_to_cache(qkv, *shape, cache)?,
            Op::AttentionOverCache { qkv, cache, shape, window, out, .. } => {
                self.attention_over_cache(qkv, cache, *shape, *window, out)?;
            }
            Op::Swiglu { gate_up, activation, out } => {
                let width = out.width();
                ops::swiglu(gate_up.apart(tokens)?, width, *activation, out.apart_mut(tokens)?, stream)?;
            }
            Op::SwigluBackward { dout, activation, gate_up, out } => {
                let (dout, width) = (dout.rows(tokens)?, dout.width());
                let out = out.as_mut().map(|out| out.apart_mut(tokens)).transpose()?;
                ops::swiglu_backward(dout, gate_up.apart_mut(tokens)?, width, *activation, out, stream)?;
            }
            Op::CrossEntropy { x, head, weight, soft_cap, dx } => {
                let targets = loss::Targets::of(&self.batch, &self.on_device, tokens);
                let (weight, cap) = (*weight, *soft_cap);
                let head = loss::Head::frozen(head, self.output_layer.values(head));
                self.loss.cross_entropy(&self.memory, targets, x, head, weight, cap, dx.as_deref_mut())?;
            }
            Op::TrainedCrossEntropy { x, head, weight, soft_cap, dx } => {
                let targets = loss::Targets::of(&self.batch, &self.on_device, tokens);
                let (weight, cap, head) = (*weight, *soft_cap, loss::Head::trained(head));
                self.loss.cross_entropy(&self.memory, targets, x, head, weight, cap, Some(&mut **dx))?;
            }
            Op::EmbedBackward { dout, scale, table } => self.embedding_gradient(tokens, dout, *scale, table)?,
            Op::NormGradient { dy, x, eps, weight } => self.norm_gradient(tokens, dy, x, *eps, weight)?,
            Op::HeadNormGradients { dqkv, qkv, eps, shape, weights } => {
                self.head_norm_gradients(tokens, dqkv, qkv, *eps, *shape, weights)?;
            }
            Op::Magnitude { group, y } => magnitude::forward(tokens, group, y, stream)?,
            Op::MagnitudeBackward { dy, z, group } => {
                magnitude::backward(tokens, dy, z, group, &mut self.gradients, stream)?;
            }
            Op::Logits { x, head, tokens: of, out } => {
                let head = loss::Head::frozen(head, self.output_layer.values(head));
                **out = self.loss.logits(&self.memory, x.rows(tokens)?, head, of)?;
            }
        }
        Ok(())
    }

    fn read_loss(&mut self) -> Result<f64> {
        self.loss.read(&self.memory, &self.batch)
    }

    fn read_losses(&mut self) -> Result<Vec<f64>> {
        self.loss.read_each(&self.memory, &self.batch)
    }

    fn trace(&mut self) -> &mut Trace {
        &mut self.trace
    }

    fn record_event(&mut self) -> Result<()> {
        let events = match &mut self.events {
            Some(events) => events,
            none => none.insert(EventTimer::new(&*self.memory.opened()?)?),
        };
        Ok(events.record()?)
    }

    fn linear_rows(&self) -> Vec<String> {
        self.linear.in_words()
    }

    fn elapsed(&mut self) -> Result<Vec<f64>> {
        match &mut self.events {
            Some(events) => Ok(events.elapsed()?),
            None => Ok(Vec::new()),
        }
    }

    fn values(&mut self, buffer: &CudaBuffer, tokens: &Range<usize>) -> Result<Vec<f32>> {
        let elements = buffer.elements(tokens)?;
        let values: Vec<f32> = match &buffer.data {
            Storage::F32(data) => self.memory.download(data)?[elements].to_vec(),
            Storage::Bf16(data) => self.memory.download(data)?[elements].iter().map(|x| x.to_f32()).collect(),
        };
        // Without what lies in the room behind rows.
        Ok(values.chunks(buffer.stride()).flat_map(|row| &row[..buffer.width()]).copied().collect())
    }
}
