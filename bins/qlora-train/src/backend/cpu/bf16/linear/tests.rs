use super::super::drawn::by_every_kind;
use super::super::lora_gradients::{GradientScratch, Gradients};
use super::*;
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::rng::RngStream;

fn values(len: usize, seed: u64) -> Vec<bf16> {
    let mut stream = RngStream::new(seed, 1);
    (0..len).map(|_| bf16::from_f32(stream.below(2001) as f32 / 1000.0 - 1.0)).collect()
}

#[test]
fn a_group_and_its_gradients_are_their_definitions() {
    check_definitions(301);
}

/// Segments of a token of text share their threads.
#[test]
fn a_group_of_a_few_rows_is_its_definition() {
    check_definitions(3);
}

/// Two segments, one with an odd rank and one without a low-rank term, beside sums in f64 of the same bf16 values.
fn check_definitions(m: usize) {
    let (k, ns, r) = (96, [40, 24], 5);
    let weights: Vec<Nf4Matrix> = ns
        .iter()
        .map(|n| {
            let w: Vec<f32> = values(n * k, *n as u64).iter().map(|x| x.to_f32()).collect();
            Nf4Matrix::quantize(&w, *n, k, &Nf4Options { block_size: 32, double_quant: true }).unwrap()
        })
        .collect();
    let dense: Vec<Vec<f64>> =
        weights.iter().map(|w| w.dequantize().iter().map(|&x| bf16::from_f32(x).to_f64()).collect()).collect();
    let (a, b) = (values(r * k, 7), values(ns[0] * r, 8));
    let even = padded(r);
    let floats = |x: &[bf16]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
    let (a32, b32) = (floats(&a), floats(&b));
    let bias: Vec<f32> = (0..ns[0]).map(|i| i as f32 * 0.1).collect();
    let lora = LowRank { r, scale: 0.5, scales: None, a: &a32, b: &b32 };
    let segments = [
        Segment { n: ns[0], weight: &weights[0], bias: Some(&bias), lora: Some(lora) },
        Segment { n: ns[1], weight: &weights[1], bias: None, lora: None },
    ];
    let n = ns[0] + ns[1];
    let (x, dy) = (values(m * k, 1), values(m * n, 2));
    let wide = |x: &[bf16]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
    let (wx, wdy, wa, wb) = (wide(&x), wide(&dy), wide(&a), wide(&b));
    let close = |what: &str, found: f64, expected: f64, size: f64, roundings: f64| {
        let bound = roundings * size * 2f64.powi(-8) + size * 1e-5;
        assert!((found - expected).abs() <= bound, "{what}: {found} {expected} {bound}");
    };
    for (isa, dropout) in by_every_kind(&[None, Some(Dropout::new(3, 16, 2, 0.25))]) {
        let mask: Vec<f64> = (0..m * k)
            .map(|i| {
                let factor = |d: Dropout| d.factors((i / k) as u32, (i % k / 4) as u32)[i % 4];
                f64::from(dropout.map_or(1.0, factor))
            })
            .collect();
        let mut scratch: Vec<Scratch> = (0..2).map(|_| Scratch::new()).collect();
        let group = Group { isa, k, segments: &segments, first: 0, dropout, adapters: &[] };
        let mut masked = vec![bf16::ZERO; m * k];
        let mut s = vec![bf16::ONE; m * even];
        group.lora_down(&mut scratch, &x, &mut masked, &mut s);
        let mut y = vec![bf16::ZERO; m * n];
        group.forward(&mut scratch, &x, Some(&s), &mut y);
        let mut t = vec![bf16::ONE; m * even];
        group.lora_dy_b(&mut scratch, &dy, &mut t);
        let (mut term, mut dx) = (vec![0.0; m * k], vec![bf16::ZERO; m * k]);
        group.dx(&mut scratch, &dy, Some(&t), &mut term, false, &mut dx);
        let (mut ga, mut gb) = (vec![0.5f32; r * k], vec![0.25f32; ns[0] * r]);
        let mut gradients = [Some(Gradients { a: &mut ga, b: &mut gb }), None];
        let mut more = GradientScratch::new(r);
        group.gradients(&mut scratch, &mut more, &x, &dy, &s, &t, &mut masked, &mut gradients);
        let (ws, wt) = (wide(&s), wide(&t));
        for row in (0..m).step_by(37) {
            if even > r {
                assert_eq!((ws[row * even + r], wt[row * even + r]), (0.0, 0.0));
            }
            for i in 0..r {
                let terms: Vec<f64> =
                    (0..k).map(|j| 0.5 * mask[row * k + j] * wx[row * k + j] * wa[i * k + j]).collect();
                let size = terms.iter().map(|x| x.abs()).sum();
                close("S", ws[row * even + i], terms.iter().sum(), size, 2.0);
                let terms: Vec<f64> = (0..ns[0]).map(|j| 0.5 * wdy[row * n + j] * wb[j * r + i]).collect();
                let size = terms.iter().map(|x| x.abs()).sum();
                close("T", wt[row * even + i], terms.iter().sum(), size, 1.0);
            }
            for column in 0..n {
                let (segment, at) = if column < ns[0] { (0, column) } else { (1, column - ns[0]) };
                let mut terms: Vec<f64> = (0..k).map(|j| wx[row * k + j] * dense[segment][at * k + j]).collect();
                if segment == 0 {
                    terms.extend((0..r).map(|i| ws[row * even + i] * wb[at * r + i]));
                    terms.push(f64::from(bias[at]));
                }
                let size = terms.iter().map(|x| x.abs()).sum();
                close("Y", y[row * n + column].to_f64(), terms.iter().sum(), size, 1.0);
            }
            for column in 0..k {
                let mut terms: Vec<f64> = (0..n)
                    .map(|j| {
                        let (segment, at) = if j < ns[0] { (0, j) } else { (1, j - ns[0]) };
                        wdy[row * n + j] * dense[segment][at * k + column]
                    })
                    .collect();
                let masked = mask[row * k + column];
                terms.extend((0..r).map(|i| masked * wt[row * even + i] * wa[i * k + column]));
                let size = terms.iter().map(|x| x.abs()).sum();
                close("dX", dx[row * k + column].to_f64(), terms.iter().sum(), size, 1.0);
            }
        }
        for i in 0..r {
            for column in 0..k {
                let terms: Vec<f64> =
                    (0..m).map(|row| wt[row * even + i] * mask[row * k + column] * wx[row * k + column]).collect();
                let size = terms.iter().map(|x| x.abs()).sum();
                close("dA", f64::from(ga[i * k + column]) - 0.5, terms.iter().sum(), size, 1.0);
            }
            for column in 0..ns[0] {
                let terms: Vec<f64> = (0..m).map(|row| wdy[row * n + column] * ws[row * even + i]).collect();
                let size = terms.iter().map(|x| x.abs()).sum();
                close("dB", f64::from(gb[column * r + i]) - 0.25, terms.iter().sum(), size, 0.0);
            }
        }
    }
}
