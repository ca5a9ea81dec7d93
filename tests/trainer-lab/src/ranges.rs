//! Operations on ranges of a batch's tokens, on any backend.

use crate::model::Documents;
use qlora_kernels::device::MemoryEnd;
use qlora_kernels::rng::{Dropout, RngStream};
use qlora_kernels::rope::{RopeScaling, RopeTable};
use qlora_kernels::shape::AttentionShape;
use qlora_train::arch::{Activation, Arch, Projection};
use qlora_train::backend::{
    Backend, BufferShape, LinearGroup, Lora, Magnitude, MaybeTrained, Op, Quantization, Residency, Rotation, Segment,
    StateFormat,
};
use qlora_train::base::synthetic::tiny_arch;
use qlora_train::files::tensor::{HostTensor, StoredType, WeightSource};
use qlora_train::lora::LoraSpec;
use qlora_train::model::ModelSpec;
use std::ops::Range;

const SHAPE: AttentionShape = AttentionShape { heads: 2, kv_heads: 1, head_dim: 64, soft_cap: None };
const HIDDEN: usize = 128;
const VOCAB: usize = 150;
const EPS: f32 = 1e-5;

/// A model with the shapes of the operations below, which is never built.
pub fn spec() -> ModelSpec {
    let config = Arch {
        hidden_size: HIDDEN,
        intermediate_size: 200,
        num_heads: SHAPE.heads,
        num_kv_heads: SHAPE.kv_heads,
        head_dim: SHAPE.head_dim,
        vocab_size: VOCAB,
        ..tiny_arch()
    };
    let lora = LoraSpec::uniform(&config, &Projection::ALL, 8, 8.0, 0.25);
    ModelSpec { trainable: true, positions: 400, seed: 1, ..ModelSpec::new(lora, config, Quantization::NF4, 800) }
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut stream = RngStream::new(seed, 1 << 41);
    (0..len).map(|_| stream.uniform() - 0.5).collect()
}

fn tensor(seed: u64, rows: usize, columns: usize) -> HostTensor {
    HostTensor::from_f32(vec![rows, columns], random(seed, rows * columns), StoredType::Bf16)
}

fn table<B: Backend>(b: &mut B, seed: u64, width: usize) -> B::Table {
    let read = &mut || Ok(tensor(seed, VOCAB, width));
    b.table("table", VOCAB, width, Residency::Device, StoredType::Bf16, read).unwrap()
}

fn all<B: Backend>(b: &B) -> Range<usize> {
    0..b.batch().tokens()
}

/// A buffer of random values for the whole batch: the rows of a random table.
fn filled<B: Backend>(b: &mut B, seed: u64, width: usize) -> B::Buffer {
    let (table, mut out) = (table(b, seed, width), b.alloc("test", width).unwrap());
    b.run(all(b), Op::Embed { table: &table, scale: 1.0, out: &mut out }).unwrap();
    out
}

fn bits<B: Backend>(b: &mut B, buffer: &B::Buffer) -> Vec<u32> {
    let tokens = all(b);
    b.values(buffer, &tokens).unwrap().into_iter().map(f32::to_bits).collect()
}

/// Two linear layers of one input, one of them with a bias and both with a low-rank term.
fn group<B: Backend>(b: &mut B) -> LinearGroup<B> {
    let quantization = Quantization::NF4;
    let mut segment = |seed: u64, n: usize, r: usize, bias: bool| {
        let read = &mut || Ok(WeightSource::Tensor(tensor(seed, n, HIDDEN)));
        let weight = b.weight("weight", n, HIDDEN, quantization, StoredType::Bf16, read).unwrap();
        let bias = bias.then(|| b.vector("bias", n, &mut || Ok(random(seed + 1, n))).unwrap());
        let mut param = |seed, len| b.param(len, Some(StateFormat::F32), &mut || Ok(random(seed, len))).unwrap();
        let lora = Some(Lora {
            r,
            scale: 0.7,
            a: param(seed + 2, r * HIDDEN),
            b: param(seed + 3, n * r),
            magnitude: None,
            factors: None,
            several: None,
        });
        Segment { n, weight, bias, lora }
    };
    let segments = vec![segment(10, 192, 8, true), segment(20, 64, 3, false)];
    let group = LinearGroup { k: HIDDEN, segments, dropout_id: 0, label: "q_proj".to_owned() };
    b.prepare_group("weight", &group).unwrap();
    group
}

