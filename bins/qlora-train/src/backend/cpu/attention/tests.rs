use super::*;
use crate::backend::cpu::aligned::Aligned;
use qlora_kernels::reference;
use qlora_kernels::rng::RngStream;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut stream = RngStream::new(seed, 1);
    (0..len).map(|_| stream.below(4001) as f32 / 1000.0 - 2.0).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f64], what: &str) {
    let size = expected.iter().fold(1.0f64, |size, x| size.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(*found) - expected).abs() <= 2e-5 * size, "{what} {i}: {found} {expected}");
    }
}

/// Over documents of several tiles, some of which no query of a task sees.
#[test]
fn attention_and_its_gradient_are_the_reference_with_any_window_and_cap() {
    let windows = [None, Some(1), Some(2), Some(64), Some(65), Some(130), Some(1000)];
    let capped = [(None, Some(1.5)), (Some(65), Some(0.7)), (None, Some(50.0))];
    for (window, soft_cap) in windows.into_iter().map(|window| (window, None)).chain(capped) {
        let shape = AttentionShape { heads: 3, kv_heads: 1, head_dim: 8, soft_cap };
        let boundaries = [0, 1, 71, 71, 471];
        let m = 471;
        let (qkv, dout) = (values(m * shape.qkv(), 1), values(m * shape.out(), 2));
        let visible = Visible::new(window);
        let (mut scores, delta) = (Aligned::zeros(scratch(m)), Aligned::zeros(m * shape.heads));
        scores.fill(f32::NAN);
        let mut workspace = Workspace { scores, delta, ..Workspace::default() };
        let (mut out, mut lse) = (vec![f32::NAN; m * shape.out()], vec![f32::NAN; m * shape.heads]);
        forward(&mut workspace, &qkv, &boundaries, shape, visible, &mut out, &mut lse);
        let (mut expected, mut expected_lse) = (vec![0.0; out.len()], vec![0.0; lse.len()]);
        reference::attention(&wide(&qkv), &boundaries, shape, window, &mut expected, &mut expected_lse);
        assert_close(&out, &expected, &format!("out, {window:?}"));
        assert_close(&lse, &expected_lse, &format!("lse, {window:?}"));

        let (mut dqkv, mut expected_d) = (vec![f32::NAN; qkv.len()], vec![0.0; qkv.len()]);
        backward(&mut workspace, &dout, &qkv, &out, &lse, &boundaries, shape, visible, &mut dqkv);
        let (dout, qkv) = (wide(&dout), wide(&qkv));
        reference::attention_backward(
            &dout,
            &qkv,
            &expected,
            &expected_lse,
            &boundaries,
            shape,
            window,
            &mut expected_d,
        );
        assert_close(&dqkv, &expected_d, &format!("gradient, {window:?}"));
    }
}
