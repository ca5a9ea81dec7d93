//! The CUDA backend computes in bf16 what the CPU backend computes in f32. How far that moves a run is not guessed but
//! measured: the CPU backend runs again in f32 with every value of every frozen matrix, table and norm, and of A and B,
//! multiplied by its own factor within 2⁻⁸ of 1, the largest relative error of rounding to bf16. To a product over K
//! such factors do what K rounded inputs do, so each product, norm, gather and gradient has an error as from one
//! rounded operand.
//!
//! On the device a value is rounded about twice as often as it goes through one of these: what enters a product and
//! what leaves it, and between two products rotation, softmax or SwiGLU. Errors of independent roundings add up as
//! squares do: √2. The errors themselves are smaller than the factors': uniform within half a unit in the last place,
//! which is 2⁻⁸ of the value only where the mantissa is 1; over all mantissas the root of their mean square is 0.7 of
//! the factors'. The two cancel: the device may be about as far from the CPU as the moved models are, as if it were one
//! of them. Bounds: for gradients, whose distances are sums of squares over thousands of elements and so hardly spread,
//! 2 × the moved models' mean; for losses and norms, which are single numbers around 0, 4 × the root of their mean
//! square.
//!
//! The first step of Adam moves an element by its gradient's sign, so two runs differ in the few elements that move the
//! other way: one of n is a distance of 2/√n. That is a count. All tensors' together hardly spread and are held to 2 ×
//! the mean too; of one tensor it may be none in all moved models. To c of them on average, 4·(√c + 1)² are far: the
//! distance is held to 2 × (the root of the mean square + 2/√n). Over s steps, of which one is a part, one element is
//! 2/(s·√n).

use crate::runs::{Apart, HYPER, Trained, largest, micro_batches, rms};
use crate::runs::{short_micro_batches, train, train_on, train_short};
use crate::sources::{Moved, config, memory, on_device, small_config, spec};
use crate::sources::{
    with_a_layer_not_rotated, with_fused_projections, with_multipliers, with_norms_after, with_norms_around,
    with_scores_of, with_soft_caps, with_two_ropes,
};
use lab::device::{Tally, set_schedule};
use qlora_kernels::rope::RopeScaling;
use qlora_train::arch::{Arch, LayerArch, Multipliers, Projection, QkNorm, Rope};
use qlora_train::backend::cpu::{Cpu, Isa, Precision};
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{
    Batch, Memory as _, Optimizer, OptimizerOnHost, OptimizerState, Quantization, Residency, StateFormat,
};
use qlora_train::error::Result;
use qlora_train::files::tensor::{HostTensor, StoredType};
use qlora_train::lora::ParamId;
use qlora_train::model::optimizer_step::optimizer_step;
use qlora_train::model::{Activations, Llama, ModelSpec, Source};
use trainer_lab::model::Documents;

/// Moved models that a run is compared with.
const MODELS: u64 = 6;

pub fn on_cpu(spec: &ModelSpec, steps: u64) -> Trained {
    train(&mut Cpu::new(spec.run_shape()), &mut memory(&spec.arch), spec, steps)
}

pub fn on_cuda(spec: &ModelSpec, steps: u64) -> Trained {
    let mut cuda = on_device(spec);
    train(&mut cuda, &mut memory(&spec.arch), spec, steps)
}

/// Distances that rounding to bf16 explains.
pub struct Bounds {
    /// One of each step
    losses: Vec<f64>,
    norms: Vec<f64>,
    gradients: Vec<f64>,
    moved: Vec<f64>,
    moved_in_all: f64,
}

/// Bounds of a value that each step of several runs has once, by its distances there and in the steps around: they grow
/// from step to step, with what has moved so far, and a few runs have few of one step.
fn single(runs: &[&Vec<f64>]) -> Vec<f64> {
    const AROUND: usize = 3;
    let near = |step: usize| {
        move |run: &&Vec<f64>| run[step.saturating_sub(AROUND)..run.len().min(step + AROUND + 1)].to_vec()
    };
    (0..runs[0].len()).map(|step| 4.0 * rms(&runs.iter().flat_map(near(step)).collect::<Vec<_>>())).collect()
}

