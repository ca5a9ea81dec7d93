//! cudarc's types over the kernels, and what happens on a machine without a driver.

use half::bf16;
use qlora_kernels::device::{Device, context};
use qlora_kernels::nf4::{Nf4Matrix, Nf4Options};
use qlora_kernels::ops::linear::{Input, Lora, Segment, Weight, lora_columns};
use qlora_kernels::ops::linear_forward;
use qlora_kernels::ops::nf4::{self, Absmax, Layout};
use std::path::Path;

/// Told without the code under test: the driver's kernel module, or its library where distributions put it.
fn has_driver() -> bool {
    let library = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/lib64"];
    Path::new("/proc/driver/nvidia/version").exists()
        || std::env::var_os("LD_LIBRARY_PATH").is_some()
        || library.iter().any(|dir| Path::new(dir).join("libcuda.so.1").exists())
}

#[test]
fn without_a_driver_opening_a_gpu_is_an_error_that_says_so() {
    if has_driver() {
        println!("there may be a driver: only that nothing panics is checked");
        let _ = (context(0), Device::open());
        return;
    }
    for error in [context(0).err(), Device::open().err()] {
        let error = error.expect("no driver, so no context").to_string();
        assert!(error.contains("no NVIDIA driver") && error.contains("libcuda"), "{error}");
    }
}

#[test]
fn a_context_that_does_not_exist_is_an_error() {
    assert!(context(4096).is_err());
}

/// On a GPU: a layer on a stream that cudarc made. X is one-hot, so that Y is W's columns exactly.
#[test]
fn a_linear_layer_on_a_stream_and_memory_of_cudarc() {
    let context = match context(0) {
        Ok(context) => context,
        Err(error) => return println!("not run on a GPU: {error}"),
    };
    let stream = context.new_stream().unwrap();
    let (m, n, k, r) = (24, 40, 128, 8);
    let plain: Vec<f32> = (0..n * k).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect();
    let matrix = Nf4Matrix::quantize(&plain, n, k, &Nf4Options { block_size: 64, double_quant: false }).unwrap();
    let expected: Vec<bf16> = matrix.dequantize().into_iter().map(bf16::from_f32).collect();
    let absmax: Vec<f32> = (0..matrix.blocks()).map(|block| matrix.absmax_at(block)).collect();
    let absmax = stream.clone_htod(&absmax).unwrap();
    let codes = stream.clone_htod(matrix.codes()).unwrap();
    let mut x = vec![bf16::ZERO; m * k];
    (0..m).for_each(|row| x[row * k + 5 * row] = bf16::ONE);
    let x = stream.clone_htod(&x).unwrap();
    let a = stream.alloc_zeros::<bf16>(r * k).unwrap();
    let b = stream.clone_htod(&vec![bf16::ONE; n * r]).unwrap();
    let mut y = stream.alloc_zeros::<bf16>(m * n).unwrap();
    let mut workspace = stream.alloc_zeros::<bf16>(m * r).unwrap();
    {
        let absmax = Absmax::F32((&absmax).into());
        let weight = nf4::Weight { n, k, block_size: 64, layout: Layout::RowMajor, codes: (&codes).into(), absmax };
        let lora = Some(Lora { r, scale: 2.0, a: (&a).into(), b: (&b).into(), adapters: None });
        let weight = Weight::Nf4(weight);
        let mut segments = [Segment { n, weight, lora, bias: None, y: (&mut y).into(), ldy: n }];
        assert_eq!(lora_columns(&segments), r);
        let input = Input { m, k, x: (&x).into(), ldx: k, s: None, dropout: None };
        let stream = stream.as_ref().try_into().unwrap();
        linear_forward(&input, &mut segments, (&mut workspace).into(), stream).unwrap();
    }
    let y = stream.clone_dtoh(&y).unwrap();
    for (row, values) in y.chunks(n).enumerate() {
        let column: Vec<bf16> = (0..n).map(|out| expected[out * k + 5 * row]).collect();
        assert_eq!(values, column, "row {row}");
    }
    println!("ran on {}", context.name().unwrap_or_default());
}
