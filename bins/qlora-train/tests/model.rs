//! The model on the CPU backend against the f64 oracle, and against its own plan.

use proptest::prelude::*;
use qlora_kernels::rng::Stream;
use qlora_kernels::rope::RopeScaling;
use qlora_train::arch::{
    Activation, Arch, GEMMA_NAMES, LLAMA_NAMES, LayerArch, Multipliers, Norm, NormWeight, OLMO2_NAMES, PHI3_NAMES,
};
use qlora_train::arch::{Projection, QkNorm, Rope, TensorNames};
use qlora_train::backend::cpu::{Cpu, Isa, Precision};
use qlora_train::backend::{Backend, Batch, Memory as _, Optimizer, OptimizerState, Quantization, StateFormat};
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::comm::{Communicator, Signs, SingleProcess};
use qlora_train::data::{MicroBatch, Row, UNSUPERVISED, order, pack};
use qlora_train::files::tensor::StoredType;
use qlora_train::lora::{LoraKind, LoraSpec, LoraTerm};
use qlora_train::model::optimizer_step::{
    Accumulated, Hyperparameters, StepReport, accumulate, optimizer_step, update,
};
use qlora_train::model::{Activations, Llama, ModelSpec};
use trainer_lab::model::{Documents, Memory, Oracle, to_f64};
use trainer_lab::ranks::{Sums, of_ranks};

fn spec(config: Arch, tokens: usize) -> ModelSpec {
    ModelSpec {
        lora: LoraSpec::uniform(&config, &config.names.all().collect::<Vec<_>>(), 3, 2.1, 0.0),
        arch: config,
        quantization: Quantization::Nf4 { block_size: 64, double_quant: true },
        trainable: true,
        states: StateFormat::F32,
        activations: Vec::new(),
        states_on_host: false,
        residency: Vec::new(),
        token_tile: None,
        tokens,
        positions: tokens,
        prompts: Default::default(),
        seed: 11,
    }
}

/// Loss and gradients of one micro-batch, in the order of the model's trainable tensors.
fn run(spec: &ModelSpec, memory: &mut Memory, documents: &Documents, weight: f32) -> (f64, Vec<Vec<f32>>) {
    run_in(Precision::F32, spec, memory, documents, weight)
}

fn run_in(
    precision: Precision,
    spec: &ModelSpec,
    memory: &mut Memory,
    documents: &Documents,
    weight: f32,
) -> (f64, Vec<Vec<f32>>) {
    let mut cpu = Cpu::with_precision(spec.run_shape(), precision);
    let mut model = Llama::build(&mut cpu, memory, spec.clone(), &mut |_| ()).unwrap();
    let loss = model.forward_backward(&mut cpu, &documents.batch(), 5, weight).unwrap();
    let gradients = model.params_mut().into_iter().map(|(_, p)| p.gradient().to_vec()).collect();
    (loss, gradients)
}

#[derive(Debug, Clone)]
struct Case {
    spec: ModelSpec,
    stored: StoredType,
    lengths: Vec<usize>,
    seed: u64,
}

/// One for each of at most two layers, by the bits of `seed`.
fn activations(seed: u64, recompute: bool) -> Vec<Activations> {
    let of = |bits: u64| match bits % 3 {
        0 => Activations::Keep,
        1 => Activations::Recompute,
        _ => Activations::Offload,
    };
    if recompute { vec![of(seed / 8), of(seed / 24)] } else { Vec::new() }
}

/// None, on the first layer or on both, by the bits of `seed`.
fn windows(seed: u64) -> Vec<Option<usize>> {
    let window = Some(1 + seed as usize / 7 % 9);
    match seed % 7 {
        0..3 => vec![None],
        3..5 => vec![window, None],
        _ => vec![window],
    }
}

/// Rotary positions of one kind, of two, or not in every layer; multipliers in half of the models, that of attention
/// only where every layer is rotated.
fn layers_and_multipliers(seed: u64, rope: Rope) -> (Vec<LayerArch>, Multipliers) {
    let rope_is_whole = rope.partial == 1.0;
    let layer = |rope| LayerArch { window: None, rope };
    let layers = match seed % 5 {
        0 => vec![layer(Some(rope)), layer(None)],
        1 => vec![layer(None), layer(Some(rope))],
        2 => vec![layer(Some(rope)), layer(Some(Rope::new(31.0, RopeScaling::Default)))],
        _ => LayerArch::uniform(rope),
    };
    if (seed / 5).is_multiple_of(2) {
        return (layers, Multipliers::NONE);
    }
    let attention = (seed % 5 > 1 && rope_is_whole).then_some(0.3);
    (layers, Multipliers { embedding: 3.5, attention, residual: 0.22, logits_scaling: 0.6, ..Multipliers::NONE })
}

