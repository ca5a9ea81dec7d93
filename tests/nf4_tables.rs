//! The code tables and the choice of codes, against facts and against searches that know nothing of the tables' use.

use proptest::prelude::*;
use qlora_kernels::nf4::{
    CODE, Nf4Matrix, Nf4Options, THRESHOLDS, ZERO_CODE, dynamic_code, dynamic_map_signed, dynamic_map_unsigned,
};
use sha2::{Digest, Sha256};

fn sha256(map: &[f32; 256]) -> String {
    let bytes: Vec<u8> = map.iter().flat_map(|x| x.to_le_bytes()).collect();
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn dynamic_maps_are_those_of_bitsandbytes() {
    assert_eq!(sha256(dynamic_map_signed()), "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c");
    // `create_dynamic_map(signed=False)` of bitsandbytes 0.50.2.
    assert_eq!(sha256(dynamic_map_unsigned()), "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398");
}

#[test]
fn dynamic_maps_ascend_and_have_their_landmarks() {
    for map in [dynamic_map_signed(), dynamic_map_unsigned()] {
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(map[255], 1.0);
    }
    let signed = dynamic_map_signed();
    assert_eq!([signed[0], signed[127], signed[128], signed[254]], [-0.99296874, 0.0, 5.5000004e-7, 0.99296874]);
    assert_eq!(dynamic_map_unsigned()[0], 0.0);
}

#[test]
fn thresholds_are_the_midpoints_of_neighboring_codes_rounded_once() {
    for (i, &threshold) in THRESHOLDS.iter().enumerate() {
        assert_eq!(threshold, ((f64::from(CODE[i]) + f64::from(CODE[i + 1])) / 2.0) as f32);
    }
    assert_eq!(CODE[usize::from(ZERO_CODE)], 0.0);
}

/// The code that `x` gets in a block whose absmax is 1.
fn code_of(x: f32) -> u8 {
    let mut block = [0.0; 32];
    block[0] = 1.0;
    block[1] = x;
    let options = Nf4Options { block_size: 32, double_quant: false };
    Nf4Matrix::quantize(&block, 1, 32, &options).unwrap().codes()[0] & 15
}

#[test]
fn a_value_on_a_threshold_takes_the_lower_code() {
    for (i, &t) in THRESHOLDS.iter().enumerate() {
        assert_eq!(usize::from(code_of(t)), i, "on threshold {t}");
        assert_eq!(usize::from(code_of(t.next_down())), i, "below threshold {t}");
        assert_eq!(usize::from(code_of(t.next_up())), i + 1, "above threshold {t}");
    }
    for (i, &c) in CODE.iter().enumerate() {
        assert_eq!(usize::from(code_of(c)), i);
    }
}

/// Every entry, and every midpoint with its two neighboring floats: a tie takes the even entry.
#[test]
fn dynamic_codes_are_right_on_and_around_every_midpoint() {
    for map in [dynamic_map_signed(), dynamic_map_unsigned()] {
        for k in 0..255 {
            assert_eq!(usize::from(dynamic_code(map, map[k])), k);
            let midpoint = (map[k] + map[k + 1]) * 0.5;
            assert_eq!(usize::from(dynamic_code(map, midpoint)), k + k % 2, "midpoint of {k} and its successor");
            assert_eq!(usize::from(dynamic_code(map, midpoint.next_down())), k);
            assert_eq!(usize::from(dynamic_code(map, midpoint.next_up())), k + 1);
        }
        assert_eq!(dynamic_code(map, 1.0), 255);
        assert_eq!(dynamic_code(map, -1.0), 0);
    }
}

/// Distances in f64, where the difference of two f32 below 1 is exact enough to tell all but ties.
fn distance(x: f32, entry: f32) -> f64 {
    (f64::from(x) - f64::from(entry)).abs()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn nf4_codes_are_the_nearest_by_brute_force(x in -1.0f32..=1.0) {
        let code = usize::from(code_of(x));
        let best = CODE.iter().map(|&c| distance(x, c)).fold(f64::INFINITY, f64::min);
        // Thresholds are midpoints rounded to f32: half a unit in the last place of 1 may be lost there.
        prop_assert!(distance(x, CODE[code]) <= best + f64::from(f32::EPSILON), "{x} took code {code}");
    }

    #[test]
    fn dynamic_codes_are_the_nearest_by_brute_force(
        exponent in -24.0f32..0.0,
        negative in any::<bool>(),
        signed in any::<bool>(),
    ) {
        let x = if negative && signed { -exponent.exp2() } else { exponent.exp2() };
        let map = if signed { dynamic_map_signed() } else { dynamic_map_unsigned() };
        let code = usize::from(dynamic_code(map, x));
        let best = map.iter().map(|&c| distance(x, c)).fold(f64::INFINITY, f64::min);
        prop_assert!(distance(x, map[code]) <= best + f64::from(x.abs() * f32::EPSILON), "{x} took code {code}");
    }
}