impl Bounds {
    pub fn measure(spec: &ModelSpec, steps: u64, expected: &Trained) -> Self {
        let run = |seed| {
            let trained = train(&mut Cpu::new(spec.run_shape()), &mut Moved::new(spec, seed), spec, steps);
            Apart::of(&trained, expected)
        };
        // In f32 and not moved they are the same model.
        let same = run(None);
        assert!(largest(&same.losses) < 1e-5 && largest(&same.gradients) < 1e-4, "{same:?}");
        Self::of_moved(expected, &|seed| run(Some(seed)))
    }

    /// By how far moved models are from what is expected; `run` trains that of a seed.
    pub fn of_moved(expected: &Trained, run: &dyn Fn(u64) -> Apart) -> Self {
        let models: Vec<Apart> = (0..MODELS).map(run).collect();
        let steps = expected.losses.len();
        let single = |of: fn(&Apart) -> &Vec<f64>| single(&models.iter().map(of).collect::<Vec<_>>());
        let mean = |of: &dyn Fn(&Apart) -> f64| models.iter().map(of).sum::<f64>() / models.len() as f64;
        let tensors = 0..expected.gradients.len();
        let moved = |(i, (_, values)): (usize, &(_, Vec<f32>))| {
            let one_the_other_way = 2.0 / (values.len() as f64).sqrt() / steps as f64;
            2.0 * (mean(&|apart| apart.moved[i].powi(2)).sqrt() + one_the_other_way)
        };
        Self {
            losses: single(|apart| &apart.losses),
            norms: single(|apart| &apart.norms),
            gradients: tensors.map(|i| 2.0 * mean(&|apart| apart.gradients[i])).collect(),
            moved: expected.moved.iter().enumerate().map(moved).collect(),
            moved_in_all: 2.0 * mean(&|apart| apart.moved_in_all),
        }
    }

    /// With how far another run in bf16 is from what is expected: it explains distances independently of the moved
    /// models, and errors of independent causes add up as squares do.
    pub fn beside(self, other: &Apart) -> Self {
        let moved = self.moved.iter().zip(&other.moved).map(|(bound, apart)| bound.hypot(2.0 * apart));
        let added = |bounds: &[f64], other: &Vec<f64>| {
            bounds.iter().zip(single(&[other])).map(|(bound, other)| bound.hypot(other)).collect()
        };
        Self {
            losses: added(&self.losses, &other.losses),
            norms: added(&self.norms, &other.norms),
            gradients: self.gradients,
            moved: moved.collect(),
            moved_in_all: self.moved_in_all.hypot(2.0 * other.moved_in_all),
        }
    }

    /// The largest share of its bound that anything takes.
    pub fn share(&self, apart: &Apart) -> f64 {
        let tensors = |found: &[f64], bounds: &[f64]| -> f64 {
            assert_eq!(found.len(), bounds.len());
            largest(&found.iter().zip(bounds).map(|(found, bound)| found / bound).collect::<Vec<_>>())
        };
        largest(&[
            tensors(&apart.losses, &self.losses),
            tensors(&apart.norms, &self.norms),
            tensors(&apart.gradients, &self.gradients),
            tensors(&apart.moved, &self.moved),
            largest(&[apart.moved_in_all]) / self.moved_in_all,
        ])
    }

    pub fn check(&self, what: &str, apart: &Apart) {
        println!(
            "{what}: losses within {:.1e} (bound {:.1e}), norms {:.1e} ({:.1e}), gradients {:.1e} ({:.1e}), tensors {:.1e} \
             ({:.1e}); at most {:.2} of a bound",
            largest(&apart.losses),
            largest(&self.losses),
            largest(&apart.norms),
            largest(&self.norms),
            largest(&apart.gradients),
            largest(&self.gradients),
            largest(&apart.moved),
            largest(&self.moved),
            self.share(apart),
        );
        assert!(self.share(apart) <= 1.0, "{what}: {apart:?}");
    }
}

