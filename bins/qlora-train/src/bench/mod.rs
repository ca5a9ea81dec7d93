//! Timed training steps on random weights and tokens: the work of a run of this shape, without a model.

pub mod layers;
pub mod text;
pub mod weights;

use crate::arch::Arch;
use crate::backend::cpu::peak_flops;
use crate::backend::{
    ATTENTION_BACKWARD_PRODUCTS, ATTENTION_PRODUCTS, Backend, Batch, OpTime, TraceMode, attention_flops,
};
use crate::bench::weights::RandomSource;
use crate::config::Settings;
use crate::error::Result;
use crate::files::tensor::StoredType;
use crate::model::optimizer_step::{Hyperparameters, StepReport, optimizer_step};
use crate::model::{Llama, ModelSpec};
use crate::report::{Bars, status};
use crate::session::graphs;
use crate::session::host::set_threads;
use crate::session::model_spec::{model_spec_of, of_settings};
use crate::session::plan::{self, MemoryPlan, TensorStorage};
use crate::session::planner;
use crate::session::scratch;
use crate::session::{Device, DeviceJob, TransferBandwidth};
use qlora_kernels::rng::RngStream;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A row of made-up tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    /// Tokens
    pub length: usize,
    /// Tokens that are learned from, the last ones: at most all but one
    pub learned: usize,
}

/// Steps on random weights and tokens.
#[derive(Clone, Debug)]
pub struct Work {
    pub arch: Arch,
    /// Rows of each micro-batch of a step
    pub micro_batches: Vec<Vec<RowShape>>,
    /// Rows whose loss alone is computed, once, beside the steps; empty: none
    pub evaluated: Vec<RowShape>,
    /// Steps that are timed, after one untimed step (two with CUDA graphs, which the second records) and before one
    /// whose operations are timed; 0: only the last
    pub steps: usize,
}

impl Work {
    fn all(&self) -> impl Iterator<Item = &Vec<RowShape>> {
        self.micro_batches.iter().chain([&self.evaluated])
    }

    /// Tokens of the largest batch.
    pub fn tokens(&self) -> usize {
        self.all().map(|rows| rows.iter().map(|row| row.length).sum::<usize>()).max().unwrap_or(0)
    }

    /// A training run of such steps, as the settings have it.
    pub fn spec(&self, settings: &Settings) -> Result<ModelSpec> {
        let longest = self.all().flatten().map(|row| row.length).max().unwrap_or(0);
        model_spec_of(settings, &self.arch, of_settings(settings), self.tokens(), longest)
    }
}

/// FLOPs of a step on rows of these lengths that no implementation can leave out: forward, and the gradients of the
/// activations. Each token costs 4 for each parameter of a linear layer, lm_head included. Attention has the products
/// of its two passes over the keys that are seen, the scores once, since an implementation may keep them.
pub fn step_flops(arch: &Arch, lengths: impl Iterator<Item = usize>) -> f64 {
    let layer: usize = arch.names.all().map(|m| m.shape(arch)).map(|(n, k)| n * k).sum();
    let linear = (arch.num_layers * layer + arch.vocab_size * arch.hidden_size) as f64;
    let (width, products) = (arch.num_heads * arch.head_dim, ATTENTION_PRODUCTS + ATTENTION_BACKWARD_PRODUCTS - 1.0);
    let mut windows: BTreeMap<Option<usize>, usize> = BTreeMap::new();
    (0..arch.num_layers).for_each(|layer| *windows.entry(arch.layer(layer).window).or_default() += 1);
    let row = |length: usize| {
        let of_layers = |(window, layers): (&Option<usize>, &usize)| {
            *layers as f64 * attention_flops(products, length, *window, width)
        };
        4.0 * linear * length as f64 + windows.iter().map(of_layers).sum::<f64>()
    };
    lengths.map(row).sum()
}

