//! Attention of a Llama 70B, forward and backward. The whole result is checked on short documents; at the length that
//! is timed, some rows of the output and of the queries' gradient, with scores so far apart that few keys decide a row,
//! wherever they are.

use crate::bench::{Bench, Result, shown, text};
use half::bf16;
use lab::attention::AttentionOperation;
use lab::operation::Operation;
use qlora_kernels::Result as CudaResult;
use qlora_kernels::device::{Buffer, Stream};
use qlora_kernels::ops::attention::{Attention, attention};
use qlora_kernels::ops::attention_backward;
use qlora_kernels::ops::attention_backward::workspace_len;
use qlora_kernels::rng;
use qlora_kernels::shape::AttentionShape;
use records::format::Row;

const SHAPE: AttentionShape = AttentionShape { heads: 64, kv_heads: 8, head_dim: 128, soft_cap: None };
const TOKENS: [usize; 3] = [2048, 4096, 16384];
const QUICK_TOKENS: [usize; 1] = [4096];
const CHECKED_DOCUMENTS: [usize; 3] = [130, 1, 70];
/// Queries and keys are uniform in (-SIZE, SIZE).
const SIZE: f32 = 4.0;
const SAMPLED_ROWS: usize = 24;

struct Buffers {
    qkv: Buffer<bf16>,
    boundaries: Buffer<u32>,
    out: Buffer<bf16>,
    lse: Buffer<f32>,
    dout: Buffer<bf16>,
    dqkv: Buffer<bf16>,
    workspace: Buffer<f32>,
}

pub fn run(bench: &mut Bench<'_>) {
    let tokens: &[usize] = if bench.options.quick { &QUICK_TOKENS } else { &TOKENS };
    for &m in tokens {
        let name = format!("attention M {m}");
        if bench.wanted(&name)
            && let Err(error) = measure(bench, m)
        {
            bench.failed(&name, &error);
        }
    }
}

fn operation(m: usize, backward: bool) -> AttentionOperation {
    AttentionOperation { shape: SHAPE, documents: vec![m], window: None, backward, size: SIZE, seed: 70 }
}

fn measure(bench: &mut Bench<'_>, m: usize) -> Result<()> {
    for backward in [false, true] {
        let short = AttentionOperation { documents: CHECKED_DOCUMENTS.to_vec(), size: 1.0, ..operation(m, backward) };
        let inputs = short.inputs();
        let mut buffers = short.upload(&bench.device, &inputs).map_err(text)?;
        bench.verify(&short, &inputs, &mut buffers)?;
    }
    let mut stream = rng::RngStream::new(70, 12);
    let mut numbers = |len: usize, size: f32| -> Vec<bf16> {
        (0..len).map(|_| bf16::from_f32((stream.uniform() * 2.0 - 1.0) * size)).collect()
    };
    let (qkv, dout) = (numbers(m * SHAPE.qkv(), SIZE), numbers(m * SHAPE.out(), 1.0));
    let device = &bench.device;
    let mut buffers = Buffers {
        qkv: device.upload(&qkv).map_err(text)?,
        boundaries: device.upload(&[0, m as u32]).map_err(text)?,
        out: device.upload(&vec![bf16::NAN; m * SHAPE.out()]).map_err(text)?,
        lse: device.upload(&vec![f32::NAN; m * SHAPE.heads]).map_err(text)?,
        dout: device.upload(&dout).map_err(text)?,
        dqkv: device.upload(&vec![bf16::NAN; m * SHAPE.qkv()]).map_err(text)?,
        workspace: device.upload(&[0f32]).map_err(text)?,
    };
    let len = with(&mut buffers, m, |input, _| Ok(workspace_len(input))).map_err(text)?;
    buffers.workspace = device.upload(&vec![f32::NAN; len]).map_err(text)?;
    for backward in [false, true] {
        launch(&mut buffers, m, backward, bench.timer.stream()).map_err(text)?;
    }
    bench.timer.synchronize().map_err(text)?;
    let out = bench.device.download(&buffers.out).map_err(text)?;
    let dqkv = bench.device.download(&buffers.dqkv).map_err(text)?;
    for row in 0..SAMPLED_ROWS {
        let query = if row == 0 { m - 1 } else { stream.below(m as u32) as usize };
        check_row(&qkv, &dout, &out, &dqkv, query, stream.below(SHAPE.heads as u32) as usize)?;
    }
    // One set: the operands of a launch are more than the L2 holds.
    let mut sets = [buffers];
    for backward in [false, true] {
        let operation = operation(m, backward);
        let (name, shape) = (operation.name(), operation.shape());
        let seconds = bench.time_launches(&format!("{name} {shape}"), &mut sets, |buffers, stream| {
            launch(buffers, m, backward, stream)
        })?;
        let flops = operation.flops() / seconds;
        println!("{:.0} TFLOP/s, {} | {name} {shape}", flops / 1e12, shown(seconds));
        let rate = operation.bytes() / seconds;
        let (tflops, gb_per_s) = (Some(flops / 1e12), Some(rate / 1e9));
        bench.row(Row { operation: name, shape, m: Some(m), seconds, tflops, gb_per_s, ..Row::default() });
    }
    Ok(())
}