/// Two layers, packed documents, dropout, two micro-batches a step, 8-bit states for the larger tensors.
#[test]
fn a_run_gives_the_cpu_backends_losses_and_adapter() {
    let tally = Tally::new("training, 4 steps", 1);
    let mut spec = spec(config());
    spec.states = StateFormat::Blockwise8;
    let expected = on_cpu(&spec, 4);
    let bounds = Bounds::measure(&spec, 4, &expected);
    let found = on_cuda(&spec, 4);
    assert!(spec.lora.terms.values().any(|term| term.r * spec.arch.hidden_size >= 4096), "no 8-bit states");
    bounds.check("4 steps", &Apart::of(&found, &expected));
    assert!(found.losses[3] < found.losses[0] - 20.0 * largest(&bounds.losses), "{:?}", found.losses);
    tally.case();
}

/// The CPU backend in bf16 rounds where the device does, so the bounds are the same. On tiles or their twin, and over
/// more steps with AVX-512-BF16 or its twin: rounding moves a long run far enough that another order of sums is another
/// run.
#[test]
fn a_run_of_the_cpu_in_bf16_gives_the_losses_and_adapter_of_f32() {
    let tally = Tally::new("training in bf16 on the CPU, 4 and 20 steps", 1);
    let full = config().layers[0].clone();
    let layers = vec![LayerArch { window: Some(9), ..full.clone() }, full];
    let mut spec = spec(Arch { qk_norm: QkNorm::Head, layers, ..config() });
    spec.states = StateFormat::Blockwise8;
    let [tiles, chains] = [Isa::amx().unwrap_or(Isa::AMX_TWIN), Isa::avx512_bf16().unwrap_or(Isa::SCALAR)];
    for (steps, isa) in [(4, tiles), (20, chains)] {
        let expected = on_cpu(&spec, steps);
        let bounds = Bounds::measure(&spec, steps, &expected);
        let mut cpu = Cpu::with_precision(spec.run_shape(), Precision::Bf16(isa));
        let found = train(&mut cpu, &mut memory(&spec.arch), &spec, steps);
        bounds.check(&format!("{steps} steps in bf16"), &Apart::of(&found, &expected));
        let last = found.losses[steps as usize - 1];
        assert!(last < found.losses[0] - 20.0 * largest(&bounds.losses), "{:?}", found.losses);
        tally.case();
    }
}

