//! Refusals of the NF4 storage, and their words.

use qlora_kernels::nf4::{Absmax, CODE, Nf4Error, Nf4Matrix, Nf4Options, dynamic_map_signed};

#[test]
fn absurd_shapes_and_block_sizes_are_refused() {
    let default = Nf4Options::default();
    for block_size in [0, 1, 16, 48, 63, 8192, usize::MAX] {
        let options = Nf4Options { block_size, ..default };
        assert_eq!(Nf4Matrix::quantize(&[], 0, 0, &options), Err(Nf4Error::BlockSize { found: block_size }));
        Nf4Matrix::bytes_for(3, 5, &options);
    }
    let (rows, cols) = (usize::MAX, 2);
    assert_eq!(Nf4Matrix::quantize(&[], rows, cols, &default), Err(Nf4Error::TooLarge { rows, cols }));
    assert_eq!(Nf4Matrix::bytes_for(rows, cols, &default), usize::MAX);
    let plain = Nf4Options { block_size: 32, double_quant: false };
    assert_eq!(Nf4Matrix::bytes_for(usize::MAX, 1, &plain), usize::MAX / 2 + 1 + (usize::MAX / 32 + 1) * 4);
    let error = Nf4Matrix::quantize(&[0.0; 5], 2, 3, &default).unwrap_err();
    assert_eq!(error.to_string(), "weight of a 2 x 3 NF4 matrix has 5 entries, expected 6");
    let none = Nf4Matrix::quantize(&[], usize::MAX, 0, &default).unwrap();
    assert!(none.is_empty() && none.dequantize().is_empty() && none.dequantize_bf16().is_empty());
}

#[test]
fn a_scale_that_8_bits_cannot_hold_is_refused() {
    let mut weight = vec![f32::MAX; 64 * 256];
    weight[..64].fill(0.0);
    let error = Nf4Matrix::quantize(&weight, 256, 64, &Nf4Options::default()).unwrap_err();
    assert!(matches!(error, Nf4Error::AbsmaxOverflow { block: 1, absmax: f32::MAX, .. }), "{error}");
    let plain = Nf4Options { block_size: 64, double_quant: false };
    assert_eq!(Nf4Matrix::quantize(&weight, 256, 64, &plain).unwrap().dequantize(), weight);
}

#[test]
fn parts_of_wrong_length_or_value_are_refused() {
    let build = |codes: usize, absmax| Nf4Matrix::from_parts(3, 43, 64, CODE, vec![0x77; codes], absmax);
    let nested = |codes: usize, absmax: Vec<f32>, size, offset| Absmax::DoubleQuantized {
        codes: vec![0; codes],
        nested_absmax: absmax,
        nested_block_size: size,
        nested_map: Box::new(*dynamic_map_signed()),
        offset,
    };
    let refusal = |codes, absmax| build(codes, absmax).unwrap_err().to_string();
    assert!(build(65, Absmax::F32(vec![1.0; 3])).is_ok());
    assert!(build(65, nested(3, vec![1.0, 1.0], 2, 0.0)).is_ok());
    assert!(
        refusal(64, Absmax::F32(vec![1.0; 3])).contains("codes of a 3 x 43 NF4 matrix has 64 entries, expected 65")
    );
    assert!(refusal(65, Absmax::F32(vec![1.0; 4])).contains("absmax of a 3 x 43 NF4 matrix has 4 entries, expected 3"));
    assert!(refusal(65, Absmax::F32(vec![1.0, f32::NAN, 1.0])).contains("absmax[1] is NaN"));
    assert!(refusal(65, nested(2, vec![1.0], 256, 0.0)).contains("absmax of a 3 x 43 NF4 matrix has 2 entries"));
    assert!(refusal(65, nested(3, vec![1.0; 2], 256, 0.0)).contains("nested_absmax of a 3 x 43"));
    assert!(refusal(65, nested(3, vec![1.0], 0, 0.0)).contains("nested block size 0"));
    assert!(refusal(65, nested(3, vec![1.0], 256, f32::INFINITY)).contains("nested_offset[0] is inf"));
    assert!(refusal(65, nested(3, vec![f32::MAX], 256, -f32::MAX)).contains("dequantized absmax[0] is -inf"));
    let codebook = [f32::NAN; 16];
    let error = Nf4Matrix::from_parts(1, 2, 64, codebook, vec![0], Absmax::F32(vec![1.0])).unwrap_err();
    assert!(error.to_string().contains("quant_map[0] is NaN"));
}

#[test]
#[should_panic(expected = "rows 2..4 of an NF4 matrix that has 3")]
fn rows_beyond_the_last_panic() {
    let matrix = Nf4Matrix::quantize(&[1.0; 6], 3, 2, &Nf4Options::default()).unwrap();
    matrix.dequantize_rows(2..4, &mut [0.0; 4]);
}
