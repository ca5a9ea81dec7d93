//! Norms, SwiGLU, attention and gradients of vectors over rows with room behind them: the bits of dense ones, and
//! nothing between rows is read or written.

use crate::strides::{apart, as_dense, bits, numbers, poisoned};
use half::bf16;
use lab::device::device;
use qlora_kernels::device::{Buffer, Device};
use qlora_kernels::ops::attention::{Attention, attention};
use qlora_kernels::ops::attention_backward::{attention_backward, workspace_len};
use qlora_kernels::ops::attention_cache::{self, NewTokens, Shape, attention_cache};
use qlora_kernels::ops::{self, HeadNorm, NormGradient, Residual, Rows, RowsMut, attention_cache_append};
use qlora_kernels::shape::{AttentionShape, GateActivation};

/// Widths on the vector with strides that are, and off it with any.
const WIDTHS: [(usize, &[usize]); 2] = [(128, &[8, 64]), (77, &[3, 8])];
const M: usize = 5;

fn floats(device: &Device, len: usize, seed: u64) -> Buffer<f32> {
    let values: Vec<f32> = numbers(len, seed).iter().map(|x| x.to_f32()).collect();
    device.upload(&values).unwrap()
}

fn float_bits(device: &Device, buffer: &Buffer<f32>) -> Vec<u32> {
    device.download(buffer).unwrap().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn norms_write_rows_with_room() {
    let device = device();
    for (h, pads) in WIDTHS {
        let weight = floats(&device, h, 1);
        let [x, delta] = [2, 3].map(|seed| device.upload(&numbers(M * h, seed)).unwrap());
        for kind in 0..3 {
            as_dense(&format!("norm {kind} of {h}"), pads, |pad| {
                let (mut y, mut sum) = (poisoned(&device, M, h + pad), poisoned(&device, M, h));
                let input = match kind {
                    0 => Residual::Plain(x.view()),
                    1 => Residual::Add { x: x.view(), delta: delta.view(), sum: sum.view_mut() },
                    _ => Residual::After { delta: delta.view(), x: x.view() },
                };
                let rows = RowsMut::apart(y.view_mut(), h + pad);
                ops::rms_norm(input, weight.view(), 1e-5, rows, device.stream()).unwrap();
                bits(&device, &y, h, h + pad)
            });
        }
    }
}

#[test]
fn gradients_of_norms_read_and_write_rows_with_room() {
    let device = device();
    for (h, pads) in WIDTHS {
        let weight = floats(&device, h, 1);
        let (x, dy, before) = (device.upload(&numbers(M * h, 2)).unwrap(), numbers(M * h, 3), numbers(M * h, 4));
        for accumulate in [false, true] {
            as_dense(&format!("{h}, {accumulate}"), pads, |pad| {
                let (of_dy, of_dx) = (h + pad, h + 2 * pad);
                let (dy, mut dx) = (apart(&device, &dy, h, of_dy), apart(&device, &before, h, of_dx));
                let rows = (Rows::apart(dy.view(), of_dy), RowsMut::apart(dx.view_mut(), of_dx));
                let (eps, stream) = (1e-5, device.stream());
                ops::rms_norm_backward(rows.0, x.view(), weight.view(), eps, accumulate, rows.1, stream).unwrap();
                bits(&device, &dx, h, of_dx)
            });
        }
        as_dense(&format!("the weight of {h}"), pads, |pad| {
            let dy = apart(&device, &dy, h, h + pad);
            let mut dweight = floats(&device, h, 5);
            let bytes = ops::norm_gradient::workspace_bytes(M, 1, h);
            let mut workspace = device.upload(&vec![0xffu8; bytes]).unwrap();
            let (dy, x) = (dy.view(), x.view());
            let norm = NormGradient { m: M, parts: 1, column: 0, ld: h, lddy: h + pad, eps: 1e-5, dy, x };
            ops::norm_gradient(&norm, dweight.view_mut(), workspace.view_mut(), device.stream()).unwrap();
            float_bits(&device, &dweight)
        });
    }
}

/// A token of each row, the first one twice.
#[test]
fn the_gradient_of_the_embedding_reads_rows_with_room() {
    let device = device();
    let ids = device.upload(&[1u32, 0, 1, 2, 9]).unwrap();
    for (h, pads) in WIDTHS {
        as_dense(&format!("{h}"), pads, |pad| {
            let dout = apart(&device, &numbers(M * h, 2), h, h + pad);
            let mut table = floats(&device, 3 * h, 3);
            let rows = Rows::apart(dout.view(), h + pad);
            ops::embedding_backward(ids.view(), rows, 3, h, 1.5, table.view_mut(), device.stream()).unwrap();
            float_bits(&device, &table)
        });
    }
}

#[test]
fn swiglu_reads_and_writes_rows_with_room() {
    let (device, activation) = (device(), GateActivation::Silu);
    for (i, pads) in WIDTHS {
        let (gate_up, dout) = (numbers(M * 2 * i, 1), device.upload(&numbers(M * i, 2)).unwrap());
        as_dense(&format!("forward {i}"), pads, |pad| {
            let (of_gate, of_out) = (2 * i + pad, i + 2 * pad);
            let (gate_up, mut out) = (apart(&device, &gate_up, 2 * i, of_gate), poisoned(&device, M, of_out));
            let rows = (Rows::apart(gate_up.view(), of_gate), RowsMut::apart(out.view_mut(), of_out));
            ops::swiglu(rows.0, i, activation, rows.1, device.stream()).unwrap();
            bits(&device, &out, i, of_out)
        });
        for recompute in [false, true] {
            as_dense(&format!("backward {i}"), pads, |pad| {
                let (of_gate, of_out) = (2 * i + pad, i + 2 * pad);
                let (mut gate_up, mut out) = (apart(&device, &gate_up, 2 * i, of_gate), poisoned(&device, M, of_out));
                let rows = RowsMut::apart(gate_up.view_mut(), of_gate);
                let out_rows = recompute.then(|| RowsMut::apart(out.view_mut(), of_out));
                ops::swiglu_backward(dout.view(), rows, i, activation, out_rows, device.stream()).unwrap();
                (bits(&device, &gate_up, 2 * i, of_gate), bits(&device, &out, i, of_out))
            });
        }
    }
}

#[test]
fn attention_and_its_gradient_have_rows_with_room() {
    let device = device();
    for head_dim in [64, 128] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim, soft_cap: None };
        let (m, out_width, width) = (150, shape.out(), shape.qkv());
        let qkv = device.upload(&numbers(m * width, 1)).unwrap();
        let dout = device.upload(&numbers(m * out_width, 2)).unwrap();
        let boundaries = device.upload(&[0u32, 47, 150]).unwrap();
        let input = Attention { shape, m, qkv: qkv.view(), boundaries: boundaries.view(), window: None };
        as_dense(&format!("heads of {head_dim}"), &[8, 64], |pad| {
            let (of_out, of_dqkv) = (out_width + pad, width + 2 * pad);
            let (mut out, mut dqkv) = (poisoned(&device, m, of_out), poisoned(&device, m, of_dqkv));
            let mut lse = device.upload(&vec![0.0f32; m * shape.heads]).unwrap();
            let rows = RowsMut::apart(out.view_mut(), of_out);
            attention(&input, rows, lse.view_mut(), device.stream()).unwrap();
            let mut workspace = device.upload(&vec![f32::NAN; workspace_len(&input)]).unwrap();
            let (rows, to) = (Rows::apart(out.view(), of_out), RowsMut::apart(dqkv.view_mut(), of_dqkv));
            let (lse, workspace) = (lse.view(), workspace.view_mut());
            attention_backward(&input, dout.view(), rows, lse, to, workspace, device.stream()).unwrap();
            (bits(&device, &out, out_width, of_out), bits(&device, &dqkv, width, of_dqkv))
        });
    }
}

