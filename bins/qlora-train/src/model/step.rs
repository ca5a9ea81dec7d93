//! Forward and backward of one micro-batch.

use super::cached::{Past, View};
use super::tiles::{tiles, tiles_of_dry_run};
use super::{Activations, Layer, Llama};
use crate::arch::{Activation, QkNorm};
use crate::backend::{Backend, Batch, BufferShape, LinearGroup, MaybeTrained, Op, Scope};
use crate::error::Result;
use qlora_kernels::rng::Dropout;
use qlora_kernels::shape::AttentionShape;
use std::ops::Range;

/// What the backward pass of one layer reads of its attention, beside the layer's input. S is the low-rank projection
/// of an input.
struct Attention<B: Backend> {
    /// q‖k‖v that attention sees; where queries and keys are normalized, what their norms read.
    qkv: B::Buffer,
    s_qkv: Option<B::Buffer>,
    out: B::Buffer,
    lse: B::Buffer,
    /// Computed with the output projection, a tile at a time
    s_o: Option<B::Buffer>,
}

/// What the backward pass of one layer reads of its MLP: of all tokens, or of those of a tile.
struct Mlp<B: Backend> {
    /// The attention's output after its projection, where that is normalized.
    projected: Option<B::Buffer>,
    /// The residual stream between attention and MLP.
    middle: B::Buffer,
    gate_up: B::Buffer,
    s_gate_up: Option<B::Buffer>,
    s_down: Option<B::Buffer>,
    /// The MLP's output, where that is normalized.
    output: Option<B::Buffer>,
}

/// Activations of one layer that are kept for its backward pass.
struct Block<B: Backend> {
    attention: Attention<B>,
    mlp: Mlp<B>,
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
    /// Tokens that a tile has room for
    tile: usize,
    /// Whether the longest batch has more tokens than a tile
    tiled: bool,
    dry_run: bool,
    shape: AttentionShape,
    hidden: usize,
    intermediate: usize,
    /// The eps of the norms of the residual stream
    eps: f32,
    /// The eps of the norms of queries and keys, and of what a branch gives
    branch_eps: f32,
    activation: Activation,
    /// Whether queries and keys are normalized after they are rotated
    norms_rotated: bool,
    /// (seed, draw, p)
    dropout: Option<(u64, u32, f32)>,
}

impl Pass {
    /// All tokens of the batch.
    fn all(&self) -> Range<usize> {
        0..self.tokens
    }

    /// The tokens of each tile, in order.
    fn tiles(&self) -> Vec<Range<usize>> {
        match self.dry_run {
            true => tiles_of_dry_run(self.tokens, self.tile),
            false => tiles(self.tokens, self.tile).collect(),
        }
    }

    fn mask<B: Backend>(&self, group: &LinearGroup<B>) -> Option<Dropout> {
        self.dropout.map(|(seed, draw, p)| Dropout::new(seed, group.dropout_id, draw, p))
    }

    /// A buffer for the tokens of a tile.
    fn alloc<B: Backend>(
        &self,
        b: &mut B,
        name: &'static str,
        tokens: &Range<usize>,
        width: usize,
    ) -> Result<B::Buffer> {
        let mut buffer = b.alloc_tile(name, self.tile, width)?;
        buffer.move_to(tokens.start);
        Ok(buffer)
    }
}

