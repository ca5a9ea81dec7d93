use super::*;

#[test]
fn the_largest_is_found_wherever_it_is() {
    for len in [0, 1, 15, 16, 17, 64, 67] {
        for at in 0..len {
            let mut values: Vec<f32> = (0..len).map(|i| -1.0 - i as f32).collect();
            values[at] = 2.0;
            assert_eq!(largest(&values, f32::NEG_INFINITY), 2.0, "{at} of {len}");
            assert_eq!(largest(&values, 3.0), 3.0, "{at} of {len}");
            values[(at + 1) % len] = f32::NAN;
            assert_eq!(largest(&values, -9.0), if len > 1 { 2.0 } else { -9.0 }, "{at} of {len}");
        }
    }
    assert_eq!(largest(&[], -1.0), -1.0);
}

#[test]
fn exp_is_within_two_units_in_the_last_place() {
    let mut worst = 0.0f64;
    for i in -873_000..887_000 {
        let x = i as f32 * 1e-4;
        let exact = f64::from(x).exp();
        let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
        worst = worst.max((f64::from(exp(x)) - exact).abs() / unit);
    }
    assert!(worst <= 2.0, "{worst} units in the last place");
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    assert_eq!(exp(-100.0), 0.0);
    assert_eq!(exp(0.0), 1.0);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn exp_up_to_88_has_the_bits_of_exp() {
    for i in -880_000..=880_000 {
        let x = i as f32 * 1e-4;
        assert_eq!(exp_up_to_88(x).to_bits(), exp(x).to_bits(), "{x}");
    }
    assert_eq!((exp_up_to_88(f32::NEG_INFINITY), exp_up_to_88(f32::INFINITY)), (0.0, exp(88.0)));
    assert!(exp_up_to_88(f32::NAN).is_nan());
}

/// The reference has the same formula in the same order, so the bits are equal.
#[test]
fn a_rotation_has_the_bits_of_the_reference() {
    use qlora_kernels::reference;
    use qlora_kernels::rope::RopeScaling;
    for (heads, kv_heads, head_dim, rotated) in
        [(3, 1, 2, 2), (2, 2, 10, 10), (4, 2, 64, 64), (2, 1, 128, 128), (2, 1, 128, 96)]
    {
        let shape = AttentionShape { heads, kv_heads, head_dim, soft_cap: None };
        let table = RopeTable::new(rotated, 1e4, RopeScaling::Default, 90);
        let positions: Vec<u32> = (0..43).map(|i| i * 2).collect();
        let qkv: Vec<f32> = (0..43 * shape.qkv()).map(|i| (i as f32 * 0.37).sin()).collect();
        for inverse in [false, true] {
            let (mut found, mut expected) = (qkv.clone(), qkv.clone());
            rope(&mut found, shape, &positions, &table, inverse);
            let rotate = if inverse { reference::rope_inverse } else { reference::rope };
            rotate(&mut expected, shape.qkv(), heads + kv_heads, head_dim, &positions, &table);
            assert!(found != qkv && found.iter().zip(&expected).all(|(x, y)| x.to_bits() == y.to_bits()));
        }
    }
}

#[test]
fn exp_shifted_sums_what_it_writes() {
    for len in [0, 1, 7, 8, 9, 100] {
        let mut values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37).sin()).collect();
        let expected: f64 = values.iter().map(|&x| f64::from(x - 0.5).exp()).sum();
        let sum = exp_shifted(&mut values, 0.5);
        assert!((f64::from(sum) - expected).abs() <= 1e-5 * expected, "{len}: {sum} {expected}");
    }
}
