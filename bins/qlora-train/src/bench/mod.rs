//! Training steps on random weights and tokens, timed: what a run of this shape would do, without a model.

pub mod layers;
pub mod text;
pub mod weights;

use crate::arch::Arch;
use crate::backend::cpu::peak_flops;
use crate::backend::{Backend, Batch, OpTime, TraceMode};
use crate::bench::weights::RandomSource;
use crate::config::Settings;
use crate::error::Result;
use crate::files::tensor::StoredType;
use crate::model::optimizer_step::{Hyperparameters, optimizer_step};
use crate::model::{Llama, ModelSpec};
use crate::report::{Bars, status};
use crate::session::host::set_threads;
use crate::session::model_spec::{model_spec_of, of_settings};
use crate::session::plan::{self, MemoryPlan, StoredAs};
use crate::session::planner;
use crate::session::{Device, DeviceJob};
use qlora_kernels::rng::Stream;
use std::time::Instant;

/// Shape of the steps that are measured.
#[derive(Clone, Debug)]
pub struct Shape {
    pub config: Arch,
    /// Tokens of a row
    pub seq: usize,
    /// Tokens of a row that are learned from, the last ones: at most all but one
    pub learned: usize,
    /// Rows of a micro-batch, which is a step
    pub batch: usize,
    /// Steps that are timed, after one that is not
    pub steps: usize,
}

/// Measurements of a bench.
#[derive(Clone, Debug)]
pub struct Measured {
    pub plan: MemoryPlan,
    pub spec: ModelSpec,
    /// Seconds of every timed step, from one norm of the gradients to the next: what comes after it, the update, is
    /// part of the next step's
    pub seconds: Vec<f64>,
    pub loss: f64,
    /// Every kind of operation in one more step, in the order of their first
    pub kinds: Vec<OpTime>,
    /// FLOP/s of the processor's tiles on what lies in its nearest cache, on all threads; none on a GPU
    pub cpu_peak_flops: Option<f64>,
    /// Bytes of the GPU that are taken after the steps
    pub device_bytes: Option<u64>,
    /// The most that the process held of the host's memory, where the system tells
    pub host_bytes: Option<u64>,
}

impl Shape {
    pub fn tokens(&self) -> usize {
        self.seq * self.batch
    }

    /// A training run of this shape, as the settings have it.
    pub fn spec(&self, settings: &Settings) -> Result<ModelSpec> {
        model_spec_of(settings, &self.config, of_settings(settings), self.tokens(), self.seq)
    }

    /// FLOPs of a step that no implementation can leave out: forward, and the gradients of the activations. Of every
    /// token 4 for each parameter of a linear layer, lm_head included; of every layer and row 6·seq²·heads·head_dim for
    /// attention, which is causal: two products forward and four backward over half of the scores.
    pub fn flops(&self) -> f64 {
        let c = &self.config;
        let layer: usize = c.names.all().map(|m| m.shape(c)).map(|(n, k)| n * k).sum();
        let linear = (c.num_layers * layer + c.vocab_size * c.hidden_size) as f64;
        let attention = 6.0 * (self.seq as f64).powi(2) * (c.num_heads * c.head_dim * c.num_layers) as f64;
        4.0 * linear * self.tokens() as f64 + attention * self.batch as f64
    }
}

/// How the tensors of a model are stored whose weights are random.
pub fn stored_in_16_bits(_name: &str) -> StoredAs {
    StoredAs { dtype: StoredType::Bf16, held: None }
}

/// Refused: what does not fit.
pub fn bench(settings: &Settings, shape: Shape) -> Result<Measured> {
    set_threads(settings.threads)?;
    let device = Device::choose(settings)?.for_model(settings, &shape.config);
    measure(settings, device, shape, "Lower --seq or --batch, leave --weights and --token-tile out")
}

/// Like [`bench()`], in a process whose threads and device are there. `advice` says what to do where it does not fit.
pub fn measure(settings: &Settings, device: Device, shape: Shape, advice: &str) -> Result<Measured> {
    let (mut spec, budget) = (shape.spec(settings)?, device.budget(settings)?);
    let plan = planner::choose(&device, &mut spec, planner::Levers::of(settings), &stored_in_16_bits, budget)?;
    plan::refuse_unless_it_fits(&plan, shape.tokens(), advice)?;
    device.clone().run(Prepared { device, shape, spec, plan, seed: settings.seed })
}

struct Prepared {
    device: Device,
    shape: Shape,
    spec: ModelSpec,
    plan: MemoryPlan,
    seed: u64,
}

/// Hyperparameters of a run that learns slowly enough for any values.
const HYPER: Hyperparameters = Hyperparameters {
    learning_rate_a: 1e-4,
    learning_rate_b: 1e-4,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    ..Hyperparameters::NONE
};

