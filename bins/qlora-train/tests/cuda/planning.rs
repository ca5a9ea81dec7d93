//! Plans of device memory: a run takes what its plan says, to the byte.

use crate::commands::Directory;
use crate::runs::{HYPER, Trained, train_on};
use crate::sources::{memory, small_config, spec, with_norms_after, with_norms_around};
use lab::device::{Tally, set_schedule};
use qlora_kernels::rng::RngStream;
use qlora_train::arch::{Arch, QkNorm};
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Memory, PlannedBuffer, Quantization, Residency, StateFormat};
use qlora_train::files::tensor::StoredType;
use qlora_train::model::generate::{Sampling, generate, generate_in};
use qlora_train::model::optimizer_step::optimizer_step;
use qlora_train::model::{Activations, Llama, ModelSpec, Prompts};
use qlora_train::session::plan::{MemoryPlan, PlannedJob, TensorStorage, plan};
use qlora_train::session::{Budget, Device};
use trainer_lab::model::Documents;

const BUDGET: Budget =
    Budget { limit: u64::MAX, in_use: 0, in_use_name: "", read_bytes: 0, host_limit: u64::MAX, sharers: 1 };

pub fn whole_plan(spec: &ModelSpec) -> MemoryPlan {
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    plan(&Device::unopened(0), spec, &stored, PlannedJob::Train, BUDGET).unwrap()
}

pub fn planned(spec: &ModelSpec) -> u64 {
    whole_plan(spec).run_bytes
}

/// Two steps: states are made in the first, and the second begins with them. A micro-batch takes the memory of the
/// longest one, however short it is.
pub fn steps(cuda: &mut Cuda, spec: &ModelSpec) -> Trained {
    let documents = Documents::random(&[12, 7, 1], spec.arch.vocab_size, 1);
    train_on(cuda, &mut memory(&spec.arch), spec, 2, &[documents.batch()])
}

#[test]
fn a_run_takes_what_was_planned_and_fails_with_less() {
    let nf4 = |block_size, double_quant| Quantization::Nf4 { block_size, double_quant };
    use Activations::{Disk, Keep, Offload, Recompute};
    let cases = [
        (nf4(64, true), StateFormat::Blockwise8, [Recompute; 5], 64),
        (nf4(64, true), StateFormat::F32, [Keep; 5], 64),
        (nf4(128, true), StateFormat::F32, [Offload; 5], 100),
        (nf4(32, false), StateFormat::F32, [Recompute; 5], 64),
        (Quantization::None, StateFormat::Blockwise8, [Keep; 5], 79),
        (nf4(64, true), StateFormat::Blockwise8, [Offload; 5], 64),
        (nf4(64, true), StateFormat::F32, [Recompute, Recompute, Recompute, Keep, Keep], 64),
        (nf4(64, true), StateFormat::F32, [Offload, Keep, Recompute, Offload, Keep], 64),
        (nf4(64, true), StateFormat::F32, [Disk, Keep, Disk, Offload, Keep], 64),
    ];
    let normed = [(cases[1], QkNorm::Head)];
    let (kept, recomputed) = (cases[1], cases[7]);
    let plain = small_config();
    let cases = cases.into_iter().map(|case| (case, QkNorm::None)).chain(normed);
    let cases = cases.map(|(case, qk_norm)| (case, Arch { qk_norm, ..plain.clone() }));
    let others = [(kept, with_norms_after(small_config())), (recomputed, with_norms_around(small_config()))];
    for ((quantization, states, activations, tokens), arch) in cases.chain(others) {
        let config = Arch { num_layers: 5, ..arch };
        let spec = ModelSpec { activations: activations.to_vec(), quantization, tokens, states, ..spec(config) };
        let bytes = planned(&spec);
        if activations == [Offload; 5] {
            let here = planned(&ModelSpec { activations: vec![Recompute; 5], ..spec.clone() });
            // Two of the four layers' inputs that wait elsewhere may be under way.
            let input = (tokens * spec.arch.hidden_size * 2) as u64;
            assert!(bytes + 2 * input <= here, "{bytes} {here}");
        }
        let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, bytes).unwrap();
        steps(&mut cuda, &spec);
        assert_eq!(cuda.bytes(), bytes, "{quantization:?} {states:?} {activations:?}");
        if activations != [Keep; 5] {
            continue;
        }
        // One part less, and the step that needs most cannot be done.
        let mut short = Cuda::new(0, spec.run_shape(), &spec.arch, bytes - 256).unwrap();
        let run = std::panic::AssertUnwindSafe(|| steps(&mut short, &spec));
        assert!(std::panic::catch_unwind(run).is_err(), "{quantization:?}: the plan has more than it needs");
    }
}