/// Shape of the steps that are measured, of equal rows.
#[derive(Clone, Debug)]
pub struct Shape {
    pub config: Arch,
    /// Tokens of a row, all of which but the first are learned from
    pub seq: usize,
    /// Rows of a micro-batch, which is a step
    pub batch: usize,
    /// Timed steps: see [`Work::steps`]
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
    /// All steps, in their order
    pub reports: Vec<StepReport>,
    /// Every kind of operation in one more step, in the order of their first
    pub kinds: Vec<OpTime>,
    /// Seconds of the loss of the rows that are evaluated
    pub evaluation: f64,
    /// Code that computed the linear layers, in words, where there is more than one way
    pub linear: Vec<String>,
    /// FLOP/s of the processor's tiles on data in the nearest cache, on all threads; none on a GPU
    pub cpu_peak_flops: Option<f64>,
    /// Bytes of the GPU that are taken after the steps
    pub device_bytes: Option<u64>,
    /// The most that the process held of the host's memory, where the system tells
    pub host_bytes: Option<u64>,
    /// Speed of copies to the GPU and from it; none where it was not measured
    pub link: Option<TransferBandwidth>,
}

impl Shape {
    pub fn tokens(&self) -> usize {
        self.seq * self.batch
    }

    fn work(&self) -> Work {
        let row = RowShape { length: self.seq, learned: self.seq.saturating_sub(1) };
        let (micro_batches, evaluated) = (vec![vec![row; self.batch]], Vec::new());
        Work { arch: self.config.clone(), micro_batches, evaluated, steps: self.steps }
    }

    /// A training run of this shape, as the settings have it.
    pub fn spec(&self, settings: &Settings) -> Result<ModelSpec> {
        self.work().spec(settings)
    }

    /// [`step_flops`]
    pub fn flops(&self) -> f64 {
        step_flops(&self.config, std::iter::repeat_n(self.seq, self.batch))
    }
}

/// Stored type of the tensors of a model with random weights.
pub fn stored_in_16_bits(_name: &str) -> TensorStorage {
    TensorStorage { dtype: StoredType::Bf16, resident_as: None }
}

/// Refused: steps that do not fit in memory.
pub fn bench(settings: &Settings, shape: Shape) -> Result<Measured> {
    set_threads(settings.threads)?;
    let device = Device::choose(settings)?.for_model(settings, &shape.config);
    let advice = "Lower --seq or --batch, leave --weights and --token-tile out";
    let measured = measure(settings, device.clone(), shape.work(), advice)?;
    // After the model's memory is freed.
    Ok(Measured { link: device.transfer_bandwidth(), ..measured })
}

/// [`bench()`] in a process whose threads and device exist already. `advice` says what to do where the steps do not
/// fit.
pub fn measure(settings: &Settings, device: Device, work: Work, advice: &str) -> Result<Measured> {
    let (mut spec, budget) = (work.spec(settings)?, device.budget(settings)?);
    let levers = planner::Levers::of(settings).without_files(&device)?;
    let mut plan = planner::choose(&device, &mut spec, levers, &stored_in_16_bits, budget)?;
    let graphs = graphs::choose(settings, &device, &spec, 1, &mut plan)?;
    plan::refuse_unless_it_fits(&plan, work.tokens(), advice)?;
    // There is no output directory: what goes to disk goes to the working directory.
    let here = Path::new(".");
    if plan.disk_bytes() > 0 {
        scratch::check(settings, &plan, here, 1, |_| Ok(0))?;
    }
    graphs.note.iter().for_each(|note| status!("{note}"));
    device.use_graphs(graphs.is_on);
    device.clone().run(TrainingBench {
        untimed: 1 + usize::from(graphs.is_on),
        scratch_dir: scratch::dir(settings, here),
        device,
        work,
        spec,
        plan,
        seed: settings.seed,
    })
}

