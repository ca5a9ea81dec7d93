//! Attention and its gradient as [`Operation`]s, against the definition in f64 on the same bf16 inputs.
//!
//! The bounds: a result is rounded to bf16 once (2⁻⁸ of it), P and dS are rounded to bf16 before they enter a second
//! product (2⁻⁸ of every term's magnitude, twice what one rounding can do), and f32 sums err by 2⁻²⁴ of their terms'
//! magnitudes a term; scores are exponents, so that their absolute errors become relative ones of P.

use super::device::to_bf16;
use super::operation::Operation;
use half::bf16;
use qlora_kernels::Result;
use qlora_kernels::device::{Buffer, Device, Stream};
use qlora_kernels::ops::attention::{Attention, attention};
use qlora_kernels::ops::attention_backward::{attention_backward, workspace_len_of};
use qlora_kernels::rng;
use qlora_kernels::shape::AttentionShape;

#[derive(Clone, Debug)]
pub struct AttentionOperation {
    pub shape: AttentionShape,
    /// Lengths of the documents, some of which may be 0.
    pub documents: Vec<usize>,
    pub window: Option<usize>,
    pub backward: bool,
    /// Queries and keys are uniform in (-size, size): the larger, the sharper the softmax.
    pub size: f32,
    pub seed: u64,
}

pub struct Host {
    pub qkv: Vec<bf16>,
    pub dout: Vec<bf16>,
    boundaries: Vec<u32>,
    /// The definition's output, rounded as the forward kernel rounds: what the backward pass is given.
    out: Vec<bf16>,
    lse: Vec<f32>,
    expected: Vec<(f64, f64)>,
}

pub struct Buffers {
    qkv: Buffer<bf16>,
    boundaries: Buffer<u32>,
    out: Buffer<bf16>,
    lse: Buffer<f32>,
    dout: Buffer<bf16>,
    dqkv: Buffer<bf16>,
    workspace: Buffer<f32>,
}

/// bf16 results as bits and, forward, lse as bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    pub values: Vec<u16>,
    pub lse: Vec<u32>,
}

impl AttentionOperation {
    pub fn tokens(&self) -> usize {
        self.documents.iter().sum()
    }

    /// Pairs of a query and a key that it sees.
    fn pairs(&self) -> f64 {
        let window = self.window.unwrap_or(usize::MAX);
        self.documents.iter().map(|&len| (1..=len).map(|i| i.min(window)).sum::<usize>()).sum::<usize>() as f64
    }

    /// The keys that each query sees, query by query.
    fn seen(&self) -> Vec<std::ops::Range<usize>> {
        let window = self.window.unwrap_or(usize::MAX);
        let mut seen = Vec::new();
        for &len in &self.documents {
            let start = seen.len();
            seen.extend((start..start + len).map(|i| (i + 1).saturating_sub(window).max(start)..i + 1));
        }
        seen
    }
}

/// Σ aᵢ·bᵢ and Σ |aᵢ·bᵢ|.
fn dot(a: &[f64], b: &[f64]) -> (f64, f64) {
    a.iter().zip(b).fold((0.0, 0.0), |(sum, magnitude), (a, b)| {
        let product = a * b;
        (sum + product, magnitude + product.abs())
    })
}

/// Widened once, as every number meets many others.
fn wide(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// 2⁻ᵇ
fn unit(bits: i32) -> f64 {
    2f64.powi(-bits)
}

struct Heads<'a> {
    shape: AttentionShape,
    qkv: &'a [f64],
}

impl Heads<'_> {
    fn at(&self, token: usize, column: usize) -> &[f64] {
        &self.qkv[token * self.shape.qkv() + column..][..self.shape.head_dim]
    }

    /// The score of a query and a key, and the largest error of an f32 sum of it, in any order and with the scaling. A
    /// soft cap is a tanh to 2⁻²¹, with an argument whose factor is rounded; the third number is its slope.
    fn score(&self, query: usize, key: usize, head: usize) -> (f64, f64, f64) {
        let (q, k) = (self.at(query, head * self.shape.head_dim), self.at(key, self.shape.key_column(head)));
        let (sum, magnitude) = dot(q, k);
        let scale = self.shape.scale();
        let (score, error) = (scale * sum, scale * magnitude * (self.shape.head_dim as f64 + 8.0) * unit(24));
        let Some(cap) = self.shape.soft_cap.map(f64::from) else { return (score, error, 1.0) };
        let tanh = (score / cap).tanh();
        (cap * tanh, error + cap * unit(21), 1.0 - tanh * tanh)
    }
}

