//! NF4 on the device against `nf4`, bit for bit, under every schedule.

#![allow(unsafe_code)]
#![cfg(any(feature = "emulation", feature = "cuda"))]

mod common;

use common::{DeviceWeight, Tally, device, set_schedule, to_bf16, weights};
use half::bf16;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use qlora_kernels::cuda::nf4::{AbsmaxMut, Float, Layout, dequantize, quantize};
use qlora_kernels::cuda::{Buffer, CudaError, Device, absmax_transpose, sys};
use qlora_kernels::nf4::{Absmax, Nf4Matrix, Nf4Options, dynamic_map_signed};

const SCHEDULES: u64 = 3;

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// What the device quantised, downloaded: codes, absmax in f32, and the second level.
#[derive(Debug, PartialEq)]
struct Quantised {
    codes: Vec<u8>,
    absmax: Vec<u32>,
    second: Option<(Vec<u8>, Vec<u32>, u32)>,
}

fn on_device<T: Float>(device: &Device, weight: &[T], n: usize, k: usize, options: &Nf4Options) -> Quantised {
    let blocks = (n * k).div_ceil(options.block_size);
    let weight = device.upload(weight).unwrap();
    let mut codes = device.upload(&vec![0xEEu8; (n * k).div_ceil(2)]).unwrap();
    let mut absmax = device.upload(&vec![f32::NAN; blocks]).unwrap();
    let mut absmax_codes = device.upload(&vec![0xEEu8; blocks]).unwrap();
    let mut nested = device.upload(&vec![f32::NAN; blocks.div_ceil(256)]).unwrap();
    let mut offset = device.upload(&[f32::NAN]).unwrap();
    let map = device.upload(dynamic_map_signed().as_slice()).unwrap();
    let out = if options.double_quant {
        AbsmaxMut::DoubleQuantised {
            absmax: absmax.view_mut(),
            nested_code: map.view(),
            codes: absmax_codes.view_mut(),
            nested_absmax: nested.view_mut(),
            offset: offset.view_mut(),
        }
    } else {
        AbsmaxMut::F32(absmax.view_mut())
    };
    quantize(weight.view(), n, k, options.block_size, codes.view_mut(), out, device.stream()).unwrap();
    Quantised {
        codes: device.download(&codes).unwrap(),
        absmax: bits(&device.download(&absmax).unwrap()),
        second: options.double_quant.then(|| {
            let offset = device.download(&offset).unwrap()[0].to_bits();
            (device.download(&absmax_codes).unwrap(), bits(&device.download(&nested).unwrap()), offset)
        }),
    }
}

fn by_reference(weight: &[f32], n: usize, k: usize, options: &Nf4Options) -> Quantised {
    let plain = Nf4Matrix::quantize(weight, n, k, &Nf4Options { double_quant: false, ..*options }).unwrap();
    let Absmax::F32(absmax) = plain.absmax() else { panic!("asked for f32 absmax") };
    let matrix = Nf4Matrix::quantize(weight, n, k, options).unwrap();
    let second = match matrix.absmax() {
        Absmax::F32(_) => None,
        Absmax::DoubleQuantised { codes, nested_absmax, offset, .. } => {
            Some((codes.clone(), bits(nested_absmax), offset.to_bits()))
        }
    };
    Quantised { codes: matrix.codes().to_vec(), absmax: bits(absmax), second }
}

/// (N, K, log2 of the block size, double quantisation, seed): rows that blocks straddle, ragged ends, several nested blocks.
fn shapes() -> impl Strategy<Value = (usize, usize, Nf4Options, u64)> {
    (1usize..40, 1usize..700, 5u32..13, any::<bool>(), any::<u64>())
        .prop_map(|(n, k, log, double_quant, seed)| (n, k, Nf4Options { block_size: 1 << log, double_quant }, seed))
}

#[test]
fn quantising_equals_the_reference_bit_for_bit() {
    let tally = Tally::new("nf4 quantise", SCHEDULES);
    let device = device();
    let run = |(n, k, options, seed): (usize, usize, Nf4Options, u64)| {
        let rounded = to_bf16(&weights(n * k, seed));
        let exact: Vec<f32> = rounded.iter().map(|x| x.to_f32()).collect();
        let plain = weights(n * k, seed ^ 1);
        for schedule in 0..SCHEDULES {
            set_schedule(seed.wrapping_add(schedule));
            prop_assert_eq!(on_device(&device, &plain, n, k, &options), by_reference(&plain, n, k, &options));
            prop_assert_eq!(on_device(&device, &rounded, n, k, &options), by_reference(&exact, n, k, &options));
        }
        tally.case();
        Ok(())
    };
    runner(48).run(&shapes(), run).unwrap();
}

#[test]
fn zero_tiny_and_huge_blocks_quantise_as_the_reference() {
    let device = device();
    let options = Nf4Options::default();
    let mut weight = vec![0.0f32; 64 * 8];
    for (block, scale) in
        [0.0, f32::MIN_POSITIVE, 1e-45, 3e-39, 1e38, 1.0, -0.0, f32::MIN_POSITIVE / 8.0].into_iter().enumerate()
    {
        for i in 0..64 {
            weight[block * 64 + i] = scale * ((i as f32 - 31.5) / 32.0);
        }
    }
    for double_quant in [false, true] {
        let options = Nf4Options { double_quant, ..options };
        assert_eq!(on_device(&device, &weight, 8, 64, &options), by_reference(&weight, 8, 64, &options));
    }
}

