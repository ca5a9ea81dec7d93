//! Forward and backward of one micro-batch.

use super::cached::{Past, View};
use super::{Activations, Layer, Llama};
use crate::arch::Activation;
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
    /// The attention's output after its projection, where that is normalized.
    projected: Option<B::Buffer>,
    /// The residual stream between attention and MLP.
    middle: B::Buffer,
    gate_up: B::Buffer,
    s_gate_up: Option<B::Buffer>,
    s_down: Option<B::Buffer>,
    /// The MLP's output; kept for the backward pass where it is normalized.
    mlp: Option<B::Buffer>,
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
    /// The eps of the norms of queries and keys, and of what a branch gives
    branch_eps: f32,
    activation: Activation,
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
            branch_eps: self.spec.arch.norm.eps,
            activation: self.spec.arch.activation,
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
                    let normed = norm_of(b, &pass, &input, layer.attention_norms.input.as_ref())?;
                    block(b, layer, &pass, &input, normed, false, None)?
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
        let scale = self.spec.arch.multipliers.stream_scale(|x| b.rounded(x));
        b.run(pass.all(), Op::Embed { table: &self.embedding, scale, out: &mut stream })?;
        let mut normed = norm_of(b, pass, &stream, self.layers[0].attention_norms.input.as_ref())?;
        for (index, layer) in self.layers.iter().enumerate() {
            self.use_weights(b, index, self.layers.get(index + 1))?;
            b.enter(Scope::Layer(index));
            let cache = past.as_mut().map(|past| (&mut past.layers[index], past.view));
            let mut kept = block(b, layer, pass, &stream, normed, true, cache)?;
            let mlp = kept.mlp.take().expect("asked for");
            let next_norm = match self.layers.get(index + 1) {
                Some(next) => next.attention_norms.input.as_ref(),
                None => Some(&self.final_norm),
            };
            b.enter(if index + 1 < self.layers.len() { Scope::Layer(index + 1) } else { Scope::Output });
            let next;
            let output_norm = layer.mlp_norms.output.as_ref();
            (next, normed) = join(b, pass, &kept.middle, &mlp, output_norm, next_norm)?;
            kept.mlp = output_norm.map(|_| mlp);
            keep(b, std::mem::replace(&mut stream, next), kept)?;
        }
        Ok((stream, normed.expect("the last norm is that of every model")))
    }
}

/// RMSNorm of the residual stream `x`; `None` where no weight is given, because the next branch reads the stream as it
/// is.
fn norm_of<B: Backend>(b: &mut B, pass: &Pass, x: &B::Buffer, weight: Option<&B::Vector>) -> Result<Option<B::Buffer>> {
    let Some(weight) = weight else { return Ok(None) };
    let mut out = b.alloc("normed", pass.hidden)?;
    b.run(pass.all(), Op::RmsNorm { x, weight, eps: pass.eps, out: &mut out })?;
    Ok(Some(out))
}