impl AttentionOperation {
    /// out and its bounds, and lse. A term of out is the product of `exponentials` exponentials: more than one where
    /// parts of the keys are combined.
    pub fn forward(&self, qkv: &[bf16], exponentials: usize) -> (Vec<(f64, f64)>, Vec<f64>) {
        let qkv = wide(qkv);
        let (shape, heads) = (self.shape, Heads { shape: self.shape, qkv: &qkv });
        let d = shape.head_dim;
        let (mut out, mut lse) = (Vec::new(), Vec::new());
        for (query, keys) in self.seen().into_iter().enumerate() {
            for head in 0..shape.heads {
                let scores: Vec<(f64, f64, f64)> = keys.clone().map(|key| heads.score(query, key, head)).collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |max, score| max.max(score.0));
                let sum: f64 = scores.iter().map(|score| (score.0 - max).exp()).sum();
                lse.push(max + sum.ln());
                let (mut value, mut bound) = (vec![0.0; d], vec![0.0; d]);
                // Errors of the normalizer: relative ones of every term.
                let worst = scores.iter().fold(0.0f64, |worst, score| worst.max(score.1));
                let exponential = exponentials as f64 * (max.abs() + 20.0) * unit(23);
                let relative =
                    unit(8) + 2.0 * (worst + exponential) + (keys.len() + 8 * exponentials) as f64 * unit(24);
                for (key, score) in keys.clone().zip(&scores) {
                    let p = (score.0 - max).exp() / sum;
                    for (i, v) in heads.at(key, shape.value_column(head)).iter().enumerate() {
                        value[i] += p * v;
                        bound[i] += p * v.abs() * relative;
                    }
                }
                out.extend(value.into_iter().zip(bound).map(|(value, bound)| (value, bound + unit(8) * value.abs())));
            }
        }
        (out, lse)
    }

    /// The error of 1 − tanh², of a score with an error of `score_error`.
    fn slope_error(&self, score_error: f64) -> f64 {
        self.shape.soft_cap.map_or(0.0, |cap| 2.0 * score_error / f64::from(cap) + unit(22))
    }

    /// dqkv and its bounds.
    fn gradient(&self, qkv: &[bf16], dout: &[bf16], out: &[bf16], lse: &[f32]) -> Vec<(f64, f64)> {
        let [qkv, dout, out] = [qkv, dout, out].map(wide);
        let (shape, heads) = (self.shape, Heads { shape: self.shape, qkv: &qkv });
        let (d, width) = (shape.head_dim, shape.qkv());
        let mut gradient = vec![(0.0, 0.0); qkv.len()];
        let add = |to: &mut [(f64, f64)], factor: f64, error: f64, from: &[f64]| {
            for (to, from) in to.iter_mut().zip(from) {
                to.0 += factor * from;
                to.1 += error * from.abs();
            }
        };
        for (query, keys) in self.seen().into_iter().enumerate() {
            for head in 0..shape.heads {
                let row = (query * shape.heads + head) * d;
                let (dout, out) = (&dout[row..row + d], &out[row..row + d]);
                let (delta, delta_magnitude) = dot(dout, out);
                let q_column = head * d;
                for key in keys.clone() {
                    let (score, score_error, slope) = heads.score(query, key, head);
                    let p = (score - f64::from(lse[query * shape.heads + head])).exp();
                    let relative = score_error + (score.abs() + 20.0) * unit(23);
                    let (k_column, v_column) = (shape.key_column(head), shape.value_column(head));
                    let (dp, dp_magnitude) = dot(dout, heads.at(key, v_column));
                    let free = shape.scale() * p * (dp - delta);
                    let (ds, slope_error) = (free * slope, self.slope_error(score_error));
                    let sums = (d as f64 + 4.0) * unit(24) * (dp_magnitude + delta_magnitude);
                    let terms = keys.len().max(64) as f64 * unit(24);
                    let ds_error = ds.abs() * (unit(8) + relative + terms)
                        + shape.scale() * p * sums * (slope + slope_error)
                        + free.abs() * slope_error;
                    add(&mut gradient[query * width + q_column..][..d], ds, ds_error, heads.at(key, k_column));
                    add(&mut gradient[key * width + k_column..][..d], ds, ds_error, heads.at(query, q_column));
                    let p_error = p * (unit(8) + relative + terms);
                    add(&mut gradient[key * width + v_column..][..d], p, p_error, dout);
                }
            }
        }
        gradient.into_iter().map(|(value, bound)| (value, bound + unit(8) * value.abs())).collect()
    }
}

impl Operation for AttentionOperation {
    type Inputs = Host;
    type Buffers = Buffers;
    type Output = Output;

    fn name(&self) -> String {
        if self.backward { "attention backward".into() } else { "attention".into() }
    }

    fn shape(&self) -> String {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        format!("{} tokens, {heads}/{kv_heads} heads of {head_dim}", self.tokens())
    }

