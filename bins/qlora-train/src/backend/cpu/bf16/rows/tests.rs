use super::*;
use crate::backend::cpu::elementwise;
use qlora_kernels::rng::RngStream;
use qlora_kernels::rope::RopeScaling;

#[test]
fn rounding_is_that_of_the_half_crate() {
    for i in 0..=u16::MAX {
        for low in [0u16, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF] {
            let x = f32::from_bits(u32::from(i) << 16 | u32::from(low));
            let (found, expected) = (round(x), bf16::from_f32(x));
            assert!(found == expected || found.is_nan() && expected.is_nan(), "{x:e}");
        }
        let x = bf16::from_bits(i);
        assert!(widen(x).to_bits() == x.to_f32().to_bits() || x.is_nan(), "{x}");
    }
}

fn values(len: usize, seed: u64) -> Vec<bf16> {
    let mut stream = RngStream::new(seed, 1);
    (0..len).map(|_| bf16::from_f32(stream.below(4001) as f32 / 1000.0 - 2.0)).collect()
}

fn wide(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Every value is within one rounding to bf16 of the f32 operation, which runs the same formula.
#[track_caller]
fn assert_rounded(found: &[bf16], expected: &[f32], terms: f32) {
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = expected.abs() * 2.0f32.powi(-8) + terms * f32::EPSILON;
        assert!((found.to_f32() - expected).abs() <= bound, "{i}: {found} {expected}");
    }
}

#[test]
fn norms_rotation_and_activation_are_those_of_f32_rounded() {
    for (tokens, h) in [(1, 8), (5, 24), (40, 576)] {
        let (x, d, dy) = (values(tokens * h, 1), values(tokens * h, 2), values(tokens * h, 3));
        let weight: Vec<f32> = (0..h).map(|i| 0.5 + i as f32 / h as f32).collect();
        let (mut out, mut sum) = (vec![bf16::ZERO; tokens * h], vec![bf16::ZERO; tokens * h]);
        let mut expected = vec![0.0; tokens * h];
        rms_norm(&x, &weight, 1e-5, &mut out);
        elementwise::rms_norm(&wide(&x), &weight, 1e-5, &mut expected);
        assert_rounded(&out, &expected, 16.0);
        add_rms_norm(&x, &d, &mut sum, &weight, 1e-5, &mut out);
        let exact: Vec<f32> = wide(&x).iter().zip(wide(&d)).map(|(x, d)| x + d).collect();
        assert_rounded(&sum, &exact, 0.0);
        elementwise::rms_norm(&wide(&sum), &weight, 1e-5, &mut expected);
        assert_rounded(&out, &expected, 16.0);
        for accumulate in [false, true] {
            let (mut dx, mut expected) = (d.clone(), wide(&d));
            rms_norm_backward(&dy, &x, &weight, 1e-5, accumulate, &mut dx);
            elementwise::rms_norm_backward(&wide(&dy), &wide(&x), &weight, 1e-5, accumulate, &mut expected);
            assert_rounded(&dx, &expected, 64.0);
        }
        // The norm is rounded before it is added.
        rms_norm_add(&x, &d, &weight, 1e-5, &mut sum);
        rms_norm(&d, &weight, 1e-5, &mut out);
        let exact: Vec<f32> = wide(&x).iter().zip(wide(&out)).map(|(x, d)| x + d).collect();
        assert_rounded(&sum, &exact, 0.0);
        for activation in [GateActivation::Silu, GateActivation::GeluTanh] {
            let gate_up = values(2 * tokens * h, 4);
            let mut expected = vec![0.0; tokens * h];
            swiglu(&gate_up, &mut out, h, activation);
            elementwise::swiglu(&wide(&gate_up), &mut expected, h, activation);
            assert_rounded(&out, &expected, 16.0);
            let (mut gradient, mut expected) = (gate_up.clone(), wide(&gate_up));
            let mut again = vec![bf16::ZERO; tokens * h];
            swiglu_backward(&dy, &mut gradient, Some(&mut again), h, activation);
            assert!(again == out, "the forward result of the backward pass");
            let mut same = gate_up.clone();
            swiglu_backward(&dy, &mut same, None, h, activation);
            assert!(same == gradient);
            elementwise::swiglu_backward(&wide(&dy), &mut expected, None, h, activation);
            assert_rounded(&gradient, &expected, 16.0);
        }
    }
    let shape = AttentionShape { heads: 3, kv_heads: 1, head_dim: 8, soft_cap: None };
    let positions: Vec<u32> = (0..21).map(|i| i * 2).collect();
    for (rotated, inverse) in [(8, false), (8, true), (6, false), (6, true)] {
        let table = RopeTable::new(rotated, 1e4, RopeScaling::Default, 50);
        let qkv = values(21 * shape.qkv(), 5);
        let (mut found, mut expected) = (qkv.clone(), wide(&qkv));
        rope(&mut found, shape, &positions, &table, inverse);
        elementwise::rope(&mut expected, shape, &positions, &table, inverse);
        assert_rounded(&found, &expected, 4.0);
    }
}
