//! NF4 on the device against `nf4`, bit for bit, under every schedule.

use half::bf16;
use lab::device::{Tally, cases, device, set_schedule, weights};
use lab::nf4::{Dequantize, Quantize, bits};
use lab::operation::{Operation, run, verify};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::ops::nf4::{AbsmaxMut, Layout};
use qlora_kernels::ops::{absmax_transpose, nf4_quantize};

const SCHEDULES: u64 = 3;

fn runner(most: u32) -> TestRunner {
    TestRunner::new(Config { cases: cases(most), failure_persistence: None, ..Config::default() })
}

fn holds<T>(result: Result<T, String>) -> Result<T, TestCaseError> {
    result.map_err(TestCaseError::fail)
}

/// (N, K, log2 of the block size, double quantization, seed): rows that blocks straddle, ragged ends, several nested
/// blocks.
fn shapes() -> impl Strategy<Value = (usize, usize, Nf4Options, u64)> {
    (1usize..40, 1usize..700, 5u32..13, any::<bool>(), any::<u64>())
        .prop_map(|(n, k, log, double_quant, seed)| (n, k, Nf4Options { block_size: 1 << log, double_quant }, seed))
}

#[test]
fn quantizing_equals_the_reference_bit_for_bit() {
    let tally = Tally::new("nf4 quantize", SCHEDULES);
    let device = device();
    let case = |(n, k, options, seed): (usize, usize, Nf4Options, u64)| {
        holds(verify(&device, &Quantize::<f32>::random(n, k, options, seed), seed, SCHEDULES))?;
        holds(verify(&device, &Quantize::<bf16>::random(n, k, options, seed), seed, SCHEDULES))?;
        tally.case();
        Ok(())
    };
    runner(48).run(&shapes(), case).unwrap();
}

#[test]
fn zero_tiny_and_huge_blocks_quantize_as_the_reference() {
    let mut weight = vec![0.0f32; 64 * 8];
    for (block, scale) in
        [0.0, f32::MIN_POSITIVE, 1e-45, 3e-39, 1e38, 1.0, -0.0, f32::MIN_POSITIVE / 8.0].into_iter().enumerate()
    {
        for i in 0..64 {
            weight[block * 64 + i] = scale * ((i as f32 - 31.5) / 32.0);
        }
    }
    for double_quant in [false, true] {
        let options = Nf4Options { double_quant, ..Nf4Options::default() };
        verify(&device(), &Quantize { n: 8, k: 64, options, weight: weight.clone() }, 1, SCHEDULES).unwrap();
    }
}

/// The header's promise on values that the host quantizer refuses: the block's absmax is the NaN or the infinity, its
/// codes are in range, and no other block changes.
#[test]
fn a_nan_or_an_infinity_stays_in_its_block() {
    let device = device();
    let options = Nf4Options { block_size: 64, double_quant: false };
    let clean = Quantize::<f32>::random(5, 64, options, 3);
    let expected = run(&device, &clean, &());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [64 * 2, 64 * 2 + 37, 64 * 3 - 1] {
            let mut operation = clean.clone();
            operation.weight[at] = bad;
            let found = run(&device, &operation, &());
            for block in [0, 1, 3, 4] {
                assert_eq!(found.absmax[block], expected.absmax[block], "{bad} at {at}");
                assert_eq!(found.codes[block * 32..][..32], expected.codes[block * 32..][..32], "{bad} at {at}");
            }
            let absmax = f32::from_bits(found.absmax[2]);
            assert!(if bad.is_nan() { absmax.is_nan() } else { absmax == f32::INFINITY }, "{bad} at {at}: {absmax}");
            let nested = Quantize { options: Nf4Options { double_quant: true, ..options }, ..operation };
            let (_, _, offset) = run(&device, &nested, &()).second.unwrap();
            assert!(!f32::from_bits(offset).is_finite(), "a mean with {bad} is {}", f32::from_bits(offset));
        }
    }
}

