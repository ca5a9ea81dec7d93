//! 8-bit optimizer states: the codes against the search that defines them, and AdamW on them against the f64 reference.

use proptest::prelude::*;
use qlora_kernels::nf4::dynamic_code;
use qlora_kernels::optim::AdamW;
use qlora_kernels::optim8bit::{BLOCK_SIZE, Quantizer, adamw_blockwise};
use qlora_kernels::reference::adamw;
use qlora_kernels::rng::RngStream;

fn quantizers() -> [(&'static Quantizer, bool); 2] {
    [(Quantizer::signed(), true), (Quantizer::unsigned(), false)]
}

/// The nearest entry; above 0 where the map is unsigned and x is above 0.
fn assert_code(quantizer: &Quantizer, x: f32) {
    let raised = quantizer.map()[0] == 0.0 && x > 0.0;
    assert_eq!(quantizer.code(x), dynamic_code(quantizer.map(), x).max(raised.into()), "{x:e}");
}

/// Values at which a code could go wrong: thresholds between codes, edges of the bins, and their neighboring floats.
#[test]
fn codes_are_those_of_the_binary_search_at_every_edge() {
    for (quantizer, signed) in quantizers() {
        let mut edges: Vec<f32> = quantizer.map().windows(2).map(|pair| (pair[0] + pair[1]) * 0.5).collect();
        edges.extend(quantizer.map());
        // All floats of at most 8 mantissa bits from 2⁻³⁰ to 1.
        edges.extend((0x3080_0000u32 >> 15..=0x3F80_0000 >> 15).map(|bits| f32::from_bits(bits << 15)));
        edges.extend([0.0, f32::MIN_POSITIVE, 1e-45, 1.0f32.next_up()]);
        for edge in edges {
            for x in [edge.next_down(), edge, edge.next_up()] {
                assert_code(quantizer, x.abs());
                if signed {
                    assert_code(quantizer, -x.abs());
                }
            }
        }
        assert_eq!(quantizer.map()[usize::from(quantizer.code(0.0))], 0.0);
    }
}

#[test]
fn blocks_of_zeros_tiny_and_huge_values_keep_their_scale() {
    for (quantizer, _) in quantizers() {
        for scale in [0.0, 1e-45, 3e-39, f32::MIN_POSITIVE, 1.0, 3e38] {
            let values: Vec<f32> = (0..BLOCK_SIZE).map(|i| scale * (i as f32 / 255.0)).collect();
            let (mut codes, mut back) = ([9; BLOCK_SIZE], [f32::NAN; BLOCK_SIZE]);
            let absmax = quantizer.quantize(&mut values.clone(), &mut codes);
            assert_eq!(absmax, scale);
            quantizer.dequantize(&codes, absmax, &mut back);
            for (&x, &y) in values.iter().zip(&back) {
                assert!((x - y).abs() <= 0.01 * scale + 1e-45, "{x:e} came back as {y:e} of {scale:e}");
            }
        }
    }
}

fn settings(step: u64) -> AdamW {
    AdamW { learning_rate: 1e-3, beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, step }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn codes_are_those_of_the_binary_search(exponent in -30.0f32..0.0, negative in any::<bool>()) {
        for (quantizer, signed) in quantizers() {
            let x = if negative && signed { -exponent.exp2() } else { exponent.exp2() };
            assert_code(quantizer, x);
        }
    }

    /// The error of a moment after an update is at most half the widest step of its map, times the block's absmax; that
    /// of a value is f32 rounding of an update with the dequantized moments.
    #[test]
    fn an_update_is_the_references_between_two_quantizations(seed in any::<u64>(), n in 1usize..900, step in 1u64..9) {
        let stream = &mut RngStream::new(seed, 0);
        let mut random = |scale: f32| -> Vec<f32> { (0..n).map(|_| (stream.uniform() - 0.5) * scale).collect() };
        let (gradient, mut value, past) = (random(2.0), random(0.1), random(1.0));
        let blocks = n.div_ceil(BLOCK_SIZE);
        let (mut m, mut v) = (vec![0u8; n], vec![0u8; n]);
        let (mut m_absmax, mut v_absmax) = (vec![0.0; blocks], vec![0.0; blocks]);
        for (b, chunk) in past.chunks(BLOCK_SIZE).enumerate() {
            let range = b * BLOCK_SIZE..b * BLOCK_SIZE + chunk.len();
            m_absmax[b] = Quantizer::signed().quantize(&mut chunk.to_vec(), &mut m[range.clone()]);
            let mut squares: Vec<f32> = chunk.iter().map(|x| x * x).collect();
            v_absmax[b] = Quantizer::unsigned().quantize(&mut squares, &mut v[range]);
        }
        let wide = |map: &[f32; 256], codes: &[u8], absmax: &[f32]| -> Vec<f64> {
            let value = |(i, &c): (usize, &u8)| f64::from(map[usize::from(c)]) * f64::from(absmax[i / BLOCK_SIZE]);
            codes.iter().enumerate().map(value).collect()
        };
        let (signed, unsigned) = (Quantizer::signed().map(), Quantizer::unsigned().map());
        let (mut first, mut second) = (wide(signed, &m, &m_absmax), wide(unsigned, &v, &v_absmax));
        let mut expected: Vec<f64> = value.iter().map(|&x| f64::from(x)).collect();
        let g: Vec<f64> = gradient.iter().map(|&x| f64::from(x)).collect();
        adamw(&settings(step), 0.5, &g, &mut expected, &mut first, &mut second);
        adamw_blockwise(&settings(step), 0.5, &gradient, &mut value, &mut m, &mut m_absmax, &mut v, &mut v_absmax);
        let (found1, found2) = (wide(signed, &m, &m_absmax), wide(unsigned, &v, &v_absmax));
        for i in 0..n {
            let (a1, a2) = (f64::from(m_absmax[i / BLOCK_SIZE]), f64::from(v_absmax[i / BLOCK_SIZE]));
            let tolerance = 1e-5 * expected[i].abs() + 1e-6 * first[i].abs().max(1e-3);
            prop_assert!((f64::from(value[i]) - expected[i]).abs() <= tolerance, "{} {}", value[i], expected[i]);
            prop_assert!((found1[i] - first[i]).abs() <= 0.00704 * a1, "m {} {}", found1[i], first[i]);
            prop_assert!((found2[i] - second[i]).abs() <= 0.00352 * a2, "v {} {}", found2[i], second[i]);
        }
    }

    #[test]
    fn blocks_are_updated_as_on_their_own(seed in any::<u64>(), blocks in 2usize..5, tail in 0usize..200) {
        let n = blocks * BLOCK_SIZE + tail;
        let stream = &mut RngStream::new(seed, 0);
        let gradient: Vec<f32> = (0..n).map(|_| stream.uniform() - 0.5).collect();
        let run = |parts: &[std::ops::Range<usize>]| {
            let mut value = vec![0.25; n];
            let (mut m, mut v) = (vec![0u8; n], vec![0u8; n]);
            let count = n.div_ceil(BLOCK_SIZE);
            let (mut a, mut b) = (vec![0.0; count], vec![0.0; count]);
            for part in parts {
                let scales = part.start / BLOCK_SIZE..part.end.div_ceil(BLOCK_SIZE);
                let part = || part.clone();
                adamw_blockwise(
                    &settings(1), 1.0, &gradient[part()], &mut value[part()], &mut m[part()], &mut a[scales.clone()],
                    &mut v[part()], &mut b[scales],
                );
            }
            (value.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), m, v, a, b)
        };
        prop_assert_eq!(run(std::slice::from_ref(&(0..n))), run(&[BLOCK_SIZE..n, 0..BLOCK_SIZE]));
    }
}