/// The device holds two layers' of the weights in host memory, whatever the number of layers.
#[test]
fn a_run_with_weights_in_host_memory_takes_what_was_planned() {
    use Residency::{Device as OnDevice, Pinned};
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let planned = |spec: &ModelSpec| plan(&Device::unopened(0), spec, &stored, PlannedJob::Train, BUDGET).unwrap();
    for (quantization, line) in [(Quantization::NF4, "NF4 weights"), (Quantization::None, "weights")] {
        // With room for this many tokens the step needs more memory than loading.
        let spec = ModelSpec { quantization, tokens: 512, ..spec(Arch { num_layers: 6, ..small_config() }) };
        let resident = planned(&spec);
        let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, resident.run_bytes).unwrap();
        steps(&mut cuda, &spec);
        assert_eq!(cuda.bytes(), resident.run_bytes, "{quantization:?}");
        for residency in [vec![Pinned; 6], vec![Pinned, OnDevice, Pinned, Pinned, OnDevice, Pinned]] {
            let layers = residency.iter().filter(|&&residency| residency == Pinned).count() as u64;
            let spec = ModelSpec { residency, ..spec.clone() };
            let plan = planned(&spec);
            let of = |lines: &[PlannedBuffer], name: &str| -> u64 {
                lines.iter().filter(|buffer| buffer.name == name).map(|buffer| buffer.bytes).sum()
            };
            let on_host = of(&plan.on_host, "layers' weights in host memory");
            let in_use = of(&plan.buffers, "layers' weights in use");
            let (before, after) = (of(&resident.buffers, line), of(&plan.buffers, line));
            assert_eq!(before - after, before / 6 * layers, "{quantization:?}");
            assert!(in_use.abs_diff(on_host / layers * 2) < 512, "{in_use} {on_host}");
            // Buffers for two streamed layers, and one in transfer while the model is loaded.
            let layer = on_host / layers;
            assert!(plan.run_bytes + (layers - 3) * layer <= resident.run_bytes, "{:?}", plan.buffers);

            let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
            steps(&mut cuda, &spec);
            assert_eq!(cuda.bytes(), plan.run_bytes, "{quantization:?}");
            assert_eq!(cuda.planned_on_host(), plan.on_host, "{quantization:?}");
        }
    }
}

pub fn bytes_of(lines: &[PlannedBuffer], name: &str) -> u64 {
    lines.iter().filter(|buffer| buffer.name == name).map(|buffer| buffer.bytes).sum()
}