#[test]
fn dequantizing_equals_the_reference_bit_for_bit_in_both_layouts() {
    let tally = Tally::new("nf4 dequantize", SCHEDULES);
    let device = device();
    let case = |(n, k, options, seed): (usize, usize, Nf4Options, u64)| {
        let matrix = Nf4Matrix::quantize(&weights(n * k, seed), n, k, &options).unwrap();
        let mut layouts = vec![Layout::RowMajor];
        if k % options.block_size == 0 {
            layouts.push(Layout::Transposed);
        }
        for layout in layouts {
            holds(verify(&device, &Dequantize::<f32>::new(matrix.clone(), layout), seed, SCHEDULES))?;
            holds(verify(&device, &Dequantize::<bf16>::new(matrix.clone(), layout), seed, SCHEDULES))?;
        }
        tally.case();
        Ok(())
    };
    let whole = (1usize..40, 1usize..6, 5u32..8, any::<bool>(), any::<u64>()).prop_map(
        |(n, blocks, log, double_quant, seed)| {
            (n, blocks << log, Nf4Options { block_size: 1 << log, double_quant }, seed)
        },
    );
    runner(64).run(&prop_oneof![shapes(), whole], case).unwrap();
}

/// A check that cannot fail would prove nothing: one wrong bit of each output is seen.
#[test]
fn one_wrong_bit_is_seen() {
    let device = device();
    let quantize = Quantize::<f32>::random(3, 128, Nf4Options { block_size: 64, double_quant: true }, 4);
    let right = run(&device, &quantize, &());
    quantize.check(&(), &right, usize::MAX).unwrap();
    let second = right.second.clone().unwrap();
    let mut wrong = vec![right.clone(); 5];
    wrong[0].codes[17] ^= 1;
    wrong[1].absmax[2] ^= 1;
    wrong[2].second.as_mut().unwrap().0[5] ^= 1;
    wrong[3].second.as_mut().unwrap().1[0] ^= 1;
    wrong[4].second = Some((second.0, second.1, second.2 ^ 1));
    assert!(wrong.iter().all(|wrong| quantize.check(&(), wrong, usize::MAX).is_err()));

    let matrix = Nf4Matrix::quantize(&weights(320, 6), 5, 64, &Nf4Options::default()).unwrap();
    let dequantize = Dequantize::<f32>::new(matrix.clone(), Layout::RowMajor);
    let mut found = run(&device, &dequantize, &());
    assert_eq!(found, bits(&matrix.dequantize()));
    found[319] ^= 1;
    assert!(dequantize.check(&(), &found, usize::MAX).is_err());
}

#[test]
fn absmax_transposes_there_and_back() {
    let device = device();
    let run = |(rows, columns, seed): (usize, usize, u64)| {
        let input: Vec<u8> = (0..rows * columns).map(|i| (i as u64).wrapping_mul(seed | 1).to_be_bytes()[0]).collect();
        let there = device.upload(&input).unwrap();
        let mut transposed = device.upload(&vec![0u8; input.len()]).unwrap();
        let mut back = device.upload(&vec![0u8; input.len()]).unwrap();
        set_schedule(seed);
        absmax_transpose(there.view(), transposed.view_mut(), rows, columns, device.stream()).unwrap();
        absmax_transpose(transposed.view(), back.view_mut(), columns, rows, device.stream()).unwrap();
        let out = device.download(&transposed).unwrap();
        prop_assert!((0..rows * columns).all(|i| out[i % columns * rows + i / columns] == input[i]));
        prop_assert_eq!(device.download(&back).unwrap(), input);
        Ok(())
    };
    runner(32).run(&(1usize..200, 1usize..200, any::<u64>()), run).unwrap();
}

#[test]
fn bad_arguments_are_errors_that_say_what_was_expected() {
    let device = device();
    let weight = device.upload(&[0.0f32; 100]).unwrap();
    let mut codes = device.upload(&[0u8; 50]).unwrap();
    let mut absmax = device.upload(&[0.0f32; 2]).unwrap();
    let mut attempt = |n, k, block| {
        let absmax = AbsmaxMut::F32(absmax.view_mut());
        nf4_quantize(weight.view(), n, k, block, codes.view_mut(), absmax, device.stream())
            .map_err(|error| error.to_string())
    };
    assert_eq!(attempt(10, 10, 64), Ok(()));
    assert!(attempt(10, 11, 64).unwrap_err().contains("weight has 100 elements, expected 110"));
    assert!(attempt(10, 10, 48).unwrap_err().contains("block size is 48, expected a power of two"));
    assert!(attempt(0, 10, 64).unwrap_err().contains("at least 1"));
    assert!(attempt(usize::MAX, 10, 64).is_err());
}