fn with<T>(
    buffers: &mut Buffers,
    m: usize,
    call: impl FnOnce(&Attention<'_>, Rest<'_>) -> CudaResult<T>,
) -> CudaResult<T> {
    let Buffers { qkv, boundaries, out, lse, dout, dqkv, workspace } = buffers;
    let input = Attention { shape: SHAPE, m, qkv: qkv.view(), boundaries: boundaries.view(), window: None };
    call(&input, Rest { out, lse, dout, dqkv, workspace })
}

struct Rest<'a> {
    out: &'a mut Buffer<bf16>,
    lse: &'a mut Buffer<f32>,
    dout: &'a Buffer<bf16>,
    dqkv: &'a mut Buffer<bf16>,
    workspace: &'a mut Buffer<f32>,
}

fn launch(buffers: &mut Buffers, m: usize, backward: bool, stream: Stream) -> CudaResult<()> {
    with(buffers, m, |input, Rest { out, lse, dout, dqkv, workspace }| {
        if !backward {
            return attention(input, out.view_mut(), lse.view_mut(), stream);
        }
        let (out, lse) = (out.view(), lse.view());
        attention_backward(input, dout.view(), out, lse, dqkv.view_mut(), workspace.view_mut(), stream)
    })
}

fn dot(a: &[bf16], b: &[bf16]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.to_f64() * b.to_f64()).sum()
}

/// One query's output and gradient in one head, by the definition in f64. P and dS are rounded to bf16 on the way, and
/// so are the results.
fn check_row(qkv: &[bf16], dout: &[bf16], out: &[bf16], dqkv: &[bf16], query: usize, head: usize) -> Result<()> {
    let d = SHAPE.head_dim;
    let at = |token: usize, column: usize| &qkv[token * SHAPE.qkv() + column..][..d];
    let of_row = |matrix: &'_ [bf16]| -> Vec<bf16> { matrix[(query * SHAPE.heads + head) * d..][..d].to_vec() };
    let (dout, found) = (of_row(dout), of_row(out));
    let scores: Vec<f64> =
        (0..=query).map(|key| SHAPE.scale() * dot(at(query, head * d), at(key, SHAPE.key_column(head)))).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    let delta = dot(&dout, &found);
    let (mut value, mut gradient) = (vec![(0.0, 0.0); d], vec![(0.0, 0.0); d]);
    for (key, score) in scores.iter().enumerate() {
        let (p, v, k) = ((score - max).exp() / sum, at(key, SHAPE.value_column(head)), at(key, SHAPE.key_column(head)));
        let ds = SHAPE.scale() * p * (dot(&dout, v) - delta);
        for i in 0..d {
            for (to, factor, from) in [(&mut value[i], p, v[i].to_f64()), (&mut gradient[i], ds, k[i].to_f64())] {
                *to = (to.0 + factor * from, to.1 + (factor * from).abs());
            }
        }
    }
    let found_gradient = &dqkv[query * SHAPE.qkv() + head * d..][..d];
    for (what, found, expected) in [("out", &found[..], value), ("dQ", found_gradient, gradient)] {
        for (i, (found, (expected, magnitude))) in found.iter().zip(expected).enumerate() {
            let bound = 2f64.powi(-6) * magnitude + 1e-4;
            let error = (found.to_f64() - expected).abs();
            if error.is_nan() || error > bound {
                return Err(format!(
                    "wrong: {what}[{query}, head {head}, {i}]: found {found}, expected {expected}, bound {bound}"
                ));
            }
        }
    }
    Ok(())
}
