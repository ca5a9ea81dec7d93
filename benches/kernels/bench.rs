//! One timing on a GPU: everything is checked against the reference once, then its launches are recorded into a CUDA
//! graph, over operands that no cache holds, and replayed between two events.

use crate::options::Options;
use crate::record;
use crate::timer::Timer;
use criterion::Criterion;
use lab::operation::Operation;
use qlora_kernels::device::{Device, Stream};
use records::format::{Record, Row};
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    pub criterion: Criterion,
    pub record: Record,
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

    pub fn keep(&self) -> Result<Option<PathBuf>> {
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
    pub fn operation<O: Operation>(&mut self, note: &str, make: impl FnOnce() -> O) {
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
