use super::super::drawn::by_every_kind;
use super::*;
use qlora_kernels::rng::RngStream;

fn values(len: usize, seed: u64) -> Vec<bf16> {
    let mut stream = RngStream::new(seed, 1);
    (0..len).map(|_| bf16::from_f32(stream.below(2001) as f32 / 1000.0 - 1.0)).collect()
}

#[test]
fn losses_and_gradients_are_those_of_f64_within_rounding() {
    let sizes = [(1, 4, 3, None), (9, 24, 77, None), (300, 32, 130, None), (30, 24, 1077, Some(1.5))];
    for (isa, (m, h, vocab, soft_cap)) in by_every_kind(&sizes) {
        let capped = |z: f64| soft_cap.map_or(z, |cap: f32| f64::from(cap) * (z / f64::from(cap)).tanh());
        let slope = |z: f64| soft_cap.map_or(1.0, |cap: f32| 1.0 - (z / f64::from(cap)).powi(2));
        let (x, head) = (values(m * h, 1), values(vocab * h, 2));
        let targets: Vec<i32> = (0..m).map(|i| if i % 3 == 1 { -1 } else { (i * 7 % vocab) as i32 }).collect();
        let weights: Vec<f32> =
            (0..m).map(|token| if token % 5 == 4 { 0.0 } else { 0.25 + token as f32 / 512.0 }).collect();
        let scale = 0.5;
        let mut scratch: Vec<Scratch> = (0..2).map(|_| Scratch::new()).collect();
        let mut memory = LossScratch::new(m, h, vocab, true, false);
        let mut head_gradient = vec![0.5f32; vocab * h];
        let mut expected_gradient = vec![[0.0f64; 2]; vocab * h];
        let mut dx = vec![bf16::ONE; m * h];
        let mut total = LossSum::default();
        let whole = in_parts(&head, h, vocab);
        cross_entropy(
            isa,
            &mut scratch,
            &mut memory,
            &x,
            &whole,
            h,
            vocab,
            TableGradient { data: &mut head_gradient, tokens: None },
            &targets,
            &weights,
            scale,
            soft_cap,
            Some(&mut dx),
            &mut total,
        )
        .unwrap();
        let loss = total.total();
        let mut expected = 0.0;
        for token in 0..m {
            let dx: Vec<f64> = dx[token * h..][..h].iter().map(|x| x.to_f64()).collect();
            let target = match usize::try_from(targets[token]) {
                Ok(target) if weights[token] != 0.0 => target,
                _ => {
                    assert!(dx.iter().all(|&dx| dx == 0.0));
                    continue;
                }
            };
            let logits: Vec<f64> = (0..vocab)
                .map(|v| (0..h).map(|i| x[token * h + i].to_f64() * head[v * h + i].to_f64()).sum::<f64>())
                .map(capped)
                .collect();
            let max = logits.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
            expected += f64::from(weights[token]) * (max + sum.ln() - logits[target]);
            for v in 0..vocab {
                let p = (logits[v] - max).exp() / sum - f64::from(u8::from(v == target));
                for i in 0..h {
                    let factor = f64::from(scale * weights[token]) * slope(logits[v]);
                    let term = factor * p * x[token * h + i].to_f64();
                    let [total, size] = &mut expected_gradient[v * h + i];
                    (*total, *size) = (*total + term, *size + term.abs());
                }
            }
            for i in 0..h {
                let terms: Vec<f64> = (0..vocab)
                    .map(|v| {
                        let p = (logits[v] - max).exp() / sum - f64::from(u8::from(v == target));
                        f64::from(scale * weights[token]) * p * slope(logits[v]) * head[v * h + i].to_f64()
                    })
                    .collect();
                let size: f64 = terms.iter().map(|x| x.abs()).sum();
                // Probabilities and the result are rounded to bf16 once each, by up to 2⁻⁸.
                let bound = size * 2.0 * 2f64.powi(-8) + 1e-6;
                assert!((dx[i] - terms.iter().sum::<f64>()).abs() <= bound, "{m}, token {token}, {i}");
            }
        }
        assert!((loss - expected).abs() <= 1e-5 * expected, "{loss} {expected}");
        for (found, [total, size]) in head_gradient.iter().zip(&expected_gradient) {
            // Probabilities are rounded to bf16; it began with 0.5.
            let bound = size * 2f64.powi(-8) + 1e-6;
            assert!((f64::from(*found) - 0.5 - total).abs() <= bound, "{m}: {found} {total}");
        }
        let mut all = vec![f32::NAN; m * vocab];
        logits(isa, &mut scratch, &x, &whole, h, vocab, &mut all).unwrap();
        assert!(all.iter().all(|logit| logit.is_finite()), "every logit is written");
    }
}

/// Takes a part of a matrix, which has these rows of it.
type Take<'a> = dyn FnMut(Range<usize>, &dyn Stored) + 'a;

/// The parts of a stored matrix `[vocab, h]`, of `rows` rows each.
fn in_parts(head: &[bf16], h: usize, rows: usize) -> impl Fn(&mut Take<'_>) -> Result<()> {
    move |take| {
        for (part, data) in head.chunks(rows * h).enumerate() {
            take(part * rows..part * rows + data.len() / h, &Rows { data, stride: h });
        }
        Ok(())
    }
}

#[test]
fn an_output_layer_in_parts_gives_the_bits_of_the_whole() {
    for (m, h, vocab) in [(9, 64, ROWS + 1), (40, 34, 2 * ROWS + 77), (3, 16, 3 * ROWS)] {
        let (x, head) = (values(m * h, 3), values(vocab * h, 4));
        let targets: Vec<i32> = (0..m).map(|i| if i % 4 == 1 { -1 } else { (i * 997 % vocab) as i32 }).collect();
        for (isa, ()) in by_every_kind(&[()]) {
            let of = |rows: usize| {
                let mut scratch: Vec<Scratch> = (0..2).map(|_| Scratch::new()).collect();
                let mut memory = LossScratch::new(m, h, vocab, false, true);
                let (mut dx, mut total) = (vec![bf16::ONE; m * h], LossSum::default());
                let (parts, none) = (in_parts(&head, h, rows), TableGradient::none());
                let (gemm, dx_to) = (&mut scratch, Some(&mut dx[..]));
                cross_entropy(
                    isa,
                    gemm,
                    &mut memory,
                    &x,
                    &parts,
                    h,
                    vocab,
                    none,
                    &targets,
                    &[],
                    0.5,
                    None,
                    dx_to,
                    &mut total,
                )
                .unwrap();
                let mut few = vec![0.0; 3 * vocab];
                logits(isa, &mut scratch, &x[..3 * h], &parts, h, vocab, &mut few).unwrap();
                let bits = |x: &f32| x.to_bits();
                (dx, total.total().to_bits(), few.iter().map(bits).collect::<Vec<_>>())
            };
            assert!(of(ROWS) == of(vocab), "{m} {h} {vocab}");
        }
    }
}

#[test]
fn rounding_in_place_is_rounding() {
    for len in [2, 30, 32, 34, 100] {
        let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let mut bits: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
        round_in_place(&mut bits);
        let found: &[bf16] = bytemuck::cast_slice(&bits);
        assert!(found.iter().zip(&values).all(|(found, x)| *found == bf16::from_f32(*x)), "{len}");
    }
}
