//! Forward and backward of one micro-batch.

use super::cached::{Past, View};
use super::{Layer, Llama};
use crate::backend::{Backend, Batch, LinearGroup, Place};
use crate::error::Result;
use qlora_kernels::philox::Dropout;
use qlora_kernels::reference::AttentionShape;

/// What the backward pass of one layer reads, beside the layer's input. S is the low-rank projection of an input.
struct Activations<B: Backend> {
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

impl<B: Backend> Activations<B> {
    fn free(self, b: &mut B) {
        for buffer in [self.qkv, self.attention, self.lse, self.middle, self.gate_up] {
            b.free(buffer);
        }
        for buffer in [self.s_qkv, self.s_o, self.s_gate_up, self.s_down].into_iter().flatten() {
            b.free(buffer);
        }
    }
}

/// What every layer of one pass shares.
#[derive(Clone, Copy)]
struct Pass {
    shape: AttentionShape,
    hidden: usize,
    intermediate: usize,
    eps: f32,
    /// (seed, draw, p)
    dropout: Option<(u64, u32, f32)>,
}

impl Pass {
    fn mask<B: Backend>(&self, group: &LinearGroup<B>) -> Option<Dropout> {
        self.dropout.map(|(seed, draw, p)| Dropout::new(seed, group.site, draw, p))
    }
}

impl<B: Backend> Llama<B> {
    fn pass(&self, draw: Option<u32>) -> Pass {
        let dropout = Some(self.spec.lora.dropout as f32).filter(|&p| p > 0.0);
        Pass {
            shape: self.attention,
            hidden: self.spec.arch.hidden_size,
            intermediate: self.spec.arch.intermediate_size,
            eps: self.spec.arch.norm.eps,
            dropout: draw.zip(dropout).map(|(draw, p)| (self.spec.seed, draw, p)),
        }
    }

    /// One micro-batch, forward and backward. Gradients of `weight · loss` accumulate in the trainable tensors. Returns
    /// the unweighted sum of the supervised tokens' losses. `draw` = step · accumulation + micro names the dropout masks.
    pub fn forward_backward(&mut self, b: &mut B, batch: &Batch, draw: u32, weight: f32) -> Result<f64> {
        let pass = self.pass(Some(draw));
        b.begin(batch)?;
        let (recompute, layers) = (self.spec.recompute, self.layers.len());
        let mut kept = Vec::with_capacity(layers);
        let (stream, normed) = self.forward(b, &pass, None, |b, input, activations| {
            if recompute {
                activations.free(b);
                // That of the last layer is needed at once.
                let stowed = if kept.len() + 1 < layers { b.stow(input)? } else { b.keep(input) };
                kept.push((stowed, None));
            } else {
                kept.push((b.keep(input), Some(activations)));
            }
            Ok(())
        })?;
        let mut d_normed = b.alloc("gradients", pass.hidden)?;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        b.loss(&normed, head, weight, Some(&mut d_normed))?;
        b.free(normed);
        let mut d_stream = b.alloc("gradients", pass.hidden)?;
        b.rms_norm_backward(&d_normed, &stream, &self.final_norm, pass.eps, false, &mut d_stream)?;
        b.free(d_normed);
        b.free(stream);
        while let Some((input, activations)) = kept.pop() {
            let input = b.unstow(input)?;
            // The next one comes while this layer computes.
            if let Some((next, activations)) = kept.pop() {
                kept.push((b.fetch(next)?, activations));
            }
            b.enter(Place::Layer(kept.len()));
            let layer = &mut self.layers[kept.len()];
            let activations = match activations {
                Some(activations) => activations,
                None => {
                    let mut normed = b.alloc("normed", pass.hidden)?;
                    b.rms_norm(&input, &layer.input_norm, pass.eps, &mut normed)?;
                    block(b, layer, &pass, &input, normed, false, None)?.0
                }
            };
            block_backward(b, layer, &pass, &input, activations, &mut d_stream, kept.is_empty())?;
            b.free(input);
        }
        b.free(d_stream);
        b.loss_sum()
    }