/// The device holds an output layer that waits in host memory while the loss is computed, in memory of the blocks.
#[test]
fn a_run_with_its_output_layer_in_host_memory_takes_what_was_planned() {
    use Activations::{Keep, Recompute};
    use Residency::{Device as OnDevice, Pinned};
    let tally = Tally::new("training, output layer in host memory", 5);
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let planned = |spec: &ModelSpec| plan(&Device::unopened(0), spec, &stored, PlannedJob::Train, BUDGET).unwrap();
    let plain = Arch { vocab_size: 300, ..small_config() };
    let tied = Arch { tie_word_embeddings: true, ..plain.clone() };
    let capped = Arch { logits_soft_cap: Some(0.8), ..plain.clone() };
    let cases = [
        (plain.clone(), Recompute, OnDevice),
        (plain, Keep, Pinned),
        (tied.clone(), Recompute, Pinned),
        (tied, Keep, OnDevice),
        (capped, Recompute, OnDevice),
    ];
    for (seed, (arch, activations, layers)) in cases.into_iter().enumerate() {
        let bytes = (2 * arch.vocab_size * arch.hidden_size) as u64;
        let (tokens, activations) = (512, vec![activations; arch.num_layers]);
        let base = ModelSpec { tokens, activations, ..spec(arch) };
        let run = |head: Residency| {
            let residency = vec![layers, layers, head];
            let spec = ModelSpec { residency, ..base.clone() };
            let plan = planned(&spec);
            let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
            let trained = steps(&mut cuda, &spec);
            assert_eq!(cuda.bytes(), plan.run_bytes, "{seed} {head:?}");
            assert_eq!(cuda.planned_on_host(), plan.on_host, "{seed} {head:?}");
            // One part less, and the step that needs most cannot be done.
            let mut short = Cuda::new(0, spec.run_shape(), &spec.arch, plan.run_bytes - 256).unwrap();
            let run = std::panic::AssertUnwindSafe(|| steps(&mut short, &spec));
            assert!(std::panic::catch_unwind(run).is_err(), "{seed} {head:?}: the plan has more than it needs");
            (plan, trained)
        };
        let (resident, expected) = run(OnDevice);
        set_schedule(seed as u64);
        let (waiting, found) = run(Pinned);
        assert!(found == expected, "{seed}");
        assert!(expected.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
        let is_tied = base.arch.tie_word_embeddings;
        let [on_device, on_host] = if is_tied { ["embedding"; 2] } else { ["lm_head", "lm_head in host memory"] };
        let found = [&resident, &waiting].map(|plan| {
            let there = (bytes_of(&plan.buffers, on_device), bytes_of(&plan.on_host, on_host));
            (there, plan.weights_on_host)
        });
        let layers = found[0].1;
        let shared = if is_tied { layers } else { layers + bytes };
        assert_eq!(found, [((bytes, 0), layers), ((0, bytes), shared)], "{seed}");
        let takes_less = waiting.run_bytes < resident.run_bytes;
        assert!(takes_less || base.activations[0] == Keep, "{seed}: {} {}", waiting.run_bytes, resident.run_bytes);
        tally.case();
    }
}

/// Losses and answers of a model whose output layer comes for each of them.
#[test]
fn losses_and_text_from_an_output_layer_in_host_memory_are_the_same() {
    use Residency::{Device as OnDevice, Pinned};
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    for tie_word_embeddings in [false, true] {
        let arch = Arch { tie_word_embeddings, ..small_config() };
        let mut stream = RngStream::new(4, 4);
        let mut prompt = |len: usize| -> Vec<u32> { (0..len).map(|_| stream.below(67)).collect() };
        let prompts = [9, 1, 14].map(&mut prompt).to_vec();
        let documents = Documents::random(&[20, 11], arch.vocab_size, 7);
        let base = ModelSpec { trainable: false, activations: Vec::new(), tokens: 48, ..spec(arch) };
        let run = |head: Residency| {
            let spec = ModelSpec { residency: vec![OnDevice, OnDevice, head], ..base.clone() };
            let (lora, lengths) = ([spec.lora.clone()], [9, 1, 14]);
            let text = PlannedJob::Text { adapters: &lora, prompts: &lengths, max_new_tokens: 5 };
            let planned = |job| plan(&Device::unopened(0), &spec, &stored, job, BUDGET).unwrap();
            let (text, loss) = (planned(text), planned(PlannedJob::Loss(&lora)));
            let load = |bytes: u64| {
                let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, bytes).unwrap();
                let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
                (cuda, model)
            };
            let (mut cuda, model) = load(loss.run_bytes);
            let losses = model.losses(&mut cuda, &documents.batch()).unwrap();
            assert_eq!((cuda.bytes(), &cuda.planned_on_host()), (loss.run_bytes, &loss.on_host), "{head:?}");
            let (mut cuda, model) = load(text.run_bytes);
            let sampling = Sampling { temperature: 5.0, seed: 1, ..Sampling::GREEDY };
            let answers = generate(&mut cuda, &model, &prompts, 5, &[], &sampling, &mut |_, _| Ok(true)).unwrap();
            assert!(cuda.bytes() <= text.run_bytes && cuda.planned_on_host() == text.on_host, "{head:?}");
            (losses, answers)
        };
        let resident = run(OnDevice);
        assert_eq!((resident.0.len(), resident.1[0].len()), (24, 5));
        set_schedule(3);
        assert!(resident == run(Pinned), "tied: {tie_word_embeddings}");
    }
}