/// Every way to hold weights, tied tables, biases, the other head_dim, scaled rotation, f32 states, no dropout.
#[test]
fn a_step_of_every_kind_of_model_gives_the_cpu_backends_gradients() {
    let tally = Tally::new("training, models", 1);
    let none = Quantization::None;
    let single = Quantization::Nf4 { block_size: 128, double_quant: false };
    let scaling = RopeScaling::Llama3 {
        factor: 4.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let scaled = Rope::new(100.0, scaling);
    let biased = Arch { biases: Projection::ALL.into(), ..config() };
    let tied = Arch { tie_word_embeddings: true, layers: LayerArch::uniform(scaled), hidden_size: 256, ..config() };
    let not_rotated = with_a_layer_not_rotated(config());
    let mut windowed = with_two_ropes(config());
    windowed.layers[0].window = Some(9);
    let wide = Arch { head_dim: 128, num_heads: 2, num_kv_heads: 1, hidden_size: 136, ..config() };
    for (what, config, quantization, dropout) in [
        ("16-bit weights, biases", biased, none, 0.1),
        ("tied tables, blocks of 128", tied, single, 0.0),
        ("heads of 128", wide.clone(), Quantization::NF4, 0.3),
        ("norms of heads of 64", Arch { qk_norm: QkNorm::Head, ..config() }, none, 0.0),
        ("norms of rotated heads", Arch { qk_norm: QkNorm::HeadRotated, ..config() }, single, 0.1),
        ("a window and another rotation on every other layer", windowed, none, 0.0),
        ("norms of heads of 128", Arch { qk_norm: QkNorm::Head, ..wide }, single, 0.1),
        ("multipliers", with_multipliers(config()), none, 0.1),
        ("scores of another scale, a layer not rotated", with_scores_of(0.2, not_rotated), none, 0.1),
        ("norms of what branches give", with_norms_after(config()), single, 0.1),
        ("norms around branches, gelu", with_norms_around(config()), none, 0.0),
        ("fused projections, rotated in part", with_fused_projections(config()), single, 0.1),
        ("heads of 96", Arch { head_dim: 96, num_heads: 3, num_kv_heads: 1, ..config() }, single, 0.0),
        ("heads of 256", Arch { head_dim: 256, num_heads: 2, num_kv_heads: 1, ..config() }, none, 0.0),
        ("soft caps", with_soft_caps(config()), none, 0.0),
    ] {
        let mut spec = ModelSpec { quantization, activations: Vec::new(), ..spec(config) };
        spec.lora.dropout = dropout;
        let expected = on_cpu(&spec, 1);
        let bounds = Bounds::measure(&spec, 1, &expected);
        bounds.check(what, &Apart::of(&on_cuda(&spec, 1), &expected));
        tally.case();
    }
}

/// The effect of another dropout mask, another scale of one pair, a document that sees the one before it or a lost
/// micro-batch is far outside of the bounds.
#[test]
fn the_bounds_see_another_mask_another_scale_a_leak_and_a_lost_micro_batch() {
    let spec = spec(config());
    let expected = on_cpu(&spec, 1);
    let bounds = Bounds::measure(&spec, 1, &expected);
    let masked = on_cuda(&ModelSpec { seed: 12, ..spec.clone() }, 1);
    assert!(bounds.share(&Apart::of(&masked, &expected)) > 2.0);
    let mut scaled = spec.clone();
    scaled.lora.terms.insert(scaled.arch.module(1, Projection::Down), qlora_train::lora::LoraTerm::lora(6, 3.0));
    assert!(bounds.share(&Apart::of(&on_cuda(&scaled, 1), &expected)) > 2.0);
    let documents = micro_batches(spec.arch.vocab_size);
    let full = config().layers[0].clone();
    let windowed =
        ModelSpec { arch: Arch { layers: vec![LayerArch { window: Some(30), ..full }], ..config() }, ..spec.clone() };
    assert!(bounds.share(&Apart::of(&on_cuda(&windowed, 1), &expected)) > 2.0, "a window of 30 keys");
    let [first, second] = [0, 1].map(|i| documents[i].batch());
    let leaking = Batch { boundaries: &[0, 57, 63, 64], ..first };
    for batches in [&[leaking, second][..], &[first]] {
        let mut cuda = on_device(&spec);
        let found = train_on(&mut cuda, &mut memory(&spec.arch), &spec, 1, batches);
        assert!(bounds.share(&Apart::of(&found, &expected)) > 2.0);
    }
}

/// A multiplier or a soft cap that is left out, a rotation where there is none, and norms of queries and keys on the
/// other side of it are far outside of the bounds.
#[test]
fn the_bounds_see_a_lost_multiplier_a_lost_cap_a_rotation_too_many_and_norms_behind_it() {
    let dense = |arch| ModelSpec { quantization: Quantization::None, activations: Vec::new(), ..spec(arch) };
    let arch = with_multipliers(config());
    let all = arch.multipliers;
    let lost = [
        Multipliers { embedding: 1.0, ..all },
        Multipliers { attention: None, ..all },
        Multipliers { residual: 1.0, ..all },
        Multipliers { logits_scaling: 1.0, ..all },
    ];
    let lost = lost.map(|multipliers| Arch { multipliers, ..arch.clone() }).to_vec();
    let normed = |qk_norm| Arch { qk_norm, ..config() };
    let capped = with_soft_caps(config());
    let lost_caps =
        vec![Arch { attention_soft_cap: None, ..capped.clone() }, Arch { logits_soft_cap: None, ..capped.clone() }];
    let models = [
        (arch, lost),
        (capped, lost_caps),
        (with_a_layer_not_rotated(config()), vec![config()]),
        (with_two_ropes(config()), vec![config()]),
        (normed(QkNorm::Head), vec![normed(QkNorm::HeadRotated), config()]),
    ];
    for (arch, wrong) in models {
        let spec = dense(arch);
        let expected = on_cpu(&spec, 1);
        let bounds = Bounds::measure(&spec, 1, &expected);
        for arch in wrong {
            let spec = dense(arch);
            let share = bounds.share(&Apart::of(&on_cuda(&spec, 1), &expected));
            assert!(share > 2.0, "{share} {:?} {:?}", spec.arch.multipliers, spec.arch.layers);
        }
    }
}

/// Also with activations kept, which recomputing gives again, and with layers' inputs in host memory. Low-rank
/// gradients are computed beside dX, whose few blocks leave most of a GPU idle.
#[test]
fn every_schedule_gives_the_same_bits() {
    let tally = Tally::new("training, schedules", 4);
    let mut spec = spec(Arch { num_layers: 3, qk_norm: QkNorm::Head, ..small_config() });
    spec.states = StateFormat::Blockwise8;
    let run = |seed, activations: [Activations; 3]| {
        set_schedule(seed);
        let spec = ModelSpec { activations: activations.to_vec(), ..spec.clone() };
        let mut cuda = on_device(&spec);
        let trained = train_short(&mut cuda, &mut memory(&spec.arch), &spec, 2);
        assert!(cuda.count_of_gradients_beside_dx() > 0);
        trained
    };
    use Activations::{Keep, Offload, Recompute};
    let first = run(0, [Recompute; 3]);
    assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
    for (seed, activations) in [
        (1, [Recompute; 3]),
        (7, [Keep; 3]),
        (2, [Offload; 3]),
        (3, [Offload, Recompute, Keep]),
        (4, [Keep, Offload, Recompute]),
    ] {
        assert!(first == run(seed, activations), "{activations:?}");
    }
    tally.case();
}

/// Weights that wait in host memory are those that stay, in the forward pass, where layers are recomputed, and in the
/// backward pass.
#[test]
fn weights_in_host_memory_give_the_same_bits() {
    let tally = Tally::new("training, weights in host memory", 5);
    use Activations::{Keep, Offload, Recompute};
    use Residency::{Device, Pinned};
    let nf4 = |block_size, double_quant| Quantization::Nf4 { block_size, double_quant };
    // The arrays of a weight differ between the ways to hold it, the order of copies does not.
    for (quantization, orders) in [(nf4(64, true), 5), (nf4(32, false), 1), (Quantization::None, 1)] {
        let spec = ModelSpec { quantization, ..spec(Arch { num_layers: 5, ..small_config() }) };
        let run = |seed, activations: &[Activations], residency: &[Residency]| {
            set_schedule(seed);
            let (activations, residency) = (activations.to_vec(), residency.to_vec());
            let spec = ModelSpec { activations, residency, ..spec.clone() };
            let documents = Documents::random(&[12, 7, 1], spec.arch.vocab_size, 1);
            train_on(&mut on_device(&spec), &mut memory(&spec.arch), &spec, 2, &[documents.batch()])
        };
        let first = run(0, &[Recompute; 5], &[]);
        assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
        let cases = [
            (2, &[Recompute; 5], &[Pinned, Device, Pinned, Pinned, Device]),
            (0, &[Recompute; 5], &[Pinned; 5]),
            (1, &[Keep; 5], &[Pinned; 5]),
            (7, &[Offload; 5], &[Pinned; 5]),
            (3, &[Keep, Recompute, Offload, Keep, Recompute], &[Device, Pinned, Device, Device, Device]),
        ];
        for (seed, activations, residency) in cases.into_iter().take(orders) {
            assert!(first == run(seed, activations, residency), "{quantization:?} {activations:?} {residency:?}");
            tally.case();
        }
    }
}

/// The first and last layers' weights are held in 16 bits, the others in NF4.
struct InTwoWays(trainer_lab::model::Memory);

impl Source for InTwoWays {
    fn stored(&self, name: &str) -> StoredType {
        self.0.stored(name)
    }

    fn resident_as(&self, name: &str) -> Option<Quantization> {
        ["layers.0.", "layers.3."].iter().any(|layer| name.contains(layer)).then_some(Quantization::None)
    }

    fn read(&mut self, name: &str) -> Result<HostTensor> {
        self.0.read(name)
    }

    fn lora(&mut self, id: &ParamId, len: usize, columns: usize) -> Result<Vec<f32>> {
        self.0.lora(id, len, columns)
    }
}

#[test]
fn layers_of_different_sizes_in_host_memory_give_the_same_bits() {
    let spec = spec(Arch { num_layers: 4, ..small_config() });
    let run = |seed, residency| {
        set_schedule(seed);
        let spec = ModelSpec { residency, ..spec.clone() };
        train_short(&mut on_device(&spec), &mut InTwoWays(memory(&spec.arch)), &spec, 2)
    };
    let first = run(0, Vec::new());
    assert!(first != train_short(&mut on_device(&spec), &mut memory(&spec.arch), &spec, 2));
    for seed in [0, 5] {
        assert!(first == run(seed, vec![Residency::Pinned; 4]));
    }
}

/// Two updates, or one, a copy of values, states and a half-accumulated gradient into a new model, and the rest.
#[test]
fn what_is_put_back_continues_the_run() {
    use OptimizerOnHost::{Nothing, States, StatesAndMasters};
    use StateFormat::{Blockwise8, F32};
    // The new model has its states and master copies elsewhere.
    for (states, [on_host, then]) in [
        (F32, [Nothing, States]),
        (F32, [States, StatesAndMasters]),
        (F32, [StatesAndMasters, Nothing]),
        (Blockwise8, [Nothing, StatesAndMasters]),
        (Blockwise8, [States, Nothing]),
        (Blockwise8, [StatesAndMasters, States]),
    ] {
        let mut spec = spec(Arch { num_layers: 1, ..small_config() });
        spec.lora.terms.retain(|module, _| module.starts_with("model.layers.0."));
        spec.states = states;
        let documents = short_micro_batches(spec.arch.vocab_size);
        let batches: Vec<Batch> = documents.iter().map(Documents::batch).collect();
        let build = |optimizer_on_host| {
            let spec = ModelSpec { optimizer_on_host, ..spec.clone() };
            let mut cuda = on_device(&spec);
            let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec, &mut |_| ()).unwrap();
            (cuda, model)
        };
        type Run = (Cuda, Llama<Cuda>);
        let step = |(cuda, model): &mut Run, step: u64| {
            optimizer_step(cuda, model, &HYPER, step, 2, 1.0, &batches).unwrap();
        };
        let snapshot = |(cuda, model): &mut Run| -> Vec<(Vec<f32>, OptimizerState, Vec<f32>)> {
            let copy = |param| {
                let state = cuda.optimizer_state(param).unwrap().unwrap();
                (cuda.param_values(param).unwrap(), state, cuda.gradient(param).unwrap())
            };
            model.params_mut().into_iter().map(|(_, param)| copy(param)).collect()
        };
        let mut whole = build(on_host);
        step(&mut whole, 0);
        let held = whole.0.bytes();
        whole.1.forward_backward(&mut whole.0, &batches[0], 9, 0.01).unwrap();
        let middle = snapshot(&mut whole);
        let eight_bit = middle.iter().filter(|(_, s, _)| matches!(s, OptimizerState::Blockwise8 { .. })).count();
        assert_eq!(eight_bit > 0, states == StateFormat::Blockwise8);
        let mut resumed = build(then);
        for ((_, param), (values, state, gradient)) in resumed.1.params_mut().into_iter().zip(middle.clone()) {
            let short = resumed.0.restore(param, values[1..].to_vec(), state.clone()).unwrap_err().to_string();
            assert!(short.contains("expected") && short.contains("values"), "{short}");
            let other = OptimizerState::F32 { m: vec![0.0; 1], v: vec![0.0; values.len()] };
            let other = resumed.0.restore(param, values.clone(), other).unwrap_err().to_string();
            assert!(other.contains("f32 states of 1 and"), "{other}");
            assert!(resumed.0.restore_gradient(param, vec![0.0]).is_err());
            resumed.0.restore(param, values, state).unwrap();
            resumed.0.restore_gradient(param, gradient).unwrap();
        }
        assert!(middle == snapshot(&mut resumed), "{states:?}");
        for run in [&mut whole, &mut resumed] {
            run.1.forward_backward(&mut run.0, &batches[1], 10, 0.01).unwrap();
            step(run, 1);
        }
        assert!(snapshot(&mut whole) == snapshot(&mut resumed), "{states:?}");
        assert_eq!(whole.0.bytes(), held, "a later step allocated");
    }
}