/// The residual stream with what a branch gave added to it, by the norm of that where it has one, and the norm of the
/// sum where what follows reads one.
fn join<B: Backend>(
    b: &mut B,
    pass: &Pass,
    x: &B::Buffer,
    delta: &B::Buffer,
    output_norm: Option<&B::Vector>,
    next_norm: Option<&B::Vector>,
) -> Result<(B::Buffer, Option<B::Buffer>)> {
    let mut sum = b.alloc("residual stream", pass.hidden)?;
    match (output_norm, next_norm) {
        (Some(weight), next_norm) => {
            b.run(pass.all(), Op::RmsNormAdd { x, delta, weight, eps: pass.branch_eps, sum: &mut sum })?;
            let normed = norm_of(b, pass, &sum, next_norm)?;
            Ok((sum, normed))
        }
        (None, Some(weight)) => {
            let mut out = b.alloc("normed", pass.hidden)?;
            b.run(pass.all(), Op::AddRmsNorm { x, delta, sum: &mut sum, weight, eps: pass.eps, out: &mut out })?;
            Ok((sum, Some(out)))
        }
        (None, None) => unreachable!("a family normalizes the inputs or the outputs of both branches"),
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
    let (weights, eps, shape) = ([q, k], pass.branch_eps, pass.shape);
    b.run(pass.all(), Op::HeadNorm { qkv, weights, eps, shape, out: &mut out })?;
    Ok(Some(out))
}

/// One transformer block. `normed` is RMSNorm of `input`, where there is one, and is given up. The MLP's output is
/// computed if `output`, or if the backward pass reads it. With a cache the batch's keys and values are appended to it
/// and attention sees what it holds.
fn block<B: Backend>(
    b: &mut B,
    layer: &Layer<B>,
    pass: &Pass,
    input: &B::Buffer,
    normed: Option<B::Buffer>,
    output: bool,
    cache: Option<(&mut B::Buffer, View)>,
) -> Result<Block<B>> {
    let (all, shape, window) = (|| pass.all(), pass.shape, layer.window);
    let (mut qkv, s_qkv) = linear(b, pass, "qkv", normed.as_ref().unwrap_or(input), &layer.qkv)?;
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
    let (output_norm, mlp_norms) = (layer.attention_norms.output.as_ref(), &layer.mlp_norms);
    let (middle, normed) = join(b, pass, input, &projected, output_norm, mlp_norms.input.as_ref())?;
    let projected = output_norm.map(|_| projected);

    let (gate_up, s_gate_up) = linear(b, pass, "gate and up", normed.as_ref().unwrap_or(&middle), &layer.gate_up)?;
    drop(normed);
    let mut activated = b.alloc("activated", pass.intermediate)?;
    b.run(all(), Op::Swiglu { gate_up: &gate_up, activation: pass.activation, out: &mut activated })?;
    let (mlp, s_down) = if output || mlp_norms.output.is_some() {
        let (mlp, s) = linear(b, pass, "MLP output", &activated, &layer.down)?;
        (Some(mlp), s)
    } else {
        (None, project(b, pass, &activated, &layer.down)?)
    };
    Ok(Block { qkv, s_qkv, attention, lse, s_o, projected, middle, gate_up, s_gate_up, s_down, mlp })
}

/// Where the gradient of an input goes.
enum Dx<'a, B: Backend> {
    Nowhere,
    Over(&'a mut B::Buffer),
    /// It is added to what is there.
    Onto(&'a mut B::Buffer),
}

/// dX (if asked for) and the low-rank gradients of one group. `s` is given up.
fn linear_backward<B: Backend>(
    b: &mut B,
    pass: &Pass,
    x: &B::Buffer,
    s: Option<B::Buffer>,
    dy: &B::Buffer,
    group: &mut LinearGroup<B>,
    dx: Dx<B>,
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
    let to = match dx {
        Dx::Nowhere => None,
        Dx::Over(dx) => Some((dx, false)),
        Dx::Onto(dx) => Some((dx, true)),
    };
    if let Some((dx, accumulate)) = to {
        b.run(pass.all(), Op::LinearDx { dy, t: t.as_ref(), group, dropout, accumulate, dx })?;
    }
    if let (Some(s), Some(t)) = (&s, &t) {
        b.run(pass.all(), Op::LoraGradients { x, dy, s, t, group, dropout })?;
    }
    Ok(())
}

/// The gradient of what a branch gave, where a norm of `weight` stands between that and the residual stream. `given` is
/// given up.
fn before_norm<B: Backend>(
    b: &mut B,
    pass: &Pass,
    d_stream: &B::Buffer,
    given: Option<B::Buffer>,
    weight: Option<&B::Vector>,
) -> Result<Option<B::Buffer>> {
    let (Some(x), Some(weight)) = (given, weight) else { return Ok(None) };
    let (x, eps) = (&x, pass.branch_eps);
    let mut dx = b.alloc("gradients", pass.hidden)?;
    b.run(pass.all(), Op::RmsNormBackward { dy: d_stream, x, weight, eps, accumulate: false, dx: &mut dx })?;
    Ok(Some(dx))
}

/// The low-rank gradients of a group that reads the residual stream `x`, by its norm where it has one, and, added to
/// `d_stream`, the stream's gradient. `None`: nothing below is trained.
fn stream_backward<B: Backend>(
    b: &mut B,
    pass: &Pass,
    x: &B::Buffer,
    norm: Option<&B::Vector>,
    s: Option<B::Buffer>,
    dy: &B::Buffer,
    group: &mut LinearGroup<B>,
    d_stream: Option<&mut B::Buffer>,
) -> Result<()> {
    let normed = norm_of(b, pass, x, norm)?;
    let input = normed.as_ref().unwrap_or(x);
    let Some(d_stream) = d_stream else { return linear_backward(b, pass, input, s, dy, group, Dx::Nowhere) };
    let Some(weight) = norm else { return linear_backward(b, pass, input, s, dy, group, Dx::Onto(d_stream)) };
    let mut d_normed = b.alloc("gradients", pass.hidden)?;
    linear_backward(b, pass, input, s, dy, group, Dx::Over(&mut d_normed))?;
    let eps = pass.eps;
    b.run(pass.all(), Op::RmsNormBackward { dy: &d_normed, x, weight, eps, accumulate: true, dx: d_stream })
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
    let Block { qkv, s_qkv, attention, lse, s_o, projected, middle, mut gate_up, s_gate_up, s_down, mlp } = kept;
    let (all, shape, activation) = (|| pass.all(), pass.shape, pass.activation);

    let mut activated = b.alloc("activated", pass.intermediate)?;
    b.run(all(), Op::Swiglu { gate_up: &gate_up, activation, out: &mut activated })?;
    let mut d_activated = b.alloc("activated", pass.intermediate)?;
    let d_mlp = before_norm(b, pass, d_stream, mlp, layer.mlp_norms.output.as_ref())?;
    let dy = d_mlp.as_ref().unwrap_or(d_stream);
    linear_backward(b, pass, &activated, s_down, dy, &mut layer.down, Dx::Over(&mut d_activated))?;
    drop((d_mlp, activated));
    b.run(all(), Op::SwigluBackward { dout: &d_activated, activation, gate_up: &mut gate_up })?;
    drop(d_activated);
    let norm = layer.mlp_norms.input.as_ref();
    stream_backward(b, pass, &middle, norm, s_gate_up, &gate_up, &mut layer.gate_up, Some(d_stream))?;
    drop((gate_up, middle));

    let mut d_attention = b.alloc("attention output", shape.out())?;
    let d_projected = before_norm(b, pass, d_stream, projected, layer.attention_norms.output.as_ref())?;
    let dy = d_projected.as_ref().unwrap_or(d_stream);
    linear_backward(b, pass, &attention, s_o, dy, &mut layer.o, Dx::Over(&mut d_attention))?;
    drop(d_projected);
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
        b.run(
            all(),
            Op::HeadNormBackward { qkv: &qkv, weights: [q, k], eps: pass.branch_eps, shape, dqkv: &mut d_qkv },
        )?;
    }
    drop(qkv);
    let norm = layer.attention_norms.input.as_ref();
    stream_backward(b, pass, input, norm, s_qkv, &d_qkv, &mut layer.qkv, (!first).then_some(d_stream))
}