fn dequantised<T: Float>(device: &Device, weight: &DeviceWeight, fill: T) -> Vec<T> {
    let shape = weight.weight();
    let mut out: Buffer<T> = device.upload(&vec![fill; shape.n * shape.k]).unwrap();
    dequantize(&shape, out.view_mut(), device.stream()).unwrap();
    device.download(&out).unwrap()
}

#[test]
fn dequantising_equals_the_reference_bit_for_bit_in_both_layouts() {
    let tally = Tally::new("nf4 dequantise", SCHEDULES);
    let device = device();
    let run = |(n, k, options, seed): (usize, usize, Nf4Options, u64)| {
        let matrix = Nf4Matrix::quantize(&weights(n * k, seed), n, k, &options).unwrap();
        let expected = matrix.dequantize();
        let mut layouts = vec![Layout::RowMajor];
        if k % options.block_size == 0 {
            layouts.push(Layout::Transposed);
        }
        for layout in layouts {
            let weight = DeviceWeight::new(&device, &matrix, layout);
            for schedule in 0..SCHEDULES {
                set_schedule(seed.wrapping_add(schedule));
                prop_assert_eq!(bits(&dequantised(&device, &weight, f32::NAN)), bits(&expected));
                prop_assert_eq!(dequantised(&device, &weight, bf16::NAN), to_bf16(&expected));
            }
        }
        tally.case();
        Ok(())
    };
    let whole = (1usize..40, 1usize..6, 5u32..8, any::<bool>(), any::<u64>()).prop_map(
        |(n, blocks, log, double_quant, seed)| {
            (n, blocks << log, Nf4Options { block_size: 1 << log, double_quant }, seed)
        },
    );
    runner(64).run(&prop_oneof![shapes(), whole], run).unwrap();
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
        quantize(weight.view(), n, k, block, codes.view_mut(), absmax, device.stream())
            .map_err(|error| error.to_string())
    };
    assert_eq!(attempt(10, 10, 64), Ok(()));
    assert!(attempt(10, 11, 64).unwrap_err().contains("weight has 100 elements, expected 110"));
    assert!(attempt(10, 10, 48).unwrap_err().contains("block size is 48, expected a power of two"));
    assert!(attempt(0, 10, 64).unwrap_err().contains("at least 1"));
    assert!(attempt(usize::MAX, 10, 64).is_err());

    // Straight through the C interface: statuses have names, and a version that it does not know is one.
    let bytes = sys::qk_nf4_quantize_args { struct_size: 4, ..zeroed() };
    // SAFETY: refused for its size before any pointer is used.
    let code = unsafe { sys::qk_nf4_quantize(&bytes, std::ptr::null_mut()) };
    assert_eq!(code, sys::QK_ERROR_STRUCT_SIZE);
    let error = CudaError::Status {
        operation: "nf4_quantize",
        shape: "N 1".into(),
        code,
        name: qlora_kernels::cuda::status_name(code),
        detail: String::new(),
    };
    assert_eq!(error.to_string(), "nf4_quantize of N 1 failed with QK_ERROR_STRUCT_SIZE (-1)");
}

fn zeroed() -> sys::qk_nf4_quantize_args {
    // SAFETY: integers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// What a C compiler lays out, by hand; the bindings and the library assert their own.
#[test]
fn struct_layouts_are_those_of_the_header() {
    use std::mem::offset_of;
    assert_eq!(qlora_kernels::cuda::abi_version(), sys::QK_ABI_VERSION);
    assert_eq!(
        [offset_of!(sys::qk_nf4, n), offset_of!(sys::qk_nf4, block_size), offset_of!(sys::qk_nf4, codes)],
        [8, 24, 32]
    );
    assert_eq!([offset_of!(sys::qk_nf4, nested_code), offset_of!(sys::qk_nf4, offset)], [64, 72]);
    assert_eq!(
        [offset_of!(sys::qk_lora, scale), offset_of!(sys::qk_lora, a), offset_of!(sys::qk_lora, adapter_index)],
        [8, 16, 32]
    );
    assert_eq!(
        [offset_of!(sys::qk_segment, n), offset_of!(sys::qk_segment, y), offset_of!(sys::qk_segment, ldy)],
        [8, 48, 56]
    );
    assert_eq!(
        [offset_of!(sys::qk_linear, m), offset_of!(sys::qk_linear, segments), offset_of!(sys::qk_linear, s)],
        [8, 40, 48]
    );
    assert_eq!(size_of::<sys::qk_nf4>(), 80);
    assert_eq!([size_of::<sys::qk_lora>(), size_of::<sys::qk_segment>(), size_of::<sys::qk_linear>()], [40, 64, 56]);
    assert_eq!([offset_of!(sys::qk_nf4_quantize_args, weight), size_of::<sys::qk_nf4_quantize_args>()], [24, 80]);
}