impl<B: Backend> Llama<B> {
    fn pass(&self, b: &B, batch: &Batch, draw: Option<u32>) -> Pass {
        let dropout = Some(self.spec.lora.dropout as f32).filter(|&p| p > 0.0);
        Pass {
            tokens: batch.tokens(),
            tile: self.spec.tile(),
            tiled: self.spec.tile() < self.spec.tokens,
            dry_run: b.is_dry_run(),
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
        let pass = self.pass(b, batch, Some(draw));
        b.begin(batch)?;
        let layers = self.layers.len();
        let mut waiting: Vec<Waiting<B>> = Vec::with_capacity(layers);
        let keeps = |layer| self.spec.activations_of(layer) == Activations::Keep;
        let (stream, normed) = self.forward(b, &pass, None, &keeps, |b, input, block| {
            let layer = waiting.len();
            // The last layer's input is needed at once.
            let away = self.spec.activations_of(layer) == Activations::Offload && layer + 1 < layers;
            let input = if away { b.offload(input)? } else { b.keep(input) };
            waiting.push(Waiting { input, block });
            Ok(())
        })?;
        // The loss is that of all tokens: it has logits of a chunk of the supervised ones at one time, and kernels take
        // another path for the few that may be left of a tile.
        let normed = self.final_norm_of(b, &pass, &stream, normed)?;
        let mut d_normed = b.alloc("gradients", pass.hidden)?;
        let soft_cap = self.spec.arch.logits_soft_cap;
        let (x, dx, head) = (&normed, &mut d_normed, self.head.as_mut().unwrap_or(&mut self.embedding));
        let loss = match head.param() {
            Some(_) => Op::TrainedCrossEntropy { x, head, weight, soft_cap, dx },
            None => Op::CrossEntropy { x, head, weight, soft_cap, dx: Some(dx) },
        };
        b.run(pass.all(), loss)?;
        drop(normed);
        let mut d_stream = b.alloc("gradients", pass.hidden)?;
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
            b.enter(Scope::Layer(waiting.len()));
            let layer = &mut self.layers[waiting.len()];
            let (attention, mlp) = match block {
                Some(Block { attention, mlp }) => (attention, Some(mlp)),
                None => (attend(b, layer, &pass, &input, None, None)?, None),
            };
            let first = waiting.is_empty() && !trains_input;
            block_backward(b, layer, &pass, &input, attention, mlp, &mut d_stream, first)?;
        }
        if self.embedding.param().is_some() {
            b.enter(Scope::Input);
            let scale = self.spec.arch.multipliers.stream_scale(|x| b.rounded(x));
            b.run(pass.all(), Op::EmbedBackward { dout: &d_stream, scale, table: &mut self.embedding })?;
        }
        drop(d_stream);
        b.loss_sum()
    }

    /// The sum of the losses of the batch's supervised tokens.
    pub fn loss(&self, b: &mut B, batch: &Batch) -> Result<f64> {
        let normed = self.evaluate(b, batch, None)?;
        let (x, head, soft_cap) = (&normed, self.head(), self.spec.arch.logits_soft_cap);
        b.run(0..batch.tokens(), Op::CrossEntropy { x, head, weight: 1.0, soft_cap, dx: None })?;
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
        b.logits(&normed, self.head(), tokens, self.spec.arch.logits_soft_cap)
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
        b.enter(Scope::Input);
        let mut stream = b.alloc("residual stream", pass.hidden)?;
        let scale = self.spec.arch.multipliers.stream_scale(|x| b.rounded(x));
        b.run(pass.all(), Op::Embed { table: &self.embedding, scale, out: &mut stream })?;
        let mut normed = None;
        for (index, layer) in self.layers.iter().enumerate() {
            self.use_weights(b, index, self.layers.get(index + 1))?;
            b.enter(Scope::Layer(index));
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
            for tokens in pass.tiles() {
                b.enter(Scope::Layer(index));
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
                b.enter(after);
                let next = whole(b, &mut next, "residual stream", pass.hidden)?;
                let delta = mlp.output.as_ref().or(given.as_ref()).expect("one of them holds it");
                let next_normed = join(b, pass, &tokens, &mlp.middle, delta, output_norm, next_norm, next)?;
                normed = next_normed.filter(|_| !pass.tiled);
                kept = Some(mlp).filter(|_| keeps(index));
            }
            let block = kept.map(|mlp| Block { attention, mlp });
            keep(b, std::mem::replace(&mut stream, next.expect("a batch has tokens")), block)?;
        }
        Ok((stream, normed))
    }
}

/// The buffer for all tokens in `buffer`, made when it is first needed.
fn whole<'a, B: Backend>(
    b: &mut B,
    buffer: &'a mut Option<B::Buffer>,
    name: &'static str,
    width: usize,
) -> Result<&'a mut B::Buffer> {
    if buffer.is_none() {
        *buffer = Some(b.alloc(name, width)?);
    }
    Ok(buffer.as_mut().expect("it was made"))
}

