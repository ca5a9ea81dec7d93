//! Backward pass of one block.

use super::Layer;
use super::block::{
    Attention, Mlp, Pass, activate, low_rank, mlp_forward, norm_heads, norm_of, room_of_gradient, rotate, whole,
};
use crate::backend::{Backend, BufferShape, LinearGroup, MaybeTrained, Op};
use crate::error::Result;
use qlora_kernels::device::MemoryEnd;
use std::ops::Range;

/// The destination of the gradient of an input.
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
        let room = b.room_for_t(group);
        let z = before.insert(pass.alloc_with_room(b, "DoRA outputs", tokens, group.n(), room)?);
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
    let mut t = low_rank(b, pass.end, group, pass.tile)?;
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
pub fn norm_backward<B: Backend>(
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

/// The gradient of what a branch gave, the outputs of `group`, where a norm of `weight` stands between that and the
/// residual stream.
fn before_norm<B: Backend>(
    b: &mut B,
    pass: &Pass,
    tokens: &Range<usize>,
    d_stream: &B::Buffer,
    given: Option<&B::Buffer>,
    weight: Option<&mut B::Vector>,
    group: &LinearGroup<B>,
) -> Result<Option<B::Buffer>> {
    let (Some(x), Some(weight)) = (given, weight) else { return Ok(None) };
    let room = room_of_gradient(b, group);
    let mut dx = pass.alloc_with_room(b, "gradients", tokens, pass.hidden, room)?;
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
    // Beside the gradients, the outputs before their magnitudes are made of it once more.
    let room = if group.has_magnitudes() { b.room_for_s(group) } else { 0 };
    let normed = norm_of(b, pass, tokens, x, norm.as_deref(), room)?;
    let input = normed.as_ref().unwrap_or(x);
    let Some(d_stream) = d_stream else { return linear_backward(b, pass, tokens, input, s, dy, group, Dx::Nowhere) };
    let Some(weight) = norm else {
        return linear_backward(b, pass, tokens, input, s, dy, group, Dx::Onto(d_stream));
    };
    let mut d_normed = pass.alloc(b, "gradients", tokens, pass.hidden)?;
    linear_backward(b, pass, tokens, input, s, dy, group, Dx::Over(&mut d_normed))?;
    norm_backward(b, tokens, &d_normed, x, weight, pass.eps, true, d_stream)
}

/// Turns the gradient of what attention sees into that of what the projections give, `qkv`.
fn head_norm_backward<B: Backend>(
    b: &mut B,
    layer: &mut Layer<B>,
    pass: &Pass,
    qkv: &mut B::Buffer,
    dqkv: &mut B::Buffer,
) -> Result<()> {
    let (eps, shape, mut rotation) = (pass.branch_eps, pass.shape, pass.rotation_of(layer));
    let Some([q, k]) = &layer.qk_norm else { return rotate(b, layer, pass, dqkv, true) };
    let trains = q.param().is_some() || k.param().is_some();
    let rotates_first = pass.norms_rotated;
    if trains {
        // The gradients of the weights are those of the norms alone.
        rotation = None;
        let (rows, inverse) = if rotates_first { (&mut *qkv, false) } else { (&mut *dqkv, true) };
        rotate(b, layer, pass, rows, inverse)?;
    }
    if let Some([q, k]) = &mut layer.qk_norm {
        if trains {
            b.run(pass.all(), Op::HeadNormGradients { dqkv, qkv, eps, shape, weights: [q, k] })?;
        }
        b.run(pass.all(), Op::HeadNormBackward { qkv, weights: [q, k], eps, shape, rotation, dqkv: &mut *dqkv })?;
    }
    if trains && rotates_first { rotate(b, layer, pass, dqkv, true) } else { Ok(()) }
}

/// Turns the gradient of the block's output into that of its input, in place. What of the MLP was not kept is computed
/// again, a tile at a time. Below the first block nothing is trained, so there the gradient ends with the low-rank
/// terms of q, k and v.
pub fn block_backward<B: Backend>(
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
        let d_attention = whole(b, MemoryEnd::Low, &mut d_attention, "attention output", shape.out())?;
        let norm = layer.attention_norms.output.as_mut();
        let d_projected = before_norm(b, pass, &tokens, d_stream, projected.as_ref(), norm, &layer.o)?;
        let (x, s, dy) = (&attention.out, attention.s_o.as_ref(), d_projected.as_ref().unwrap_or(d_stream));
        linear_backward(b, pass, &tokens, x, s, dy, &mut layer.o, Dx::Over(d_attention))?;
        if let Some(kept) = &mut kept {
            kept.projected = projected;
        }
    }
    drop(kept);
    let d_attention = d_attention.expect("a batch has tokens");
    let Attention { mut qkv, s_qkv, out, lse, s_o } = attention;
    drop(s_o);
    let normed_qkv = norm_heads(b, layer, pass, &qkv)?;
    let (capacity, room) = (b.capacity(), room_of_gradient(b, &layer.qkv));
    let mut d_qkv = b.alloc_with_room(MemoryEnd::Low, "qkv", capacity, shape.qkv(), room)?;
    let attended = normed_qkv.as_ref().unwrap_or(&qkv);
    let (dout, window, dqkv) = (&d_attention, layer.window, &mut d_qkv);
    b.run(all(), Op::AttentionBackward { dout, qkv: attended, out: &out, lse: &lse, shape, window, dqkv })?;
    drop((d_attention, normed_qkv, out, lse));
    head_norm_backward(b, layer, pass, &mut qkv, &mut d_qkv)?;
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
        let room = b.room_for_s(&layer.down);
        activated = Some(activate(b, pass, tokens, mlp, room)?);
    }
    let mut d_activated = pass.alloc(b, "activated", tokens, pass.intermediate)?;
    let (given, norm) = (mlp.output.as_ref(), layer.mlp_norms.output.as_mut());
    let d_output = before_norm(b, pass, tokens, d_stream, given, norm, &layer.down)?;
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
