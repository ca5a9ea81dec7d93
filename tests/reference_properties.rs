//! Properties of the forward operations and AdamW of the reference, apart from having the right gradients.

use lab::differences::values;
use proptest::prelude::*;
use qlora_kernels::optim::AdamW;
use qlora_kernels::reference::*;
use qlora_kernels::rng::RngStream;
use qlora_kernels::rope::{RopeScaling, RopeTable};
use qlora_kernels::shape::{AttentionShape, GateActivation};

fn attend(qkv: &[f64], boundaries: &[u32], shape: AttentionShape, window: Option<usize>) -> (Vec<f64>, Vec<f64>) {
    let m = qkv.len() / shape.qkv();
    let (mut out, mut lse) = (vec![f64::NAN; m * shape.out()], vec![f64::NAN; m * shape.heads]);
    attention(qkv, boundaries, shape, window, &mut out, &mut lse);
    (out, lse)
}

/// The frequency of each pair, read back from the table's row of position 1.
fn frequencies(theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let table = RopeTable::<f64>::new(128, theta, scaling, 2);
    (64..128).map(|i| table.sin[i].atan2(table.cos[i])).collect()
}

fn assert_frequencies(found: &[f64], expected: &[(usize, f64)]) {
    for &(i, f) in expected {
        assert!((found[i] - f).abs() <= 1e-6 * f, "frequency {i} is {:e}, expected {f:e}", found[i]);
    }
}

/// The frequencies of transformers 5.23.0 (in f32) for Llama-3.1-8B's settings: kept, blended and divided ones.
#[test]
fn llama3_rope_frequencies_are_those_of_transformers() {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    assert_frequencies(
        &frequencies(500_000.0, scaling),
        &[
            (0, 1.0),
            (1, 0.8146172165870667),
            (28, 0.0032114461064338684),
            (29, 0.0021665706299245358),
            (30, 0.0013718936825171113),
            (32, 0.0005248460220173001),
            (34, 0.0001785077911335975),
            (35, 9.556212171446532e-05),
            (63, 3.068925877869333e-07),
        ],
    );
}

/// Those of transformers 5.23.0 for YaRN, and the factor of cos and sin: with the ends of the blend rounded to whole
/// indices, and not.
#[test]
fn yarn_rope_frequencies_are_those_of_transformers() {
    let rounded = RopeScaling::Yarn {
        factor: 16.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_max_position_embeddings: 4096,
        attention_factor: 1.2772588722239782,
        truncate: true,
    };
    assert_frequencies(
        &frequencies(10_000.0, rounded),
        &[
            (0, 1.0),
            (1, 0.8659643530845642),
            (20, 0.05623412877321243),
            (21, 0.04694085940718651),
            (30, 0.008526843972504139),
            (45, 0.00015177164459601045),
            (46, 8.334509038832039e-05),
            (47, 7.217387610580772e-05),
            (63, 7.217387064883951e-06),
        ],
    );
    let exact = RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 24.0,
        beta_slow: 2.0,
        original_max_position_embeddings: 8192,
        attention_factor: 1.0648216253695715,
        truncate: false,
    };
    assert_frequencies(
        &frequencies(500_000.0, exact.clone()),
        &[
            (17, 0.030634520575404167),
            (20, 0.016031838953495026),
            (21, 0.012224960140883923),
            (25, 0.003912903368473053),
            (30, 0.0007442581700161099),
            (35, 0.00019112424342893064),
            (63, 6.137851755738666e-07),
        ],
    );
    let table = RopeTable::<f64>::new(128, 500_000.0, exact, 7);
    for (cos, sin) in table.cos.iter().zip(&table.sin) {
        assert!((cos.hypot(*sin) - 1.0648216253695715).abs() < 1e-12, "{cos} and {sin}");
    }
}

#[test]
fn linear_rope_frequencies_are_those_of_transformers() {
    assert_frequencies(
        &frequencies(10_000.0, RopeScaling::Linear { factor: 4.0 }),
        &[(0, 0.25), (1, 0.21649108827114105), (32, 0.0024999999441206455), (63, 2.8869548259535804e-05)],
    );
}