/// Gives the first layer of a group magnitudes, and norms that they take the place of; the other gets none.
fn add_magnitudes<B: Backend>(b: &mut B, group: &mut LinearGroup<B>) {
    let n = group.segments[0].n;
    let positive = |seed| random(seed, n).into_iter().map(|x| 1.0 + x).collect::<Vec<f32>>();
    let mut vector = |seed| b.vector("norms", n, &mut || Ok(positive(seed))).unwrap();
    let (squares, norms) = (vector(40), vector(41));
    let m = b.param(n, Some(StateFormat::F32), &mut || Ok(random(42, n))).unwrap();
    let lora = group.segments[0].lora.as_mut().unwrap();
    lora.magnitude = Some(Magnitude { m, squares, norms });
    b.prepare_group("weight", group).unwrap();
}

fn trained_vector<B: Backend>(b: &mut B, seed: u64, len: usize) -> B::Vector {
    b.trained_vector("norms", len, StateFormat::F32, &mut || Ok(random(seed, len))).unwrap()
}

/// The bits of a gradient.
fn gradient<B: Backend>(b: &B, param: Option<&B::Param>) -> Vec<u32> {
    b.gradient(param.unwrap()).unwrap().into_iter().map(f32::to_bits).collect()
}

/// Operations of what is trained beside low-rank terms, once for each of `ranges`. The gradient of the output layer is
/// that of all of a batch at once.
fn outcomes_of_trained<B: Backend>(b: &mut B, ranges: &[Range<usize>]) -> Vec<(&'static str, Outcome)> {
    let mut found = Vec::new();
    let mut group = group(b);
    add_magnitudes(b, &mut group);
    let (mut y, mut z, dy) = (filled(b, 50, group.n()), filled(b, 51, group.n()), filled(b, 52, group.n()));
    for range in ranges {
        b.run(range.clone(), Op::Magnitude { group: &group, y: &mut y }).unwrap();
        b.run(range.clone(), Op::MagnitudeBackward { dy: &dy, z: &mut z, group: &mut group }).unwrap();
    }
    let magnitude = group.segments[0].lora.as_ref().unwrap().magnitude.as_ref().unwrap();
    let of_magnitude = gradient(b, Some(&magnitude.m));
    found.push(("magnitudes", vec![bits(b, &y), bits(b, &z), of_magnitude]));

    let (x, dout) = (filled(b, 53, HIDDEN), filled(b, 54, HIDDEN));
    let mut table = b.trained_table("table", VOCAB, HIDDEN, StateFormat::F32, &mut || Ok(random(55, VOCAB * HIDDEN)));
    let table = table.as_mut().unwrap();
    let mut weight = trained_vector(b, 56, HIDDEN);
    let read = &mut || Ok((tensor(61, VOCAB, HIDDEN), None));
    let (shape, states) = ([VOCAB, HIDDEN], Some(StateFormat::F32));
    let (residency, stored) = (Residency::Device, StoredType::Bf16);
    let mut some = b.table_with_rows("table", shape, residency, stored, &[0, 7, 149], states, read).unwrap();
    for range in ranges {
        b.run(range.clone(), Op::EmbedBackward { dout: &dout, scale: 1.7, table: &mut *table }).unwrap();
        b.run(range.clone(), Op::EmbedBackward { dout: &dout, scale: 1.7, table: &mut some }).unwrap();
        b.run(range.clone(), Op::NormGradient { dy: &dout, x: &x, eps: EPS, weight: &mut weight }).unwrap();
    }
    let (of_table, of_weight) = (gradient(b, table.param()), gradient(b, weight.param()));
    let of_rows = gradient(b, some.param());
    found.push(("gradients of tables and norms", vec![of_table, of_rows, of_weight]));

    let (qkv, dqkv) = (filled(b, 57, SHAPE.qkv()), filled(b, 58, SHAPE.qkv()));
    for widths in [[SHAPE.head_dim; 2], [SHAPE.out(), SHAPE.kv_heads * SHAPE.head_dim]] {
        let (mut q, mut k) = (trained_vector(b, 59, widths[0]), trained_vector(b, 60, widths[1]));
        for range in ranges {
            let weights = [&mut q, &mut k];
            let op = Op::HeadNormGradients { dqkv: &dqkv, qkv: &qkv, eps: EPS, shape: SHAPE, weights };
            b.run(range.clone(), op).unwrap();
        }
        found.push(("gradients of norms of heads", vec![gradient(b, q.param()), gradient(b, k.param())]));
    }
    found
}