/// A short text leaves the device as it was for a longer one.
#[test]
fn a_conversation_takes_what_was_planned_however_its_texts_grow() {
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let tokens = 300;
    let spec =
        ModelSpec { trainable: false, activations: Vec::new(), tokens, positions: tokens, ..spec(small_config()) };
    let lora = [spec.lora.clone()];
    for new in [1, 3] {
        let longest = [tokens - new];
        let job = PlannedJob::Text { adapters: &lora, prompts: &longest, max_new_tokens: new };
        let bytes = plan(&Device::unopened(0), &spec, &stored, job, BUDGET).unwrap().run_bytes;
        let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, bytes).unwrap();
        let model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
        let mut stream = RngStream::new(4, 5);
        for len in [31, 199, 231, 7, 296] {
            let prompt: Vec<u32> = (0..len).map(|_| stream.below(67)).collect();
            let sampling = Sampling::GREEDY;
            let answers = generate(&mut cuda, &model, &[prompt], new, &[], &sampling, &mut |_, _| Ok(true)).unwrap();
            assert_eq!(answers[0].len(), new);
        }
        assert_eq!(cuda.bytes(), bytes, "{new}");
    }
}

/// A run that goes on from a checkpoint answers after steps, one from the beginning before them.
#[test]
fn a_run_takes_what_was_planned_whenever_it_answers() {
    for activations in [Activations::Recompute, Activations::Keep] {
        let prompts = Prompts { lengths: vec![40, 9, 23], max_new_tokens: 6 };
        let spec = ModelSpec { tokens: 300, activations: vec![activations; 2], ..spec(small_config()) };
        let spec = spec.with_prompts(prompts);
        let bytes = planned(&spec);
        let documents = Documents::random(&[12, 7, 1], spec.arch.vocab_size, 1);
        let texts: Vec<Vec<u32>> = spec.prompts.lengths.iter().map(|&len| vec![3; len]).collect();
        for first_answers in 0..2 {
            let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, bytes).unwrap();
            let mut model = Llama::build(&mut cuda, &mut memory(&spec.arch), spec.clone(), &mut |_| ()).unwrap();
            for step in 0..2 {
                if step >= first_answers {
                    let mut cache = model.cache_of(&mut cuda, spec.prompts.cache_rows(spec.tokens)).unwrap();
                    let (new, greedy) = (spec.prompts.max_new_tokens, Sampling::GREEDY);
                    generate_in(&mut cuda, &model, &mut cache, &texts, new, &[], &greedy, &mut |_, _| Ok(true))
                        .unwrap();
                }
                optimizer_step(&mut cuda, &mut model, &HYPER, step, 1, 1.0, &[documents.batch()]).unwrap();
            }
            assert_eq!(cuda.bytes(), bytes, "{activations:?}, {first_answers}");
        }
    }
}