/// RMSNorm of a tile of the residual stream `x`; `None` where no weight is given: what follows reads the stream as it
/// is.
fn norm_of<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    weight: Option<&B::Vector>,
) -> Result<Option<B::Buffer>> {
    let Some(weight) = weight else { return Ok(None) };
    let mut out = pass.alloc(b, "normed", tokens, pass.hidden)?;
    b.run(tokens.clone(), Op::RmsNorm { x, weight, eps: pass.eps, out: &mut out })?;
    Ok(Some(out))
}

/// The residual stream with what a branch gave added to it, in `sum`, by the norm of that where it has one. Returns the
/// norm of the sum where what follows reads one.
fn join<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    delta: &B::Buffer,
    output_norm: Option<&B::Vector>,
    next_norm: Option<&B::Vector>,
    sum: &mut B::Buffer,
) -> Result<Option<B::Buffer>> {
    match (output_norm, next_norm) {
        (Some(weight), next_norm) => {
            b.run(tokens.clone(), Op::RmsNormAdd { x, delta, weight, eps: pass.branch_eps, sum: &mut *sum })?;
            norm_of(b, pass, tokens, sum, next_norm)
        }
        (None, Some(weight)) => {
            let mut out = pass.alloc(b, "normed", tokens, pass.hidden)?;
            b.run(tokens.clone(), Op::AddRmsNorm { x, delta, sum, weight, eps: pass.eps, out: &mut out })?;
            Ok(Some(out))
        }
        (None, None) => unreachable!("a family normalizes the inputs or the outputs of both branches"),
    }
}

/// A buffer for S or T of one group; none without a low-rank term.
fn low_rank<B: Backend>(b: &mut B, group: &LinearGroup<B>, tokens: usize) -> Result<Option<B::Buffer>> {
    if group.r() == 0 {
        return Ok(None);
    }
    b.alloc_tile("low-rank projections", tokens, b.low_rank_columns(group)).map(Some)
}

/// S of one group's input.
fn project<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    group: &LinearGroup<B>,
    s: Option<&mut B::Buffer>,
) -> Result<()> {
    s.map_or(Ok(()), |s| b.run(tokens.clone(), Op::LoraDown { x, group, dropout: pass.mask(group), s }))
}

