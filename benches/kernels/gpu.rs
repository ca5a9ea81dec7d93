//! Timings on a GPU: which operations are timed, and the run.

use crate::bench::{Bench, Result, text};
use crate::options::Options;
use crate::timer::Timer;
use crate::{attention, cross_entropy, groups, low_rank, optimizer, record};
use criterion::Criterion;
use half::bf16;
use lab::attention_cache::CacheOperation;
use lab::layer::{HeadNorms, Kind, Layer, Turn};
use lab::logits::LogitsOperation;
use lab::nf4::{Dequantize, Quantize};
use lab::values::random_codes;
use qlora_kernels::device::Device;
use qlora_kernels::device::{DeviceInfo as Facts, driver_version};
use qlora_kernels::nf4::Nf4Options;
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::rng;
use qlora_kernels::shape::AttentionShape;
use qlora_kernels::shape::GateActivation::Silu;
use std::time::Instant;

/// The operations that are judged against the copy bandwidth. A new one is one line.
fn operations(bench: &mut Bench<'_>) {
    let (n, k) = if bench.options.quick { (4096, 8192) } else { (8192, 8192) };
    let mut stream = rng::RngStream::new(1, 1);
    let options = Nf4Options::default();
    for layout in [Layout::RowMajor, Layout::Transposed] {
        let note = if layout == Layout::Transposed { ", transposed absmax" } else { "" };
        bench.operation(note, || Dequantize::<bf16>::new(random_codes(n, k, &mut stream), layout));
    }
    bench.operation("", || Dequantize::<f32>::new(random_codes(n, k, &mut stream), Layout::Transposed));
    bench.operation("", || Quantize::<bf16>::random(n, k, options, 1));
    // The rest of a Llama 70B's layer: each is checked whole on the host, which limits the tokens.
    let layer = |kind, m, width| move || Layer { kind, m, width, seed: 70 };
    let heads = Kind::Rope { heads: 72, pad: 8 * 128, kept: 0, inverse: false };
    let (h, i, d) = (8192, 28672, 128);
    // The norm of heads alone, and with the rotation that families with such norms have behind it.
    let turned = Some(Turn { before_norm: false, kept: 0 });
    let norms = |turn| HeadNorms { heads: 64, kv_heads: 8, whole: false, turn };
    for (kind, m, width) in [
        (Kind::Norm, 2048, h),
        (Kind::AddNorm, 2048, h),
        (Kind::NormBackward { accumulate: true }, 2048, h),
        (Kind::HeadNorm(norms(None)), 2048, d),
        (Kind::HeadNorm(norms(turned)), 2048, d),
        (Kind::HeadNormBackward(norms(turned)), 2048, d),
        (heads, 2048, d),
        (Kind::Swiglu(Silu), 512, i),
        (Kind::SwigluBackward { activation: Silu, recompute: false }, 512, i),
    ] {
        bench.operation("", layer(kind, m, width));
    }
    // Operations of a token of an answer beside the linear layers.
    let shape = AttentionShape { heads: 64, kv_heads: 8, head_dim: 128, soft_cap: None };
    let decoding = |past| {
        move || CacheOperation { shape, documents: vec![(past, 1)], window: None, gap: 0, room: 0, size: 1.0, seed: 70 }
    };
    bench.operation("", decoding(8192));
    let vocab = if bench.options.quick { 32_064 } else { 128_256 };
    bench.operation("", || LogitsOperation { m: 1, h, vocab, tokens: vec![0], seed: 70 });
}

/// The first GPU, in a line.
pub fn facts() -> Result<String> {
    Ok(shown_facts(Timer::new().map_err(text)?.facts()))
}

fn shown_facts(facts: &Facts) -> String {
    let driver = driver_version().unwrap_or_else(|| "?".into());
    let Facts { gpu, cuda, multiprocessors, memory_bytes, l2_bytes, .. } = facts;
    let (memory, l2) = (*memory_bytes as f64 / f64::from(1 << 30), l2_bytes >> 20);
    format!("{gpu}: {multiprocessors} multiprocessors, {memory:.1} GiB, {l2} MiB L2; driver {driver}, CUDA {cuda}")
}

pub fn run(options: &Options, criterion: Criterion) -> Result<()> {
    let started = Instant::now();
    let (device, timer) = (Device::open().map_err(text)?, Timer::new().map_err(text)?);
    let facts = timer.facts().clone();
    let copy = timer.copy_bandwidth(&device).map_err(text)?;
    println!("{}", shown_facts(&facts));
    println!("copy bandwidth, read and write counted: {:.0} GB/s", copy / 1e9);
    let record = record::new(&facts, copy, options.quick)?;
    let mut bench = Bench { options, device, timer, copy, criterion, record };
    operations(&mut bench);
    for measure in [groups::run, optimizer::run, low_rank::run, attention::run, cross_entropy::run] {
        measure(&mut bench);
    }
    if let Some(path) = bench.keep()? {
        println!("written: {}", path.display());
    }
    let failures = bench.record.not_measured;
    println!("{} rows in {:.0} s", bench.record.rows.len(), started.elapsed().as_secs_f64());
    if failures.is_empty() { Ok(()) } else { Err(format!("not measured:\n  {}", failures.join("\n  "))) }
}
