//! Timings on a GPU: everything is checked against the reference once, then its launches are recorded into a CUDA
//! graph, over operands that no cache holds, and replayed between two events.

use crate::Options;
use crate::groups;
use crate::timer::Timer;
use crate::{attention, cross_entropy, low_rank, optimizer, record};
use criterion::Criterion;
use half::bf16;
use lab::attention_cache::CacheOperation;
use lab::layer::{HeadNorms, Kind, Layer, Turn};
use lab::logits::LogitsOperation;
use lab::nf4::{Dequantize, Quantize};
use lab::operation::Operation;
use lab::values::random_codes;
use qlora_kernels::device::{Device, Stream};
use qlora_kernels::device::{DeviceInfo as Facts, driver_version};
use qlora_kernels::nf4::Nf4Options;
use qlora_kernels::ops::nf4::Layout;
use qlora_kernels::rng;
use qlora_kernels::shape::AttentionShape;
use qlora_kernels::shape::GateActivation::Silu;
use records::format::{Record, Row};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Outputs that are compared with the reference before an operation is timed.
pub const CHECKED: usize = 1024;
/// Samples that a figure is the median of.
const SAMPLES: usize = 10;

pub type Result<T> = std::result::Result<T, String>;

pub fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

pub struct Bench<'a> {
    pub options: &'a Options,
    pub device: Device,
    pub timer: Timer,
    /// Bytes a second, measured in this run.
    pub copy: f64,
    criterion: Criterion,
    pub record: Record,
}

/// The operations that are judged against the copy bandwidth. A new one is one line.
fn operations(bench: &mut Bench<'_>) {
    let (n, k) = if bench.options.quick { (4096, 8192) } else { (8192, 8192) };
    let mut stream = rng::Stream::new(1, 1);
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
    // What a token of an answer reads beside the linear layers.
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

impl Bench<'_> {
    pub fn wanted(&self, name: &str) -> bool {
        self.options.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }

    /// Kept at once, if a record is wanted: what ends the process later takes nothing away.
    pub fn row(&mut self, row: Row) {
        self.record.rows.push(row);
        if let Err(error) = self.keep() {
            self.failed("the record", &error);
        }
    }

    fn keep(&self) -> Result<Option<PathBuf>> {
        let dir = self.options.record.as_ref().filter(|_| !self.record.rows.is_empty());
        dir.map(|dir| record::write(&self.record, Path::new(dir))).transpose()
    }

    /// A row that could not be measured: named at the end, and the exit status says so.
    pub fn failed(&mut self, name: &str, error: &str) {
        println!("NOT MEASURED {name}: {error}");
        self.record.not_measured.push(format!("{name}: {error}"));
    }

    /// Sets of operands: enough that none is in the cache when `used` bytes of each are, in at most a quarter of the
    /// memory when each holds `held` bytes.
    pub fn sets(&self, used: f64, held: f64) -> usize {
        let room = (self.timer.facts().memory_bytes as f64 / 4.0 / held.max(1.0)) as usize;
        self.timer.sets(used as usize).min(room.max(1))
    }

    /// Runs once and compares with the reference.
    pub fn verify<O: Operation>(&self, operation: &O, inputs: &O::Inputs, buffers: &mut O::Buffers) -> Result<()> {
        operation.launch(buffers, self.device.stream()).map_err(text)?;
        self.timer.synchronize().map_err(text)?;
        let output = operation.download(&self.device, buffers).map_err(text)?;
        operation.check(inputs, &output, CHECKED).map_err(|error| format!("wrong: {error}"))
    }

    /// Seconds of one launch of an operation: the median of criterion's samples.
    pub fn time<O: Operation>(&mut self, name: &str, operation: &O, buffers: &mut [O::Buffers]) -> Result<f64> {
        let sets = self.timer.sets(operation.bytes() as usize).min(buffers.len());
        self.time_launches(name, &mut buffers[..sets], |buffers, stream| operation.launch(buffers, stream))
    }

    /// Seconds of one launch on each set of buffers: the median of criterion's samples.
    pub fn time_launches<B>(
        &mut self,
        name: &str,
        sets: &mut [B],
        mut launch: impl FnMut(&mut B, Stream) -> qlora_kernels::Result<()>,
    ) -> Result<f64> {
        let graph = self.timer.record(sets.len(), |set, stream| launch(&mut sets[set], stream)).map_err(text)?;
        let (mut samples, mut failure) = (Vec::new(), None);
        self.criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let replays = (iterations as usize).div_ceil(graph.launches()).max(1);
                match graph.seconds_per_launch(replays) {
                    Ok(seconds) => samples.push(seconds),
                    Err(error) => failure = Some(error),
                }
                Duration::from_secs_f64(samples.last().copied().unwrap_or(1e-6) * iterations as f64)
            });
        });
        if let Some(error) = failure {
            return Err(text(error));
        }
        // The last ones: those before were for warming up.
        let first = samples.len().saturating_sub(SAMPLES);
        let mut last = samples.split_off(first);
        last.sort_by(f64::total_cmp);
        last.get(last.len() / 2).copied().ok_or_else(|| "no sample".into())
    }

    /// Verifies and times one operation against the copy bandwidth.
    fn operation<O: Operation>(&mut self, note: &str, make: impl FnOnce() -> O) {
        let operation = make();
        let name = format!("{} {}{note}", operation.name(), operation.shape());
        if !self.wanted(&name) {
            return;
        }
        let measured = (|| {
            let inputs = operation.inputs();
            let sets = self.sets(operation.bytes(), operation.bytes());
            let upload = |_| operation.upload(&self.device, &inputs).map_err(text);
            let mut buffers: Vec<_> = (0..sets).map(upload).collect::<Result<_>>()?;
            self.verify(&operation, &inputs, &mut buffers[0])?;
            self.time(&name, &operation, &mut buffers)
        })();
        match measured {
            Ok(seconds) => self.memory_bound(
                &operation.name(),
                &format!("{}{note}", operation.shape()),
                operation.bytes(),
                seconds,
            ),
            Err(error) => self.failed(&name, &error),
        }
    }

    /// A row that is judged against the copy bandwidth.
    pub fn memory_bound(&mut self, operation: &str, shape: &str, bytes: f64, seconds: f64) {
        let rate = bytes / seconds;
        let share = rate / self.copy;
        println!("{:>5.1}% of copy | {:.0} GB/s, {} | {operation} {shape}", 100.0 * share, rate / 1e9, shown(seconds));
        self.row(Row {
            operation: operation.into(),
            shape: shape.into(),
            seconds,
            gb_per_s: Some(rate / 1e9),
            share_of_copy: Some(share),
            ..Row::default()
        });
    }
}

pub fn shown(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.1} µs", seconds * 1e6) } else { format!("{:.3} ms", seconds * 1e3) }
}
