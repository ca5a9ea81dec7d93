//! Forward and backward of one micro-batch.

use super::cached::{Past, View};
use super::{Activations, Layer, Llama};
use crate::backend::{Backend, Batch, LinearGroup, Op, Scope};
use crate::error::Result;
use qlora_kernels::rng::Dropout;
use qlora_kernels::shape::AttentionShape;
use std::ops::Range;

/// What the backward pass of one layer reads, beside the layer's input. S is the low-rank projection of an input.
struct Block<B: Backend> {
    /// q‖k‖v that attention sees; where queries and keys are normalized, those that their projections left.
    qkv: B::Buffer,
    s_qkv: Option<B::Buffer>,
    attention: B::Buffer,
    lse: B::Buffer,
    s_o: Option<B::Buffer>,
    /// The residual stream between attention and MLP.
    middle: B::Buffer,
    gate_up: B::Buffer,
    s_gate_up: Option<B::Buffer>,
    s_down: Option<B::Buffer>,
}

/// What waits for the backward pass of one layer.
struct Waiting<B: Backend> {
    input: B::Offloaded,
    /// `None`: computed again from the input
    block: Option<Block<B>>,
}

/// What every layer of one pass shares.
#[derive(Clone, Copy)]
struct Pass {
    tokens: usize,
    shape: AttentionShape,
    hidden: usize,
    intermediate: usize,
    /// The eps of the norms of the residual stream
    eps: f32,
    /// The eps of the norms of queries and keys
    head_eps: f32,
    /// (seed, draw, p)
    dropout: Option<(u64, u32, f32)>,
}

impl Pass {
    /// All tokens of the batch.
    fn all(&self) -> Range<usize> {
        0..self.tokens
    }

    fn mask<B: Backend>(&self, group: &LinearGroup<B>) -> Option<Dropout> {
        self.dropout.map(|(seed, draw, p)| Dropout::new(seed, group.dropout_id, draw, p))
    }
}

impl<B: Backend> Llama<B> {
    fn pass(&self, batch: &Batch, draw: Option<u32>) -> Pass {
        let dropout = Some(self.spec.lora.dropout as f32).filter(|&p| p > 0.0);
        Pass {
            tokens: batch.tokens(),
            shape: self.attention,
            hidden: self.spec.arch.hidden_size,
            intermediate: self.spec.arch.intermediate_size,
            eps: self.spec.arch.multipliers.stream_eps(self.spec.arch.norm.eps),
            head_eps: self.spec.arch.norm.eps,
            dropout: draw.zip(dropout).map(|(draw, p)| (self.spec.seed, draw, p)),
        }
    }

