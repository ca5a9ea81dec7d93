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
use crate::model::optimizer_step::{Hyperparameters, StepReport, optimizer_step};
use crate::model::{Llama, ModelSpec};
use crate::report::{Bars, status};
use crate::session::host::set_threads;
use crate::session::model_spec::{model_spec_of, of_settings};
use crate::session::plan::{self, MemoryPlan, StoredAs};
use crate::session::planner;
use crate::session::{Device, DeviceJob};
use qlora_kernels::device::TransferBandwidth;
use qlora_kernels::rng::Stream;
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
    /// Rows of which the loss alone is computed once, beside the steps; none: it is not
    pub evaluated: Vec<RowShape>,
    /// Steps that are timed, after one that is not and before one whose operations are; 0: that one alone
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
/// activations. Of every token 4 for each parameter of a linear layer, lm_head included; of every layer and row
/// 6·length²·heads·head_dim for attention, which is causal: two products forward and four backward over half of the
/// scores.
pub fn step_flops(arch: &Arch, lengths: impl Iterator<Item = usize>) -> f64 {
    let layer: usize = arch.names.all().map(|m| m.shape(arch)).map(|(n, k)| n * k).sum();
    let linear = (arch.num_layers * layer + arch.vocab_size * arch.hidden_size) as f64;
    let (tokens, squares) = lengths.fold((0.0, 0.0), |(tokens, squares), length| {
        let length = length as f64;
        (tokens + length, squares + length * length)
    });
    4.0 * linear * tokens + 6.0 * squares * (arch.num_heads * arch.head_dim * arch.num_layers) as f64
}

/// Shape of the steps that are measured, of equal rows.
#[derive(Clone, Debug)]
pub struct Shape {
    pub config: Arch,
    /// Tokens of a row, all of which but the first are learned from
    pub seq: usize,
    /// Rows of a micro-batch, which is a step
    pub batch: usize,
    /// Those of [`Work`]
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
    /// How linear layers were computed, in words, where there is more than one way
    pub linear: Vec<String>,
    /// FLOP/s of the processor's tiles on what lies in its nearest cache, on all threads; none on a GPU
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

/// How the tensors of a model are stored whose weights are random.
pub fn stored_in_16_bits(_name: &str) -> StoredAs {
    StoredAs { dtype: StoredType::Bf16, held: None }
}

/// Refused: what does not fit.
pub fn bench(settings: &Settings, shape: Shape) -> Result<Measured> {
    set_threads(settings.threads)?;
    let device = Device::choose(settings)?.for_model(settings, &shape.config);
    let advice = "Lower --seq or --batch, leave --weights and --token-tile out";
    let measured = measure(settings, device.clone(), shape.work(), advice)?;
    // Once the model has given its memory back.
    Ok(Measured { link: device.transfer_bandwidth(), ..measured })
}

/// Like [`bench()`], in a process whose threads and device are there. `advice` says what to do where it does not fit.
pub fn measure(settings: &Settings, device: Device, work: Work, advice: &str) -> Result<Measured> {
    let (mut spec, budget) = (work.spec(settings)?, device.budget(settings)?);
    let plan = planner::choose(&device, &mut spec, planner::Levers::of(settings), &stored_in_16_bits, budget)?;
    plan::refuse_unless_it_fits(&plan, work.tokens(), advice)?;
    device.clone().run(Prepared { device, work, spec, plan, seed: settings.seed })
}

struct Prepared {
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

impl DeviceJob for Prepared {
    type Output = Measured;

    fn run<B: Backend>(self, build: impl FnOnce(&ModelSpec, u64) -> Result<B>) -> Result<Measured> {
        let Self { device, work, spec, plan, seed } = self;
        let mut backend = build(&spec, plan.run_bytes)?;
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
        let all = if work.steps > 0 { work.steps as u64 + 2 } else { 1 };
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
        if work.steps > 0 {
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
            loss: reports.get(work.steps).map_or(f64::NAN, |report| report.loss),
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
    /// `place` of the batch: others have other tokens.
    fn new(arch: &Arch, rows: &[RowShape], seed: u64, place: u64) -> Self {
        let mut stream = Stream::new(seed, place);
        let vocab = arch.vocab_size as u32;
        let (mut input_ids, mut positions, mut boundaries, mut targets) = (Vec::new(), Vec::new(), vec![0], Vec::new());
        for &RowShape { length, learned } in rows {
            let begin = input_ids.len();
            input_ids.extend((0..length).map(|_| stream.below(vocab)));
            positions.extend(0..length as u32);
            boundaries.push(input_ids.len() as u32);
            // A token's target is the one after it, which the last of a row has not.
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
mod tests {
    use super::*;
    use crate::arch::shapes::shape;

    #[test]
    fn flops_follow_from_parameters_and_length() {
        let of = |seq, batch| Shape { config: shape("llama-3-70b").unwrap(), seq, batch, steps: 1 }.flops();
        // 69,501,714,432 parameters of linear layers, lm_head included; 80 layers of 64 heads of 128.
        let linear = 4.0 * 69_501_714_432.0 * 2048.0;
        assert_eq!(of(2048, 1), linear + 6.0 * 2048.0 * 2048.0 * 8192.0 * 80.0);
        assert_eq!(of(2048, 3), 3.0 * of(2048, 1));
        assert!(of(4096, 1) > 2.0 * of(2048, 1));
        // Rows side by side do not look at each other.
        let arch = shape("llama-3-70b").unwrap();
        assert!(step_flops(&arch, [2048, 2048].into_iter()) < step_flops(&arch, [4096].into_iter()));
    }

    #[test]
    fn rows_end_where_they_should() {
        let arch = crate::base::synthetic::tiny_arch();
        let row = |length, learned| RowShape { length, learned };
        let tokens = Tokens::new(&arch, &[row(4, 3); 2], 5, 1);
        assert_eq!(tokens.positions, [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(tokens.boundaries, [0, 4, 8]);
        assert!(tokens.targets[3] < 0 && tokens.targets[7] < 0 && tokens.batch().supervised() == 6);
        assert_eq!(tokens.targets[4], tokens.input_ids[5] as i32);
        let last = Tokens::new(&arch, &[row(4, 1); 2], 5, 1);
        assert!(last.targets[..2] == [-100; 2] && last.targets[2] == last.input_ids[3] as i32);
        assert_eq!(last.batch().supervised(), 2);
        let ragged = Tokens::new(&arch, &[row(2, 1), row(5, 2)], 5, 1);
        assert_eq!((&ragged.boundaries[..], &ragged.positions[..]), (&[0, 2, 7][..], &[0, 1, 0, 1, 2, 3, 4][..]));
        let learned: Vec<bool> = ragged.targets.iter().map(|&target| target >= 0).collect();
        assert_eq!(learned, [true, false, false, false, true, true, false]);
        assert_ne!(Tokens::new(&arch, &[row(9, 8)], 5, 2).input_ids, Tokens::new(&arch, &[row(9, 8)], 5, 1).input_ids);
    }
}
