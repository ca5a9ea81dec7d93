//! Plans of device memory: a run takes what its plan says, to the byte.

use crate::commands::Directory;
use crate::runs::{Trained, micro_batches, train_on};
use crate::sources::{memory, small_config, spec, with_norms_after, with_norms_around};
use lab::device::{Tally, set_schedule};
use qlora_train::arch::{Arch, QkNorm};
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Memory, PlannedBuffer, Quantization, Residency, StateFormat};
use qlora_train::files::tensor::StoredType;
use qlora_train::model::{Activations, ModelSpec};
use qlora_train::session::plan::{PlannedJob, StoredAs, plan};
use qlora_train::session::{Budget, Device};
use trainer_lab::model::Documents;

const BUDGET: Budget =
    Budget { limit: u64::MAX, in_use: 0, in_use_name: "", read_bytes: 0, host_limit: u64::MAX, sharers: 1 };

pub fn planned(spec: &ModelSpec) -> u64 {
    let stored = |_: &str| StoredAs { dtype: StoredType::Bf16, held: None };
    plan(&Device::unopened(0), spec, &stored, PlannedJob::Train, BUDGET).unwrap().run_bytes
}

/// Two steps of the longest micro-batch: states are made in the first, and the second begins with them.
pub fn steps(cuda: &mut Cuda, spec: &ModelSpec) -> Trained {
    let [longest, _] = micro_batches(spec.arch.vocab_size);
    train_on(cuda, &mut memory(&spec.arch), spec, 2, &[longest.batch()])
}

#[test]
fn a_run_takes_what_was_planned_and_fails_with_less() {
    let nf4 = |block_size, double_quant| Quantization::Nf4 { block_size, double_quant };
    use Activations::{Keep, Offload, Recompute};
    let cases = [
        (nf4(64, true), StateFormat::Blockwise8, [Recompute; 5], 64),
        (nf4(64, true), StateFormat::F32, [Keep; 5], 64),
        (nf4(128, true), StateFormat::F32, [Offload; 5], 100),
        (nf4(32, false), StateFormat::F32, [Recompute; 5], 64),
        (Quantization::None, StateFormat::Blockwise8, [Keep; 5], 79),
        (nf4(64, true), StateFormat::Blockwise8, [Offload; 5], 64),
        (nf4(64, true), StateFormat::F32, [Recompute, Recompute, Recompute, Keep, Keep], 64),
        (nf4(64, true), StateFormat::F32, [Offload, Keep, Recompute, Offload, Keep], 64),
    ];
    let normed = [(cases[1], QkNorm::Head), (cases[7], QkNorm::Head)];
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
    let stored = |_: &str| StoredAs { dtype: StoredType::Bf16, held: None };
    let planned = |spec: &ModelSpec| plan(&Device::unopened(0), spec, &stored, PlannedJob::Train, BUDGET).unwrap();
    for (quantization, line) in
        [(Quantization::Nf4 { block_size: 64, double_quant: true }, "NF4 weights"), (Quantization::None, "weights")]
    {
        // With room for so many tokens the step needs more than loading does.
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
            // Two layers of what left the device come back, and one is on its way while the model is loaded.
            let layer = on_host / layers;
            assert!(plan.run_bytes + (layers - 3) * layer <= resident.run_bytes, "{:?}", plan.buffers);

            let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
            steps(&mut cuda, &spec);
            assert_eq!(cuda.bytes(), plan.run_bytes, "{quantization:?}");
            assert_eq!(cuda.planned_on_host(), plan.on_host, "{quantization:?}");
        }
    }
}

/// Levers in pairs, and all of them, give the bits of a run without any, in the memory of the device and the pinned
/// memory that are planned. Each alone is compared in the tests of training.
#[test]
fn pairs_of_levers_give_the_same_bits_in_the_memory_that_is_planned() {
    use Activations::{Keep, Offload, Recompute};
    use Residency::{Device as OnDevice, Pinned};
    let tally = Tally::new("pairs of levers", 6);
    let stored = |_: &str| StoredAs { dtype: StoredType::Bf16, held: None };
    // Two tiles, of which the first is as short as one may be.
    let base = ModelSpec { tokens: 530, positions: 200, ..spec(Arch { num_layers: 2, ..small_config() }) };
    let documents = Documents::random(&[100, 5, 150, 80, 194], base.arch.vocab_size, 3).weighted(4);
    let run = |activations: [Activations; 2], residency: [Residency; 2], token_tile: Option<usize>| {
        let (activations, residency) = (activations.to_vec(), residency.to_vec());
        let spec = ModelSpec { activations, residency, token_tile, ..base.clone() };
        let plan = plan(&Device::unopened(0), &spec, &stored, PlannedJob::Train, BUDGET).unwrap();
        let mut cuda = Cuda::new(0, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
        let trained = train_on(&mut cuda, &mut memory(&spec.arch), &spec, 1, &[documents.batch()]);
        assert_eq!(cuda.bytes(), plan.run_bytes, "{spec:?}");
        assert_eq!(cuda.planned_on_host(), plan.on_host, "{spec:?}");
        trained
    };
    let first = run([Keep; 2], [OnDevice; 2], None);
    assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
    let cases = [
        ([Keep; 2], [OnDevice; 2], Some(512)),
        ([Recompute; 2], [OnDevice; 2], Some(512)),
        ([Offload; 2], [OnDevice; 2], Some(512)),
        ([Keep; 2], [Pinned; 2], Some(512)),
        ([Offload; 2], [Pinned; 2], None),
        ([Offload, Recompute], [Pinned; 2], Some(512)),
    ];
    for (seed, (activations, residency, token_tile)) in cases.into_iter().enumerate() {
        set_schedule(seed as u64);
        assert!(first == run(activations, residency, token_tile), "{activations:?} {residency:?} {token_tile:?}");
        tally.case();
    }
}

/// The plan of a command names its parts; a run within it is done, and one byte less is refused before anything is read
/// or written.
#[test]
fn plan_says_whether_a_run_fits_and_the_run_agrees() {
    let directory = Directory::new();
    let line =
        "--model model --data rows.jsonl --max-length 64 --lora-r 24 --gradient-checkpointing false --device cuda";
    let (answer, _) = directory.done(&format!("plan --json {line} --device-memory 40GiB"));
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
    assert!(answer["fits"] == true && number(&answer["device"]["budget_bytes"]) == 40 << 30);
    assert!(number(&answer["max_length"]) >= 64);

    // What the process itself takes is measured where there is a device.
    let (answer, _) = directory.done(&format!("plan --json {line}"));
    let peak = number(&answer["device"]["peak_bytes"]);
    let run = |memory: u64, output: &str| {
        directory.run(&format!("train {line} --max-steps 1 --device-memory {memory} --output-dir {output}"))
    };
    let short = run(peak - 1, "short");
    let errors = String::from_utf8(short.stderr).unwrap();
    assert_eq!(short.status.code(), Some(2), "{errors}");
    let fits = "gradient_checkpointing: auto fits: activations";
    for words in ["of GPU memory", "the largest parts are", fits, "is the longest that fits", "device_memory"] {
        assert!(errors.contains(words), "{errors}");
    }
    assert!(!directory.path("short").exists());
    let enough = run(peak, "enough");
    let errors = String::from_utf8(enough.stderr).unwrap();
    assert!(enough.status.success() && errors.contains("GPU memory: "), "{errors}");
}