/// Norms on the inputs of both branches, on their outputs, or on both; or on the inputs of fused projections.
fn norms(seed: u64) -> (&'static TensorNames, NormWeight) {
    let names = [&LLAMA_NAMES, &OLMO2_NAMES, &GEMMA_NAMES, &PHI3_NAMES][seed as usize % 4];
    (names, if (seed / 4).is_multiple_of(2) { NormWeight::Plain } else { NormWeight::OnePlus })
}

fn cases() -> impl Strategy<Value = Case> {
    let model = (1..3usize, 1..3usize, prop_oneof![Just(4usize), Just(10), Just(16)], 1..3usize, 1..3usize, 5..40usize);
    let switches = (any::<[bool; 5]>(), prop_oneof![Just(0.0f32), Just(0.3)], 1..6usize, any::<u64>());
    let rope = prop_oneof![
        Just(RopeScaling::Default),
        Just(RopeScaling::Linear { factor: 2.0 }),
        Just(RopeScaling::Llama3 {
            factor: 4.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 16
        }),
        Just(RopeScaling::Yarn {
            factor: 4.0,
            beta_fast: 4.0,
            beta_slow: 0.5,
            original_max_position_embeddings: 16,
            attention_factor: 1.14,
            truncate: true,
        }),
    ];
    let lengths = proptest::collection::vec(1..20usize, 1..4);
    let stored = prop_oneof![Just(StoredType::Bf16), Just(StoredType::F16), Just(StoredType::F32)];
    let targets = proptest::sample::subsequence(Projection::ALL.to_vec(), 1..=7);
    (model, switches, rope, lengths, stored, targets).prop_map(|(model, switches, rope, lengths, stored, targets)| {
        let (num_layers, kv_heads, head_dim, per_kv, hidden, intermediate) = model;
        let ([nf4, attention_bias, mlp_bias, tied, recompute], dropout, r, seed) = switches;
        let attention = Projection::ATTENTION.into_iter().filter(|_| attention_bias);
        let biases = attention.chain(Projection::MLP.into_iter().filter(|_| mlp_bias)).collect();
        let rope = Rope {
            partial: if (seed / 17).is_multiple_of(3) && head_dim > 4 { 0.4 } else { 1.0 },
            ..Rope::new(100.0, rope)
        };
        let (rotated, mut multipliers) = layers_and_multipliers(seed / 5, rope);
        let (names, norm_weight) = norms(seed / 11);
        if names == &OLMO2_NAMES {
            multipliers.residual = 1.0;
        }
        let qk_norms = [QkNorm::Head, QkNorm::Width, QkNorm::None, QkNorm::HeadRotated];
        let qk_norm = qk_norms[seed as usize / 2 % qk_norms.len()];
        // The scale of the scores is one of the rotation, which a norm behind it takes away.
        multipliers.attention = multipliers.attention.filter(|_| qk_norm != QkNorm::HeadRotated);
        let windows = windows(seed);
        let layer = |i: usize| LayerArch { window: windows[i % windows.len()], ..rotated[i % rotated.len()].clone() };
        let layers = (0..2).map(layer).collect();
        let config = Arch {
            num_layers,
            num_heads: kv_heads * per_kv,
            num_kv_heads: kv_heads,
            head_dim,
            hidden_size: 18 * hidden,
            intermediate_size: intermediate,
            biases,
            tie_word_embeddings: tied,
            qk_norm,
            names,
            norm: Norm { weight: norm_weight, ..tiny_arch().norm },
            activation: if (seed / 13).is_multiple_of(2) { Activation::Silu } else { Activation::GeluTanh },
            layers,
            multipliers,
            attention_soft_cap: (seed / 19).is_multiple_of(3).then_some(0.7),
            logits_soft_cap: (seed / 23).is_multiple_of(3).then_some(1.3),
            vocab_size: 37,
            ..tiny_arch()
        };
        let tokens = lengths.iter().sum::<usize>();
        // A fused projection counts where it holds a target.
        let has = |target: &Projection, of: Projection| {
            *target == of || !names.all().any(|p| p == *target) && target.input() == of.input()
        };
        let targets: Vec<Projection> = names.all().filter(|of| targets.iter().any(|target| has(target, *of))).collect();
        let mut spec = spec(config, tokens + seed as usize % 3);
        spec.lora = LoraSpec::uniform(&spec.arch, &targets, r, 0.7 * r as f64, f64::from(dropout));
        // Ranks and scales may differ from layer to layer, and a layer may have no term at all.
        if let Some(term) = spec.lora.terms.get_mut(&spec.arch.module(1, targets[0])) {
            *term = LoraTerm::lora(r + 2, 0.3 * (r + 2) as f64);
        }
        if seed % 4 == 0 {
            spec.lora.terms.remove(&spec.arch.module(1, targets[targets.len() - 1]));
        }
        spec.activations = activations(seed, recompute);
        if !nf4 {
            spec.quantization = Quantization::None;
        }
        if seed % 2 == 0 {
            spec.states = StateFormat::Blockwise8;
        }
        Case { spec, stored, lengths, seed }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Loss within f32 rounding of the oracle; gradients against central differences of the oracle. With step h the
    /// differences of an f64 loss L carry a rounding error of about 2⁻⁵²·L/h and a truncation error of order h²; the
    /// bound for the f32 gradient is relative to the largest gradient of its tensor (a sum over tokens and layers).
    /// Where a query sees few keys, the terms dO·V and rowsum(dO ∘ O) of a score's gradient cancel; what is left of D
    /// roundings of each is relative to the gradients that pass through dO, whose size those of a model with all terms
    /// show.
    #[test]
    fn loss_and_gradients_follow_the_f64_oracle(case in cases()) {
        let synthetic = Synthetic { stored: case.stored, ..Synthetic::new(case.spec.arch.clone(), case.seed) };
        let (mut memory, mut other) = (Memory::new(synthetic.clone()), Memory::new(synthetic));
        let documents = Documents::random(&case.lengths, case.spec.arch.vocab_size, case.seed);
        let documents = if case.seed % 3 == 0 { documents.weighted(case.seed) } else { documents };
        let weight = 0.125;
        let (loss, gradients) = run(&case.spec, &mut memory, &documents, weight);
        let oracle = Oracle::new(&case.spec, &memory);
        let mut lora = to_f64(&memory.lora);
        let expected = oracle.loss(&lora, &documents.batch(), Some(5));
        // Weights of either sign make a sum that is smaller than its terms, each at most ln of a few vocabularies.
        let terms = documents.weights.as_ref().map_or(0.0, |weights| 1e-5 * 20.0 * weights.len() as f64);
        prop_assert!((loss - expected).abs() <= 1e-5 * expected.abs() + terms + 1e-9, "loss {loss}, oracle {expected}");

        let mut names: Vec<_> = lora.keys().cloned().collect();
        names.sort_by_key(|id| (case.spec.arch.find(id.module()), id.kind()));
        prop_assert_eq!(names.len(), gradients.len());
        let mut pick = Stream::new(case.seed, 99);
        let largest_of = |gradient: &[f32]| gradient.iter().fold(0.0f32, |a, g| a.max(g.abs()));
        let mut every = case.spec.clone();
        let targets: Vec<Projection> = every.arch.names.all().collect();
        every.lora = LoraSpec::uniform(&every.arch, &targets, 3, 2.1, 0.0);
        let (_, of_every) = run(&every, &mut other, &documents, weight);
        let of_all = of_every.iter().chain(&gradients).map(|gradient| largest_of(gradient)).fold(0.0, f32::max);
        let cancelled = 2.0 * case.spec.arch.head_dim as f64 * f64::from(f32::EPSILON) / 2.0 * f64::from(of_all);
        for (name, gradient) in names.into_iter().zip(&gradients) {
            let largest = largest_of(gradient);
            for _ in 0..2 {
                let i = pick.below(gradient.len() as u32) as usize;
                let (h, at) = (1e-4, lora[&name][i]);
                let mut at_offset = |offset: f64| {
                    lora.get_mut(&name).unwrap()[i] = at + offset;
                    oracle.loss(&lora, &documents.batch(), Some(5))
                };
                let difference = (at_offset(h) - at_offset(-h)) / (2.0 * h) * f64::from(weight);
                at_offset(0.0);
                let error = (f64::from(gradient[i]) - difference).abs();
                let bound = 2e-4 * f64::from(largest) + cancelled + 1e-7;
                prop_assert!(error <= bound, "{name}[{i}]: {} against {difference}, bound {bound}", gradient[i]);
            }
        }
    }

    /// The memory that the plan names is the memory that the CPU backend takes, byte for byte.
    #[test]
    fn the_plan_is_the_run(case in cases(), steps in 1..3usize) {
        let synthetic = Synthetic { stored: case.stored, ..Synthetic::new(case.spec.arch.clone(), case.seed) };
        let mut memory = Memory::new(synthetic);
        let documents = Documents::random(&case.lengths, case.spec.arch.vocab_size, case.seed);
        for precision in [Precision::F32, bf16()] {
            let mut plan = Cpu::dry_run_with_precision(case.spec.run_shape(), precision);
            let planned = Llama::build(&mut plan, &mut memory, case.spec.clone(), &mut |_| ());
            if precision != Precision::F32 && has_odd_weights(&case.spec.arch) {
                let refused = planned.err().expect("products in bf16 run over pairs").to_string();
                prop_assert!(refused.contains("even numbers of rows and columns"), "{refused}");
                continue;
            }
            let mut planned = planned.unwrap();
            planned.forward_backward(&mut plan, &documents.batch(), 0, 1.0).unwrap();

            let mut cpu = Cpu::with_precision(case.spec.run_shape(), precision);
            let mut model = Llama::build(&mut cpu, &mut memory, case.spec.clone(), &mut |_| ()).unwrap();
            for step in 0..steps {
                model.forward_backward(&mut cpu, &documents.batch(), step as u32, 1.0).unwrap();
            }
            prop_assert_eq!(plan.bytes(), cpu.bytes());
            prop_assert_eq!(plan.planned(), cpu.planned());
            prop_assert!(plan.flops() > 0.0);
        }
    }
}

fn has_odd_weights(arch: &Arch) -> bool {
    Projection::ALL.iter().map(|projection| projection.shape(arch)).any(|(n, k)| n % 2 != 0 || k % 2 != 0)
}

/// bf16 by this processor's instructions; one number after the other where it has none.
fn bf16() -> Precision {
    Precision::Bf16(Isa::detect().unwrap_or(Isa::SCALAR))
}

/// Bits, not tolerances: across thread counts and between keeping and recomputing activations. Long enough that every
/// operation is split into several tasks.
#[test]
fn results_do_not_depend_on_threads_or_recomputation() {
    bits_do_not_depend_on_threads_or_recomputation(Precision::F32);
}

#[test]
fn results_in_bf16_do_not_depend_on_threads_or_recomputation() {
    bits_do_not_depend_on_threads_or_recomputation(bf16());
}

fn bits_do_not_depend_on_threads_or_recomputation(precision: Precision) {
    let config = Arch { hidden_size: 96, intermediate_size: 200, ..tiny_arch() };
    let documents = Documents::random(&[300, 5, 150, 230], config.vocab_size, 3);
    let mut base = spec(config, 700);
    base.lora.dropout = 0.1;
    let mut results = Vec::new();
    use Activations::{Keep, Offload, Recompute};
    for (threads, activations) in [
        (1, [Keep; 2]),
        (2, [Keep; 2]),
        (5, [Keep; 2]),
        (1, [Recompute; 2]),
        (3, [Offload; 2]),
        (2, [Recompute, Keep]),
        (2, [Keep, Recompute]),
        (2, [Offload, Recompute]),
    ] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let spec = ModelSpec { activations: activations.to_vec(), ..base.clone() };
        let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 9));
        results.push(pool.install(|| run_in(precision, &spec, &mut memory, &documents, 0.01)));
    }
    for (loss, gradients) in &results[1..] {
        assert_eq!(loss.to_bits(), results[0].0.to_bits());
        for (a, b) in gradients.iter().zip(&results[0].1) {
            assert!(a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}

/// A batch's gradient is the sum of its documents' gradients apart: nothing leaks between documents.
#[test]
fn documents_of_one_batch_do_not_see_each_other() {
    let config = tiny_arch();
    let spec = spec(config.clone(), 60);
    let mut memory = Memory::new(Synthetic::new(config.clone(), 5));
    let together = Documents::random(&[17, 33, 10], config.vocab_size, 1);
    let (loss, gradients) = run(&spec, &mut memory, &together, 1.0);
    let (mut loss_apart, mut sum) = (0.0, gradients.iter().map(|g| vec![0.0f64; g.len()]).collect::<Vec<_>>());
    for range in [0..17, 17..50, 50..60] {
        let apart = together.part(range);
        let (loss, gradients) = run(&spec, &mut memory, &apart, 1.0);
        loss_apart += loss;
        for (sum, gradient) in sum.iter_mut().zip(&gradients) {
            sum.iter_mut().zip(gradient).for_each(|(s, &g)| *s += f64::from(g));
        }
    }
    assert!((loss - loss_apart).abs() < 1e-5 * loss, "{loss} {loss_apart}");
    for (sum, gradient) in sum.iter().zip(&gradients) {
        let largest = sum.iter().fold(0.0f64, |a, g| a.max(g.abs()));
        for (s, &g) in sum.iter().zip(gradient) {
            assert!((s - f64::from(g)).abs() <= 1e-5 * largest, "{s} {g}");
        }
    }
}

/// Bits, not tolerances: rows packed by the trainer's own packing into one batch, against the same rows one after the
/// other as micro-batches of the same step. Sums over tokens run in chunks of 256, so rows of whole chunks add up
/// alike.
#[test]
fn a_packed_row_gives_exactly_the_gradients_of_its_documents_apart() {
    let config = Arch { hidden_size: 96, intermediate_size: 200, ..tiny_arch() };
    let lengths = [256usize, 512, 256, 768, 256];
    let rows: Vec<Row> = lengths
        .iter()
        .enumerate()
        .map(|(at, &length)| {
            let mut stream = Stream::new(at as u64, 77);
            let input_ids: Vec<u32> = (0..length).map(|_| stream.below(config.vocab_size as u32)).collect();
            let label = |(i, &id): (usize, &u32)| if i % 5 == 4 { UNSUPERVISED } else { id as i32 };
            Row {
                labels: input_ids.iter().enumerate().map(label).collect(),
                input_ids,
                weights: Vec::new(),
                file: 0,
                line: at + 1,
                task: None,
            }
        })
        .collect();
    let packs = pack(&lengths, &order(rows.len(), 0, 1), 1024).unwrap();
    assert!(packs.len() == 2 && packs.iter().all(|pack| pack.len() > 1), "{packs:?}");
    for activations in [Activations::Keep, Activations::Recompute] {
        let mut spec = spec(config.clone(), 1024);
        spec.activations = activations.keeping(0, config.num_layers);
        let gradients = |batches: &[MicroBatch]| -> (f64, Vec<Vec<u32>>) {
            let mut cpu = Cpu::new(spec.run_shape());
            let mut memory = Memory::new(Synthetic::new(config.clone(), 5));
            let mut model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
            let mut loss = 0.0;
            for batch in batches {
                loss += model.forward_backward(&mut cpu, &Batch::from(batch), 0, 0.001).unwrap();
            }
            let bits = |gradient: &[f32]| gradient.iter().map(|g| g.to_bits()).collect();
            (loss, model.params_mut().into_iter().map(|(_, p)| bits(p.gradient())).collect())
        };
        for pack in &packs {
            let together = gradients(&[MicroBatch::new(pack.iter().map(|&row| &rows[row]))]);
            let apart: Vec<MicroBatch> = pack.iter().map(|&row| MicroBatch::new([&rows[row]])).collect();
            let apart = gradients(&apart);
            assert!(together.1.iter().flatten().any(|&bits| bits << 1 != 0), "all gradients are zero");
            assert_eq!(together.1, apart.1);
            assert!((together.0 - apart.0).abs() <= 1e-12 * apart.0, "{} {}", together.0, apart.0);
            // The comparison sees a row that looks at the one before it.
            let mut leaking = MicroBatch::new(pack.iter().map(|&row| &rows[row]));
            leaking.boundaries.remove(1);
            assert_ne!(gradients(&[leaking]).1, apart.1);
        }
    }
}

#[test]
fn a_batch_longer_than_planned_is_refused() {
    let config = tiny_arch();
    let spec = spec(config.clone(), 8);
    let mut memory = Memory::new(Synthetic::new(config.clone(), 5));
    let mut cpu = Cpu::new(spec.run_shape());
    let model = Llama::build(&mut cpu, &mut memory, spec, &mut |_| ()).unwrap();
    let documents = Documents::random(&[9], config.vocab_size, 1);
    let error = model.loss(&mut cpu, &documents.batch()).unwrap_err();
    assert!(error.to_string().contains("9 tokens"), "{error}");
    assert!(cpu.zero_gradients(Vec::new()).is_ok());
}

/// Two updates, or one, a copy of values and states into a new model, and the other: the same bits. Tensors of both
/// kinds, as the small ones keep f32 states.
#[test]
fn values_and_states_that_are_put_back_continue_the_run() {
    let config = Arch { hidden_size: 576, intermediate_size: 1500, num_layers: 1, ..tiny_arch() };
    let documents = Documents::random(&[20, 11], config.vocab_size, 3);
    let hyper = Hyperparameters {
        learning_rate_a: 1e-3,
        learning_rate_b: 1e-2,
        weight_decay: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        max_grad_norm: 0.5,
    };
    for states in [StateFormat::F32, StateFormat::Blockwise8] {
        let mut spec = spec(config.clone(), 31);
        spec.states = states;
        let build = || {
            let mut cpu = Cpu::new(spec.run_shape());
            let mut memory = Memory::new(Synthetic::new(config.clone(), 5));
            let model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
            (cpu, model)
        };
        let step = |(cpu, model): &mut (Cpu, Llama<Cpu>), step: u64| {
            optimizer_step(cpu, model, &hyper, step, 1, 1.0, &[documents.batch()]).unwrap();
        };
        let snapshot = |(cpu, model): &mut (Cpu, Llama<Cpu>)| -> Vec<(Vec<f32>, OptimizerState)> {
            let params = model.params_mut().into_iter();
            params.map(|(_, p)| (cpu.param_values(p).unwrap(), cpu.optimizer_state(p).unwrap().unwrap())).collect()
        };
        let mut whole = build();
        step(&mut whole, 0);
        let middle = snapshot(&mut whole);
        let eight_bit = middle.iter().filter(|(_, s)| matches!(s, OptimizerState::Blockwise8 { .. })).count();
        assert_eq!(eight_bit > 0, states == StateFormat::Blockwise8);
        assert!(eight_bit < middle.len(), "no tensor is under 4,096 elements");
        step(&mut whole, 1);
        let mut resumed = build();
        for ((_, param), (values, state)) in resumed.1.params_mut().into_iter().zip(middle.clone()) {
            let short = resumed.0.restore(param, values[1..].to_vec(), state.clone()).unwrap_err().to_string();
            assert!(short.contains("expected") && short.contains("values"), "{short}");
            let other = OptimizerState::F32 { m: vec![0.0; 1], v: vec![0.0; values.len()] };
            let other = resumed.0.restore(param, values.clone(), other).unwrap_err().to_string();
            assert!(other.contains("f32 states of 1 and"), "{other}");
            resumed.0.restore(param, values, state).unwrap();
        }
        step(&mut resumed, 1);
        assert!(snapshot(&mut whole) == snapshot(&mut resumed), "{states:?}");
    }
}

#[test]
fn operations_on_ranges_of_a_batch_give_the_bits_of_the_whole() {
    for precision in [Precision::F32, bf16()] {
        trainer_lab::ranges::check_ranges(&mut Cpu::with_precision(trainer_lab::ranges::spec().run_shape(), precision));
    }
}

/// A batch that is cut into tiles leaves the bits of the whole, of gradients and of losses, whatever its layers keep,
/// and takes the memory that is planned.
#[test]
fn tiles_of_a_batch_give_the_bits_of_the_whole() {
    use Activations::{Keep, Recompute};
    let config = |seed| {
        let (names, weight) = norms(seed);
        let norm = Norm { weight, ..tiny_arch().norm };
        Arch { num_layers: 3, qk_norm: QkNorm::Head, names, norm, ..tiny_arch() }
    };
    // Norms before, after and around both branches.
    let configs = [0, 1, 2].map(config);
    assert!(configs.iter().any(|config| config.names.mlp_norms.input.is_none()));
    assert!(configs.iter().any(|config| config.names.mlp_norms.output.is_none()));
    let documents = Documents::random(&[700, 5, 555], tiny_arch().vocab_size, 3).weighted(4);
    for (config, precision) in configs.iter().flat_map(|config| [Precision::F32, bf16()].map(|of| (config, of))) {
        let run = |token_tile, activations: [Activations; 3]| {
            let lora = LoraSpec::uniform(config, &Projection::ALL, 3, 2.1, 0.25);
            let activations = activations.to_vec();
            let spec = ModelSpec { lora, token_tile, activations, ..spec(config.clone(), 1300) };
            let step = |cpu: &mut Cpu| {
                let mut model =
                    Llama::build(cpu, &mut Memory::new(Synthetic::new(config.clone(), 5)), spec.clone(), &mut |_| ());
                let model = model.as_mut().unwrap();
                let losses = [
                    model.forward_backward(cpu, &documents.batch(), 5, 0.01).unwrap(),
                    model.loss(cpu, &documents.batch()).unwrap(),
                ];
                let gradients = model.params_mut().into_iter().map(|(_, param)| param.gradient().to_vec());
                (losses, gradients.collect::<Vec<_>>(), cpu.bytes())
            };
            let found = step(&mut Cpu::with_precision(spec.run_shape(), precision));
            assert_eq!(step(&mut Cpu::dry_run_with_precision(spec.run_shape(), precision)).2, found.2);
            found
        };
        let whole = run(None, [Recompute; 3]);
        assert!(whole.0.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{:?}", whole.0);
        assert!(whole.1.iter().all(|gradient| gradient.iter().any(|&g| g != 0.0)));
        for activations in [[Recompute; 3], [Keep; 3], [Recompute, Keep, Recompute]] {
            let tiled = run(Some(512), activations);
            let norms = config.names.mlp_norms;
            assert!((&tiled.0, &tiled.1) == (&whole.0, &whole.1), "{norms:?} {precision:?} {activations:?}");
            if activations == [Recompute; 3] {
                assert!(tiled.2 < whole.2, "{} {}", tiled.2, whole.2);
            }
        }
    }
}

const HYPER: Hyperparameters = Hyperparameters {
    learning_rate_a: 1e-2,
    learning_rate_b: 1e-2,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    max_grad_norm: 0.5,
    ..Hyperparameters::NONE
};

/// The report of a step, with the gradients and the values after it.
type Stepped = (StepReport, Vec<Vec<f32>>, Vec<Vec<f32>>);

/// A step of all ranks over these batches, as one of them does it.
fn stepped(spec: &ModelSpec, comm: &mut dyn Communicator, accumulation: usize, batches: &[Batch]) -> Stepped {
    let mut cpu = Cpu::new(spec.run_shape());
    let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 4));
    let mut model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
    let begun = Accumulated::default();
    let done = accumulate(&mut cpu, &mut model, comm, 3, accumulation, batches, begun, &Signs::default);
    let (done, signal) = done.unwrap();
    assert_eq!((done.micro_batches, signal), (batches.len(), None));
    let report = update(&mut cpu, &mut model, comm, &HYPER, 3, accumulation, 1.0, batches, done.loss).unwrap();
    let gradients = model.params_mut().into_iter().map(|(_, param)| cpu.gradient(param).unwrap()).collect();
    let values = model.param_values(&cpu).unwrap().into_iter().map(|(_, _, values)| values).collect();
    (report, gradients, values)
}

/// What `world` ranks make of a step over `all`, each in a thread of its own, and the sums that they made.
fn of_step(spec: &ModelSpec, world: usize, all: &[Batch], overlaps: bool) -> (Vec<Stepped>, Sums) {
    of_ranks(world, overlaps, |comm| stepped(spec, comm, all.len(), all))
}

/// Ranks that take a step's micro-batches in turn make the step of one process that has all of them, dropout masks
/// included, also where some have fewer or none. Where no rank has more than one, the sums are the same: the same bits.
/// Else every term of a gradient is rounded about as often in another order: each rounding is at most 2⁻²⁴ of a term,
/// and 1e-5 of a tensor's largest gradient is 170 of them.
#[test]
fn a_step_of_several_ranks_is_the_step_of_one_process() {
    for (lengths, world) in [(&[10, 10][..], 2), (&[9, 17, 5, 3], 2), (&[9, 17, 5, 3], 3), (&[12, 7], 4)] {
        let mut spec = spec(tiny_arch(), 64);
        spec.lora.dropout = 0.2;
        let row = |(seed, &length): (usize, &usize)| Documents::random(&[length], spec.arch.vocab_size, seed as u64);
        let rows: Vec<Documents> = lengths.iter().enumerate().map(row).collect();
        let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
        let (whole, gradients, values) = stepped(&spec, &mut SingleProcess, all.len(), &all);
        let (ranks, _) = of_step(&spec, world, &all, true);
        assert!(ranks.iter().all(|rank| *rank == ranks[0]), "the ranks agree");
        let (report, of_ranks, values_of_ranks) = &ranks[0];
        assert_eq!((report.tokens, report.supervised), (whole.tokens, whole.supervised));
        assert!((report.loss - whole.loss).abs() <= 1e-12 * whole.loss.abs());
        if lengths.len() <= world {
            assert!(*of_ranks == gradients, "gradients");
            assert!(*values_of_ranks == values && report.grad_norm == whole.grad_norm, "values");
        }
        for (found, expected) in of_ranks.iter().zip(&gradients) {
            let largest = expected.iter().fold(0.0f32, |a, g| a.max(g.abs()));
            let apart = found.iter().zip(expected).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(apart <= 1e-5 * largest, "{apart} of {largest}");
        }
        // Without the others' micro-batches it is another step.
        let (_, of_one, _) = stepped(&spec, &mut SingleProcess, all.len(), &all[..1]);
        assert!(of_one != gradients);
    }
}

/// Sums of buckets that begin while the layers below compute leave the bits of those that follow the backward pass: in
/// one process and several, with one micro-batch of each and with three, also where some have fewer or none in the last
/// round; with magnitudes, and with modules that are trained whole.
#[test]
fn sums_beside_the_backward_pass_give_the_bits_of_those_after_it() {
    let plain = spec(tiny_arch(), 64);
    let mut others = plain.clone();
    others.lora.terms.values_mut().for_each(|term| term.kind = LoraKind::Dora);
    let whole = ["model.embed_tokens", "model.layers.1.input_layernorm", "model.norm", "lm_head"];
    others.lora.whole.extend(whole.map(str::to_owned));
    for (spec, world, rows) in [
        (&plain, 1, 1),
        (&plain, 1, 3),
        (&plain, 2, 2),
        (&plain, 2, 6),
        (&plain, 2, 5),
        (&plain, 3, 3),
        (&plain, 3, 9),
        (&plain, 3, 7),
        (&plain, 3, 2),
        (&others, 2, 5),
    ] {
        let row = |row: usize| Documents::random(&[5 + 4 * row], spec.arch.vocab_size, row as u64);
        let rows: Vec<Documents> = (0..rows).map(row).collect();
        let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
        let (after, sums_after) = of_step(spec, world, &all, false);
        let (beside, sums) = of_step(spec, world, &all, true);
        assert!(after.iter().chain(&beside).all(|rank| *rank == after[0]), "{world} ranks, {} rows", all.len());
        assert!(after[0].1.iter().all(|gradient| gradient.iter().any(|&g| g != 0.0)), "all gradients are there");
        if world == 1 {
            assert_eq!((sums_after, sums), (Sums { beside: 0, all: 0 }, Sums { beside: 0, all: 0 }));
            assert!(beside[0] == stepped(spec, &mut SingleProcess, all.len(), &all));
        } else {
            assert_eq!((sums_after.beside, sums.beside, sums.all), (0, sums.all, sums_after.all));
            assert!(sums.all >= 6 * world, "a tiny model has several buckets a layer: {sums:?}");
        }
    }
}

/// A step that was stopped within, in one process, goes on in several.
#[test]
fn a_step_that_was_stopped_in_one_process_goes_on_in_several() {
    let spec = spec(tiny_arch(), 64);
    let rows: Vec<Documents> = (0..5).map(|seed| Documents::random(&[9], spec.arch.vocab_size, seed)).collect();
    let all: Vec<Batch> = rows.iter().map(Documents::batch).collect();
    let whole = stepped(&spec, &mut SingleProcess, all.len(), &all);
    let build = || {
        let mut cpu = Cpu::new(spec.run_shape());
        let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 4));
        let model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
        (cpu, model)
    };
    let (mut cpu, mut model) = build();
    let stop = || Signs { signal: Some(15), ..Signs::default() };
    let comm = &mut SingleProcess;
    let begun = Accumulated::default();
    let (mut done, signal) = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, begun, &stop).unwrap();
    assert_eq!((done.micro_batches, signal), (1, Some(15)));
    (done, _) = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, done, &stop).unwrap();
    (done, _) = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, done, &stop).unwrap();
    assert_eq!(done.micro_batches, 3);
    let gradients: Vec<Vec<f32>> = model.params_mut().into_iter().map(|(_, p)| cpu.gradient(p).unwrap()).collect();
    let (losses, _) = of_ranks(2, true, |comm| {
        let (mut cpu, mut model) = build();
        for ((_, param), gradient) in model.params_mut().into_iter().zip(&gradients) {
            cpu.restore_gradient(param, gradient.clone()).unwrap();
        }
        let on = accumulate(&mut cpu, &mut model, comm, 3, 5, &all, done, &Signs::default);
        let (done, _) = on.unwrap();
        update(&mut cpu, &mut model, comm, &HYPER, 3, 5, 1.0, &all, done.loss).unwrap().loss
    });
    for loss in losses {
        assert!((loss - whole.0.loss).abs() <= 1e-12 * whole.0.loss.abs(), "{loss} {}", whole.0.loss);
    }
}

