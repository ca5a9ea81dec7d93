//! Forward pass of one block: attention and MLP of a layer, and what they leave for the backward pass.

use super::Layer;
use super::cached::View;
use super::tiles::{tiles, tiles_of_dry_run};
use crate::arch::Activation;
use crate::backend::{Backend, BufferShape, LinearGroup, Op, Rotation};
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;
use qlora_kernels::rng::Dropout;
use qlora_kernels::shape::AttentionShape;
use std::ops::Range;

/// Activations of one layer's attention that its backward pass reads beside the layer's input. S is the low-rank
/// projection of an input.
pub struct Attention<B: Backend> {
    /// q‖k‖v that attention sees; where queries and keys are normalized, the input of their norms.
    pub qkv: B::Buffer,
    pub s_qkv: Option<B::Buffer>,
    pub out: B::Buffer,
    pub lse: B::Buffer,
    /// Computed with the output projection, a tile at a time
    pub s_o: Option<B::Buffer>,
}

/// Activations of one layer's MLP that its backward pass reads: of all tokens, or of those of a tile.
pub struct Mlp<B: Backend> {
    /// The attention's output after its projection, where that is normalized.
    pub projected: Option<B::Buffer>,
    /// The residual stream between attention and MLP.
    pub middle: B::Buffer,
    pub gate_up: B::Buffer,
    pub s_gate_up: Option<B::Buffer>,
    pub s_down: Option<B::Buffer>,
    /// The MLP's output, where that is normalized.
    pub output: Option<B::Buffer>,
}

/// Sizes and settings that all layers of one pass share.
#[derive(Clone, Copy)]
pub struct Pass {
    pub tokens: usize,
    /// Tokens that a tile has room for
    pub tile: usize,
    /// The longest batch has more tokens than a tile
    pub tiled: bool,
    pub dry_run: bool,
    /// End of the memory that a layer's activations come from: the low one, as the residual stream does, where they are
    /// kept for the backward pass, and the other one elsewhere
    pub end: MemoryEnd,
    pub shape: AttentionShape,
    pub hidden: usize,
    pub intermediate: usize,
    /// The eps of the norms of the residual stream
    pub eps: f32,
    /// The eps of the norms of queries and keys, and of what a branch gives
    pub branch_eps: f32,
    pub activation: Activation,
    /// Queries and keys are normalized after they are rotated
    pub norms_rotated: bool,
    /// (seed, draw, p)
    pub dropout: Option<(u64, u32, f32)>,
}

impl Pass {
    /// All tokens of the batch.
    pub fn all(&self) -> Range<usize> {
        0..self.tokens
    }

    /// The tokens of each tile, in order.
    pub fn tiles(&self) -> Vec<Range<usize>> {
        match self.dry_run {
            true => tiles_of_dry_run(self.tokens, self.tile),
            false => tiles(self.tokens, self.tile).collect(),
        }
    }

    /// The rotation that comes with the norms of a layer's queries and keys.
    pub fn rotation_of<B: Backend>(&self, layer: &Layer<B>) -> Option<Rotation> {
        layer.rope.map(|table| Rotation { table, before_norm: self.norms_rotated })
    }

    pub fn mask<B: Backend>(&self, group: &LinearGroup<B>) -> Option<Dropout> {
        self.dropout.map(|(seed, draw, p)| Dropout::new(seed, group.dropout_id, draw, p))
    }

    /// A buffer for the tokens of a tile.
    pub fn alloc<B: Backend>(
        &self,
        b: &mut B,
        name: &'static str,
        tokens: &Range<usize>,
        width: usize,
    ) -> Result<B::Buffer> {
        self.alloc_with_room(b, name, tokens, width, 0)
    }

    /// A buffer for the tokens of a tile, with room for `room` values behind those of each row.
    pub fn alloc_with_room<B: Backend>(
        &self,
        b: &mut B,
        name: &'static str,
        tokens: &Range<usize>,
        width: usize,
        room: usize,
    ) -> Result<B::Buffer> {
        let mut buffer = b.alloc_with_room(MemoryEnd::Low, name, self.tile, width, room)?;
        buffer.move_to(tokens.start);
        Ok(buffer)
    }
}

/// The buffer for all tokens in `buffer`, made when it is first needed.
pub fn whole<'a, B: Backend>(
    b: &mut B,
    end: MemoryEnd,
    buffer: &'a mut Option<B::Buffer>,
    name: &'static str,
    width: usize,
) -> Result<&'a mut B::Buffer> {
    if buffer.is_none() {
        *buffer = Some(b.alloc_at(end, name, b.capacity(), width)?);
    }
    Ok(buffer.as_mut().expect("it was made"))
}

