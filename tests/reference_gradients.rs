//! Every backward operation of the f64 reference against central finite differences of its forward operation.
//!
//! No tolerance is chosen: `ErrorOf` holds a bound on the fifth derivative and one on rounding. Where an operation is
//! not affine, Cauchy's estimate bounds the fifth derivative: |f⁽⁵⁾| ≤ 5!·max|f| / R⁵ over a circle of radius R in
//! the complex plane on which f is analytic. The radii leave room for the two steps around x.

use lab::differences::{ErrorOf, absolute, added, check_gradient, largest, magnitude, values};
use proptest::prelude::*;
use qlora_kernels::reference::magnitude as with_magnitudes;
use qlora_kernels::reference::*;
use qlora_kernels::rng::{Dropout, RngStream};
use qlora_kernels::rope::{RopeScaling, RopeTable};
use qlora_kernels::shape::{AttentionShape, GateActivation};

fn dropout_factors(seed: u64, m: usize, k: usize) -> Vec<f64> {
    let dropout = Dropout::new(seed, 3, 1, 0.25);
    let row = |token| (0..k).map(move |i| f64::from(dropout.factors(token, i as u32 / 4)[i % 4]));
    (0..m as u32).flat_map(row).collect()
}

/// One linear layer with its low-rank term, as the step composes it.
struct Layer {
    n: usize,
    k: usize,
    r: usize,
    scale: f64,
    w: Vec<f64>,
    bias: Option<Vec<f64>>,
    dropout: Option<Vec<f64>>,
}

impl Layer {
    fn forward(&self, x: &[f64], a: &[f64], b: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let m = x.len() / self.k;
        let lora = LoraTerm { a, b, r: self.r, scale: self.scale };
        let mut s = vec![f64::NAN; m * self.r];
        lora_down(x, self.dropout.as_deref(), &lora, &mut s, self.k);
        let mut y = vec![f64::NAN; m * self.n];
        linear(x, &self.w, self.bias.as_deref(), Some((&s, &lora)), &mut y, self.n, self.k);
        (y, s)
    }

    /// The result with every number replaced by its magnitude: how large the terms are whose roundings add up.
    fn magnitudes(&self) -> Layer {
        let dropout = self.dropout.as_deref().map(absolute);
        let bias = self.bias.as_deref().map(absolute);
        Layer { w: absolute(&self.w), bias, dropout, scale: self.scale.abs(), ..*self }
    }
}

