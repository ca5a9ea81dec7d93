//! Properties of the NF4 storage over ragged shapes.

use half::bf16;
use proptest::prelude::*;
use qlora_kernels::nf4::{
    Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Error, Nf4Matrix, Nf4Options, THRESHOLDS, dynamic_map_signed,
};

/// Weights with blocks of zeros, lone spikes and scales over all of f32's range, subnormal ones too.
fn weights(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let stretch = (1usize..200, -149i32..126, prop::collection::vec(-1.0f32..1.0, 1..16), 0u8..4);
    prop::collection::vec(stretch, 1..24).prop_map(move |stretches| {
        let values = stretches.iter().cycle().flat_map(|(count, exponent, values, kind)| {
            let scale = 2f64.powi(*exponent);
            (0..*count).map(move |i| match kind {
                0 => 0.0,
                1 if i > 0 => -0.0,
                _ => (f64::from(values[i % values.len()]) * scale) as f32,
            })
        });
        values.take(len).collect()
    })
}

/// Rows and columns such that blocks straddle rows, and the number of elements is odd, as often as not.
fn shapes() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![(0usize..9, 0usize..700), (0usize..300, 0usize..9), (1usize..5, (1usize..9).prop_map(|c| c * 64))]
}

fn options() -> impl Strategy<Value = Nf4Options> {
    (5u32..=12, any::<bool>()).prop_map(|(log, double_quant)| Nf4Options { block_size: 1 << log, double_quant })
}

fn cases() -> impl Strategy<Value = (usize, usize, Vec<f32>, Nf4Options)> {
    (shapes(), options())
        .prop_flat_map(|((rows, cols), options)| weights(rows * cols).prop_map(move |w| (rows, cols, w, options)))
}