/// The room behind the gradient of a group's outputs. Outputs with magnitudes have another gradient before those.
pub fn room_of_gradient<B: Backend>(b: &B, group: &LinearGroup<B>) -> usize {
    if group.has_magnitudes() { 0 } else { b.room_for_t(group) }
}

/// The room behind the gradient of the residual stream, which is that of what both branches give, unless a norm stands
/// between.
pub fn room_of_stream_gradient<B: Backend>(b: &B, layer: &Layer<B>) -> usize {
    let of = |norm: &Option<B::Vector>, group: &LinearGroup<B>| match norm {
        Some(_) => 0,
        None => room_of_gradient(b, group),
    };
    of(&layer.attention_norms.output, &layer.o).max(of(&layer.mlp_norms.output, &layer.down))
}

/// RMSNorm of a tile of the residual stream `x`, with `room` behind its rows; `None` where no weight is given: what
/// follows reads the stream as it is.
pub fn norm_of<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    weight: Option<&B::Vector>,
    room: usize,
) -> Result<Option<B::Buffer>> {
    let Some(weight) = weight else { return Ok(None) };
    let mut out = pass.alloc_with_room(b, "normed", tokens, pass.hidden, room)?;
    b.run(tokens.clone(), Op::RmsNorm { x, weight, eps: pass.eps, out: &mut out })?;
    Ok(Some(out))
}

/// The residual stream with what a branch gave added to it, in `sum`, by the norm of that where it has one. Returns the
/// norm of the sum where what follows reads one, with `room` behind its rows.
pub fn join<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    x: &B::Buffer,
    delta: &B::Buffer,
    output_norm: Option<&B::Vector>,
    next_norm: Option<&B::Vector>,
    room: usize,
    sum: &mut B::Buffer,
) -> Result<Option<B::Buffer>> {
    match (output_norm, next_norm) {
        (Some(weight), next_norm) => {
            b.run(tokens.clone(), Op::RmsNormAdd { x, delta, weight, eps: pass.branch_eps, sum: &mut *sum })?;
            norm_of(b, pass, tokens, sum, next_norm, room)
        }
        (None, Some(weight)) => {
            let mut out = pass.alloc_with_room(b, "normed", tokens, pass.hidden, room)?;
            b.run(tokens.clone(), Op::AddRmsNorm { x, delta, sum, weight, eps: pass.eps, out: &mut out })?;
            Ok(Some(out))
        }
        (None, None) => unreachable!("a family normalizes the inputs or the outputs of both branches"),
    }
}

/// A buffer for S or T of one group; none without a low-rank term.
pub fn low_rank<B: Backend>(
    b: &mut B,
    end: MemoryEnd,
    group: &LinearGroup<B>,
    tokens: usize,
) -> Result<Option<B::Buffer>> {
    if group.r() == 0 {
        return Ok(None);
    }
    b.alloc_at(end, "low-rank projections", tokens, b.low_rank_columns(group)).map(Some)
}