/// The output of one group, with the S of its input.
fn linear<B: Backend>(
    b: &mut B,
    tokens: &Range<usize>,
    x: &B::Buffer,
    s: Option<&B::Buffer>,
    group: &LinearGroup<B>,
    y: &mut B::Buffer,
) -> Result<()> {
    b.run(tokens.clone(), Op::Linear { x, s, group, y: &mut *y })?;
    if group.has_magnitudes() { b.run(tokens.clone(), Op::Magnitude { group, y }) } else { Ok(()) }
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

/// Turns the queries and keys of a layer by their positions, or back.
fn rotate<B: Backend>(b: &mut B, layer: &Layer<B>, pass: &Pass, qkv: &mut B::Buffer, inverse: bool) -> Result<()> {
    let Some(table) = layer.rope else { return Ok(()) };
    b.run(pass.all(), Op::Rope { qkv, shape: pass.shape, table, inverse })
}

/// Attention of one layer. `normed` is RMSNorm of `input`, if there is one and it is computed already. With a cache the
/// batch's keys and values are appended to it and attention sees what it holds.
fn attend<B: Backend>(
    b: &mut B,
    layer: &Layer<B>,
    pass: &Pass,
    input: &B::Buffer,
    normed: Option<B::Buffer>,
    cache: Option<(&mut B::Buffer, View)>,
) -> Result<Attention<B>> {
    let (all, shape, window) = (|| pass.all(), pass.shape, layer.window);
    let capacity = b.capacity();
    let mut s_qkv = low_rank(b, &layer.qkv, capacity)?;
    let mut qkv = None;
    let mut ready = normed;
    for tokens in pass.tiles() {
        let normed = match ready.take() {
            Some(normed) => Some(normed),
            None => norm_of(b, pass, &tokens, input, layer.attention_norms.input.as_ref())?,
        };
        let x = normed.as_ref().unwrap_or(input);
        project(b, pass, &tokens, x, &layer.qkv, s_qkv.as_mut())?;
        let qkv = whole(b, &mut qkv, "qkv", layer.qkv.n())?;
        linear(b, &tokens, x, s_qkv.as_ref(), &layer.qkv, qkv)?;
    }
    let mut qkv = qkv.expect("a batch has tokens");
    if pass.norms_rotated {
        rotate(b, layer, pass, &mut qkv, false)?;
    }
    let mut normed_qkv = norm_heads(b, layer, pass, &qkv)?;
    let attended = normed_qkv.as_mut().unwrap_or(&mut qkv);
    if !pass.norms_rotated {
        rotate(b, layer, pass, attended, false)?;
    }
    let mut out = b.alloc("attention output", shape.out())?;
    let mut lse = b.alloc_f32("attention log-sum-exp", shape.heads)?;
    let within_batch = cache.as_ref().is_none_or(|(_, view)| view.fresh);
    if let Some((cache, view)) = cache {
        let starts = view.starts;
        b.run(all(), Op::AppendToCache { qkv: attended, shape, starts, cache })?;
        if !view.fresh {
            let out = &mut out;
            b.run(all(), Op::AttentionOverCache { qkv: attended, cache, shape, window, starts, out })?;
        }
    }
    if within_batch {
        b.run(all(), Op::Attention { qkv: attended, shape, window, out: &mut out, lse: &mut lse })?;
    }
    drop(normed_qkv);
    let s_o = low_rank(b, &layer.o, capacity)?;
    Ok(Attention { qkv, s_qkv, out, lse, s_o })
}

impl<B: Backend> Mlp<B> {
    fn alloc(b: &mut B, layer: &Layer<B>, pass: &Pass, tokens: usize) -> Result<Self> {
        let (of_attention, of_mlp) = (&layer.attention_norms.output, &layer.mlp_norms.output);
        let mut normalized =
            |name, norm: &Option<B::Vector>| norm.as_ref().map(|_| b.alloc_tile(name, tokens, pass.hidden)).transpose();
        let (projected, output) = (normalized("projected attention", of_attention)?, normalized("MLP output", of_mlp)?);
        Ok(Self {
            projected,
            output,
            middle: b.alloc_tile("residual stream", tokens, pass.hidden)?,
            gate_up: b.alloc_tile("gate and up", tokens, layer.gate_up.n())?,
            s_gate_up: low_rank(b, &layer.gate_up, tokens)?,
            s_down: low_rank(b, &layer.down, tokens)?,
        })
    }

    /// Buffers for the tokens of a tile.
    fn of_tile(b: &mut B, layer: &Layer<B>, pass: &Pass, tokens: &Range<usize>) -> Result<Self> {
        let mut mlp = Self::alloc(b, layer, pass, pass.tile)?;
        let optional = [&mut mlp.projected, &mut mlp.s_gate_up, &mut mlp.s_down, &mut mlp.output];
        let optional = optional.into_iter().flatten();
        optional.chain([&mut mlp.middle, &mut mlp.gate_up]).for_each(|buffer| buffer.move_to(tokens.start));
        Ok(mlp)
    }
}

/// The output projection of attention and the MLP, up to its last linear layer, whose input is returned; the last too
/// where the backward pass reads its output.
fn mlp_forward<B: Backend>(
    b: &mut B,
    layer: &Layer<B>,
    pass: &Pass,
    tokens: &Range<usize>,
    input: &B::Buffer,
    attention: &mut Attention<B>,
    mlp: &mut Mlp<B>,
) -> Result<B::Buffer> {
    let Attention { out: attended, s_o, .. } = attention;
    project(b, pass, tokens, attended, &layer.o, s_o.as_mut())?;
    let mut given = None;
    if mlp.projected.is_none() {
        given = Some(pass.alloc(b, "projected attention", tokens, pass.hidden)?);
    }
    let projected = mlp.projected.as_mut().or(given.as_mut()).expect("one of them is there");
    linear(b, tokens, attended, s_o.as_ref(), &layer.o, projected)?;
    let (output_norm, next_norm) = (layer.attention_norms.output.as_ref(), layer.mlp_norms.input.as_ref());
    let normed = join(b, pass, tokens, input, projected, output_norm, next_norm, &mut mlp.middle)?;
    drop(given);
    let x = normed.as_ref().unwrap_or(&mlp.middle);
    project(b, pass, tokens, x, &layer.gate_up, mlp.s_gate_up.as_mut())?;
    linear(b, tokens, x, mlp.s_gate_up.as_ref(), &layer.gate_up, &mut mlp.gate_up)?;
    drop(normed);
    let activated = activate(b, pass, tokens, mlp)?;
    project(b, pass, tokens, &activated, &layer.down, mlp.s_down.as_mut())?;
    if let Some(output) = &mut mlp.output {
        linear(b, tokens, &activated, mlp.s_down.as_ref(), &layer.down, output)?;
    }
    Ok(activated)
}

/// The input of the MLP's last linear layer.
fn activate<B: Backend>(b: &mut B, pass: &Pass, tokens: &Range<usize>, mlp: &Mlp<B>) -> Result<B::Buffer> {
    let mut activated = pass.alloc(b, "activated", tokens, pass.intermediate)?;
    b.run(tokens.clone(), Op::Swiglu { gate_up: &mlp.gate_up, activation: pass.activation, out: &mut activated })?;
    Ok(activated)
}

/// Where the gradient of an input goes.
enum Dx<'a, B: Backend> {
    Nowhere,
    Over(&'a mut B::Buffer),
    /// It is added to what is there.
    Onto(&'a mut B::Buffer),
}

/// dX (if asked for) and the low-rank gradients of one group.
fn linear_backward<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    s: Option<&B::Buffer>,
    dy: &B::Buffer,
    group: &mut LinearGroup<B>,
    dx: Dx<B>,
) -> Result<()> {
    // The output before its magnitudes is computed again, and then becomes its gradient.
    let mut before = None;
    if group.has_magnitudes() {
        let z = before.insert(pass.alloc(b, "DoRA outputs", tokens, group.n())?);
        b.run(tokens.clone(), Op::Linear { x, s, group, y: &mut *z })?;
        b.run(tokens.clone(), Op::MagnitudeBackward { dy, z, group })?;
    }
    let dy = before.as_ref().unwrap_or(dy);
    let t = linear_dx(b, pass, tokens, dy, group, dx)?;
    lora_gradients(b, pass, tokens, x, s, dy, t.as_ref(), group)
}

/// dX (if asked for) of one group whose outputs have no magnitudes; returns T, where there are low-rank terms.
fn linear_dx<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    dy: &B::Buffer,
    group: &LinearGroup<B>,
    dx: Dx<B>,
) -> Result<Option<B::Buffer>> {
    let mut t = low_rank(b, group, pass.tile)?;
    if let Some(t) = &mut t {
        t.move_to(tokens.start);
        b.run(tokens.clone(), Op::LoraDyB { dy, group, t })?;
    }
    let to = match dx {
        Dx::Nowhere => None,
        Dx::Over(dx) => Some((dx, false)),
        Dx::Onto(dx) => Some((dx, true)),
    };
    if let Some((dx, accumulate)) = to {
        let dropout = pass.mask(group);
        b.run(tokens.clone(), Op::LinearDx { dy, t: t.as_ref(), group, dropout, accumulate, dx })?;
    }
    Ok(t)
}