/// Lengths of documents to boundaries [documents + 1].
fn boundaries(lengths: &[usize]) -> Vec<u32> {
    let mut end = 0;
    std::iter::once(0)
        .chain(lengths.iter().map(|&l| {
            end += l as u32;
            end
        }))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// dX, dA and dB. Y is affine in every single element of X, A and B, so differences have no truncation error.
    #[test]
    fn linear_with_lora(
        (m, n, k, r) in (1usize..6, 1usize..9, 1usize..12, 1usize..5),
        (biased, dropped) in any::<(bool, bool)>(),
        scale in prop::sample::select(vec![0.5, 2.0, 1.0 / 3.0]),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let layer = Layer {
            n, k, r, scale,
            w: values(stream, n * k, 1.0),
            bias: biased.then(|| values(stream, n, 1.0)),
            dropout: dropped.then(|| dropout_factors(seed, m, k)),
        };
        let (x, a, b) = (values(stream, m * k, 2.0), values(stream, r * k, 1.0), values(stream, n * r, 1.0));
        let dy = values(stream, m * n, 1.0);

        let (_, s) = layer.forward(&x, &a, &b);
        let lora = LoraTerm { a: &a, b: &b, r, scale };
        let mut t = vec![f64::NAN; m * r];
        lora_dy_b(&dy, &lora, &mut t, n);
        let (dx0, da0, db0) = (values(stream, m * k, 1.0), values(stream, r * k, 1.0), values(stream, n * r, 1.0));
        let (mut dx, mut da, mut db) = (dx0.clone(), da0.clone(), db0.clone());
        linear_dx(&dy, &layer.w, Some((&t, &lora)), layer.dropout.as_deref(), &mut dx, n, k);
        lora_gradients(&x, layer.dropout.as_deref(), &dy, &s, &t, &mut da, &mut db, n, k, r);

        // Each of the M·N terms c·y is a nest of sums of K, r and 2 products, and one sum adds them all. The moved
        // element, and what the gradient is added to, are at most 2 larger than what magnitudes measure.
        let terms: f64 = layer.magnitudes().forward(&vec![2.5; m * k], &vec![1.5; r * k], &vec![1.5; n * r]).0
            .iter().zip(&dy).map(|(y, c)| y * c.abs()).sum();
        let rounding = (k + r + 8 + m * n) as f64 * (terms + 2.0);
        let error = || ErrorOf { fifth_derivative: 0.0, rounding };
        check_gradient("dX", &added(&dx, &dx0), &x, &dy, |x| layer.forward(x, &a, &b).0, error());
        check_gradient("dA", &added(&da, &da0), &a, &dy, |a| layer.forward(&x, a, &b).0, error());
        check_gradient("dB", &added(&db, &db0), &b, &dy, |b| layer.forward(&x, &a, b).0, error());
    }

    /// dX of a frozen layer alone.
    #[test]
    fn linear_without_lora((m, n, k) in (1usize..6, 1usize..9, 1usize..12), seed in any::<u64>()) {
        let stream = &mut RngStream::new(seed, 0);
        let (x, w) = (values(stream, m * k, 2.0), values(stream, n * k, 1.0));
        let (dy, dx0) = (values(stream, m * n, 1.0), values(stream, m * k, 1.0));
        let mut dx = dx0.clone();
        linear_dx(&dy, &w, None, None, &mut dx, n, k);
        let forward = |x: &[f64]| {
            let mut y = vec![f64::NAN; m * n];
            linear(x, &w, None, None, &mut y, n, k);
            y
        };
        let rounding = (k + 4 + m * n) as f64 * (2.5 * k as f64 * magnitude(&dy) + 2.0);
        check_gradient("dX", &added(&dx, &dx0), &x, &dy, forward, ErrorOf { fifth_derivative: 0.0, rounding });
    }

    /// y = w∘x·√H / √(x² + H·eps) has its singularities, in any one xᵢ, at distance ρ = √(x² + H·eps). On a circle of
    /// radius ρ/2 the root is at least ρ/2 and |xᵢ| at most 3ρ/2, so |y| ≤ 3·√H·|w|.
    #[test]
    fn rms_norm_input(
        (m, h) in (1usize..5, 1usize..10),
        eps in prop::sample::select(vec![1e-6, 1e-5, 1e-2]),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let mut x = values(stream, m * h, 4.0);
        // Rows near zero have no useful radius: one element of each is kept off it.
        x.iter_mut().step_by(h).for_each(|x| *x += if *x < 0.0 { -1.0 } else { 1.0 });
        let (weight, dy, dx0) = (values(stream, h, 2.0), values(stream, m * h, 1.0), values(stream, m * h, 1.0));
        let mut dx = dx0.clone();
        rms_norm_backward(&dy, &x, &weight, eps, &mut dx);
        let forward = |x: &[f64]| {
            let mut y = vec![f64::NAN; m * h];
            rms_norm(x, &weight, eps, &mut y);
            y
        };
        let radius = 0.5 - 2.0 * lab::differences::STEP; // half of the least ρ, as |x| ≥ 1, with room for the steps
        let size = 3.0 * (h as f64).sqrt() * magnitude(&dy) * largest(&weight);
        let fifth_derivative = 120.0 * size / f64::powi(radius, 5);
        // H + 1 roundings in the mean, a few more to y, M·H in the sum.
        let rounding = (2 * h + 16 + m * h) as f64 * (size + 2.0);
        check_gradient("dX", &added(&dx, &dx0), &x, &dy, forward, ErrorOf { fifth_derivative, rounding });
    }

    /// y is affine in every single element of the weight, and its gradient is summed over all rows; those of heads over
    /// all heads of q and of k.
    #[test]
    fn weights_of_norms(
        (m, kv_heads, per_kv, d) in (1usize..5, 1usize..3, 1usize..3, 1usize..6),
        whole in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let shape = AttentionShape { heads: kv_heads * per_kv, kv_heads, head_dim: d, soft_cap: None };
        let [q_width, k_width] = if whole { [shape.out(), kv_heads * d] } else { [d; 2] };
        let (stream, len, eps) = (&mut RngStream::new(seed, 0), m * shape.qkv(), 1e-2);
        let (x, dy) = (values(stream, len, 4.0), values(stream, len, 1.0));
        let (q, k) = (values(stream, q_width, 2.0), values(stream, k_width, 2.0));
        let (dq0, dk0) = (values(stream, q_width, 1.0), values(stream, k_width, 1.0));
        let (mut dq, mut dk) = (dq0.clone(), dk0.clone());
        head_norm_gradients(&dy, &x, eps, shape, [&mut dq, &mut dk]);
        let forward = |q: &[f64], k: &[f64]| {
            let mut y = vec![f64::NAN; len];
            head_norm(&x, [q, k], eps, shape, &mut y);
            y
        };
        // |x| / rms(x) is at most √width.
        let size = 3.0 * (q_width as f64).sqrt() * magnitude(&dy) + 5.0 * magnitude(&dy);
        let error = || ErrorOf { fifth_derivative: 0.0, rounding: (2 * q_width + 16 + len) as f64 * (size + 2.0) };
        check_gradient("dq", &added(&dq, &dq0), &q, &dy, |q| forward(q, &k), error());
        check_gradient("dk", &added(&dk, &dk0), &k, &dy, |k| forward(&q, k), error());
        // Rows that are normalized whole are those of one head.
        let rows = &x[..m * shape.qkv() / d * d];
        let (mut all, mut one) = (vec![0.0; d], vec![0.0; d]);
        rms_norm_gradient(&dy[..rows.len()], rows, eps, &mut all);
        for (dy, x) in dy.chunks(d).zip(rows.chunks(d)) {
            rms_norm_gradient(dy, x, eps, &mut one);
        }
        prop_assert_eq!(all, one);
    }

    /// y is affine in every single element of m and of z; the norms are constants.
    #[test]
    fn magnitudes_and_their_outputs(
        (m, n) in (1usize..6, 1usize..8),
        biased in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let (z, dy, magnitudes) = (values(stream, m * n, 2.0), values(stream, m * n, 1.0), values(stream, n, 2.0));
        let norms: Vec<f64> = values(stream, n, 1.0).iter().map(|x| 1.0 + x.abs()).collect();
        let bias = biased.then(|| values(stream, n, 1.0));
        let (mut dz, dm0) = (z.clone(), values(stream, n, 1.0));
        let mut dm = dm0.clone();
        magnitude_backward(&dy, &magnitudes, &norms, bias.as_deref(), &mut dz, &mut dm);
        let forward = |magnitudes: &[f64], z: &[f64]| {
            let mut y = z.to_vec();
            with_magnitudes(magnitudes, &norms, bias.as_deref(), &mut y);
            y
        };
        let rounding = (16 + m * n) as f64 * (10.0 * magnitude(&dy) + 2.0);
        let error = || ErrorOf { fifth_derivative: 0.0, rounding };
        check_gradient("dm", &added(&dm, &dm0), &magnitudes, &dy, |m| forward(m, &z), error());
        check_gradient("dz", &dz, &z, &dy, |z| forward(&magnitudes, z), error());
    }

    /// Gradient of the norm for each head of q and k; the gradient of v passes through.
    #[test]
    fn head_norm_input(
        (m, kv_heads, per_kv, d) in (1usize..4, 1usize..3, 1usize..3, 1usize..6),
        eps in prop::sample::select(vec![1e-6, 1e-5, 1e-2]),
        whole in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let shape = AttentionShape { heads: kv_heads * per_kv, kv_heads, head_dim: d, soft_cap: None };
        let [q_width, k_width] = if whole { [shape.out(), kv_heads * d] } else { [d; 2] };
        let (stream, len) = (&mut RngStream::new(seed, 0), m * shape.qkv());
        let mut x = values(stream, len, 4.0);
        x.iter_mut().step_by(d).for_each(|x| *x += if *x < 0.0 { -1.0 } else { 1.0 });
        let (q, k) = (values(stream, q_width, 2.0), values(stream, k_width, 2.0));
        let (dy, dx0) = (values(stream, len, 1.0), values(stream, len, 1.0));
        let mut dx = dx0.clone();
        head_norm_backward(&dy, &x, [&q, &k], eps, shape, &mut dx);
        let forward = |x: &[f64]| {
            let mut y = vec![f64::NAN; len];
            head_norm(x, [&q, &k], eps, shape, &mut y);
            y
        };
        let radius = 0.5 - 2.0 * lab::differences::STEP;
        let size = 3.0 * (q_width as f64).sqrt() * magnitude(&dy) * largest(&q).max(largest(&k)).max(1.0);
        let fifth_derivative = 120.0 * size / f64::powi(radius, 5);
        let rounding = (2 * q_width + 16 + len) as f64 * (size + 2.0 + 5.0 * magnitude(&dy));
        check_gradient("dX", &added(&dx, &dx0), &x, &dy, forward, ErrorOf { fifth_derivative, rounding });
    }

    /// A rotation is linear; its gradient is the inverse rotation, and what is not rotated of a head, and columns
    /// beyond the heads, pass through.
    #[test]
    fn rope_gradient_is_the_inverse_rotation(
        (m, heads, half, tail) in (1usize..5, 1usize..4, 1usize..5, 0usize..4),
        kept in 0usize..4,
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let d = 2 * half + kept;
        let row = heads * d + tail;
        let positions: Vec<u32> = (0..m).map(|_| stream.below(40)).collect();
        let table = RopeTable::new(2 * half, 10_000.0, RopeScaling::Default, 40);
        let (x, dy) = (values(stream, m * row, 2.0), values(stream, m * row, 1.0));
        let mut dx = dy.clone();
        rope_inverse(&mut dx, row, heads, d, &positions, &table);
        let forward = |x: &[f64]| {
            let mut y = x.to_vec();
            rope(&mut y, row, heads, d, &positions, &table);
            y
        };
        let rounding = (4 + m * row) as f64 * 5.0 * magnitude(&dy);
        check_gradient("dX", &dx, &x, &dy, forward, ErrorOf { fifth_derivative: 0.0, rounding });
    }

    /// In V the output is linear. In one element of Q or K every score moves by at most a = |k|/√D or |q|/√D per unit,
    /// so on a circle of radius 1/(2a) each exp(score) keeps its magnitude within e^(±1/2) and its angle within 1/2:
    /// the softmax grows by at most e/cos(1/2) < 3.1. A score s with a soft cap c ≥ 1 moves as much at most while
    /// s/c stays where |tanh'| ≤ 1/cos²(1/2) < 1.3, which a radius less by that factor sees to.
    #[test]
    fn attention_over_documents(
        lengths in prop::collection::vec(0usize..5, 1..4),
        (kv_heads, group, d) in (1usize..3, 1usize..4, 1usize..5),
        window in prop::option::of(1usize..5),
        soft_cap in prop::option::of(prop::sample::select(vec![1.0f32, 2.0, 50.0])),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let shape = AttentionShape { heads: kv_heads * group, kv_heads, head_dim: d, soft_cap };
        let boundaries = boundaries(&lengths);
        let m = *boundaries.last().unwrap() as usize;
        let limit = 1.5;
        let (qkv, dout) = (values(stream, m * shape.qkv(), limit), values(stream, m * shape.out(), 1.0));
        let forward = |qkv: &[f64]| {
            let (mut out, mut lse) = (vec![f64::NAN; m * shape.out()], vec![f64::NAN; m * shape.heads]);
            attention(qkv, &boundaries, shape, window, &mut out, &mut lse);
            (out, lse)
        };
        let (out, lse) = forward(&qkv);
        let mut dqkv = vec![f64::NAN; m * shape.qkv()];
        attention_backward(&dout, &qkv, &out, &lse, &boundaries, shape, window, &mut dqkv);

        let limit = limit + 0.01; // two steps
        let size = 3.1 * magnitude(&dout) * limit;
        let radius = (d as f64).sqrt() / (2.0 * limit) / soft_cap.map_or(1.0, |_| 1.3);
        let fifth_derivative = 120.0 * size / radius.powi(5);
        // A score is a sum of D products of size limit²; its rounding moves every weight by as much, twice (in the
        // numerator and in the sum); then M weights and the M·H·D terms of the sum. exp and ln within one ulp,
        // a tanh within a few of 1.
        let score = d as f64 * limit * limit;
        let tanh = soft_cap.map_or(0.0, |cap| 8.0 * f64::from(cap));
        let rounding = ((d + 2) as f64 * score * 2.0 + tanh + (2 * m + 16 + m * shape.out()) as f64) * size;
        check_gradient("dqkv", &dqkv, &qkv, &dout, |x| forward(x).0, ErrorOf { fifth_derivative, rounding });
    }

    /// up: linear. gate: silu has its poles at ±iπ, gelu's are further than 1.9 from the real line; on a circle of
    /// radius 1 |σ| ≤ 1.2, so that both stay below 1.2·(|gate| + 1).
    #[test]
    fn swiglu_gate_and_up((m, i) in (1usize..5, 1usize..8), gelu in any::<bool>(), seed in any::<u64>()) {
        let activation = if gelu { GateActivation::GeluTanh } else { GateActivation::Silu };
        let stream = &mut RngStream::new(seed, 0);
        let limit = 6.0;
        let (gate_up, dout) = (values(stream, m * 2 * i, limit), values(stream, m * i, 1.0));
        let mut gradient = gate_up.clone();
        swiglu_backward(&dout, &mut gradient, i, activation);
        let forward = |x: &[f64]| {
            let mut out = vec![f64::NAN; m * i];
            swiglu(x, &mut out, i, activation);
            out
        };
        let size = 1.2 * (limit + 1.0) * (limit + 1.0) * magnitude(&dout);
        let rounding = (16 + m * i) as f64 * size;
        check_gradient("d(gate‖up)", &gradient, &gate_up, &dout, forward, ErrorOf {
            fifth_derivative: 120.0 * size,
            rounding,
        });
    }

    /// One logit moves by at most a = |w| per unit of an element of x; as for attention, on a circle of radius 1/(2a)
    /// the logarithm of the denominator moves by at most 1/2 + ln(1/cos(1/2)) + i/2, below 1.2; the target's logit is
    /// affine. The loss is the sum over supervised tokens, of which one depends on any element of x. A soft cap of 1 or
    /// more makes logits move by less than 1.3 times as much, as for attention.
    #[test]
    fn linear_cross_entropy_input(
        (m, h, vocab) in (1usize..5, 1usize..7, 1usize..12),
        soft_cap in prop::option::of(prop::sample::select(vec![1.0f32, 2.0, 30.0])),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let limit = 1.0;
        let (x, w) = (values(stream, m * h, 2.0), values(stream, vocab * h, limit));
        let targets: Vec<i32> = (0..m)
            .map(|_| if stream.below(3) == 0 { -100 } else { stream.below(vocab as u32) as i32 })
            .collect();
        let weights = values(stream, m, 1.0);
        let weights = (stream.below(2) == 0).then_some(weights.as_slice());
        let weight = 1.0 / targets.iter().filter(|&&t| t >= 0).count().max(1) as f64;
        let mut dx = vec![f64::NAN; m * h];
        let loss = linear_cross_entropy(&x, &w, &targets, weights, weight, soft_cap, Some(&mut dx), h);
        let forward = |x: &[f64]| vec![linear_cross_entropy(x, &w, &targets, weights, weight, soft_cap, None, h)];
        prop_assert_eq!(forward(&x)[0], loss);
        let steeper = soft_cap.map_or(1.0, |_| 1.3);
        let fifth_derivative = 120.0 * 1.2 * weight * (2.0 * limit * steeper).powi(5);
        // Logits are sums of H products of size 2.5·limit; V terms in the denominator; M tokens.
        let logit = h as f64 * 2.5 * limit;
        let size = weight * m as f64 * (2.0 * logit + (vocab as f64).ln() + 1.0);
        let tanh = soft_cap.map_or(0.0, |cap| 8.0 * f64::from(cap));
        let rounding = ((h + 2) as f64 * logit * 2.0 + tanh + (vocab + 16 + m) as f64) * size;
        check_gradient("dX", &dx, &x, &[1.0], forward, ErrorOf { fifth_derivative, rounding });
        for (m, _) in targets.iter().enumerate().filter(|(_, t)| **t < 0) {
            prop_assert!(dx[m * h..(m + 1) * h].iter().all(|&g| g == 0.0));
        }
    }

    /// One logit of each token moves by at most a = |x| per unit of an element of the output layer: the bounds of the
    /// gradient of the input, of M tokens and with x in place of w.
    #[test]
    fn linear_cross_entropy_output_layer(
        (m, h, vocab) in (1usize..5, 1usize..7, 1usize..12),
        soft_cap in prop::option::of(prop::sample::select(vec![1.0f32, 2.0, 30.0])),
        seed in any::<u64>(),
    ) {
        let stream = &mut RngStream::new(seed, 0);
        let limit = 1.0;
        let (x, w) = (values(stream, m * h, limit), values(stream, vocab * h, 2.0));
        let targets: Vec<i32> = (0..m)
            .map(|_| if stream.below(3) == 0 { -100 } else { stream.below(vocab as u32) as i32 })
            .collect();
        let weights = values(stream, m, 1.0);
        let weights = (stream.below(2) == 0).then_some(weights.as_slice());
        let dw0 = values(stream, vocab * h, 1.0);
        let mut dw = dw0.clone();
        linear_cross_entropy_head(&x, &w, &targets, weights, 0.5, soft_cap, &mut dw, h);
        let forward = |w: &[f64]| vec![linear_cross_entropy(&x, w, &targets, weights, 0.5, soft_cap, None, h)];
        let steeper = soft_cap.map_or(1.0, |_| 1.3);
        let fifth_derivative = m as f64 * 120.0 * 1.2 * 0.5 * (2.0 * limit * steeper).powi(5);
        let logit = h as f64 * 2.5 * limit;
        let size = 0.5 * m as f64 * (2.0 * logit + (vocab as f64).ln() + 1.0);
        let tanh = soft_cap.map_or(0.0, |cap| 8.0 * f64::from(cap));
        let rounding = ((h + 2) as f64 * logit * 2.0 + tanh + (vocab + 16 + m) as f64) * (size + 2.0);
        check_gradient("dW", &added(&dw, &dw0), &w, &[1.0], forward, ErrorOf { fifth_derivative, rounding });
    }

    /// Rows of the table are copied times a scale, so that the output is linear in it.
    #[test]
    fn embedding_rows((m, h, vocab) in (1usize..9, 1usize..5, 1usize..6), seed in any::<u64>()) {
        let stream = &mut RngStream::new(seed, 0);
        let (table, dout) = (values(stream, vocab * h, 2.0), values(stream, m * h, 1.0));
        let ids: Vec<u32> = (0..m).map(|_| stream.below(vocab as u32)).collect();
        let (scale, dtable0) = (1.5, values(stream, vocab * h, 1.0));
        let mut dtable = dtable0.clone();
        embedding_backward(&dout, &ids, scale, &mut dtable, h);
        let forward = |table: &[f64]| -> Vec<f64> {
            ids.iter().flat_map(|&id| &table[id as usize * h..][..h]).map(|x| scale * x).collect()
        };
        let rounding = (4 + m * h) as f64 * (5.0 * magnitude(&dout) + 2.0);
        let error = ErrorOf { fifth_derivative: 0.0, rounding };
        check_gradient("the table's gradient", &added(&dtable, &dtable0), &table, &dout, forward, error);
    }

    /// Rows that take the place of some of the table: linear in them, and tokens of other ids do not see them.
    #[test]
    fn some_rows_of_an_embedding((m, h, vocab) in (1usize..9, 1usize..5, 2usize..7), seed in any::<u64>()) {
        let stream = &mut RngStream::new(seed, 0);
        let (table, dout) = (values(stream, vocab * h, 2.0), values(stream, m * h, 1.0));
        let ids: Vec<u32> = (0..m).map(|_| stream.below(vocab as u32)).collect();
        let rows: Vec<u32> = (0..vocab as u32).filter(|row| *row == 1 || stream.below(2) == 0).collect();
        let own = values(stream, rows.len() * h, 2.0);
        let (scale, drows0) = (1.5, values(stream, rows.len() * h, 1.0));
        let mut drows = drows0.clone();
        embedding_backward_of_rows(&dout, &ids, &rows, scale, &mut drows, h);
        let forward = |own: &[f64]| -> Vec<f64> {
            let mut table = table.clone();
            for (&row, own) in rows.iter().zip(own.chunks_exact(h)) {
                table[row as usize * h..][..h].copy_from_slice(own);
            }
            ids.iter().flat_map(|&id| &table[id as usize * h..][..h]).map(|x| scale * x).collect()
        };
        let rounding = (4 + m * h) as f64 * (5.0 * magnitude(&dout) + 2.0);
        let error = ErrorOf { fifth_derivative: 0.0, rounding };
        check_gradient("the rows' gradient", &added(&drows, &drows0), &own, &dout, forward, error);
    }
}