/// Levers in pairs, and all of them, give the bits of a run without any, in the memory of the device and the pinned
/// memory that are planned. Each alone is compared in the tests of training.
#[test]
fn pairs_of_levers_give_the_same_bits_in_the_memory_that_is_planned() {
    use Activations::{Disk, Keep, Offload, Recompute};
    use Residency::{Device as OnDevice, Pinned};
    let tally = Tally::new("pairs of levers", 5);
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let base = ModelSpec { tokens: 530, positions: 200, ..spec(Arch { num_layers: 2, ..small_config() }) };
    // Two tiles, of which the first is as short as one may be; what is not cut has few tokens, in as much memory.
    let lengths = |token_tile: Option<usize>| -> &'static [usize] {
        if token_tile.is_some() { &[100, 5, 150, 80, 194] } else { &[12, 7, 1] }
    };
    // Places of the weights of two layers, and of the output layer.
    let run =
        |activations: [Activations; 2], residency: [Residency; 3], token_tile: Option<usize>, lengths: &[usize]| {
            let documents = Documents::random(lengths, base.arch.vocab_size, 3).weighted(4);
            let (activations, residency) = (activations.to_vec(), residency.to_vec());
            let spec = ModelSpec { activations, residency, token_tile, ..base.clone() };
            let plan = plan(&Device::unopened(0), &spec, &stored, PlannedJob::Train, BUDGET).unwrap();
            let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
            let trained = train_on(&mut cuda, &mut memory(&spec.arch), &spec, 1, &[documents.batch()]);
            assert_eq!(cuda.bytes(), plan.run_bytes, "{spec:?}");
            assert_eq!(cuda.planned_on_host(), plan.on_host, "{spec:?}");
            trained
        };
    let [short, long] = [None, Some(512)].map(|tile| run([Keep; 2], [OnDevice; 3], None, lengths(tile)));
    for first in [&short, &long] {
        assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
    }
    // Every two values of two levers are in one of them; the last has all that wait somewhere. The last layer's input
    // does not leave: its activations are kept or recomputed.
    let cases = [
        ([Offload, Keep], [OnDevice, OnDevice, Pinned], Some(512)),
        ([Offload, Keep], [Pinned, Pinned, OnDevice], None),
        ([Disk, Recompute], [OnDevice, OnDevice, Pinned], None),
        ([Disk, Recompute], [Pinned, Pinned, OnDevice], Some(512)),
        ([Offload, Recompute], [Pinned; 3], Some(512)),
    ];
    for (seed, (activations, residency, token_tile)) in cases.into_iter().enumerate() {
        set_schedule(seed as u64);
        let first = if token_tile.is_some() { &long } else { &short };
        let found = run(activations, residency, token_tile, lengths(token_tile));
        assert!(*first == found, "{activations:?} {residency:?} {token_tile:?}");
        tally.case();
    }
}

/// The plan of a command names its parts; a run within it is done, and one byte less is refused before anything is read
/// or written.
#[test]
fn plan_says_whether_a_run_fits_and_the_run_agrees() {
    let directory = Directory::new();
    let line = "--model model --data rows.jsonl --max-length 64 --lora-r 24 --gradient-checkpointing false \
        --lm-head resident --optimizer-states resident --device cuda";
    // More than any GPU has is another GPU's.
    let (answer, _) = directory.done(&format!("plan --json {line} --device-memory 4000GiB"));
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let peak = number(&answer["device"]["peak_bytes"]);
    let buffers = answer["buffers"].as_array().unwrap();
    let of = |place: &str| -> u64 {
        let there = buffers.iter().filter(|buffer| buffer["place"] == place);
        there.map(|buffer| number(&buffer["bytes"])).sum()
    };
    assert_eq!((of("device"), of("host")), (peak, number(&answer["host"]["peak_bytes"])));
    for name in ["NF4 weights", "AdamW states", "LoRA A and B", "CUDA context (assumed)"] {
        assert!(buffers.iter().any(|buffer| buffer["name"] == name), "{name}: {buffers:?}");
    }
    assert!(answer["fits"] == true && number(&answer["device"]["budget_bytes"]) == 4000 << 30);
    assert!(number(&answer["max_length"]) >= 64);

    // The process's own memory is measured where there is a device.
    let (answer, _) = directory.done(&format!("plan --json {line}"));
    let peak = number(&answer["device"]["peak_bytes"]);
    let run = |memory: u64, output: &str| {
        directory.run(&format!("train {line} --max-steps 1 --device-memory {memory} --output-dir {output}"))
    };
    // Nor is it assumed where some of the memory of that device may be used.
    for (memory, fits) in [(peak - 1, false), (peak, true)] {
        let plan = directory.run(&format!("plan --json {line} --device-memory {memory}"));
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        assert_eq!((plan["fits"].as_bool(), number(&plan["device"]["peak_bytes"])), (Some(fits), peak));
    }
    let short = run(peak - 1, "short");
    let errors = String::from_utf8(short.stderr).unwrap();
    assert_eq!(short.status.code(), Some(2), "{errors}");
    let fits = "gradient_checkpointing: auto fits: activations";
    for words in [
        "of GPU memory",
        "(short by 1 byte)",
        "the largest parts are",
        fits,
        "is the longest that fits",
        "device_memory",
    ] {
        assert!(errors.contains(words), "{errors}");
    }
    assert!(!directory.path("short").exists());
    let enough = run(peak, "enough");
    let errors = String::from_utf8(enough.stderr).unwrap();
    assert!(enough.status.success() && errors.contains("GPU memory: "), "{errors}");
}