/// The bits that one operation leaves behind.
type Outcome = Vec<Vec<u32>>;

/// Runs every operation that works on a range, once for each of `ranges`.
fn outcomes<B: Backend>(b: &mut B, ranges: &[Range<usize>]) -> Vec<(&'static str, Outcome)> {
    let mut found = Vec::new();
    let x = filled(b, 1, HIDDEN);
    let delta = filled(b, 2, HIDDEN);
    let weight = b.vector("norm", HIDDEN, &mut || Ok(random(3, HIDDEN))).unwrap();
    let embedding = table(b, 4, HIDDEN);

    let mut out = b.alloc("out", HIDDEN).unwrap();
    for range in ranges {
        b.run(range.clone(), Op::Embed { table: &embedding, scale: 12.3, out: &mut out }).unwrap();
    }
    found.push(("embed", vec![bits(b, &out)]));
    for range in ranges {
        b.run(range.clone(), Op::RmsNorm { x: &x, weight: &weight, eps: EPS, out: &mut out }).unwrap();
    }
    found.push(("rms_norm", vec![bits(b, &out)]));
    let mut sum = b.alloc("sum", HIDDEN).unwrap();
    for range in ranges {
        let op = Op::AddRmsNorm { x: &x, delta: &delta, sum: &mut sum, weight: &weight, eps: EPS, out: &mut out };
        b.run(range.clone(), op).unwrap();
    }
    found.push(("add_rms_norm", vec![bits(b, &sum), bits(b, &out)]));
    let mut sum = b.alloc("sum", HIDDEN).unwrap();
    for range in ranges {
        let op = Op::RmsNormAdd { x: &x, delta: &delta, weight: &weight, eps: EPS, sum: &mut sum };
        b.run(range.clone(), op).unwrap();
    }
    found.push(("rms_norm_add", vec![bits(b, &sum)]));
    for accumulate in [false, true] {
        let mut dx = filled(b, 5, HIDDEN);
        for range in ranges {
            let op = Op::RmsNormBackward { dy: &delta, x: &x, weight: &weight, eps: EPS, accumulate, dx: &mut dx };
            b.run(range.clone(), op).unwrap();
        }
        found.push(("rms_norm_backward", vec![bits(b, &dx)]));
    }

    let mut group = group(b);
    let dropout = Some(Dropout::new(7, 0, 3, 0.25));
    let columns = b.low_rank_columns(&group);
    let dy = filled(b, 6, group.n());
    let mut s = b.alloc("s", columns).unwrap();
    let mut t = b.alloc("t", columns).unwrap();
    let mut y = b.alloc("y", group.n()).unwrap();
    let mut dx = b.alloc("dx", HIDDEN).unwrap();
    for range in ranges {
        b.run(range.clone(), Op::LoraDown { x: &x, group: &group, dropout, s: &mut s }).unwrap();
    }
    found.push(("lora_down", vec![bits(b, &s)]));
    for range in ranges {
        b.run(range.clone(), Op::Linear { x: &x, s: Some(&s), group: &group, y: &mut y }).unwrap();
    }
    found.push(("linear", vec![bits(b, &y)]));
    for range in ranges {
        b.run(range.clone(), Op::LoraDyB { dy: &dy, group: &group, t: &mut t }).unwrap();
    }
    found.push(("lora_dy_b", vec![bits(b, &t)]));
    for (dropout, accumulate) in [(dropout, false), (dropout, true), (None, true)] {
        for range in ranges {
            let op = Op::LinearDx { dy: &dy, t: Some(&t), group: &group, dropout, accumulate, dx: &mut dx };
            b.run(range.clone(), op).unwrap();
        }
        found.push(("linear_dx", vec![bits(b, &dx)]));
    }
    for range in ranges {
        let op = Op::LoraGradients { x: &x, dy: &dy, s: &s, t: &t, group: &mut group, dropout };
        b.run(range.clone(), op).unwrap();
    }
    let loras = group.segments.iter().map(|segment| segment.lora.as_ref().unwrap());
    let gradients = loras.flat_map(|lora| [&lora.a, &lora.b]).map(|param| b.gradient(param).unwrap());
    let gradients = gradients.map(|gradient| gradient.into_iter().map(f32::to_bits).collect());
    found.push(("lora_gradients", gradients.collect()));

    let projected = filled(b, 7, SHAPE.qkv());
    // Norms of each head, and of all of q and all of k.
    for widths in [[SHAPE.head_dim; 2], [SHAPE.out(), SHAPE.kv_heads * SHAPE.head_dim]] {
        let mut norm = |seed, len| b.vector("norm", len, &mut || Ok(random(seed, len))).unwrap();
        let norms = [norm(31, widths[0]), norm(32, widths[1])];
        let (weights, qkv) = (norms.each_ref(), &projected);
        for rotation in [None, Some(false), Some(true)] {
            let (mut normed, mut dqkv) = (b.alloc("normed", SHAPE.qkv()).unwrap(), filled(b, 8, SHAPE.qkv()));
            let rotation = rotation.map(|before_norm| Rotation { table: 0, before_norm });
            for range in ranges {
                let op = Op::HeadNorm { qkv, weights, eps: EPS, shape: SHAPE, rotation, out: &mut normed };
                b.run(range.clone(), op).unwrap();
                let op = Op::HeadNormBackward { qkv, weights, eps: EPS, shape: SHAPE, rotation, dqkv: &mut dqkv };
                b.run(range.clone(), op).unwrap();
            }
            found.push(("head_norm", vec![bits(b, &normed), bits(b, &dqkv)]));
        }
    }

    for inverse in [false, true] {
        let mut qkv = filled(b, 8, SHAPE.qkv());
        for range in ranges {
            b.run(range.clone(), Op::Rope { qkv: &mut qkv, shape: SHAPE, table: 0, inverse }).unwrap();
        }
        found.push(("rope", vec![bits(b, &qkv)]));
    }
    let mut activated = b.alloc("activated", 200).unwrap();
    let dout = filled(b, 30, 200);
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let mut gate_up = filled(b, 9, 400);
        for range in ranges {
            b.run(range.clone(), Op::Swiglu { gate_up: &gate_up, activation, out: &mut activated }).unwrap();
        }
        let mut gradient = filled(b, 9, 400);
        let mut again = b.alloc("activated", 200).unwrap();
        for range in ranges {
            let (gate_up, out) = (&mut gate_up, None);
            b.run(range.clone(), Op::SwigluBackward { dout: &dout, activation, gate_up, out }).unwrap();
            let (gate_up, out) = (&mut gradient, Some(&mut again));
            b.run(range.clone(), Op::SwigluBackward { dout: &dout, activation, gate_up, out }).unwrap();
        }
        // The forward result that comes with a gradient has the bits of the forward pass.
        assert!(bits(b, &again) == bits(b, &activated) && bits(b, &gradient) == bits(b, &gate_up), "{activation:?}");
        found.push(("swiglu", vec![bits(b, &activated), bits(b, &gate_up)]));
    }

    for gradient in [true, false] {
        for range in ranges {
            let dx = gradient.then_some(&mut dx);
            b.run(range.clone(), Op::CrossEntropy { x: &x, head: &embedding, weight: 0.01, soft_cap: Some(3.0), dx })
                .unwrap();
        }
        let loss = b.loss_sum().unwrap();
        assert!(loss.is_finite() && loss > 0.0, "{loss}");
        let loss = loss.to_bits();
        found.push(("cross_entropy", vec![vec![loss as u32, (loss >> 32) as u32], bits(b, &dx)]));
    }
    found.extend(outcomes_of_trained(b, ranges));
    found
}