/// The low-rank gradients of one group.
fn lora_gradients<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    s: Option<&B::Buffer>,
    dy: &B::Buffer,
    t: Option<&B::Buffer>,
    group: &mut LinearGroup<B>,
) -> Result<()> {
    let dropout = pass.mask(group);
    if let (Some(s), Some(t)) = (s, t) {
        b.run(tokens.clone(), Op::LoraGradients { x, dy, s, t, group, dropout })?;
    }
    Ok(())
}

/// The gradient of a norm's input, and, where its weight is trained, of that.
fn norm_backward<B: Backend>(
    b: &mut B,
    tokens: &Range<usize>,
    dy: &B::Buffer,
    x: &B::Buffer,
    weight: &mut B::Vector,
    eps: f32,
    accumulate: bool,
    dx: &mut B::Buffer,
) -> Result<()> {
    if weight.param().is_some() {
        b.run(tokens.clone(), Op::NormGradient { dy, x, eps, weight })?;
    }
    b.run(tokens.clone(), Op::RmsNormBackward { dy, x, weight, eps, accumulate, dx })
}

/// The gradient of what a branch gave, where a norm of `weight` stands between that and the residual stream.
fn before_norm<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    d_stream: &B::Buffer,
    given: Option<&B::Buffer>,
    weight: Option<&mut B::Vector>,
) -> Result<Option<B::Buffer>> {
    let (Some(x), Some(weight)) = (given, weight) else { return Ok(None) };
    let mut dx = pass.alloc(b, "gradients", tokens, pass.hidden)?;
    norm_backward(b, tokens, d_stream, x, weight, pass.branch_eps, false, &mut dx)?;
    Ok(Some(dx))
}