/// Loss without a gradient, and the logits of single tokens.
#[test]
fn losses_and_logits_are_those_of_the_cpu_backend() {
    let spec = ModelSpec { trainable: false, ..spec(config()) };
    let documents = &micro_batches(spec.arch.vocab_size)[0];
    let mut cpu = Cpu::new(spec.run_shape());
    let on_cpu = Llama::build(&mut cpu, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let mut cuda = on_device(&spec);
    let on_cuda = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let tokens = [0, 7, 63];
    let expected = on_cpu.logits(&mut cpu, &documents.batch(), &tokens).unwrap().concat();
    let found = on_cuda.logits(&mut cuda, &documents.batch(), &tokens).unwrap().concat();
    let mut moved = Vec::new();
    let mut losses = Vec::new();
    let loss = on_cpu.loss(&mut cpu, &documents.batch()).unwrap();
    let apart = |found: &[f32]| rms(&found.iter().zip(&expected).map(|(a, b)| f64::from(a - b)).collect::<Vec<_>>());
    for seed in 0..MODELS {
        let mut cpu = Cpu::new(spec.run_shape());
        let model = Llama::build(&mut cpu, &mut Moved::new(&spec, Some(seed)), spec.clone(), &mut |_| ()).unwrap();
        moved.push(apart(&model.logits(&mut cpu, &documents.batch(), &tokens).unwrap().concat()));
        losses.push(model.loss(&mut cpu, &documents.batch()).unwrap() - loss);
    }
    let found_loss = on_cuda.loss(&mut cuda, &documents.batch()).unwrap();
    println!("logits apart by {} of {}, loss {} of {}", apart(&found), rms(&moved), found_loss - loss, rms(&losses));
    assert!(apart(&found) <= 2.0 * rms(&moved));
    assert!((found_loss - loss).abs() <= 4.0 * rms(&losses));
}

#[test]
fn operations_on_ranges_of_a_batch_give_the_bits_of_the_whole() {
    let tally = Tally::new("ranges of a batch", 1);
    trainer_lab::ranges::check_ranges(&mut on_device(&trainer_lab::ranges::spec()));
    tally.case();
}

/// Weights of 1 change no bit, a weight of 0 is a target that is not there, and a loss is the weighted sum of the
/// tokens'.
#[test]
fn weights_of_tokens_are_those_of_the_loss_and_its_gradient() {
    let tally = Tally::new("training, weights", 1);
    let spec = spec(Arch { num_layers: 1, ..config() });
    let documents = |weights: Option<Vec<f32>>| {
        let mut documents = Documents::random(&[9, 7], spec.arch.vocab_size, 3);
        documents.weights = weights;
        documents
    };
    let step = |batch: Batch| train_on(&mut on_device(&spec), &mut memory(&spec.arch), &spec, 1, &[batch]);
    let plain = documents(None);
    let expected = step(plain.batch());
    assert!(step(documents(Some(vec![1.0; 16])).batch()) == expected);
    let even = |token: usize| if token.is_multiple_of(2) { 1.0 } else { 0.0 };
    let half = step(documents(Some((0..16).map(even).collect())).batch());
    let targets: Vec<i32> =
        plain.batch().targets.iter().enumerate().map(|(i, &target)| if i % 2 == 0 { target } else { -100 }).collect();
    assert!(half == step(Batch { targets: &targets, ..plain.batch() }));
    assert!(half != expected);

    let mut cuda = on_device(&spec);
    let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
    let mut loss = |weights: Vec<f32>| model.loss(&mut cuda, &documents(Some(weights)).batch()).unwrap();
    let weights: Vec<f32> = (0..16).map(|token| 0.25 * token as f32 - 1.0).collect();
    let alone: Vec<f64> =
        (0..16).map(|token| loss((0..16).map(|i| f32::from(u8::from(i == token))).collect())).collect();
    let sum: f64 = alone.iter().zip(&weights).map(|(loss, &weight)| loss * f64::from(weight)).sum();
    let found = loss(weights);
    assert!((found - sum).abs() <= 1e-12 * alone.iter().sum::<f64>(), "{found}, expected {sum}");
    tally.case();
}