/// Weights of 1 change no bit; a weight of 0 is a target that is not there; a weight of 2 is half the total twice.
#[test]
fn weights_of_one_and_of_zero_change_no_bit() {
    let spec = spec(tiny_arch(), 64);
    let plain = Documents::random(&[20, 13], spec.arch.vocab_size, 1);
    let step = |documents: &Documents| stepped(&spec, &mut SingleProcess, 1, &[documents.batch()]);
    let expected = step(&plain);
    let with = |weight: fn(usize) -> f32| {
        let mut documents = Documents::random(&[20, 13], spec.arch.vocab_size, 1);
        documents.weights = Some((0..33).map(weight).collect());
        documents
    };
    assert!(step(&with(|_| 1.0)) == expected);
    let twice = step(&with(|_| 2.0));
    assert!(twice.1 == expected.1 && twice.0.loss == expected.0.loss && twice.0.supervised == expected.0.supervised);
    let half = with(|token| if token % 2 == 0 { 1.0 } else { 0.0 });
    let targets: Vec<i32> =
        plain.batch().targets.iter().enumerate().map(|(i, &t)| if i % 2 == 0 { t } else { -100 }).collect();
    let without = Batch { targets: &targets, ..plain.batch() };
    assert!(step(&half) == stepped(&spec, &mut SingleProcess, 1, &[without]));
    assert!(step(&half).1 != expected.1);
}

#[test]
fn weights_that_make_no_sense_end_the_step_with_their_place() {
    let spec = spec(tiny_arch(), 64);
    for (weight, words) in
        [(f32::NAN, "token 3 of a batch has a weight of NaN"), (-1.0, "add up to"), (0.0, "no token")]
    {
        let mut documents = Documents::random(&[20], spec.arch.vocab_size, 1);
        documents.weights =
            Some((0..20).map(|token| if weight.is_nan() && token != 3 { 1.0 } else { weight }).collect());
        let mut cpu = Cpu::new(spec.run_shape());
        let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 4));
        let mut model = Llama::build(&mut cpu, &mut memory, spec.clone(), &mut |_| ()).unwrap();
        let batch = [documents.batch()];
        let error = optimizer_step(&mut cpu, &mut model, &HYPER, 0, 1, 1.0, &batch).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