#[test]
fn attention_over_a_cache_writes_rows_with_room() {
    let device = device();
    let attention = AttentionShape { heads: 4, kv_heads: 2, head_dim: 64, soft_cap: None };
    let shape = Shape { attention, m: 3, documents: 2, longest: 8 };
    let qkv = device.upload(&numbers(3 * attention.qkv(), 1)).unwrap();
    let boundaries = device.upload(&[0u32, 1, 3]).unwrap();
    let (starts, positions) = (device.upload(&[0u32, 8]).unwrap(), device.upload(&[0u32, 0, 1]).unwrap());
    let new = NewTokens {
        shape,
        qkv: qkv.view(),
        boundaries: boundaries.view(),
        starts: starts.view(),
        positions: positions.view(),
        window: None,
    };
    let zeros = vec![bf16::ZERO; 16 * attention_cache::width(attention)];
    as_dense("a cache", &[8, 3], |pad| {
        let (width, stride) = (attention.out(), attention.out() + pad);
        let (mut cache, mut out) = (device.upload(&zeros).unwrap(), poisoned(&device, 3, stride));
        let bytes = attention_cache::workspace_bytes(&shape).unwrap();
        let mut workspace = device.upload(&vec![0xffu8; bytes]).unwrap();
        attention_cache_append(&new, cache.view_mut(), device.stream()).unwrap();
        let rows = RowsMut::apart(out.view_mut(), stride);
        attention_cache(&new, cache.view(), rows, workspace.view_mut(), device.stream()).unwrap();
        bits(&device, &out, width, stride)
    });
}

#[test]
fn the_gradient_of_norms_of_heads_has_rows_with_room() {
    let device = device();
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 64, soft_cap: None };
    let (m, width) = (7, shape.qkv());
    let (x, weight) = (device.upload(&numbers(m * width, 1)).unwrap(), floats(&device, 64, 2));
    let (q_weight, k_weight) = (weight.view(), weight.view());
    as_dense("norms of heads", &[8, 64], |pad| {
        let mut dy = apart(&device, &numbers(m * width, 3), width, width + pad);
        let input = HeadNorm { shape, eps: 1e-5, x: x.view(), q_weight, k_weight, rotation: None };
        ops::head_norm_backward(input, RowsMut::apart(dy.view_mut(), width + pad), device.stream()).unwrap();
        bits(&device, &dy, width, width + pad)
    });
}