impl DeviceJob for Prepared {
    type Output = Measured;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Measured> {
        let Self { device, shape, spec, plan, seed } = self;
        let mut backend = build(&spec, plan.run_bytes)?;
        let mut source = RandomSource::new(&shape.config, spec.quantization, seed);
        let mut bar = Bars::new("random weights", shape.config.num_layers as u64);
        let start = Instant::now();
        let mut progress = |layer| bar.set(layer as u64, String::new());
        let mut model = Llama::build(&mut backend, &mut source, spec.clone(), &mut progress)?;
        bar.finish();
        drop(source);
        status!("initialized random weights in {:.1} s", start.elapsed().as_secs_f64());

        let tokens = Tokens::new(&shape, seed);
        let batches = [tokens.batch()];
        let mut bar = Bars::new("steps", shape.steps as u64 + 2);
        let mut step = |index: u64| -> Result<(f64, f64)> {
            let start = Instant::now();
            let report = optimizer_step(&mut backend, &mut model, &HYPER, index, 1, 1.0, &batches)?;
            bar.set(index + 1, format!("loss {:.4}", report.loss));
            Ok((start.elapsed().as_secs_f64(), report.loss))
        };
        step(0)?;
        let timed: Vec<(f64, f64)> = (1..=shape.steps as u64).map(&mut step).collect::<Result<_>>()?;
        let last = shape.steps as u64 + 1;
        backend.set_trace(TraceMode::Times)?;
        optimizer_step(&mut backend, &mut model, &HYPER, last, 1, 1.0, &batches)?;
        let kinds = backend.times()?;
        bar.finish();
        Ok(Measured {
            plan,
            spec,
            seconds: timed.iter().map(|step| step.0).collect(),
            loss: timed.last().map_or(f64::NAN, |step| step.1),
            kinds,
            cpu_peak_flops: device.precision().map(peak_flops),
            device_bytes: device.taken_bytes()?,
            host_bytes: host_peak_bytes(),
        })
    }
}

/// Random rows of which the last tokens are learned from.
struct Tokens {
    input_ids: Vec<u32>,
    positions: Vec<u32>,
    boundaries: Vec<u32>,
    targets: Vec<i32>,
}

impl Tokens {
    fn new(shape: &Shape, seed: u64) -> Self {
        let mut stream = Stream::new(seed, 1);
        let vocab = shape.config.vocab_size as u32;
        let input_ids: Vec<u32> = (0..shape.tokens()).map(|_| stream.below(vocab)).collect();
        // A token's target is the one after it.
        let learned = |next: usize| next > 0 && next >= shape.seq - shape.learned;
        let next = |token: usize| match learned((token + 1) % shape.seq) {
            true => input_ids[token + 1] as i32,
            false => -100,
        };
        Self {
            positions: (0..shape.tokens()).map(|token| (token % shape.seq) as u32).collect(),
            boundaries: (0..=shape.batch).map(|row| (row * shape.seq) as u32).collect(),
            targets: (0..shape.tokens()).map(next).collect(),
            input_ids,
        }
    }

    fn batch(&self) -> Batch<'_> {
        let Self { input_ids, positions, boundaries, targets } = self;
        Batch { input_ids, positions, boundaries, targets, weights: None }
    }
}

/// Peak memory of the process as Linux counts it: pages of files included.
fn host_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::shapes::shape;

    #[test]
    fn flops_follow_from_parameters_and_length() {
        let of = |seq, batch| {
            Shape { config: shape("llama-3-70b").unwrap(), seq, learned: seq - 1, batch, steps: 1 }.flops()
        };
        // 69,501,714,432 parameters of linear layers, lm_head included; 80 layers of 64 heads of 128.
        let linear = 4.0 * 69_501_714_432.0 * 2048.0;
        assert_eq!(of(2048, 1), linear + 6.0 * 2048.0 * 2048.0 * 8192.0 * 80.0);
        assert_eq!(of(2048, 3), 3.0 * of(2048, 1));
        assert!(of(4096, 1) > 2.0 * of(2048, 1));
    }

    #[test]
    fn rows_end_where_they_should() {
        let config = crate::base::synthetic::tiny_arch();
        let shape = Shape { config, seq: 4, learned: 3, batch: 2, steps: 1 };
        let tokens = Tokens::new(&shape, 5);
        assert_eq!(tokens.positions, [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(tokens.boundaries, [0, 4, 8]);
        assert!(tokens.targets[3] < 0 && tokens.targets[7] < 0 && tokens.batch().supervised() == 6);
        assert_eq!(tokens.targets[4], tokens.input_ids[5] as i32);
        let last = Tokens::new(&Shape { learned: 1, ..shape }, 5);
        assert!(last.targets[..2] == [-100; 2] && last.targets[2] == last.input_ids[3] as i32);
        assert_eq!(last.batch().supervised(), 2);
    }
}