/// Bits, not tolerances: every operation of one token at a time, over parts of a batch as over the whole. Parts end at
/// multiples of 256 tokens, in which sums over tokens run. What needs the whole batch says so, and a buffer that does
/// not cover a range is refused.
pub fn check_ranges<B: Backend>(b: &mut B) {
    let half = SHAPE.head_dim / 2;
    b.rope_table(400, half, &mut || RopeTable::new(SHAPE.head_dim, 100.0, RopeScaling::Default, 400)).unwrap();
    let documents = Documents::random(&[300, 5, 350, 145], VOCAB, 3).weighted(4);
    b.begin(&documents.batch()).unwrap();
    let tokens = all(b).end;
    let whole = outcomes(b, std::slice::from_ref(&(0..tokens)));
    for (name, outcome) in &whole {
        let varied = outcome.iter().all(|bits| bits.iter().any(|&x| x != bits[0]));
        assert!(varied, "{name} left one value everywhere");
    }
    for ranges in [vec![0..256, 256..tokens], vec![0..512, 512..768, 768..tokens]] {
        for ((name, part), (_, whole)) in outcomes(b, &ranges).iter().zip(&whole) {
            assert!(part == whole, "{name} over {ranges:?}");
        }
    }

    // A tile has rows for some tokens only, and moves along the batch.
    let x = filled(b, 1, HIDDEN);
    let weight = b.vector("norm", HIDDEN, &mut || Ok(random(3, HIDDEN))).unwrap();
    let mut tile = b.alloc_tile("tile", 256, HIDDEN).unwrap();
    for first in [256, 0, 512] {
        tile.move_to(first);
        let range = first..(first + 256).min(tokens);
        b.run(range.clone(), Op::RmsNorm { x: &x, weight: &weight, eps: EPS, out: &mut tile }).unwrap();
        let values = b.values(&tile, &range).unwrap();
        let expected = &whole[1].1[0][first * HIDDEN..][..range.len() * HIDDEN];
        assert!(values.iter().map(|x| x.to_bits()).eq(expected.iter().copied()), "a tile at {first}");
    }
    let outside = b.run(0..256, Op::RmsNorm { x: &x, weight: &weight, eps: EPS, out: &mut tile }).unwrap_err();
    let words = "rows for tokens 512 to 768 was given tokens 0 to 256";
    assert!(outside.to_string().contains(words), "{outside}");
    let mut out = b.alloc("out", HIDDEN).unwrap();
    for range in [0..tokens + 1, 5..5] {
        let beyond = b.run(range, Op::RmsNorm { x: &x, weight: &weight, eps: EPS, out: &mut out }).unwrap_err();
        assert!(beyond.to_string().contains("operation norm was given tokens"), "{beyond}");
    }

    let qkv = filled(b, 8, SHAPE.qkv());
    let mut out = b.alloc("attention", SHAPE.out()).unwrap();
    let mut lse = b.alloc_f32(MemoryEnd::Low, "lse", SHAPE.heads).unwrap();
    let part = Op::Attention { qkv: &qkv, shape: SHAPE, window: None, out: &mut out, lse: &mut lse };
    let error = b.run(0..256, part).unwrap_err().to_string();
    assert!(error.contains("operation attention") && error.contains("needs all of them"), "{error}");
    let whole = Op::Attention { qkv: &qkv, shape: SHAPE, window: None, out: &mut out, lse: &mut lse };
    b.run(0..tokens, whole).unwrap();
}
