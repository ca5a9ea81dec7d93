//! Loss and gradients against the f64 oracle, the plan against the run, and bits that depend on nothing else.

use crate::spec;
use proptest::prelude::*;
use qlora_kernels::rng::RngStream;
use qlora_kernels::rope::RopeScaling;
use qlora_train::arch::{
    Activation, Arch, GEMMA_NAMES, LLAMA_NAMES, LayerArch, Multipliers, Norm, NormWeight, OLMO2_NAMES, PHI3_NAMES,
    Projection, QkNorm, Rope, TensorNames,
};
use qlora_train::backend::cpu::{Cpu, Isa, ORDER_OF_SUMS, Precision};
use qlora_train::backend::{Backend, Batch, Memory as _, Quantization, StateFormat};
use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::data::{MicroBatch, Row, UNSUPERVISED, order, pack};
use qlora_train::files::tensor::StoredType;
use qlora_train::lora::{LoraSpec, LoraTerm};
use qlora_train::model::{Activations, Llama, ModelSpec};
use sha2::{Digest, Sha256};
use trainer_lab::model::{Documents, Memory, Oracle, to_f64};

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
    let of = |bits: u64| match bits % 4 {
        0 => Activations::Keep,
        1 => Activations::Recompute,
        2 => Activations::Offload,
        _ => Activations::Disk,
    };
    if recompute { vec![of(seed / 8), of(seed / 32)] } else { Vec::new() }
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
    /// bound for the f32 gradient is relative to the largest gradient of its tensor (a sum over tokens and layers). If
    /// a query sees few keys, the terms dO·V and rowsum(dO ∘ O) of a score's gradient cancel; what is left of D
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
        let mut pick = RngStream::new(case.seed, 99);
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

#[test]
fn results_on_tiles_do_not_depend_on_threads_or_recomputation() {
    bits_do_not_depend_on_threads_or_recomputation(Precision::Bf16(Isa::AMX_TWIN));
}

/// A whole pass by the instructions and by their twins, dropout among it. A processor without the instructions has
/// nothing to compare, and a line says so.
#[test]
fn instructions_give_the_bits_of_their_twins() {
    let config = Arch { hidden_size: 96, intermediate_size: 200, ..tiny_arch() };
    let documents = Documents::random(&[150, 5, 70], config.vocab_size, 3);
    let mut spec = spec(config, 230);
    spec.lora.dropout = 0.1;
    let run = |isa| {
        let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 9));
        let (loss, gradients) = run_in(Precision::Bf16(isa), &spec, &mut memory, &documents, 0.01);
        (loss.to_bits(), gradients.iter().flatten().map(|x| x.to_bits()).collect::<Vec<u32>>())
    };
    let [tiles, chains] = [Isa::AMX_TWIN, Isa::SCALAR].map(run);
    assert!(tiles != chains, "sums in another order");
    for (name, isa, twin) in [("AMX", Isa::amx(), tiles), ("AVX-512-BF16", Isa::avx512_bf16(), chains)] {
        match isa {
            Some(isa) => assert!(run(isa) == twin, "{name}"),
            None => println!("not run: this processor has no {name}"),
        }
    }
}

/// Loss and gradients of a build, as they are recorded. Where they change, the number in the identity of runs rises
/// with them, so that a run of another build does not go on with other bits.
#[test]
fn bits_in_bf16_are_those_of_the_order_of_sums() {
    // Chains without and with a window, then tiles.
    const DIGESTS: &str = "3ce911c4fee7aab6 920ed5e578a63435 0a8a93d81e9856bd 9f337ec1f442b689";
    let documents = Documents::random(&[150, 5, 70], tiny_arch().vocab_size, 3);
    let digest = |isa, window| {
        let mut arch = Arch { hidden_size: 96, intermediate_size: 200, ..tiny_arch() };
        arch.layers.iter_mut().for_each(|layer| layer.window = window);
        let mut spec = spec(arch, 225);
        spec.lora.dropout = 0.1;
        let mut memory = Memory::new(Synthetic::new(spec.arch.clone(), 9));
        let (loss, gradients) = run_in(Precision::Bf16(isa), &spec, &mut memory, &documents, 0.01);
        let bytes: Vec<u8> = gradients.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
        let hash = Sha256::digest([&loss.to_le_bytes()[..], &bytes].concat());
        format!("{:016x}", u64::from_be_bytes(*hash.first_chunk().expect("32 bytes")))
    };
    let found = [Isa::SCALAR, Isa::AMX_TWIN].map(|isa| [None, Some(40)].map(|window| digest(isa, window)));
    assert_eq!((ORDER_OF_SUMS, found.map(|of_isa| of_isa.join(" ")).join(" ").as_str()), (2, DIGESTS));
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
        // More than there are tiles of most products.
        (128, [Keep; 2]),
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
            let mut stream = RngStream::new(at as u64, 77);
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