/// S of one group's input.
pub fn project<B: Backend>(
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
pub fn linear<B: Backend>(
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

/// q‖k‖v as attention sees them, of what the projections give: with the heads of q and k normalized, and rotated;
/// `None` where the family does not normalize them. The backward pass computes it again from the projections: it needs
/// those exactly, and to keep both takes twice the memory.
pub fn norm_heads<B: Backend>(b: &mut B, layer: &Layer<B>, pass: &Pass, qkv: &B::Buffer) -> Result<Option<B::Buffer>> {
    let Some([q, k]) = &layer.qk_norm else { return Ok(None) };
    let mut out = b.alloc("qkv", pass.shape.qkv())?;
    let (weights, eps, shape) = ([q, k], pass.branch_eps, pass.shape);
    let rotation = pass.rotation_of(layer);
    b.run(pass.all(), Op::HeadNorm { qkv, weights, eps, shape, rotation, out: &mut out })?;
    Ok(Some(out))
}

/// Turns the queries and keys of a layer by their positions, or back.
pub fn rotate<B: Backend>(b: &mut B, layer: &Layer<B>, pass: &Pass, qkv: &mut B::Buffer, inverse: bool) -> Result<()> {
    let Some(table) = layer.rope else { return Ok(()) };
    b.run(pass.all(), Op::Rope { qkv, shape: pass.shape, table, inverse })
}

/// Attention of one layer. `normed` is RMSNorm of `input`, if there is one and it is computed already. With a cache the
/// batch's keys and values are appended to it and attention sees what it holds.
pub fn attend<B: Backend>(
    b: &mut B,
    layer: &Layer<B>,
    pass: &Pass,
    input: &B::Buffer,
    normed: Option<B::Buffer>,
    cache: Option<(&mut B::Buffer, View)>,
) -> Result<Attention<B>> {
    let (all, shape, window) = (|| pass.all(), pass.shape, layer.window);
    let capacity = b.capacity();
    let mut s_qkv = low_rank(b, pass.end, &layer.qkv, capacity)?;
    let mut qkv = None;
    let (mut ready, room) = (normed, b.room_for_s(&layer.qkv));
    for tokens in pass.tiles() {
        let normed = match ready.take() {
            Some(normed) => Some(normed),
            None => norm_of(b, pass, &tokens, input, layer.attention_norms.input.as_ref(), room)?,
        };
        let x = normed.as_ref().unwrap_or(input);
        project(b, pass, &tokens, x, &layer.qkv, s_qkv.as_mut())?;
        let qkv = whole(b, pass.end, &mut qkv, "qkv", layer.qkv.n())?;
        linear(b, &tokens, x, s_qkv.as_ref(), &layer.qkv, qkv)?;
    }
    let mut qkv = qkv.expect("a batch has tokens");
    let normed_qkv = norm_heads(b, layer, pass, &qkv)?;
    if normed_qkv.is_none() {
        rotate(b, layer, pass, &mut qkv, false)?;
    }
    let attended = normed_qkv.as_ref().unwrap_or(&qkv);
    let room = b.room_for_s(&layer.o);
    let mut out = b.alloc_with_room(pass.end, "attention output", capacity, shape.out(), room)?;
    let mut lse = b.alloc_f32(pass.end, "attention log-sum-exp", shape.heads)?;
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
    let s_o = low_rank(b, pass.end, &layer.o, capacity)?;
    Ok(Attention { qkv, s_qkv, out, lse, s_o })
}

impl<B: Backend> Mlp<B> {
    pub fn alloc(b: &mut B, layer: &Layer<B>, pass: &Pass, tokens: usize) -> Result<Self> {
        let (of_attention, of_mlp) = (&layer.attention_norms.output, &layer.mlp_norms.output);
        let (end, width, room) = (pass.end, pass.hidden, room_of_gradient(b, &layer.gate_up));
        let mut normalized =
            |name, norm: &Option<B::Vector>| norm.as_ref().map(|_| b.alloc_at(end, name, tokens, width)).transpose();
        let (projected, output) = (normalized("projected attention", of_attention)?, normalized("MLP output", of_mlp)?);
        Ok(Self {
            projected,
            output,
            middle: b.alloc_at(end, "residual stream", tokens, width)?,
            gate_up: b.alloc_with_room(end, "gate and up", tokens, layer.gate_up.n(), room)?,
            s_gate_up: low_rank(b, end, &layer.gate_up, tokens)?,
            s_down: low_rank(b, end, &layer.down, tokens)?,
        })
    }

    /// Buffers for the tokens of a tile.
    pub fn of_tile(b: &mut B, layer: &Layer<B>, pass: &Pass, tokens: &Range<usize>) -> Result<Self> {
        let mut mlp = Self::alloc(b, layer, pass, pass.tile)?;
        let optional = [&mut mlp.projected, &mut mlp.s_gate_up, &mut mlp.s_down, &mut mlp.output];
        let optional = optional.into_iter().flatten();
        optional.chain([&mut mlp.middle, &mut mlp.gate_up]).for_each(|buffer| buffer.move_to(tokens.start));
        Ok(mlp)
    }
}

/// The output projection of attention and the MLP, up to its last linear layer, whose input is returned; the last too
/// where the backward pass reads its output.
pub fn mlp_forward<B: Backend>(
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
    let room = b.room_for_s(&layer.gate_up);
    let normed = join(b, pass, tokens, input, projected, output_norm, next_norm, room, &mut mlp.middle)?;
    drop(given);
    let x = normed.as_ref().unwrap_or(&mlp.middle);
    project(b, pass, tokens, x, &layer.gate_up, mlp.s_gate_up.as_mut())?;
    linear(b, tokens, x, mlp.s_gate_up.as_ref(), &layer.gate_up, &mut mlp.gate_up)?;
    drop(normed);
    let room = b.room_for_s(&layer.down);
    let activated = activate(b, pass, tokens, mlp, room)?;
    project(b, pass, tokens, &activated, &layer.down, mlp.s_down.as_mut())?;
    if let Some(output) = &mut mlp.output {
        linear(b, tokens, &activated, mlp.s_down.as_ref(), &layer.down, output)?;
    }
    Ok(activated)
}

/// The input of the MLP's last linear layer, with `room` behind its rows.
pub fn activate<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    mlp: &Mlp<B>,
    room: usize,
) -> Result<B::Buffer> {
    let mut activated = pass.alloc_with_room(b, "activated", tokens, pass.intermediate, room)?;
    b.run(tokens.clone(), Op::Swiglu { gate_up: &mlp.gate_up, activation: pass.activation, out: &mut activated })?;
    Ok(activated)
}