struct TrainingBench {
    untimed: usize,
    scratch_dir: PathBuf,
    device: Device,
    work: Work,
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

impl DeviceJob for TrainingBench {
    type Output = Measured;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Measured> {
        let Self { untimed, scratch_dir, device, work, spec, plan, seed } = self;
        let mut backend = build(&spec, plan.run_bytes)?;
        backend.set_scratch_dir(&scratch_dir);
        let mut source = RandomSource::new(&work.arch, spec.quantization, seed);
        let mut bar = Bars::new("random weights", work.arch.num_layers as u64);
        let start = Instant::now();
        let mut progress = |layer| bar.set(layer as u64, String::new());
        let mut model = Llama::build(&mut backend, &mut source, spec.clone(), &mut progress)?;
        bar.finish();
        drop(source);
        status!("initialized random weights in {:.1} s", start.elapsed().as_secs_f64());

        let made: Vec<Tokens> =
            (1..).zip(&work.micro_batches).map(|(place, rows)| Tokens::new(&work.arch, rows, seed, place)).collect();
        let batches: Vec<Batch> = made.iter().map(Tokens::batch).collect();
        let untimed = if work.steps > 0 { untimed } else { 0 };
        let all = (untimed + work.steps) as u64 + 1;
        let mut bar = Bars::new("steps", all);
        let mut reports: Vec<StepReport> = Vec::new();
        let mut step = |backend: &mut B, model: &mut Llama<B>| -> Result<f64> {
            let (start, index) = (Instant::now(), reports.len() as u64);
            let report = optimizer_step(backend, model, &HYPER, index, batches.len(), 1.0, &batches)?;
            bar.set(index + 1, format!("loss {:.4}", report.loss));
            reports.push(report);
            Ok(start.elapsed().as_secs_f64())
        };
        let mut seconds = Vec::new();
        for _ in 0..untimed {
            step(&mut backend, &mut model)?;
        }
        for _ in 0..work.steps {
            seconds.push(step(&mut backend, &mut model)?);
        }
        let mut evaluation = 0.0;
        if !work.evaluated.is_empty() {
            let tokens = Tokens::new(&work.arch, &work.evaluated, seed, 0);
            let start = Instant::now();
            model.loss(&mut backend, &tokens.batch())?;
            evaluation = start.elapsed().as_secs_f64();
        }
        backend.set_trace(TraceMode::Times)?;
        let traced = step(&mut backend, &mut model)?;
        if seconds.is_empty() {
            seconds.push(traced);
        }
        let kinds = backend.times()?;
        bar.finish();
        Ok(Measured {
            plan,
            spec,
            seconds,
            loss: reports.get((untimed + work.steps).saturating_sub(1)).map_or(f64::NAN, |report| report.loss),
            reports,
            kinds,
            evaluation,
            linear: backend.linear_rows(),
            cpu_peak_flops: device.precision().map(peak_flops),
            device_bytes: device.taken_bytes()?,
            host_bytes: host_peak_bytes(),
            link: None,
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
    /// `place`: number of the batch, which selects its tokens.
    fn new(arch: &Arch, rows: &[RowShape], seed: u64, place: u64) -> Self {
        let mut stream = RngStream::new(seed, place);
        let vocab = arch.vocab_size as u32;
        let (mut input_ids, mut positions, mut boundaries, mut targets) = (Vec::new(), Vec::new(), vec![0], Vec::new());
        for &RowShape { length, learned } in rows {
            let begin = input_ids.len();
            input_ids.extend((0..length).map(|_| stream.below(vocab)));
            positions.extend(0..length as u32);
            boundaries.push(input_ids.len() as u32);
            // A token's target is the one after it, which the last token of a row does not have.
            let target = |next: usize| match next < length && next >= length.saturating_sub(learned) {
                true => input_ids[begin + next] as i32,
                false => -100,
            };
            targets.extend((1..=length).map(target));
        }
        Self { input_ids, positions, boundaries, targets }
    }

    fn batch(&self) -> Batch<'_> {
        let Self { input_ids, positions, boundaries, targets } = self;
        Batch { input_ids, positions, boundaries, targets, weights: None, adapters: None }
    }
}

/// Peak memory of the process as Linux counts it: pages of files included.
fn host_peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests;
