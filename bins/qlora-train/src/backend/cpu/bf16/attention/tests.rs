use super::super::drawn::by_every_kind;
use super::backward::{Sums, backward};
use super::*;
use qlora_kernels::reference;
use qlora_kernels::rng::RngStream;

fn values(len: usize, seed: u64) -> Vec<bf16> {
    let mut stream = RngStream::new(seed, 1);
    (0..len).map(|_| bf16::from_f32(stream.below(4001) as f32 / 1000.0 - 2.0)).collect()
}

fn wide(x: &[bf16]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

/// Beside the f64 reference on the same bf16 inputs: probabilities and score gradients are rounded to bf16 once
/// (2⁻⁸ of each), and so is the result.
#[track_caller]
fn assert_close(what: &str, found: &[bf16], expected: &[f64], sizes: f64) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = expected.abs() * 2f64.powi(-8) + sizes * 2f64.powi(-8);
        assert!((found.to_f64() - expected).abs() <= bound, "{what} {i}: {found} {expected}, bound {bound}");
    }
}

#[test]
fn scratch_memory_has_the_bytes_that_are_planned() {
    for (heads, kv_heads, head_dim) in [(4, 4, 16), (9, 3, 64), (32, 8, 128), (3, 1, 96)] {
        let shape = AttentionShape { heads, kv_heads, head_dim, soft_cap: None };
        let Scratch { along_d, along_tokens, transposed: [t, u], band, scores, gradients, p, ds, ds_rows, sums } =
            Scratch::new(shape);
        let in_four = [along_d.len(), along_tokens.len(), t.len(), u.len(), p.len(), ds.len()];
        let in_f32 = [scores.len(), gradients.len(), sums.len()];
        let values = in_four.into_iter().chain(in_f32).sum::<usize>();
        let bytes = 4 * values + 2 * (band.len() + ds_rows.len());
        assert_eq!(bytes as u64, Scratch::bytes(shape), "{shape:?}");
    }
}

#[test]
fn attention_and_its_gradient_are_the_reference_within_rounding() {
    for (heads, kv_heads, head_dim, boundaries, window, soft_cap) in [
        (2, 2, 16, vec![0, 5], None, None),
        (3, 1, 64, vec![0, 1, 70, 141], None, None),
        (8, 2, 128, vec![0, 64, 130], None, None),
        (4, 1, 32, vec![0, 200], None, None),
        // Four tiles of keys for one thread, and eight halves for more.
        (2, 1, 80, vec![0, 250], None, None),
        (2, 2, 16, vec![0, 5], Some(1), None),
        // Tiles that no query of a task sees, before and after those that one does.
        (2, 1, 32, vec![0, 20, 400], Some(70), None),
        (2, 2, 64, vec![0, 1, 70, 341], Some(9), None),
        (4, 2, 32, vec![0, 70, 200], None, Some(1.5)),
        (3, 1, 64, vec![0, 1, 70, 141], Some(70), Some(4.0)),
    ] {
        let visible = Visible::new(window);
        let shape = AttentionShape { heads, kv_heads, head_dim, soft_cap };
        let m = *boundaries.last().unwrap() as usize;
        let (qkv, dout) = (values(m * shape.qkv(), 1), values(m * shape.out(), 2));
        let (mut expected, mut expected_lse) = (vec![0.0; m * shape.out()], vec![0.0; m * heads]);
        reference::attention(&wide(&qkv), &boundaries, shape, window, &mut expected, &mut expected_lse);
        let mut expected_d = vec![0.0; m * shape.qkv()];
        let (wide_dout, wide_qkv) = (wide(&dout), wide(&qkv));
        for (isa, ()) in by_every_kind(&[()]) {
            let (mut out, mut lse) = (vec![bf16::ZERO; m * shape.out()], vec![0.0; m * heads]);
            let mut scratch: Vec<Scratch> = (0..3).map(|_| Scratch::new(shape)).collect();
            forward(isa, &mut scratch, &qkv, &boundaries, shape, visible, &mut out, &mut lse);
            // Values are at most 2, probabilities sum to 1.
            assert_close("out", &out, &expected, 2.0);
            for (found, expected) in lse.iter().zip(&expected_lse) {
                assert!((f64::from(*found) - expected).abs() <= 1e-4 * expected.abs().max(1.0));
            }
            reference::attention_backward(
                &wide_dout,
                &wide_qkv,
                &wide(&out),
                &lse.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
                &boundaries,
                shape,
                window,
                &mut expected_d,
            );
            let back = |threads: usize| {
                let (mut delta, mut dq) = (vec![f32::NAN; m * heads], vec![f32::NAN; Sums::dq_len(m, shape)]);
                let mut dqkv = vec![bf16::NAN; m * shape.qkv()];
                let mut scratch: Vec<Scratch> = (0..threads).map(|_| Scratch::new(shape)).collect();
                let sums = Sums { delta: &mut delta, dq: &mut dq };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    backward(isa, &mut scratch, &dout, &qkv, &out, &lse, &boundaries, shape, visible, sums, &mut dqkv);
                });
                dqkv
            };
            let dqkv = back(1);
            let size = expected_d.iter().fold(0.0f64, |size, x| size.max(x.abs()));
            assert_close("gradient", &dqkv, &expected_d, size);
            // Tiles of keys are smaller where more threads share them.
            assert!(back(3) == dqkv && back(8) == dqkv, "bits depend on threads");
        }
    }
}