    fn head(&self) -> &B::Table {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// One micro-batch, forward and backward. Gradients of `weight · loss` accumulate in the trainable tensors. Returns
    /// the unweighted sum of the supervised tokens' losses. `draw` = step · accumulation + micro names the dropout
    /// masks.
    pub fn forward_backward(&mut self, b: &mut B, batch: &Batch, draw: u32, weight: f32) -> Result<f64> {
        let pass = self.pass(batch, Some(draw));
        b.begin(batch)?;
        let layers = self.layers.len();
        let mut waiting: Vec<Waiting<B>> = Vec::with_capacity(layers);
        let (stream, normed) = self.forward(b, &pass, None, |b, input, block| {
            let layer = waiting.len();
            let activations = self.spec.activations_of(layer);
            let block = Some(block).filter(|_| activations == Activations::Keep);
            // The last layer's input is needed at once.
            let away = activations == Activations::Offload && layer + 1 < layers;
            let input = if away { b.offload(input)? } else { b.keep(input) };
            waiting.push(Waiting { input, block });
            Ok(())
        })?;
        let mut d_normed = b.alloc("gradients", pass.hidden)?;
        b.run(pass.all(), Op::CrossEntropy { x: &normed, head: self.head(), weight, dx: Some(&mut d_normed) })?;
        drop(normed);
        let mut d_stream = b.alloc("gradients", pass.hidden)?;
        b.run(
            pass.all(),
            Op::RmsNormBackward {
                dy: &d_normed,
                x: &stream,
                weight: &self.final_norm,
                eps: pass.eps,
                accumulate: false,
                dx: &mut d_stream,
            },
        )?;
        drop((d_normed, stream));
        while let Some(Waiting { input, block: kept }) = waiting.pop() {
            let input = b.wait(input)?;
            // The next one comes while this layer computes.
            if let Some(Waiting { input, block }) = waiting.pop() {
                waiting.push(Waiting { input: b.prefetch(input)?, block });
            }
            let next = waiting.len().checked_sub(1).map(|below| &self.layers[below]);
            self.use_weights(b, waiting.len(), next)?;
            b.enter(Scope::Layer(waiting.len()));
            let layer = &mut self.layers[waiting.len()];
            let kept = match kept {
                Some(kept) => kept,
                None => {
                    let mut normed = b.alloc("normed", pass.hidden)?;
                    let (weight, eps) = (&layer.input_norm, pass.eps);
                    b.run(pass.all(), Op::RmsNorm { x: &input, weight, eps, out: &mut normed })?;
                    block(b, layer, &pass, &input, normed, false, None)?.0
                }
            };
            block_backward(b, layer, &pass, &input, kept, &mut d_stream, waiting.is_empty())?;
        }
        drop(d_stream);
        b.loss_sum()
    }

    /// The sum of the losses of the batch's supervised tokens.
    pub fn loss(&self, b: &mut B, batch: &Batch) -> Result<f64> {
        let normed = self.evaluate(b, batch, None)?;
        b.run(0..batch.tokens(), Op::CrossEntropy { x: &normed, head: self.head(), weight: 1.0, dx: None })?;
        drop(normed);
        b.loss_sum()
    }

    /// Logits `[vocab]` of the named tokens of the batch.
    pub fn logits(&self, b: &mut B, batch: &Batch, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.logits_after(b, batch, None, tokens)
    }

    /// Like [`Self::logits`], after what a cache holds.
    pub(super) fn logits_after(
        &self,
        b: &mut B,
        batch: &Batch,
        past: Option<Past<B>>,
        tokens: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        let normed = self.evaluate(b, batch, past)?;
        b.logits(&normed, self.head(), tokens)
    }

    /// The final norm's output, with nothing kept for a backward pass.
    fn evaluate(&self, b: &mut B, batch: &Batch, past: Option<Past<B>>) -> Result<B::Buffer> {
        b.begin(batch)?;
        let (_, normed) = self.forward(b, &self.pass(batch, None), past, |_, _, _| Ok(()))?;
        Ok(normed)
    }

    /// Operations that are run next are those of this layer. The weights of `next` come while it computes.
    fn use_weights(&self, b: &mut B, layer: usize, next: Option<&Layer<B>>) -> Result<()> {
        b.wait_weights(self.layers[layer].groups())?;
        next.map_or(Ok(()), |next| b.prefetch_weights(next.groups()))
    }

    /// Runs all layers, handing each one's input and activations to `keep`. Returns the residual stream and its norm.
    fn forward(
        &self,
        b: &mut B,
        pass: &Pass,
        mut past: Option<Past<B>>,
        mut keep: impl FnMut(&mut B, B::Buffer, Block<B>) -> Result<()>,
    ) -> Result<(B::Buffer, B::Buffer)> {
        b.prefetch_weights(self.layers[0].groups())?;
        b.enter(Scope::Input);
        let mut stream = b.alloc("residual stream", pass.hidden)?;
        let scale = self.spec.arch.multipliers.stream_scale();
        b.run(pass.all(), Op::Embed { table: &self.embedding, scale, out: &mut stream })?;
        let mut normed = b.alloc("normed", pass.hidden)?;
        let (weight, eps) = (&self.layers[0].input_norm, pass.eps);
        b.run(pass.all(), Op::RmsNorm { x: &stream, weight, eps, out: &mut normed })?;
        for (index, layer) in self.layers.iter().enumerate() {
            self.use_weights(b, index, self.layers.get(index + 1))?;
            b.enter(Scope::Layer(index));
            let cache = past.as_mut().map(|past| (&mut past.layers[index], past.view));
            let (kept, mlp) = block(b, layer, pass, &stream, normed, true, cache)?;
            let mlp = mlp.expect("asked for");
            let weight = self.layers.get(index + 1).map_or(&self.final_norm, |next| &next.input_norm);
            b.enter(if index + 1 < self.layers.len() { Scope::Layer(index + 1) } else { Scope::Output });
            let mut next = b.alloc("residual stream", pass.hidden)?;
            normed = b.alloc("normed", pass.hidden)?;
            let (x, delta, sum) = (&kept.middle, &mlp, &mut next);
            b.run(pass.all(), Op::AddRmsNorm { x, delta, sum, weight, eps, out: &mut normed })?;
            drop(mlp);
            keep(b, std::mem::replace(&mut stream, next), kept)?;
        }
        Ok((stream, normed))
    }
}

/// S of one group's input; none without a low-rank term.
fn project<B: Backend>(b: &mut B, pass: &Pass, x: &B::Buffer, group: &LinearGroup<B>) -> Result<Option<B::Buffer>> {
    if group.r() == 0 {
        return Ok(None);
    }
    let mut s = b.alloc("low-rank projections", b.low_rank_columns(group))?;
    b.run(pass.all(), Op::LoraDown { x, group, dropout: pass.mask(group), s: &mut s })?;
    Ok(Some(s))
}

/// The output of one group, with its S.
fn linear<B: Backend>(
    b: &mut B,
    pass: &Pass,
    name: &'static str,
    x: &B::Buffer,
    group: &LinearGroup<B>,
) -> Result<(B::Buffer, Option<B::Buffer>)> {
    let s = project(b, pass, x, group)?;
    let mut y = b.alloc(name, group.n())?;
    b.run(pass.all(), Op::Linear { x, s: s.as_ref(), group, y: &mut y })?;
    Ok((y, s))
}

/// q‖k‖v with the heads of q and k normalized; `None` where the family does not normalize them. The backward pass
/// computes it again from the projections: it needs those exactly, and to keep both takes twice the memory.
fn norm_heads<B: Backend>(b: &mut B, layer: &Layer<B>, pass: &Pass, qkv: &B::Buffer) -> Result<Option<B::Buffer>> {
    let Some([q, k]) = &layer.qk_norm else { return Ok(None) };
    let mut out = b.alloc("qkv", pass.shape.qkv())?;
    let (weights, eps, shape) = ([q, k], pass.head_eps, pass.shape);
    b.run(pass.all(), Op::HeadNorm { qkv, weights, eps, shape, out: &mut out })?;
    Ok(Some(out))
}

/// One transformer block. `normed` is RMSNorm of `input` and is given up. The MLP's output is computed if `output`.
/// With a cache the batch's keys and values are appended to it and attention sees what it holds.
fn block<B: Backend>(
    b: &mut B,
    layer: &Layer<B>,
    pass: &Pass,
    input: &B::Buffer,
    normed: B::Buffer,
    output: bool,
    cache: Option<(&mut B::Buffer, View)>,
) -> Result<(Block<B>, Option<B::Buffer>)> {
    let (all, shape, window, eps) = (|| pass.all(), pass.shape, layer.window, pass.eps);
    let (mut qkv, s_qkv) = linear(b, pass, "qkv", &normed, &layer.qkv)?;
    drop(normed);
    let mut normed_qkv = norm_heads(b, layer, pass, &qkv)?;
    let attended = normed_qkv.as_mut().unwrap_or(&mut qkv);
    if let Some(table) = layer.rope {
        b.run(all(), Op::Rope { qkv: attended, shape, table, inverse: false })?;
    }
    let mut attention = b.alloc("attention output", shape.out())?;
    let mut lse = b.alloc_f32("attention log-sum-exp", shape.heads)?;
    let within_batch = cache.as_ref().is_none_or(|(_, view)| view.fresh);
    if let Some((cache, view)) = cache {
        let starts = view.starts;
        b.run(all(), Op::AppendToCache { qkv: attended, shape, starts, cache })?;
        if !view.fresh {
            let out = &mut attention;
            b.run(all(), Op::AttentionOverCache { qkv: attended, cache, shape, window, starts, out })?;
        }
    }
    if within_batch {
        b.run(all(), Op::Attention { qkv: attended, shape, window, out: &mut attention, lse: &mut lse })?;
    }
    drop(normed_qkv);

    let (projected, s_o) = linear(b, pass, "projected attention", &attention, &layer.o)?;
    let mut middle = b.alloc("residual stream", pass.hidden)?;
    let mut normed = b.alloc("normed", pass.hidden)?;
    let weight = &layer.post_attention_norm;
    b.run(all(), Op::AddRmsNorm { x: input, delta: &projected, sum: &mut middle, weight, eps, out: &mut normed })?;
    drop(projected);

    let (gate_up, s_gate_up) = linear(b, pass, "gate and up", &normed, &layer.gate_up)?;
    drop(normed);
    let mut activated = b.alloc("activated", pass.intermediate)?;
    b.run(all(), Op::Swiglu { gate_up: &gate_up, out: &mut activated })?;
    let (mlp, s_down) = if output {
        let (mlp, s) = linear(b, pass, "MLP output", &activated, &layer.down)?;
        (Some(mlp), s)
    } else {
        (None, project(b, pass, &activated, &layer.down)?)
    };
    Ok((Block { qkv, s_qkv, attention, lse, s_o, middle, gate_up, s_gate_up, s_down }, mlp))
}

/// dX (if asked for) and the low-rank gradients of one group. `s` is given up.
fn linear_backward<B: Backend>(
    b: &mut B,
    pass: &Pass,
    x: &B::Buffer,
    s: Option<B::Buffer>,
    dy: &B::Buffer,
    group: &mut LinearGroup<B>,
    dx: Option<&mut B::Buffer>,
) -> Result<()> {
    let dropout = pass.mask(group);
    let t = match &s {
        Some(_) => {
            let mut t = b.alloc("low-rank projections", b.low_rank_columns(group))?;
            b.run(pass.all(), Op::LoraDyB { dy, group, t: &mut t })?;
            Some(t)
        }
        None => None,
    };
    if let Some(dx) = dx {
        b.run(pass.all(), Op::LinearDx { dy, t: t.as_ref(), group, dropout, dx })?;
    }
    if let (Some(s), Some(t)) = (&s, &t) {
        b.run(pass.all(), Op::LoraGradients { x, dy, s, t, group, dropout })?;
    }
    Ok(())
}

/// Turns the gradient of the block's output into that of its input, in place. Below the first block nothing is
/// trained, so there the gradient ends with the low-rank terms of q, k and v.
fn block_backward<B: Backend>(
    b: &mut B,
    layer: &mut Layer<B>,
    pass: &Pass,
    input: &B::Buffer,
    kept: Block<B>,
    d_stream: &mut B::Buffer,
    first: bool,
) -> Result<()> {
    let Block { qkv, s_qkv, attention, lse, s_o, middle, mut gate_up, s_gate_up, s_down } = kept;
    let (all, shape, eps) = (|| pass.all(), pass.shape, pass.eps);

    let mut activated = b.alloc("activated", pass.intermediate)?;
    b.run(all(), Op::Swiglu { gate_up: &gate_up, out: &mut activated })?;
    let mut d_activated = b.alloc("activated", pass.intermediate)?;
    linear_backward(b, pass, &activated, s_down, d_stream, &mut layer.down, Some(&mut d_activated))?;
    drop(activated);
    b.run(all(), Op::SwigluBackward { dout: &d_activated, gate_up: &mut gate_up })?;
    drop(d_activated);
    let mut normed = b.alloc("normed", pass.hidden)?;
    let weight = &layer.post_attention_norm;
    b.run(all(), Op::RmsNorm { x: &middle, weight, eps, out: &mut normed })?;
    let mut d_normed = b.alloc("gradients", pass.hidden)?;
    linear_backward(b, pass, &normed, s_gate_up, &gate_up, &mut layer.gate_up, Some(&mut d_normed))?;
    drop(gate_up);
    let weight = &layer.post_attention_norm;
    b.run(all(), Op::RmsNormBackward { dy: &d_normed, x: &middle, weight, eps, accumulate: true, dx: d_stream })?;
    drop((d_normed, normed, middle));

    let mut d_attention = b.alloc("attention output", shape.out())?;
    linear_backward(b, pass, &attention, s_o, d_stream, &mut layer.o, Some(&mut d_attention))?;
    let mut normed_qkv = norm_heads(b, layer, pass, &qkv)?;
    if let (Some(qkv), Some(table)) = (&mut normed_qkv, layer.rope) {
        b.run(all(), Op::Rope { qkv, shape, table, inverse: false })?;
    }
    let mut d_qkv = b.alloc("qkv", shape.qkv())?;
    let attended = normed_qkv.as_ref().unwrap_or(&qkv);
    b.run(
        all(),
        Op::AttentionBackward {
            dout: &d_attention,
            qkv: attended,
            out: &attention,
            lse: &lse,
            shape,
            window: layer.window,
            dqkv: &mut d_qkv,
        },
    )?;
    drop((d_attention, normed_qkv, attention, lse));
    if let Some(table) = layer.rope {
        b.run(all(), Op::Rope { qkv: &mut d_qkv, shape, table, inverse: true })?;
    }
    if let Some([q, k]) = &layer.qk_norm {
        b.run(all(), Op::HeadNormBackward { qkv: &qkv, weights: [q, k], eps: pass.head_eps, shape, dqkv: &mut d_qkv })?;
    }
    drop(qkv);
    let mut normed = b.alloc("normed", pass.hidden)?;
    b.run(all(), Op::RmsNorm { x: input, weight: &layer.input_norm, eps, out: &mut normed })?;
    if first {
        return linear_backward(b, pass, &normed, s_qkv, &d_qkv, &mut layer.qkv, None);
    }
    let mut d_normed = b.alloc("gradients", pass.hidden)?;
    linear_backward(b, pass, &normed, s_qkv, &d_qkv, &mut layer.qkv, Some(&mut d_normed))?;
    let weight = &layer.input_norm;
    b.run(all(), Op::RmsNormBackward { dy: &d_normed, x: input, weight, eps, accumulate: true, dx: d_stream })
}