/// Scores and logits of thousands overflow a naive exp; the maximum taken off keeps them finite and right.
#[test]
fn large_scores_and_logits_stay_finite() {
    let shape = AttentionShape { heads: 1, kv_heads: 1, head_dim: 1, soft_cap: None };
    for (query, second) in [(40.0f32, 7.0), (-40.0, 5.0)] {
        let (mut out, mut lse) = ([f32::NAN; 2], [f32::NAN; 2]);
        attention(&[0.0, 0.0, 5.0, query, 400.0, 7.0], &[0, 2], shape, None, &mut out, &mut lse);
        assert_eq!(out, [5.0, second]);
    }
    let mut dx = [f32::NAN];
    let loss = linear_cross_entropy(&[1000.0], &[1.0, -1.0], &[1], None, 1.0, None, Some(&mut dx), 1);
    assert_eq!((loss, dx), (2000.0, [2.0]));
    for (gate, silu, gradient) in [(1000.0f32, 2000.0, [2.0, 1000.0]), (-1000.0, 0.0, [0.0, 0.0])] {
        let (mut out, mut gate_up) = ([f32::NAN], [gate, 2.0]);
        swiglu(&gate_up, &mut out, 1, GateActivation::Silu);
        swiglu_backward(&[1.0], &mut gate_up, 1, GateActivation::Silu);
        assert_eq!((out, gate_up), ([silu], gradient));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn rope_keeps_lengths_and_its_inverse_restores_the_input(
        (m, heads, half) in (1usize..5, 1usize..4, 1usize..5),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let row = heads * 2 * half;
        let positions: Vec<u32> = (0..m).map(|_| stream.below(1000)).collect();
        let table = RopeTable::new(2 * half, 500_000.0, RopeScaling::Default, 1000);
        let x = values(stream, m * row, 2.0);
        let mut y = x.clone();
        rope(&mut y, row, heads, 2 * half, &positions, &table);
        for (x, y) in x.chunks(2 * half).zip(y.chunks(2 * half)) {
            let square = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>();
            prop_assert!((square(x) - square(y)).abs() <= 1e-14 * square(x));
        }
        rope_inverse(&mut y, row, heads, 2 * half, &positions, &table);
        prop_assert!(x.iter().zip(&y).all(|(x, y)| (x - y).abs() <= 8.0 * f64::EPSILON));
    }

    /// Rotated q·k depends on the distance of their positions only: what makes the embedding relative.
    #[test]
    fn rope_scores_depend_on_the_distance_only(
        half in 1usize..9,
        (a, b, shift) in (0u32..50, 0u32..50, 0u32..50),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let table = RopeTable::new(2 * half, 10_000.0, RopeScaling::Default, 100);
        let qk = values(stream, 4 * half, 2.0);
        let score = |positions: [u32; 2]| {
            let mut x = qk.clone();
            rope(&mut x, 2 * half, 1, 2 * half, &positions, &table);
            let (q, k) = x.split_at(2 * half);
            q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()
        };
        let difference = score([a, b]) - score([a + shift, b + shift]);
        // Angles up to 100 carry 100 roundings' worth of error into the sines.
        prop_assert!(difference.abs() <= 100.0 * 16.0 * half as f64 * f64::EPSILON, "{difference:e}");
    }

    /// Packed documents give the bits that each gives alone, forward and backward.
    #[test]
    fn documents_do_not_see_each_other(
        lengths in prop::collection::vec(0usize..6, 1..5),
        (kv_heads, group, d) in (1usize..3, 1usize..4, 1usize..5),
        window in prop::option::of(1usize..8),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim: d, soft_cap: None };
        let m: usize = lengths.iter().sum();
        let (qkv, dout) = (values(stream, m * shape.qkv(), 3.0), values(stream, m * shape.out(), 1.0));
        let run = |rows: std::ops::Range<usize>, boundaries: &[u32]| {
            let qkv = &qkv[rows.start * shape.qkv()..rows.end * shape.qkv()];
            let dout = &dout[rows.start * shape.out()..rows.end * shape.out()];
            let (out, lse) = attend(qkv, boundaries, shape, window);
            let mut dqkv = vec![f64::NAN; qkv.len()];
            attention_backward(dout, qkv, &out, &lse, boundaries, shape, window, &mut dqkv);
            (out, dqkv)
        };
        let mut boundaries = vec![0u32];
        let (mut out, mut dqkv) = (vec![], vec![]);
        for &length in &lengths {
            let start = *boundaries.last().unwrap() as usize;
            let alone = run(start..start + length, &[0, length as u32]);
            out.extend(alone.0);
            dqkv.extend(alone.1);
            boundaries.push((start + length) as u32);
        }
        prop_assert_eq!(run(0..m, &boundaries), (out, dqkv));
    }

    /// By the definition: exp without the maximum taken off, an explicit mask, key and value heads repeated.
    #[test]
    fn attention_is_the_masked_softmax(
        m in 1usize..7,
        (kv_heads, group, d) in (1usize..3, 1usize..4, 1usize..5),
        window in prop::option::of(1usize..8),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let heads = kv_heads * group;
        let shape = AttentionShape { heads, kv_heads, head_dim: d, soft_cap: None };
        let (q, k, v) = (
            values(stream, m * heads * d, 2.0),
            values(stream, m * kv_heads * d, 2.0),
            values(stream, m * kv_heads * d, 2.0),
        );
        let rows = |t: usize| {
            let kv = kv_heads * d;
            [&q[t * heads * d..][..heads * d], &k[t * kv..][..kv], &v[t * kv..][..kv]].concat()
        };
        let qkv: Vec<f64> = (0..m).flat_map(rows).collect();
        let (out, lse) = attend(&qkv, &[0, m as u32], shape, window);
        for (i, head) in (0..m).flat_map(|i| (0..heads).map(move |head| (i, head))) {
            let kv = |j: usize, e: usize| (j * kv_heads + head / group) * d + e;
            let weight = |j: usize| {
                let score: f64 = (0..d).map(|e| q[(i * heads + head) * d + e] * k[kv(j, e)]).sum();
                if j <= i && window.is_none_or(|window| j + window > i) { (score / (d as f64).sqrt()).exp() } else { 0.0 }
            };
            let total: f64 = (0..m).map(weight).sum();
            prop_assert!((lse[i * heads + head] - total.ln()).abs() <= 1e-13);
            for e in 0..d {
                let expected = (0..m).map(|j| weight(j) * v[kv(j, e)]).sum::<f64>() / total;
                prop_assert!((out[(i * heads + head) * d + e] - expected).abs() <= 1e-13);
            }
        }
    }

    /// Without dropout the low-rank term is a change of the weight: Y = X·(W + scale·B·A)ᵀ + bias.
    #[test]
    fn lora_is_a_change_of_the_weight(
        (m, n, k, r) in (1usize..6, 1usize..9, 1usize..12, 1usize..5),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let (x, w, bias) = (values(stream, m * k, 2.0), values(stream, n * k, 1.0), values(stream, n, 1.0));
        let (a, b) = (values(stream, r * k, 1.0), values(stream, n * r, 1.0));
        let lora = LoraTerm { a: &a, b: &b, r, scale: 0.75 };
        let (mut s, mut y) = (vec![f64::NAN; m * r], vec![f64::NAN; m * n]);
        lora_down(&x, None, &lora, &mut s, k);
        linear(&x, &w, Some(&bias), Some((&s, &lora)), &mut y, n, k);
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let merged = |l: usize| w[j * k + l] + 0.75 * (0..r).map(|q| b[j * r + q] * a[q * k + l]).sum::<f64>();
            let expected = bias[j] + (0..k).map(|l| x[i * k + l] * merged(l)).sum::<f64>();
            prop_assert!((y[i * n + j] - expected).abs() <= 1e-13 * (k * r) as f64);
        }
    }

    /// eps is added to the mean square, under the root.
    #[test]
    fn rms_norm_and_swiglu_are_their_formulas(h in 1usize..10, eps in 1e-6f64..1.0, seed in any::<u64>()) {
        let stream = &mut RngStream::new(seed, 0);
        let (x, weight) = (values(stream, h, 4.0), values(stream, h, 2.0));
        let mut y = vec![f64::NAN; h];
        rms_norm(&x, &weight, eps, &mut y);
        let mean_square = x.iter().map(|x| x.powi(2)).sum::<f64>() / h as f64;
        let mut gated = vec![f64::NAN; h];
        swiglu(&[x.as_slice(), &weight].concat(), &mut gated, h, GateActivation::Silu);
        let mut gelu = vec![f64::NAN; h];
        swiglu(&[x.as_slice(), &weight].concat(), &mut gelu, h, GateActivation::GeluTanh);
        for i in 0..h {
            prop_assert!((y[i] * (mean_square + eps).sqrt() - weight[i] * x[i]).abs() <= 1e-13);
            // silu by the hyperbolic tangent: x·σ(x) = x·(1 + tanh(x/2))/2
            prop_assert!((gated[i] - x[i] * (1.0 + (x[i] / 2.0).tanh()) / 2.0 * weight[i]).abs() <= 1e-13);
            let cubed = (2.0 / std::f64::consts::PI).sqrt() * (x[i] + 0.044715 * x[i].powi(3));
            prop_assert!((gelu[i] - x[i] / 2.0 * (1.0 + cubed.tanh()) * weight[i]).abs() <= 1e-13);
        }
    }

    #[test]
    fn loss_of_equal_logits_is_the_logarithm_of_the_vocabulary(
        (m, vocab) in (1usize..5, 1usize..20),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let (x, row) = (values(stream, m * 3, 2.0), values(stream, 3, 2.0));
        let targets: Vec<i32> = (0..m).map(|_| stream.below(vocab as u32) as i32).collect();
        let loss = linear_cross_entropy(&x, &row.repeat(vocab), &targets, None, 1.0 / m as f64, None, None, 3);
        prop_assert!((loss - (vocab as f64).ln()).abs() <= 1e-13, "{loss}");
    }

    /// Several updates against the formulas of the paper on one scalar: bias-corrected moments, decay off the rate.
    #[test]
    fn adamw_follows_the_papers_formulas(
        seed in any::<u64>(),
        (rate, decay, clip) in (1e-5f64..1e-1, prop::sample::select(vec![0.0, 0.01, 0.3]), 0.1f64..1.0),
        (beta1, beta2) in prop::sample::select(vec![(0.9, 0.999), (0.9, 0.95), (0.5, 0.99)]),
        updates in 1u64..12,
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let epsilon = 1e-8;
        let mut values_now = values(stream, 3, 1.0);
        let (mut first, mut second) = (vec![0.0; 3], vec![0.0; 3]);
        let start = values_now.clone();
        let gradients: Vec<Vec<f64>> = (0..updates).map(|_| values(stream, 3, 2.0)).collect();
        for (t, gradient) in gradients.iter().enumerate() {
            let settings =
                AdamW { learning_rate: rate, beta1, beta2, epsilon, weight_decay: decay, step: t as u64 + 1 };
            adamw(&settings, clip, gradient, &mut values_now, &mut first, &mut second);
        }
        for i in 0..3 {
            let (mut theta, mut m, mut v) = (start[i], 0.0, 0.0);
            for (t, gradient) in gradients.iter().enumerate() {
                let (g, t) = (clip * gradient[i], t as i32 + 1);
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g.powi(2);
                let (m_hat, v_hat) = (m / (1.0 - f64::powi(beta1, t)), v / (1.0 - f64::powi(beta2, t)));
                theta -= rate * decay * theta;
                theta -= rate * m_hat / (v_hat.sqrt() + epsilon);
            }
            let (found, scale) = (values_now[i], start[i].abs() + rate * updates as f64);
            // 1 − β² loses three digits for β near 1; the rest is a dozen roundings an update.
            prop_assert!((found - theta).abs() <= 1e-12 * scale, "{found} instead of {theta}");
            prop_assert!((first[i] - m).abs() <= 1e-14 * m.abs().max(1e-3) && (second[i] - v).abs() <= 1e-14 * v);
        }
    }
}