fn code_at(matrix: &Nf4Matrix, i: usize) -> u8 {
    matrix.codes()[i / 2] >> (4 * (1 - i % 2)) & 15
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// One element at a time, by the words of the format: the oracle of `quantize` without double quantization.
fn quantize_naively(weight: &[f32], block_size: usize) -> (Vec<u8>, Vec<f32>) {
    let mut codes = Vec::new();
    let mut absmax = Vec::new();
    for block in weight.chunks(block_size) {
        let max = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        let reciprocal = 1.0 / max;
        for &x in block {
            let normalized = match reciprocal {
                _ if max == 0.0 => 0.0,
                r if r.is_finite() => x * r,
                _ => x / max,
            };
            codes.push((0..15).take_while(|&i| normalized > THRESHOLDS[i]).count() as u8);
        }
        absmax.push(max);
    }
    (codes, absmax)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn codes_and_absmax_equal_a_naive_quantizer((rows, cols, weight, options) in cases()) {
        let options = Nf4Options { double_quant: false, ..options };
        let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
        let (codes, absmax) = quantize_naively(&weight, options.block_size);
        for (i, &code) in codes.iter().enumerate() {
            prop_assert_eq!(code_at(&matrix, i), code, "element {} = {:e}", i, weight[i]);
        }
        prop_assert_eq!(matrix.codes().len(), weight.len().div_ceil(2));
        if weight.len() % 2 == 1 {
            prop_assert_eq!(code_at(&matrix, weight.len()), 7);
        }
        prop_assert_eq!(matrix.absmax(), &Absmax::F32(absmax));
    }

    #[test]
    fn dequantize_is_code_times_absmax_in_both_formats((rows, cols, weight, options) in cases()) {
        let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
        let expected: Vec<f32> = (0..weight.len())
            .map(|i| CODE[usize::from(code_at(&matrix, i))] * matrix.absmax_at(i / options.block_size))
            .collect();
        prop_assert_eq!(bits(&matrix.dequantize()), bits(&expected));
        let rounded: Vec<u16> = expected.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
        let bf16s: Vec<u16> = matrix.dequantize_bf16().iter().map(|x| x.to_bits()).collect();
        prop_assert_eq!(bf16s, rounded);
    }

    #[test]
    fn any_range_of_rows_equals_the_whole_bit_for_bit(
        (rows, cols, weight, options) in cases(),
        a in 0.0f64..=1.0,
        b in 0.0f64..=1.0,
    ) {
        let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
        let whole = matrix.dequantize();
        let at = |share: f64| (share * rows as f64).round() as usize;
        let range = at(a.min(b))..at(a.max(b));
        let mut out = vec![f32::NAN; range.len() * cols];
        matrix.dequantize_rows(range.clone(), &mut out);
        prop_assert_eq!(bits(&out), bits(&whole[range.start * cols..range.end * cols]));
    }

    /// The reciprocal of an absmax that is a power of two is exact, so every code finds itself again.
    #[test]
    fn quantizing_what_was_dequantized_changes_nothing_under_powers_of_two(
        (rows, cols, codes, exponents, options) in (shapes(), options()).prop_flat_map(|((rows, cols), options)| {
            let len: usize = rows * cols;
            let exponents = prop::collection::vec(-100i32..100, len.div_ceil(options.block_size));
            (Just(rows), Just(cols), prop::collection::vec(0u8..16, len), exponents, Just(options))
        })
    ) {
        let options = Nf4Options { double_quant: false, ..options };
        let mut codes = codes;
        codes.chunks_mut(options.block_size).for_each(|block| block[0] = 15);
        let packed = codes.chunks(2).map(|p| p[0] << 4 | p.get(1).unwrap_or(&7)).collect();
        let absmax = Absmax::F32(exponents.iter().map(|&e| 2f32.powi(e)).collect());
        let matrix = Nf4Matrix::from_parts(rows, cols, options.block_size, CODE, packed, absmax).unwrap();
        let again = Nf4Matrix::quantize(&matrix.dequantize(), rows, cols, &options).unwrap();
        prop_assert_eq!(again, matrix);
    }

    #[test]
    fn bf16_weights_quantize_as_their_values_in_f32((rows, cols, weight, options) in cases()) {
        let narrow: Vec<bf16> = weight.iter().map(|&x| bf16::from_f32(x)).collect();
        let wide: Vec<f32> = narrow.iter().map(|x| x.to_f32()).collect();
        prop_assert_eq!(
            Nf4Matrix::quantize_bf16(&narrow, rows, cols, &options),
            Nf4Matrix::quantize(&wide, rows, cols, &options)
        );
    }

    /// The second level against the words of the format: nearest entries of the map for the difference to the mean.
    #[test]
    fn double_quantized_absmax_is_the_nearest_the_map_allows((rows, cols, weight, options) in cases()) {
        let plain = Nf4Options { double_quant: false, ..options };
        let plain = Nf4Matrix::quantize(&weight, rows, cols, &plain).unwrap();
        let matrix = Nf4Matrix::quantize(&weight, rows, cols, &Nf4Options { double_quant: true, ..options }).unwrap();
        prop_assert_eq!(matrix.codes(), plain.codes());
        let Absmax::DoubleQuantized { codes, nested_absmax, nested_block_size, nested_map, offset } = matrix.absmax()
        else { panic!("double quantization was asked for") };
        prop_assert_eq!(nested_map.as_ref(), dynamic_map_signed());
        prop_assert_eq!(*nested_block_size, NESTED_BLOCK_SIZE);
        let mut sum = 0f64;
        (0..plain.blocks()).for_each(|b| sum += f64::from(plain.absmax_at(b)));
        prop_assert_eq!(*offset, if plain.blocks() == 0 { 0.0 } else { (sum / plain.blocks() as f64) as f32 });
        for of in [&plain, &matrix] {
            let all: Vec<f32> = (0..of.blocks()).map(|b| of.absmax_at(b)).collect();
            for first in [0, of.blocks() / 3, of.blocks().saturating_sub(1)] {
                let mut part = vec![f32::NAN; of.blocks() - first];
                of.absmax_range(first, &mut part);
                prop_assert_eq!(&part[..], &all[first..]);
                for stride in [1, 3] {
                    let expected: Vec<f32> = all[first..].iter().copied().step_by(stride).collect();
                    let mut part = vec![f32::NAN; expected.len()];
                    of.absmax_strided(first, stride, &mut part);
                    prop_assert_eq!(part, expected);
                }
            }
        }
        for b in 0..matrix.blocks() {
            let scale = nested_absmax[b / NESTED_BLOCK_SIZE];
            prop_assert_eq!(matrix.absmax_at(b), nested_map[usize::from(codes[b])] * scale + offset);
            if scale == 0.0 {
                prop_assert_eq!(codes[b], 127);
                continue;
            }
            let wanted = f64::from(plain.absmax_at(b) - offset) / f64::from(scale);
            let distance = |entry: f32| (f64::from(entry) - wanted).abs();
            let best = nested_map.iter().map(|&e| distance(e)).fold(f64::INFINITY, f64::min);
            // Reciprocal and product each round, the reciprocal of a scale beyond 2¹²⁶ to a subnormal.
            let slack = wanted.abs() * if scale > 2f32.powi(126) { 2f64.powi(-20) } else { 2f64.powi(-22) };
            prop_assert!(distance(nested_map[usize::from(codes[b])]) <= best + slack);
        }
        for (i, nested) in nested_absmax.iter().enumerate() {
            let blocks = i * NESTED_BLOCK_SIZE..matrix.blocks().min((i + 1) * NESTED_BLOCK_SIZE);
            let largest = blocks.map(|b| (plain.absmax_at(b) - offset).abs()).fold(0.0, f32::max);
            prop_assert_eq!(*nested, largest);
        }
    }

    #[test]
    fn bytes_from_the_shape_equal_bytes_of_the_matrix((rows, cols, weight, options) in cases()) {
        let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
        let blocks = (rows * cols).div_ceil(options.block_size);
        let absmax = if options.double_quant { blocks + 4 * blocks.div_ceil(256) + 1024 } else { 4 * blocks };
        prop_assert_eq!(matrix.bytes(), (rows * cols).div_ceil(2) + absmax);
        prop_assert_eq!(Nf4Matrix::bytes_for(rows, cols, &options), matrix.bytes());
    }

    #[test]
    fn parts_of_a_matrix_make_the_same_matrix((rows, cols, weight, options) in cases()) {
        let matrix = Nf4Matrix::quantize(&weight, rows, cols, &options).unwrap();
        let copy = Nf4Matrix::from_parts(
            rows, cols, options.block_size, CODE, matrix.codes().to_vec(), matrix.absmax().clone(),
        );
        prop_assert_eq!(copy, Ok(matrix));
    }

    #[test]
    fn a_number_that_is_not_finite_is_named_with_its_first_place(
        (rows, cols, mut weight, options) in cases(),
        share in 0.0f64..1.0,
        bad in prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
    ) {
        prop_assume!(!weight.is_empty());
        let place = (share * weight.len() as f64) as usize;
        weight[place] = bad;
        *weight.last_mut().unwrap() = bad;
        match Nf4Matrix::quantize(&weight, rows, cols, &options) {
            Err(Nf4Error::NotFinite { part: "weight", index, value }) => {
                prop_assert_eq!(index, place);
                prop_assert_eq!(value.is_nan(), bad.is_nan());
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

#[test]
fn a_codebook_of_its_own_is_used() {
    let code: [f32; 16] = std::array::from_fn(|i| i as f32 - 3.5);
    let matrix = Nf4Matrix::from_parts(1, 3, 32, code, vec![0x0F, 0x80], Absmax::F32(vec![2.0])).unwrap();
    assert_eq!(matrix.dequantize(), [-7.0, 23.0, 9.0]);
}

#[test]
fn zero_blocks_hold_code_7_and_come_back_as_zero() {
    for double_quant in [false, true] {
        let options = Nf4Options { block_size: 64, double_quant };
        let matrix = Nf4Matrix::quantize(&[0.0; 192], 3, 64, &options).unwrap();
        assert!(matrix.codes().iter().all(|&byte| byte == 0x77));
        assert!(matrix.dequantize().iter().all(|&x| x == 0.0));
    }
}

/// 1 / absmax overflows here; a product with it would turn the zeros of the block into NaN.
#[test]
fn subnormal_blocks_quantize_by_division() {
    let mut weight = [0.0f32; 32];
    weight[1] = 2f32.powi(-149);
    weight[2] = -2f32.powi(-149);
    let options = Nf4Options { block_size: 32, double_quant: false };
    let matrix = Nf4Matrix::quantize(&weight, 1, 32, &options).unwrap();
    assert_eq!(matrix.dequantize(), weight);
}

#[test]
fn the_two_roundings_of_a_double_quantized_absmax_are_not_fused() {
    let map = dynamic_map_signed();
    let (mut fused, count) = (0, 256);
    for i in 0..count {
        let (nested, offset) = (0.013 + i as f32 * 1.7e-5, 0.037 + i as f32 * 3.1e-5);
        let absmax = Absmax::DoubleQuantized {
            codes: vec![i as u8],
            nested_absmax: vec![nested],
            nested_block_size: 256,
            nested_map: Box::new(*map),
            offset,
        };
        let matrix = Nf4Matrix::from_parts(1, 2, 32, CODE, vec![0xFF], absmax).unwrap();
        let product = std::hint::black_box(map[i] * nested);
        assert_eq!(matrix.absmax_at(0), product + offset);
        fused += usize::from(map[i].mul_add(nested, offset) != product + offset);
    }
    assert!(fused > 0, "no case here tells a fused operation from two");
}