/// The low-rank gradients of a group that reads the residual stream `x`, by its norm where it has one, and, added to
/// `d_stream`, the stream's gradient. `None`: nothing below is trained.
fn stream_backward<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    norm: Option<&mut B::Vector>,
    s: Option<&B::Buffer>,
    dy: &B::Buffer,
    group: &mut LinearGroup<B>,
    d_stream: Option<&mut B::Buffer>,
) -> Result<()> {
    let normed = norm_of(b, pass, tokens, x, norm.as_deref())?;
    let input = normed.as_ref().unwrap_or(x);
    let Some(d_stream) = d_stream else { return linear_backward(b, pass, tokens, input, s, dy, group, Dx::Nowhere) };
    let Some(weight) = norm else {
        return linear_backward(b, pass, tokens, input, s, dy, group, Dx::Onto(d_stream));
    };
    let mut d_normed = pass.alloc(b, "gradients", tokens, pass.hidden)?;
    linear_backward(b, pass, tokens, input, s, dy, group, Dx::Over(&mut d_normed))?;
    norm_backward(b, tokens, &d_normed, x, weight, pass.eps, true, d_stream)
}

/// Turns the gradient of the block's output into that of its input, in place. What of the MLP was not kept is computed
/// again, a tile at a time. Below the first block nothing is trained, so there the gradient ends with the low-rank
/// terms of q, k and v.
fn block_backward<B: Backend>(
    b: &mut B,
    layer: &mut Layer<B>,
    pass: &Pass,
    input: &B::Buffer,
    mut attention: Attention<B>,
    mut kept: Option<Mlp<B>>,
    d_stream: &mut B::Buffer,
    first: bool,
) -> Result<()> {
    let (all, shape) = (|| pass.all(), pass.shape);
    let keeps = kept.is_some();
    let mut d_attention = None;
    for tokens in pass.tiles() {
        let (mut mlp, activated) = match kept.take() {
            Some(mlp) => (mlp, None),
            None => {
                let mut mlp = Mlp::of_tile(b, layer, pass, &tokens)?;
                let activated = mlp_forward(b, layer, pass, &tokens, input, &mut attention, &mut mlp)?;
                (mlp, Some(activated))
            }
        };
        mlp_backward(b, layer, pass, &tokens, &mut mlp, activated, d_stream)?;
        let projected = mlp.projected.take();
        kept = Some(mlp).filter(|_| keeps && pass.tiled);
        let d_attention = whole(b, &mut d_attention, "attention output", shape.out())?;
        let norm = layer.attention_norms.output.as_mut();
        let d_projected = before_norm(b, pass, &tokens, d_stream, projected.as_ref(), norm)?;
        let (x, s, dy) = (&attention.out, attention.s_o.as_ref(), d_projected.as_ref().unwrap_or(d_stream));
        linear_backward(b, pass, &tokens, x, s, dy, &mut layer.o, Dx::Over(d_attention))?;
        if let Some(kept) = &mut kept {
            kept.projected = projected;
        }
    }
    drop(kept);
    let d_attention = d_attention.expect("a batch has tokens");
    let Attention { qkv, s_qkv, out, lse, s_o } = attention;
    drop(s_o);
    let mut normed_qkv = norm_heads(b, layer, pass, &qkv)?;
    if let Some(qkv) = normed_qkv.as_mut().filter(|_| !pass.norms_rotated) {
        rotate(b, layer, pass, qkv, false)?;
    }
    let mut d_qkv = b.alloc("qkv", shape.qkv())?;
    let attended = normed_qkv.as_ref().unwrap_or(&qkv);
    let (dout, window, dqkv) = (&d_attention, layer.window, &mut d_qkv);
    b.run(all(), Op::AttentionBackward { dout, qkv: attended, out: &out, lse: &lse, shape, window, dqkv })?;
    drop((d_attention, normed_qkv, out, lse));
    if !pass.norms_rotated {
        rotate(b, layer, pass, &mut d_qkv, true)?;
    }
    if let Some([q, k]) = &mut layer.qk_norm {
        let eps = pass.branch_eps;
        if q.param().is_some() || k.param().is_some() {
            b.run(all(), Op::HeadNormGradients { dqkv: &d_qkv, qkv: &qkv, eps, shape, weights: [q, k] })?;
        }
        b.run(all(), Op::HeadNormBackward { qkv: &qkv, weights: [q, k], eps, shape, dqkv: &mut d_qkv })?;
    }
    if pass.norms_rotated {
        rotate(b, layer, pass, &mut d_qkv, true)?;
    }
    drop(qkv);
    for tokens in pass.tiles() {
        let (norm, s) = (layer.attention_norms.input.as_mut(), s_qkv.as_ref());
        let below = if first { None } else { Some(&mut *d_stream) };
        stream_backward(b, pass, &tokens, input, norm, s, &d_qkv, &mut layer.qkv, below)?;
    }
    Ok(())
}