    /// The sum of the losses of the batch's supervised tokens.
    pub fn loss(&self, b: &mut B, batch: &Batch) -> Result<f64> {
        b.begin(batch)?;
        let normed = self.evaluate(b, None)?;
        b.loss(&normed, self.head.as_ref().unwrap_or(&self.embedding), 1.0, None)?;
        b.free(normed);
        b.loss_sum()
    }

    /// Logits `[vocab]` of the named tokens of the batch.
    pub fn logits(&self, b: &mut B, batch: &Batch, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        b.begin(batch)?;
        let normed = self.evaluate(b, None)?;
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        let logits = b.logits_of_tokens(&normed, head, tokens);
        b.free(normed);
        logits
    }

    /// The final norm's output, with nothing kept for a backward pass.
    pub(super) fn evaluate(&self, b: &mut B, past: Option<Past<B>>) -> Result<B::Buffer> {
        let (stream, normed) = self.forward(b, &self.pass(None), past, |b, input, activations| {
            b.free(input);
            activations.free(b);
            Ok(())
        })?;
        b.free(stream);
        Ok(normed)
    }

    /// Runs all layers, handing each one's input and activations to `keep`. Returns the residual stream and its norm.
    fn forward(
        &self,
        b: &mut B,
        pass: &Pass,
        mut past: Option<Past<B>>,
        mut keep: impl FnMut(&mut B, B::Buffer, Activations<B>) -> Result<()>,
    ) -> Result<(B::Buffer, B::Buffer)> {
        b.enter(Place::Input);
        let mut stream = b.alloc("residual stream", pass.hidden)?;
        b.embed(&self.embedding, &mut stream)?;
        let mut normed = b.alloc("normed", pass.hidden)?;
        b.rms_norm(&stream, &self.layers[0].input_norm, pass.eps, &mut normed)?;
        for (index, layer) in self.layers.iter().enumerate() {
            b.enter(Place::Layer(index));
            let cache = past.as_mut().map(|past| (&mut past.layers[index], past.view));
            let (activations, mlp) = block(b, layer, pass, &stream, normed, true, cache)?;
            let mlp = mlp.expect("asked for");
            let norm = self.layers.get(index + 1).map_or(&self.final_norm, |next| &next.input_norm);
            b.enter(if index + 1 < self.layers.len() { Place::Layer(index + 1) } else { Place::Output });
            let mut next = b.alloc("residual stream", pass.hidden)?;
            normed = b.alloc("normed", pass.hidden)?;
            b.add_rms_norm(&activations.middle, &mlp, &mut next, norm, pass.eps, &mut normed)?;
            b.free(mlp);
            keep(b, std::mem::replace(&mut stream, next), activations)?;
        }
        Ok((stream, normed))
    }
}

/// S of one group's input, where the group has low-rank terms.
fn project<B: Backend>(b: &mut B, pass: &Pass, x: &B::Buffer, group: &LinearGroup<B>) -> Result<Option<B::Buffer>> {
    if group.r() == 0 {
        return Ok(None);
    }
    let mut s = b.alloc("low-rank projections", B::low_rank_columns(group))?;
    b.lora_down(x, group, pass.mask::<B>(group), &mut s)?;
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
    b.linear(x, s.as_ref(), group, &mut y)?;
    Ok((y, s))
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
) -> Result<(Activations<B>, Option<B::Buffer>)> {
    let (mut qkv, s_qkv) = linear(b, pass, "qkv", &normed, &layer.qkv)?;
    b.free(normed);
    b.rope(&mut qkv, pass.shape, false)?;
    let mut attention = b.alloc("attention output", pass.shape.out())?;
    let mut lse = b.alloc_f32("attention log-sum-exp", pass.shape.heads)?;
    if let Some((cache, view)) = cache {
        b.append_to_cache(&qkv, pass.shape, view.starts, cache)?;
        if view.fresh {
            b.attention(&qkv, pass.shape, &mut attention, &mut lse)?;
        } else {
            b.attention_over_cache(&qkv, cache, pass.shape, view.starts, &mut attention)?;
        }
    } else {
        b.attention(&qkv, pass.shape, &mut attention, &mut lse)?;
    }

    let (projected, s_o) = linear(b, pass, "projected attention", &attention, &layer.o)?;
    let mut middle = b.alloc("residual stream", pass.hidden)?;
    let mut normed = b.alloc("normed", pass.hidden)?;
    b.add_rms_norm(input, &projected, &mut middle, &layer.post_attention_norm, pass.eps, &mut normed)?;
    b.free(projected);

    let (gate_up, s_gate_up) = linear(b, pass, "gate and up", &normed, &layer.gate_up)?;
    b.free(normed);
    let mut activated = b.alloc("activated", pass.intermediate)?;
    b.swiglu(&gate_up, &mut activated)?;
    let (mlp, s_down) = if output {
        let (mlp, s) = linear(b, pass, "MLP output", &activated, &layer.down)?;
        (Some(mlp), s)
    } else {
        (None, project(b, pass, &activated, &layer.down)?)
    };
    b.free(activated);
    let activations = Activations { qkv, s_qkv, attention, lse, s_o, middle, gate_up, s_gate_up, s_down };
    Ok((activations, mlp))
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
    let mask = pass.mask::<B>(group);
    let t = match &s {
        Some(_) => {
            let mut t = b.alloc("low-rank projections", B::low_rank_columns(group))?;
            b.lora_up(dy, group, &mut t)?;
            Some(t)
        }
        None => None,
    };
    if let Some(dx) = dx {
        b.linear_dx(dy, t.as_ref(), group, mask, dx)?;
    }
    if let (Some(s), Some(t)) = (s, t) {
        b.lora_gradients(x, dy, &s, &t, group, mask)?;
        b.free(s);
        b.free(t);
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
    activations: Activations<B>,
    d_stream: &mut B::Buffer,
    first: bool,
) -> Result<()> {
    let Activations { qkv, s_qkv, attention, lse, s_o, middle, mut gate_up, s_gate_up, s_down } = activations;

    let mut activated = b.alloc("activated", pass.intermediate)?;
    b.swiglu(&gate_up, &mut activated)?;
    let mut d_activated = b.alloc("activated", pass.intermediate)?;
    linear_backward(b, pass, &activated, s_down, d_stream, &mut layer.down, Some(&mut d_activated))?;
    b.free(activated);
    b.swiglu_backward(&d_activated, &mut gate_up)?;
    b.free(d_activated);
    let mut normed = b.alloc("normed", pass.hidden)?;
    b.rms_norm(&middle, &layer.post_attention_norm, pass.eps, &mut normed)?;
    let mut d_normed = b.alloc("gradients", pass.hidden)?;
    linear_backward(b, pass, &normed, s_gate_up, &gate_up, &mut layer.gate_up, Some(&mut d_normed))?;
    b.free(gate_up);
    b.rms_norm_backward(&d_normed, &middle, &layer.post_attention_norm, pass.eps, true, d_stream)?;
    b.free(d_normed);
    b.free(normed);
    b.free(middle);

    let mut d_attention = b.alloc("attention output", pass.shape.out())?;
    linear_backward(b, pass, &attention, s_o, d_stream, &mut layer.o, Some(&mut d_attention))?;
    let mut d_qkv = b.alloc("qkv", pass.shape.qkv())?;
    b.attention_backward(&d_attention, &qkv, &attention, &lse, pass.shape, &mut d_qkv)?;
    for buffer in [d_attention, qkv, attention, lse] {
        b.free(buffer);
    }
    b.rope(&mut d_qkv, pass.shape, true)?;
    let mut normed = b.alloc("normed", pass.hidden)?;
    b.rms_norm(input, &layer.input_norm, pass.eps, &mut normed)?;
    if first {
        linear_backward(b, pass, &normed, s_qkv, &d_qkv, &mut layer.qkv, None)?;
    } else {
        let mut d_normed = b.alloc("gradients", pass.hidden)?;
        linear_backward(b, pass, &normed, s_qkv, &d_qkv, &mut layer.qkv, Some(&mut d_normed))?;
        b.rms_norm_backward(&d_normed, input, &layer.input_norm, pass.eps, true, d_stream)?;
        b.free(d_normed);
    }
    b.free(normed);
    b.free(d_qkv);
    Ok(())
}