    /// 2 products forward, 5 backward.
    fn flops(&self) -> f64 {
        let products = if self.backward { 5.0 } else { 2.0 };
        products * 2.0 * self.pairs() * (self.shape.heads * self.shape.head_dim) as f64
    }

    fn bytes(&self) -> f64 {
        let (qkv, out, lse) = (2 * self.shape.qkv(), 2 * self.shape.out(), 4 * self.shape.heads);
        let row = if self.backward { 2 * qkv + 2 * out + lse } else { qkv + out + lse };
        (self.tokens() * row) as f64
    }

    fn inputs(&self) -> Host {
        let mut stream = rng::RngStream::new(self.seed, 12);
        let mut numbers = |len: usize, size: f32| {
            to_bf16(&(0..len).map(|_| (stream.uniform() * 2.0 - 1.0) * size).collect::<Vec<f32>>())
        };
        let m = self.tokens();
        let (qkv, dout) = (numbers(m * self.shape.qkv(), self.size), numbers(m * self.shape.out(), 1.0));
        let mut boundaries = vec![0u32];
        for &len in &self.documents {
            boundaries.push(boundaries[boundaries.len() - 1] + len as u32);
        }
        let (forward, lse) = self.forward(&qkv, 1);
        let out: Vec<bf16> = forward.iter().map(|(value, _)| bf16::from_f64(*value)).collect();
        let lse: Vec<f32> = lse.into_iter().map(|lse| lse as f32).collect();
        let expected = if self.backward { self.gradient(&qkv, &dout, &out, &lse) } else { forward };
        Host { qkv, dout, boundaries, out, lse, expected }
    }

    fn upload(&self, device: &Device, host: &Host) -> Result<Buffers> {
        let nan = |len: usize| vec![bf16::NAN; len];
        let poisoned = vec![f32::NAN; host.lse.len()];
        Ok(Buffers {
            qkv: device.upload(&host.qkv)?,
            boundaries: device.upload(&host.boundaries)?,
            out: device.upload(if self.backward { host.out.clone() } else { nan(host.out.len()) }.as_slice())?,
            lse: device.upload(if self.backward { &host.lse } else { &poisoned })?,
            dout: device.upload(&host.dout)?,
            dqkv: device.upload(&nan(host.qkv.len()))?,
            workspace: device.upload(&vec![f32::NAN; workspace_len_of(self.tokens(), &self.shape)])?,
        })
    }

    fn launch(&self, buffers: &mut Buffers, stream: Stream) -> Result<()> {
        if !self.backward {
            let Buffers { qkv, boundaries, out, lse, .. } = buffers;
            let (qkv, boundaries) = (qkv.view(), boundaries.view());
            let input = Attention { shape: self.shape, m: self.tokens(), qkv, boundaries, window: self.window };
            return attention(&input, out.view_mut(), lse.view_mut(), stream);
        }
        let Buffers { qkv, boundaries, out, lse, dout, dqkv, workspace } = buffers;
        let (qkv, boundaries) = (qkv.view(), boundaries.view());
        let input = Attention { shape: self.shape, m: self.tokens(), qkv, boundaries, window: self.window };
        let (dout, out, lse) = (dout.view(), out.view(), lse.view());
        attention_backward(&input, dout, out, lse, dqkv.view_mut(), workspace.view_mut(), stream)
    }

    fn download(&self, device: &Device, buffers: &Buffers) -> Result<Output> {
        let values = device.download(if self.backward { &buffers.dqkv } else { &buffers.out })?;
        let lse = device.download(&buffers.lse)?;
        Ok(Output {
            values: values.into_iter().map(bf16::to_bits).collect(),
            lse: lse.into_iter().map(f32::to_bits).collect(),
        })
    }

    fn check(&self, host: &Host, output: &Output, _: usize) -> std::result::Result<(), String> {
        for (i, (&found, &(expected, bound))) in output.values.iter().zip(&host.expected).enumerate() {
            let found = bf16::from_bits(found).to_f64();
            if (found - expected).abs() > bound + 1e-38 || found.is_nan() {
                let width = if self.backward { self.shape.qkv() } else { self.shape.out() };
                let (token, column) = (i / width, i % width);
                return Err(format!(
                    "token {token}, column {column}: found {found}, expected {expected}, bound {bound}"
                ));
            }
        }
        for (i, (&found, &expected)) in output.lse.iter().zip(&host.lse).enumerate() {
            let found = f32::from_bits(found);
            // A tanh is within 2⁻²¹.
            let bound = (expected.abs() + 20.0) * 2f32.powi(-18) + self.shape.soft_cap.unwrap_or(0.0) * 2f32.powi(-21);
            if (found - expected).abs() > bound || found.is_nan() {
                return Err(format!("lse {i}: found {found}, expected {expected}"));
            }
        }
        Ok(())
    }
}
