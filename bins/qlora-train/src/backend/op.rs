//! The operations of a step, as data: the one place with an operation's name, the operands that it reads and writes,
//! its FLOPs and the units of its speed. A backend computes them ([`Compute::compute`](super::Compute::compute)), one
//! arm each; the dry run, the traces and the FLOP counter are generic over them.
//! Letters: H hidden size, I intermediate size, N and K output and input features, M tokens. S = scale·dropout(X)·Aᵀ
//! and T = scale·dY·B are the low-rank projections of an input and of a gradient.

use super::{BufferShape, CheckedBatch, LinearGroup, MaybeTrained, OpWork, Operands, TableShape};
use crate::bail_usage;
use crate::error::Result;
use qlora_kernels::rng::Dropout;
use qlora_kernels::shape::{AttentionShape, GateActivation};
use std::ops::Range;

/// The rotation of queries and keys in the operation that normalizes them, by table number `table`.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    pub table: usize,
    /// Rotates the norm's input instead of its output
    pub before_norm: bool,
}

/// One operation with its operands. It works on a range of the batch's tokens, which every buffer covers.
pub enum Op<'a, B: Operands + ?Sized> {
    /// out `[H]` = `scale` times the rows of `table` that the batch's input ids name.
    Embed { table: &'a B::Table, scale: f32, out: &'a mut B::Buffer },
    /// out `[H]` = RMSNorm(x `[H]`).
    RmsNorm { x: &'a B::Buffer, weight: &'a B::Vector, eps: f32, out: &'a mut B::Buffer },
    /// sum `[H]` = x `[H]` + delta `[H]`, out `[H]` = RMSNorm(sum).
    AddRmsNorm {
        x: &'a B::Buffer,
        delta: &'a B::Buffer,
        sum: &'a mut B::Buffer,
        weight: &'a B::Vector,
        eps: f32,
        out: &'a mut B::Buffer,
    },
    /// sum `[H]` = x `[H]` + RMSNorm(delta `[H]`).
    RmsNormAdd { x: &'a B::Buffer, delta: &'a B::Buffer, weight: &'a B::Vector, eps: f32, sum: &'a mut B::Buffer },
    /// dx `[H]` = the gradient of RMSNorm at x, or += with `accumulate`.
    RmsNormBackward {
        dy: &'a B::Buffer,
        x: &'a B::Buffer,
        weight: &'a B::Vector,
        eps: f32,
        accumulate: bool,
        dx: &'a mut B::Buffer,
    },
    /// S `[low_rank_columns]` = scale · dropout(x) · Aᵀ.
    LoraDown { x: &'a B::Buffer, group: &'a LinearGroup<B>, dropout: Option<Dropout>, s: &'a mut B::Buffer },
    /// y `[ΣN]` = x · Wᵀ + S · Bᵀ + bias.
    Linear { x: &'a B::Buffer, s: Option<&'a B::Buffer>, group: &'a LinearGroup<B>, y: &'a mut B::Buffer },
    /// T `[low_rank_columns]` = scale · dy · B.
    LoraDyB { dy: &'a B::Buffer, group: &'a LinearGroup<B>, t: &'a mut B::Buffer },
    /// dx `[K]` = dy · W + dropout(T · A), or += with `accumulate`.
    LinearDx {
        dy: &'a B::Buffer,
        t: Option<&'a B::Buffer>,
        group: &'a LinearGroup<B>,
        dropout: Option<Dropout>,
        accumulate: bool,
        dx: &'a mut B::Buffer,
    },
    /// dA += Tᵀ · dropout(x), dB += dyᵀ · S, summed over 256 tokens at a time: ranges that are cut at multiples of 256
    /// and run in order give the bits of the whole.
    LoraGradients {
        x: &'a B::Buffer,
        dy: &'a B::Buffer,
        s: &'a B::Buffer,
        t: &'a B::Buffer,
        group: &'a mut LinearGroup<B>,
        dropout: Option<Dropout>,
    },
    /// out = RMSNorm of the queries and keys of q‖k‖v, of each head or of all of them together, with their rotation;
    /// values are copied. The weights are that of the queries and that of the keys, `[D]` or `[H·D]` and `[Hkv·D]`.
    HeadNorm {
        qkv: &'a B::Buffer,
        weights: [&'a B::Vector; 2],
        eps: f32,
        shape: AttentionShape,
        rotation: Option<Rotation>,
        out: &'a mut B::Buffer,
    },
    /// Turns the gradient of [`Self::HeadNorm`]'s output into that of its input q‖k‖v.
    HeadNormBackward {
        qkv: &'a B::Buffer,
        weights: [&'a B::Vector; 2],
        eps: f32,
        shape: AttentionShape,
        rotation: Option<Rotation>,
        dqkv: &'a mut B::Buffer,
    },
    /// Rotates the queries and keys of q‖k‖v in place, by the angles of table number `table`; `inverse` is the
    /// gradient.
    Rope { qkv: &'a mut B::Buffer, shape: AttentionShape, table: usize, inverse: bool },
    /// out `[H·D]` = attention within each document, lse `[H]` = the log-sum-exp of its scores. With a `window` a query
    /// sees that many keys at most, its own included.
    Attention {
        qkv: &'a B::Buffer,
        shape: AttentionShape,
        window: Option<usize>,
        out: &'a mut B::Buffer,
        lse: &'a mut B::Buffer,
    },
    AttentionBackward {
        dout: &'a B::Buffer,
        qkv: &'a B::Buffer,
        out: &'a B::Buffer,
        lse: &'a B::Buffer,
        shape: AttentionShape,
        window: Option<usize>,
        dqkv: &'a mut B::Buffer,
    },
    /// Copies keys and values of q‖k‖v, already rotated, to `cache` `[2·Hkv·D]`: those of position p of document d to
    /// row `starts[d] + p`.
    AppendToCache { qkv: &'a B::Buffer, shape: AttentionShape, starts: &'a [u32], cache: &'a mut B::Buffer },
    /// out `[H·D]` = attention of the batch's queries over the cached rows of their documents, their own included.
    AttentionOverCache {
        qkv: &'a B::Buffer,
        cache: &'a B::Buffer,
        shape: AttentionShape,
        window: Option<usize>,
        starts: &'a [u32],
        out: &'a mut B::Buffer,
    },
    /// out `[I]` = activation(gate) ∘ up.
    Swiglu { gate_up: &'a B::Buffer, activation: GateActivation, out: &'a mut B::Buffer },
    /// Turns gate‖up `[2·I]` into its gradient; `out` `[I]`, where it is wanted, becomes what [`Self::Swiglu`] gives.
    SwigluBackward {
        dout: &'a B::Buffer,
        activation: GateActivation,
        gate_up: &'a mut B::Buffer,
        out: Option<&'a mut B::Buffer>,
    },
    /// The cross-entropy of the supervised tokens, and `weight` times its gradient in `dx`; with a `soft_cap` of logits
    /// z that are `cap · tanh(z / cap)`. Ranges run in order from
    /// token 0; the sum over the batch is [`Backend::loss_sum`](super::Backend::loss_sum).
    CrossEntropy {
        x: &'a B::Buffer,
        head: &'a B::Table,
        weight: f32,
        soft_cap: Option<f32>,
        dx: Option<&'a mut B::Buffer>,
    },
    /// [`Self::CrossEntropy`] with the gradient of a trained output layer: dW += `weight` · dlogitsᵀ · x
    TrainedCrossEntropy {
        x: &'a B::Buffer,
        head: &'a mut B::Table,
        weight: f32,
        soft_cap: Option<f32>,
        dx: &'a mut B::Buffer,
    },
    /// dW += `scale` times the rows of dout `[H]`, each to that of its token.
    EmbedBackward { dout: &'a B::Buffer, scale: f32, table: &'a mut B::Table },
    /// dw += Σ dy ∘ x / rms(x), the gradient of RMSNorm's weight, summed over 256 tokens at a time.
    NormGradient { dy: &'a B::Buffer, x: &'a B::Buffer, eps: f32, weight: &'a mut B::Vector },
    /// The gradients of the weights of [`Self::HeadNorm`] without a rotation, where they are trained; `dqkv` is that of
    /// its output.
    HeadNormGradients {
        dqkv: &'a B::Buffer,
        qkv: &'a B::Buffer,
        eps: f32,
        shape: AttentionShape,
        weights: [&'a mut B::Vector; 2],
    },
    /// y `[ΣN]` = m / norm ∘ (y − bias) + bias, in the layers that have magnitudes.
    Magnitude { group: &'a LinearGroup<B>, y: &'a mut B::Buffer },
    /// dm += Σ dy ∘ (z − bias) / norm of z `[ΣN]`, the output before its magnitudes, summed over 256 tokens at a time;
    /// then z = m / norm ∘ dy, the gradient of that output.
    MagnitudeBackward { dy: &'a B::Buffer, z: &'a mut B::Buffer, group: &'a mut LinearGroup<B> },
    /// Logits `[vocab]` of some tokens of the batch, without a soft cap, each as it would be alone. A dry run leaves
    /// `out` as it is.
    Logits { x: &'a B::Buffer, head: &'a B::Table, tokens: &'a [usize], out: &'a mut Vec<Vec<f32>> },
}

/// The kind of norms, at whose rate other operations go that move values.
pub const NORM: &str = "norm";

/// Products over the scores of causal attention: Q·Kᵀ and P·V.
pub const ATTENTION_PRODUCTS: f64 = 2.0;

/// Products of its gradient: the scores Q·Kᵀ again, since out and lse are all that is kept of them, then dP = dO·Vᵀ, dV
/// = Pᵀ·dO, dQ = dS·K and dK = dSᵀ·Q (Dao et al. 2022, algorithm 4). A GPU, and the CPU in f32, compute the first two
/// twice, once for dQ and once for dK and dV, because that needs no sums across blocks; it is their way, not the
/// operation's work, and speeds compare with those that are published of five.
pub const ATTENTION_BACKWARD_PRODUCTS: f64 = 5.0;

/// FLOPs of `products` products over the scores that the queries of a document of `tokens` see, with heads of `width`
/// values together.
pub fn attention_flops(products: f64, tokens: usize, window: Option<usize>, width: usize) -> f64 {
    // A multiply-add for each value and key that is seen, two FLOPs each.
    products * tokens as f64 * (twice_the_keys(tokens, window) * width) as f64
}

/// Twice the keys that a query sees on average in one document of `tokens` tokens: half of the scores without a window.
fn twice_the_keys(tokens: usize, window: Option<usize>) -> usize {
    match window {
        Some(window) if window < tokens => 2 * window - window * window / tokens,
        _ => tokens,
    }
}

/// The gradient of a trainable tensor with rows of `columns` columns, with its name in messages.
fn gradient_of<'a, B: Operands + ?Sized>(
    what: &str,
    param: Option<&'a B::Param>,
    columns: usize,
) -> Option<(String, Output<'a, B>)> {
    Some((format!("the gradient of {what}"), Output::Gradient(param?, columns)))
}

/// Something that an operation wrote.
pub enum Output<'a, B: Operands + ?Sized> {
    Buffer(&'a B::Buffer),
    /// The gradient of a trainable tensor, and the columns of its rows.
    Gradient(&'a B::Param, usize),
}

impl<B: Operands + ?Sized> Op<'_, B> {
    /// The description of the operation on `tokens` tokens: its name and its work, as traces, plans, `bench` and the
    /// predictions of `tools/predict` read them. FLOPs are those of products with weights and of attention, a
    /// multiply-add counted as two, beside which the rest is little. One document is the most that a batch can cost.
    pub fn work(&self, tokens: usize) -> OpWork {
        let m = tokens as f64;
        let moves = |name, values: usize| OpWork::moving(name, tokens, values);
        // Multiply-adds of a token, and what their rate is of.
        let linear = |name, group: &LinearGroup<B>, products: usize, units: usize| OpWork {
            k: group.k,
            segments: group.work(),
            ..OpWork::computing(name, tokens, 2.0 * m * products as f64, m * units as f64)
        };
        let attention = |name, products, shape: &AttentionShape, window: Option<usize>| {
            let flops = attention_flops(products, tokens, window, shape.out());
            let window = window.filter(|&window| window < tokens).unwrap_or(0);
            let units = flops / products;
            OpWork { heads: heads(shape), window, whole_batch: true, ..OpWork::computing(name, tokens, flops, units) }
        };
        // Products over the vocabulary: logits, the gradient of what they are of, that of the output layer.
        let loss = |x: &B::Buffer, vocab: usize, products: f64| {
            let product = m * (x.width() * vocab) as f64;
            // The rate is that of loss and gradient together.
            let units = product * (products / 2.0).max(1.0);
            let work = OpWork::computing("output layer and loss", tokens, 2.0 * products * product, units);
            OpWork { k: x.width(), vocab, ..work }
        };
        let like_norm = |work: OpWork| OpWork { at_rate_of: Some(NORM), ..work };
        match self {
            Self::Embed { out, .. } => moves("embedding", 2 * out.width()),
            Self::RmsNorm { x, .. } => moves(NORM, 2 * x.width()),
            Self::AddRmsNorm { x, .. } => moves(NORM, 4 * x.width()),
            Self::RmsNormAdd { x, .. } => moves(NORM, 3 * x.width()),
            Self::RmsNormBackward { x, accumulate, .. } => {
                moves("norm, backward", (3 + usize::from(*accumulate)) * x.width())
            }
            // Those of low rank are bound by the rows that they read.
            Self::LoraDown { group, .. } => linear("LoRA X·Aᵀ", group, group.k * group.r(), group.k),
            Self::Linear { group, .. } => {
                let products = group.k * group.n();
                linear("linear", group, products + group.low_rank_parameters_of_b(), products)
            }
            Self::LoraDyB { group, .. } => linear("LoRA dY·B", group, group.low_rank_parameters_of_b(), group.n()),
            Self::LinearDx { group, .. } => {
                linear("linear, backward", group, group.k * (group.n() + group.r()), group.k * group.n())
            }
            Self::LoraGradients { group, .. } => {
                let trained = group.k * group.r() + group.low_rank_parameters_of_b();
                OpWork { trained, ..linear("LoRA gradients", group, trained, group.k + group.n()) }
            }
            Self::HeadNorm { shape, rotation, .. } => {
                let name = if rotation.is_some() { "norm and rotation of q and k" } else { "norm of q and k" };
                OpWork { heads: heads(shape), ..moves(name, 2 * shape.qkv()) }
            }
            Self::HeadNormBackward { shape, rotation, .. } => {
                let name = match rotation {
                    Some(_) => "norm and rotation of q and k, backward",
                    None => "norm of q and k, backward",
                };
                OpWork { heads: heads(shape), ..moves(name, 3 * shape.qkv()) }
            }
            Self::Rope { shape, .. } => {
                let values = 2 * (shape.heads + shape.kv_heads) * shape.head_dim;
                OpWork { heads: heads(shape), ..moves("rotary embedding", values) }
            }
            Self::Attention { shape, window, .. } => attention("attention", ATTENTION_PRODUCTS, shape, *window),
            Self::AttentionBackward { shape, window, .. } => {
                attention("attention, backward", ATTENTION_BACKWARD_PRODUCTS, shape, *window)
            }
            Self::AppendToCache { shape, .. } => {
                let moved = moves("KV cache", 4 * shape.kv_heads * shape.head_dim);
                OpWork { heads: heads(shape), whole_batch: true, ..moved }
            }
            Self::AttentionOverCache { shape, window, cache, .. } => {
                let keys = cache.tokens().len().min(window.unwrap_or(usize::MAX));
                let products = m * (keys * shape.out()) as f64 * ATTENTION_PRODUCTS;
                let work = OpWork::computing("attention", tokens, 2.0 * products, products);
                OpWork { heads: heads(shape), whole_batch: true, ..work }
            }
            Self::Swiglu { out, .. } => moves("SwiGLU", 3 * out.width()),
            Self::SwigluBackward { dout, out, .. } => {
                let moved = moves("SwiGLU, backward", (5 + usize::from(out.is_some())) * dout.width());
                OpWork { k: dout.width(), ..moved }
            }
            Self::CrossEntropy { x, head, dx, .. } => loss(x, head.vocab(), if dx.is_some() { 2.0 } else { 1.0 }),
            Self::TrainedCrossEntropy { x, head, .. } => {
                loss(x, head.vocab(), 2.0 + head.trained_rows() as f64 / head.vocab() as f64)
            }
            Self::EmbedBackward { dout, .. } => like_norm(moves("embedding, backward", 3 * dout.width())),
            Self::Magnitude { group, .. } => like_norm(moves("magnitudes", 2 * group.n())),
            Self::MagnitudeBackward { group, .. } => like_norm(moves("magnitudes, backward", 3 * group.n())),
            Self::NormGradient { x, .. } => like_norm(moves("norm, gradient of the weight", 2 * x.width())),
            Self::HeadNormGradients { shape, .. } => {
                let moved = like_norm(moves("norm, gradient of the weight", 2 * shape.qkv()));
                OpWork { heads: heads(shape), ..moved }
            }
            Self::Logits { x, head, tokens: of, .. } => {
                let products = (of.len() * x.width()) as f64 * head.vocab() as f64;
                let work = OpWork::computing("logits", tokens, 2.0 * products, products);
                OpWork { k: x.width(), vocab: head.vocab(), whole_batch: true, ..work }
            }
        }
    }

    /// The name in traces, `bench` and messages.
    pub fn name(&self) -> &'static str {
        self.work(0).name
    }

    /// The operands that it wrote, each with its name in messages.
    pub fn outputs(&self) -> Vec<(String, Output<'_, B>)> {
        let one = |name: &str, buffer| vec![(name.to_owned(), Output::Buffer(buffer))];
        let of = |what: &str, group: &LinearGroup<B>, buffer| one(&format!("{what} of {}", group.label), buffer);
        match self {
            Self::Embed { out, .. } => one("the residual stream", *out),
            Self::RmsNorm { out, .. } => one("the norm of the residual stream", *out),
            Self::AddRmsNorm { sum, out, .. } => {
                let mut outputs = one("the residual stream", *sum);
                outputs.extend(one("the norm of the residual stream", *out));
                outputs
            }
            Self::RmsNormAdd { sum, .. } => one("the residual stream", *sum),
            Self::RmsNormBackward { dx, .. } => one("the gradient of the residual stream", *dx),
            Self::LoraDown { group, s, .. } => of("X·Aᵀ", group, *s),
            Self::Linear { group, y, .. } => of("the output", group, *y),
            Self::LoraDyB { group, t, .. } => of("dY·B", group, *t),
            Self::LinearDx { group, dx, .. } => of("the gradient of the input", group, *dx),
            Self::LoraGradients { group, .. } => {
                let name = |factor| format!("the gradient of lora_{factor} of one of {}", group.label);
                let loras = group.segments.iter().filter_map(|segment| segment.lora.as_ref());
                loras
                    .flat_map(|lora| {
                        let a = (name("A"), Output::Gradient(&lora.a, group.k));
                        [a, (name("B"), Output::Gradient(&lora.b, lora.r))]
                    })
                    .collect()
            }
            Self::HeadNorm { out, .. } => one("the norm of queries and keys", *out),
            Self::HeadNormBackward { dqkv, .. } => one("the gradient of queries, keys and values", *dqkv),
            Self::Rope { qkv, .. } => one("queries, keys and values", *qkv),
            Self::Attention { out, lse, .. } => {
                let mut outputs = one("the log-sum-exp of the scores", *lse);
                outputs.extend(one("the attention's output", *out));
                outputs
            }
            Self::AttentionBackward { dqkv, .. } => one("the gradient of queries, keys and values", *dqkv),
            Self::AppendToCache { qkv, .. } => one("queries, keys and values", *qkv),
            Self::AttentionOverCache { out, .. } => one("the attention's output", *out),
            Self::Swiglu { out, .. } => one("activation(gate) · up", *out),
            Self::SwigluBackward { gate_up, out, .. } => {
                let mut outputs = one("the gradient of gate and up", *gate_up);
                outputs.extend(out.as_deref().into_iter().flat_map(|out| one("activation(gate) · up", out)));
                outputs
            }
            Self::CrossEntropy { dx: Some(dx), .. } => one("the gradient of the loss", *dx),
            Self::CrossEntropy { dx: None, .. } | Self::Logits { .. } => Vec::new(),
            Self::TrainedCrossEntropy { x, head, dx, .. } => {
                let mut outputs = one("the gradient of the loss", *dx);
                outputs.extend(gradient_of("the output layer", head.param(), x.width()));
                outputs
            }
            Self::Magnitude { group, y } => of("the output", group, *y),
            Self::MagnitudeBackward { z, group, .. } => {
                let mut outputs = of("the gradient of the output before the magnitudes", group, *z);
                for segment in &group.segments {
                    let magnitude = segment.lora.as_ref().and_then(|lora| lora.magnitude.as_ref());
                    outputs.extend(gradient_of("a magnitude", magnitude.map(|magnitude| &magnitude.m), segment.n));
                }
                outputs
            }
            Self::EmbedBackward { dout, table, .. } => {
                gradient_of("the embedding", table.param(), dout.width()).into_iter().collect()
            }
            Self::NormGradient { x, weight, .. } => {
                gradient_of("a norm's weight", weight.param(), x.width()).into_iter().collect()
            }
            Self::HeadNormGradients { weights, shape, .. } => {
                let of = |weight| gradient_of("the weight of the norm of q or k", weight, shape.qkv());
                weights.iter().filter_map(|weight| of(weight.param())).collect()
            }
        }
    }

    /// Refuses token ids of the batch that its table does not have.
    pub fn check(&self, batch: &CheckedBatch, tokens: &Range<usize>) -> Result<()> {
        let (id, vocab) = match self {
            Self::Embed { table, .. } => {
                let vocab = table.vocab();
                (
                    batch.input_ids[tokens.clone()].iter().find(|&&id| id as usize >= vocab).map(|&id| i64::from(id)),
                    vocab,
                )
            }
            Self::CrossEntropy { .. } | Self::TrainedCrossEntropy { .. } => {
                let vocab = match self {
                    Self::CrossEntropy { head, .. } => head.vocab(),
                    Self::TrainedCrossEntropy { head, .. } => head.vocab(),
                    _ => unreachable!("one of them is matched"),
                };
                let beyond = |&&target: &&i32| target >= 0 && target as usize >= vocab;
                (batch.targets[tokens.clone()].iter().find(beyond).map(|&target| i64::from(target)), vocab)
            }
            _ => return Ok(()),
        };
        match id {
            Some(id) => bail_usage!("token id {id} is outside the vocabulary of {vocab}"),
            None => Ok(()),
        }
    }
}

/// H, Hkv and D.
fn heads(shape: &AttentionShape) -> [usize; 3] {
    [shape.heads, shape.kv_heads, shape.head_dim]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over queries, less the half of a key that every query's own is counted for.
    #[test]
    fn the_keys_of_a_window_are_counted() {
        for (tokens, window) in [(1, 1), (10, 3), (4096, 512), (4096, 4095), (4096, 4096), (16, 100)] {
            let seen: usize = (1..=tokens).map(|keys: usize| keys.min(window)).sum();
            let found = tokens * twice_the_keys(tokens, Some(window)) / 2;
            assert!(seen.abs_diff(found) <= tokens, "{tokens} {window}: {found}, {seen} are seen");
        }
        assert_eq!(twice_the_keys(77, None), 77);
    }

    /// Two products forward and five backward, each a multiply-add for every value, query and key that it sees.
    #[test]
    fn attention_has_the_flops_of_its_products_over_what_is_seen() {
        let forward = attention_flops(ATTENTION_PRODUCTS, 64, None, 24);
        assert_eq!(forward, 2.0 * 2.0 * (64.0 * 64.0 / 2.0) * 24.0);
        let backward = attention_flops(ATTENTION_BACKWARD_PRODUCTS, 64, None, 24);
        assert_eq!(backward, 2.5 * forward);
        let windowed = attention_flops(ATTENTION_PRODUCTS, 64, Some(16), 24);
        assert_eq!(windowed, 2.0 * 2.0 * (64.0 * 14.0) * 24.0);
    }
}
