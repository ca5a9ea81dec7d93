//! The fused output layer and cross-entropy of a Llama 3 70B, with the gradient of the hidden states and without, and
//! the memory that it takes beside its operands. Two tokens are checked at the length that is timed: each has a
//! vocabulary of logits.

use crate::bench::{Bench, Result, shown, text};
use lab::cross_entropy::{Loss, Targets, Values};
use lab::operation::Operation;
use qlora_kernels::ops::cross_entropy::CHUNK;
use records::format::Row;

const H: usize = 8192;
const VOCAB: usize = 128_256;
const TOKENS: [usize; 2] = [2048, 16384];
const QUICK_TOKENS: [usize; 1] = [2048];
/// Size of the hidden states, at which the logits of some hundred tokens decide a row.
const SIZE: f32 = 0.05;

pub fn run(bench: &mut Bench<'_>) {
    let tokens: &[usize] = if bench.options.quick { &QUICK_TOKENS } else { &TOKENS };
    for &m in tokens {
        let name = format!("loss M {m}");
        if bench.wanted(&name)
            && let Err(error) = measure(bench, m)
        {
            bench.failed(&name, &error);
        }
    }
}

fn measure(bench: &mut Bench<'_>, m: usize) -> Result<()> {
    let values = Values::Random { size: SIZE };
    let (targets, weighted) = (Targets::All, false);
    let mut operation = Loss {
        m,
        h: H,
        vocab: VOCAB,
        chunk: CHUNK,
        targets,
        gradient: true,
        weighted,
        values,
        soft_cap: None,
        seed: 70,
    };
    let inputs = operation.inputs();
    for gradient in [true, false] {
        operation.gradient = gradient;
        let mut buffers = operation.upload(&bench.device, &inputs).map_err(text)?;
        bench.verify(&operation, &inputs, &mut buffers)?;
        let transient = buffers.transient_bytes();
        let (name, shape) = (operation.name(), operation.shape());
        // One set: the output layer is more than the L2 holds.
        let seconds = bench.time(&format!("{name} {shape}"), &operation, &mut [buffers])?;
        let (flops, rate) = (operation.flops() / seconds, operation.bytes() / seconds);
        let (tera, mega) = (flops / 1e12, transient as f64 / 1e6);
        println!("{tera:.0} TFLOP/s, {}, {mega:.0} MB beside its operands | {name} {shape}", shown(seconds));
        let (tflops, gb_per_s, transient_bytes) = (Some(tera), Some(rate / 1e9), Some(transient as f64));
        bench.row(Row {
            operation: name,
            shape,
            m: Some(m),
            seconds,
            tflops,
            gb_per_s,
            transient_bytes,
            ..Row::default()
        });
    }
    Ok(())
}
