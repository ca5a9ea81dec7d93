//! An engine in Rust that has its own context, stream and memory: the kernels get raw addresses and a raw stream. It
//! takes a weight as bitsandbytes stores it (NF4 codes, double-quantized absmax), which the library uploads, and a LoRA
//! pair, computes
//!
//! `Y = X · deq(W)ᵀ + bf16(scale · X · Aᵀ) · Bᵀ`
//!
//! checks it against a plain loop in double precision, and trains the pair (`train.rs`).
//!
//! ```sh
//! cargo run --release --features cuda -- ../../tests/golden/nf4.safetensors    # or: --features emulation
//! ```
//!
//! Prints `ok` and the largest error as a share of its bound, and how far the loss fell, or ends with status 1.

mod checks;
mod memory;
mod shape;
mod train;

use checks::{Worst, products, values};
use half::bf16;
use memory::{Engine, Memory};
use qlora_kernels::device::Device;
use qlora_kernels::nf4::{Absmax, CODE, NESTED_BLOCK_SIZE, Nf4Matrix};
use qlora_kernels::ops::linear::{Input, Lora, Segment, Weight};
use qlora_kernels::ops::linear_forward;
use qlora_kernels::weights::Nf4Weight;
use safetensors::SafeTensors;
use shape::{BLOCK, K, N, R, SCALE};
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: rust-engine FILE.safetensors");
        return ExitCode::FAILURE;
    };
    match run(&path) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("rust-engine: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the layer's passes; true if every result is within its bound.
fn run(path: &str) -> Result<bool, Box<dyn Error>> {
    let bytes = std::fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes)?;
    let floats = |name: &str| -> Result<Vec<f32>, Box<dyn Error>> {
        let bytes = file.tensor(name)?.data();
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let engine = Engine::new()?;
    let stream = engine.stream();

    let absmax = Absmax::DoubleQuantized {
        codes: file.tensor("up.b64.nested.codes")?.data().to_vec(),
        nested_absmax: floats("up.b64.nested.absmax")?,
        nested_block_size: NESTED_BLOCK_SIZE,
        nested_map: floats("dynamic_map_signed")?.into_boxed_slice().try_into().map_err(|_| "a map has 256 values")?,
        offset: floats("up.b64.nested.offset")?[0],
    };
    let codes = file.tensor("up.b64.codes")?.data().to_vec();
    let matrix = Nf4Matrix::from_parts(N, K, BLOCK, CODE, codes, absmax)?;
    // The weight alone lies in memory of the library, which brings its absmax into the order that the kernels read
    // fastest. That is work on the library's own stream, for which the engine's has to wait.
    let device = Device::open()?;
    let stored = Nf4Weight::upload(&device, &matrix, Nf4Weight::fastest_layout(N, K, BLOCK))?;
    device.synchronize()?;
    let weight = stored.view();
    // The weight that bitsandbytes itself would multiply with, for the check.
    let dequantized = file.tensor("up.b64.nested.dequantized_bf16")?.data();
    let w: Vec<bf16> = dequantized.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]])).collect();

    let (a, b) = (values(R * K, 0.0625, 2), values(N * R, 0.0625, 3));
    let (device_a, device_b) = (engine.upload(&a)?, engine.upload(&b)?);
    let mut good = true;
    // A decoding step, and a batch on the tensor cores.
    for m in [1, 24] {
        let x = values(m * K, 1.0, 1);
        let device_x = engine.upload(&x)?;
        let mut y = engine.upload(&vec![bf16::NAN; m * N])?;
        let mut s = engine.upload(&vec![bf16::NAN; m * R])?;
        {
            let lora = Lora { r: R, scale: SCALE, a: device_a.view(), b: device_b.view(), adapters: None };
            let weight = Weight::Nf4(weight);
            let mut segments = [Segment { n: N, weight, lora: Some(lora), bias: None, y: y.view_mut(), ldy: N }];
            let input = Input { m, k: K, x: device_x.view(), ldx: K, s: None, dropout: None };
            // The workspace is S itself: given its room, the forward pass computes it.
            linear_forward(&input, &mut segments, s.view_mut(), stream)?;
        }
        let error = worst_error(m, &x, &a, &b, &w, &engine.download(&s)?, &engine.download(&y)?);
        let verdict = if error <= 1.0 { "ok" } else { "WRONG" };
        println!("{verdict} rust-engine: M {m}, N {N}, K {K}, r {R}: largest error {error:.3} of its bound");
        good &= error <= 1.0;
    }
    Ok(good && train::train(&engine, weight, &w)?)
}

/// The largest |error| / bound of S and Y.
fn worst_error(m: usize, x: &[bf16], a: &[bf16], b: &[bf16], w: &[bf16], s: &[bf16], y: &[bf16]) -> f64 {
    let mut worst = Worst::default();
    for row in 0..m {
        let (x, s) = (&x[row * K..][..K], &s[row * R..][..R]);
        for r in 0..R {
            worst.compare_bf16(s[r], products(x, &a[r * K..][..K], SCALE));
        }
        for n in 0..N {
            // With the S that the kernel gave: its own error was measured above.
            let terms = products(x, &w[n * K..][..K], 1.0).chain(products(s, &b[n * R..][..R], 1.0));
            worst.compare_bf16(y[row * N + n], terms);
        }
    }
    worst.0
}
