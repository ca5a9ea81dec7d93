//! Forward and backward of one micro-batch, layer by layer.

use super::block::{Attention, Mlp, Pass, attend, join, linear, mlp_forward, room_of_stream_gradient, whole};
use super::block_backward::{block_backward, norm_backward};
use super::cached::Past;
use super::reduction::AfterLayer;
use super::{Activations, Layer, Llama};
use crate::arch::QkNorm;
use crate::backend::{Backend, Batch, MaybeTrained, Op, Scope, StepPart};
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;

/// Activations of one layer that are kept for its backward pass.
struct Block<B: Backend> {
    attention: Attention<B>,
    mlp: Mlp<B>,
}

/// Activations of one layer that wait for its backward pass.
struct Waiting<B: Backend> {
    input: B::Offloaded,
    /// `None`: computed again from the input
    block: Option<Block<B>>,
}

/// All that a forward pass leaves for the backward pass.
struct Passed<B: Backend> {
    waiting: Vec<Waiting<B>>,
    /// The residual stream behind the last layer `[M, H]`
    stream: B::Buffer,
    /// The final norm of it
    normed: B::Buffer,
}

impl<B: Backend> Llama<B> {
    fn pass(&self, b: &B, batch: &Batch, draw: Option<u32>) -> Pass {
        let dropout = Some(self.spec.lora.dropout as f32).filter(|&p| p > 0.0);
        Pass {
            tokens: batch.tokens(),
            tile: self.spec.tile(),
            tiled: self.spec.tile() < self.spec.tokens,
            dry_run: b.is_dry_run(),
            end: MemoryEnd::High,
            shape: self.attention,
            hidden: self.spec.arch.hidden_size,
            intermediate: self.spec.arch.intermediate_size,
            eps: self.spec.arch.multipliers.stream_eps(self.spec.arch.norm.eps),
            branch_eps: self.spec.arch.norm.eps,
            activation: self.spec.arch.activation,
            norms_rotated: self.spec.arch.qk_norm == QkNorm::HeadRotated,
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
        self.forward_backward_telling(b, batch, draw, weight, &mut |_, _, _| Ok(()))
    }

    /// The passes of [`forward_backward`](Self::forward_backward). Calls `after_layer` when the gradients of a layer
    /// are final. Those of tensors outside of the layers are final on return.
    pub(super) fn forward_backward_telling(
        &mut self,
        b: &mut B,
        batch: &Batch,
        draw: u32,
        weight: f32,
        after_layer: AfterLayer<'_, B>,
    ) -> Result<f64> {
        let pass = self.pass(b, batch, Some(draw));
        let masks = pass.dropout.map(|(_, draw, _)| draw);
        b.begin(batch)?;
        let Passed { waiting, stream, normed } =
            b.in_graph(StepPart::Forward, masks, |b| self.forward_for_backward(b, &pass))?;
        let mut d_normed = b.alloc("gradients", pass.hidden)?;
        let soft_cap = self.spec.arch.logits_soft_cap;
        let (x, dx, head) = (&normed, &mut d_normed, self.head.as_mut().unwrap_or(&mut self.embedding));
        let loss = match head.param() {
            Some(_) => Op::TrainedCrossEntropy { x, head, weight, soft_cap, dx },
            None => Op::CrossEntropy { x, head, weight, soft_cap, dx: Some(dx) },
        };
        b.run(pass.all(), loss)?;
        b.release_table();
        drop(normed);
        b.in_graph(StepPart::Backward, masks, |b| self.backward(b, &pass, waiting, stream, d_normed, after_layer))?;
        b.loss_sum()
    }

    /// All layers and the final norm of all tokens.
    fn forward_for_backward(&self, b: &mut B, pass: &Pass) -> Result<Passed<B>> {
        let layers = self.layers.len();
        let mut waiting: Vec<Waiting<B>> = Vec::with_capacity(layers);
        let keeps = |layer| self.spec.activations_of(layer) == Activations::Keep;
        let (stream, normed) = self.forward(b, pass, None, &keeps, |b, input, block| {
            let layer = waiting.len();
            let input = match self.spec.activations_of(layer) {
                // The last layer's input is needed at once.
                _ if layer + 1 == layers => b.keep(input)?,
                Activations::Offload => b.offload(input)?,
                Activations::Disk => b.offload_to_disk(input)?,
                Activations::Keep | Activations::Recompute => b.keep(input)?,
            };
            waiting.push(Waiting { input, block });
            Ok(())
        })?;
        b.wait_table(self.head())?;
        // The loss is that of all tokens: it has logits of a chunk of the supervised ones at one time, and kernels take
        // another path for the few that may be left of a tile.
        let normed = self.final_norm_of(b, pass, &stream, normed)?;
        Ok(Passed { waiting, stream, normed })
    }

    /// The gradients of all layers, and of the embedding where it is trained, from that of the final norm's output on.
    fn backward(
        &mut self,
        b: &mut B,
        pass: &Pass,
        mut waiting: Vec<Waiting<B>>,
        stream: B::Buffer,
        d_normed: B::Buffer,
        after_layer: AfterLayer<'_, B>,
    ) -> Result<()> {
        let room = self.layers.iter().map(|layer| room_of_stream_gradient(b, layer)).max().unwrap_or(0);
        let mut d_stream = b.alloc_with_room(MemoryEnd::High, "gradients", b.capacity(), pass.hidden, room)?;
        norm_backward(b, &pass.all(), &d_normed, &stream, &mut self.final_norm, pass.eps, false, &mut d_stream)?;
        drop((d_normed, stream));
        let trains_input = self.spec.trainable && self.spec.lora.trains_input(&self.spec.arch);
        while let Some(Waiting { input, block }) = waiting.pop() {
            let input = b.wait(input)?;
            // The next one comes while this layer computes.
            if let Some(Waiting { input, block }) = waiting.pop() {
                waiting.push(Waiting { input: b.prefetch(input)?, block });
            }
            let next = waiting.len().checked_sub(1).map(|below| &self.layers[below]);
            self.use_weights(b, waiting.len(), next)?;
            b.enter_scope(Scope::Layer(waiting.len()));
            let layer = &mut self.layers[waiting.len()];
            let (attention, mlp) = match block {
                Some(Block { attention, mlp }) => (attention, Some(mlp)),
                None => (attend(b, layer, pass, &input, None, None)?, None),
            };
            let first = waiting.is_empty() && !trains_input;
            block_backward(b, layer, pass, &input, attention, mlp, &mut d_stream, first)?;
            drop(input);
            after_layer(b, self, waiting.len())?;
        }
        if self.embedding.param().is_some() {
            b.enter_scope(Scope::Input);
            let scale = self.spec.arch.multipliers.stream_scale(|x| b.rounded(x));
            b.run(pass.all(), Op::EmbedBackward { dout: &d_stream, scale, table: &mut self.embedding })?;
        }
        Ok(())
    }

    /// The sum of the losses of the batch's supervised tokens.
    pub fn loss(&self, b: &mut B, batch: &Batch) -> Result<f64> {
        let normed = self.evaluate(b, batch, None)?;
        b.wait_table(self.head())?;
        let (x, head, soft_cap) = (&normed, self.head(), self.spec.arch.logits_soft_cap);
        b.run(0..batch.tokens(), Op::CrossEntropy { x, head, weight: 1.0, soft_cap, dx: None })?;
        b.release_table();
        drop(normed);
        b.loss_sum()
    }

    /// The weighted loss of every token of the batch that counts, in order.
    pub fn losses(&self, b: &mut B, batch: &Batch) -> Result<Vec<f64>> {
        self.loss(b, batch)?;
        b.losses()
    }

    /// Logits `[vocab]` of the named tokens of the batch.
    pub fn logits(&self, b: &mut B, batch: &Batch, tokens: &[usize]) -> Result<Vec<Vec<f32>>> {
        self.logits_after(b, batch, None, tokens)
    }

    /// Logits `[vocab]` of the named tokens of the batch, after the tokens in a cache.
    pub(super) fn logits_after(
        &self,
        b: &mut B,
        batch: &Batch,
        past: Option<Past<B>>,
        tokens: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        let normed = self.evaluate(b, batch, past)?;
        b.wait_table(self.head())?;
        let logits = b.logits(&normed, self.head(), tokens, self.spec.arch.logits_soft_cap);
        b.release_table();
        logits
    }

    /// The final norm's output, with nothing kept for a backward pass.
    fn evaluate(&self, b: &mut B, batch: &Batch, past: Option<Past<B>>) -> Result<B::Buffer> {
        b.begin(batch)?;
        let pass = self.pass(b, batch, None);
        let (stream, normed) = self.forward(b, &pass, past, &|_| false, |_, _, _| Ok(()))?;
        self.final_norm_of(b, &pass, &stream, normed)
    }

    /// The final norm of all tokens; `ready` where the last layer computed it.
    fn final_norm_of(&self, b: &mut B, pass: &Pass, stream: &B::Buffer, ready: Option<B::Buffer>) -> Result<B::Buffer> {
        if let Some(ready) = ready {
            return Ok(ready);
        }
        let mut out = b.alloc("normed", pass.hidden)?;
        b.run(pass.all(), Op::RmsNorm { x: stream, weight: &self.final_norm, eps: pass.eps, out: &mut out })?;
        Ok(out)
    }

    /// Operations that are run next are those of this layer. The weights of `next` come while it computes.
    fn use_weights(&self, b: &mut B, layer: usize, next: Option<&Layer<B>>) -> Result<()> {
        b.wait_weights(self.layers[layer].groups())?;
        next.map_or(Ok(()), |next| b.prefetch_weights(next.groups()))
    }

    /// Runs all layers, handing each one's input, and its activations if it `keeps` them, to `keep`. Returns the
    /// residual stream and its norm, where a batch is one tile.
    fn forward(
        &self,
        b: &mut B,
        pass: &Pass,
        mut past: Option<Past<B>>,
        keeps: &dyn Fn(usize) -> bool,
        mut keep: impl FnMut(&mut B, B::Buffer, Option<Block<B>>) -> Result<()>,
    ) -> Result<(B::Buffer, Option<B::Buffer>)> {
        b.prefetch_weights(self.layers[0].groups())?;
        b.enter_scope(Scope::Input);
        let mut stream = b.alloc("residual stream", pass.hidden)?;
        let scale = self.spec.arch.multipliers.stream_scale(|x| b.rounded(x));
        b.run(pass.all(), Op::Embed { table: &self.embedding, scale, out: &mut stream })?;
        let mut normed = None;
        for (index, layer) in self.layers.iter().enumerate() {
            self.use_weights(b, index, self.layers.get(index + 1))?;
            b.enter_scope(Scope::Layer(index));
            let pass = &Pass { end: if keeps(index) { MemoryEnd::Low } else { MemoryEnd::High }, ..*pass };
            let cache = past.as_mut().map(|past| (&mut past.layers[index], past.view));
            let mut attention = attend(b, layer, pass, &stream, normed.take(), cache)?;
            let output_norm = layer.mlp_norms.output.as_ref();
            let next_norm = match self.layers.get(index + 1) {
                Some(next) => next.attention_norms.input.as_ref(),
                None => Some(&self.final_norm),
            };
            // A norm of its own is computed when it is needed.
            let next_norm = next_norm.filter(|_| !pass.tiled || output_norm.is_none());
            let after = if index + 1 < self.layers.len() { Scope::Layer(index + 1) } else { Scope::Output };
            let mut kept = match keeps(index) && pass.tiled {
                true => Some(Mlp::alloc(b, layer, pass, self.spec.tokens)?),
                false => None,
            };
            let mut next = None;
            let room = self.layers.get(index + 1).map_or(0, |next| b.room_for_s(&next.qkv));
            for tokens in pass.tiles() {
                b.enter_scope(Scope::Layer(index));
                let mut mlp = match kept.take() {
                    Some(mlp) => mlp,
                    None => Mlp::of_tile(b, layer, pass, &tokens)?,
                };
                let activated = mlp_forward(b, layer, pass, &tokens, &stream, &mut attention, &mut mlp)?;
                let mut given = None;
                if mlp.output.is_none() {
                    let out = given.insert(pass.alloc(b, "MLP output", &tokens, pass.hidden)?);
                    linear(b, &tokens, &activated, mlp.s_down.as_ref(), &layer.down, out)?;
                }
                drop(activated);
                b.enter_scope(after);
                let next = whole(b, MemoryEnd::Low, &mut next, "residual stream", pass.hidden)?;
                let delta = mlp.output.as_ref().or(given.as_ref()).expect("one of them holds it");
                let next_normed = join(b, pass, &tokens, &mlp.middle, delta, output_norm, next_norm, room, next)?;
                normed = next_normed.filter(|_| !pass.tiled);
                kept = Some(mlp).filter(|_| keeps(index));
            }
            let block = kept.map(|mlp| Block { attention, mlp });
            keep(b, std::mem::replace(&mut stream, next.expect("a batch has tokens")), block)?;
        }
        Ok((stream, normed))
    }
}