/// Adds the gradient of the MLP's input to `d_stream`, which is that of its output. `activated`, the input of the last
/// linear layer, is given up; where it was not kept, it comes with the gradient of what it is made of.
fn mlp_backward<B: Backend>(
    b: &mut B,
    layer: &mut Layer<B>,
    pass: &Pass,
    tokens: &Range<usize>,
    mlp: &mut Mlp<B>,
    mut activated: Option<B::Buffer>,
    d_stream: &mut B::Buffer,
) -> Result<()> {
    if activated.is_none() && layer.down.has_magnitudes() {
        // Their gradient needs the output, and that this input, before anything else.
        activated = Some(activate(b, pass, tokens, mlp)?);
    }
    let mut d_activated = pass.alloc(b, "activated", tokens, pass.intermediate)?;
    let (given, norm) = (mlp.output.as_ref(), layer.mlp_norms.output.as_mut());
    let d_output = before_norm(b, pass, tokens, d_stream, given, norm)?;
    let (s, dy) = (mlp.s_down.as_ref(), d_output.as_ref().unwrap_or(d_stream));
    let (activation, gate_up) = (pass.activation, &mut mlp.gate_up);
    match activated {
        Some(activated) => {
            linear_backward(b, pass, tokens, &activated, s, dy, &mut layer.down, Dx::Over(&mut d_activated))?;
            drop(activated);
            b.run(tokens.clone(), Op::SwigluBackward { dout: &d_activated, activation, gate_up, out: None })?;
        }
        None => {
            let t = linear_dx(b, pass, tokens, dy, &layer.down, Dx::Over(&mut d_activated))?;
            let mut activated = None;
            if t.is_some() {
                activated = Some(pass.alloc(b, "activated", tokens, pass.intermediate)?);
            }
            let (dout, out) = (&d_activated, activated.as_mut());
            b.run(tokens.clone(), Op::SwigluBackward { dout, activation, gate_up, out })?;
            if let Some(x) = &activated {
                lora_gradients(b, pass, tokens, x, s, dy, t.as_ref(), &mut layer.down)?;
            }
        }
    }
    drop((d_output, d_activated));
    let (x, dy, s, norm) = (&mlp.middle, &mlp.gate_up, mlp.s_gate_up.as_ref(), layer.mlp_norms.input.as_mut());
    stream_backward(b, pass, tokens, x, norm, s, dy, &mut layer.gate_up, Some(d_stream))
}
