//! Runs on systems that pin less host memory than a run has there: the bits are those of pinned memory.
#![cfg(feature = "emulation")]

use crate::commands::{Directory, train as train_line};
use crate::runs::{Trained, train_short};
use crate::sources::{ROOM, memory, small_config, spec};
use lab::device::Tally;
use qlora_kernels::device::emulation;
use qlora_train::arch::Arch;
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Memory, NOT_PINNED, OptimizerOnHost, PlannedBuffer, Residency, StateFormat};
use qlora_train::config::Settings;
use qlora_train::files::tensor::StoredType;
use qlora_train::model::{Activations, ModelSpec};
use qlora_train::session::plan::{PlannedJob, TensorStorage, plan};
use qlora_train::session::predicted::{Speed, unpinned_note};
use qlora_train::session::{Budget, Device};

/// The plan's line of memory that is given back when the weights are loaded.
const PASSING: &str = "weights on the way";

/// A device that pins so many bytes at most.
fn opened(spec: &ModelSpec, limit: u64, is_late: bool) -> Cuda {
    emulation::run_late(is_late);
    emulation::pin_at_most(limit);
    let cuda = Cuda::new(0, spec.run_shape(), &spec.arch, 2 * ROOM).unwrap();
    emulation::pin_at_most(u64::MAX);
    emulation::run_late(false);
    cuda
}

fn trained(cuda: &mut Cuda, spec: &ModelSpec) -> Trained {
    train_short(cuda, &mut memory(&spec.arch), spec, 2)
}

fn is_not_pinned(line: &&PlannedBuffer) -> bool {
    line.name.ends_with(NOT_PINNED)
}

fn bytes<'a>(lines: impl Iterator<Item = &'a PlannedBuffer>) -> u64 {
    lines.map(|line| line.bytes).sum()
}

/// A model, and the same with layers' inputs and weights and the optimizer's states in host memory, and the output
/// layer if it is no embedding, which the device would read in place.
fn specs(is_tied: bool) -> [ModelSpec; 2] {
    let arch = Arch { num_layers: 3, tie_word_embeddings: is_tied, ..small_config() };
    let resident = ModelSpec { states: StateFormat::Blockwise8, ..spec(arch) };
    let head = if is_tied { Residency::Device } else { Residency::Pinned };
    let on_host = ModelSpec {
        activations: vec![Activations::Offload; 3],
        residency: [vec![Residency::Pinned; 3], vec![head]].concat(),
        optimizer_on_host: OptimizerOnHost::States,
        ..resident.clone()
    };
    [resident, on_host]
}

/// The first allocation is refused, or a later one, on streams that work at once and on such that are late: each limit
/// on either, once for each of the two models.
#[test]
fn steps_have_the_same_bits_where_memory_is_not_pinned() {
    let tally = Tally::new("training, memory that is not pinned", 2);
    for is_tied in [true, false] {
        let [resident, on_host] = specs(is_tied);
        let first = trained(&mut opened(&resident, u64::MAX, false), &resident);
        assert!(first.gradients.iter().all(|(_, gradient)| gradient.iter().any(|&g| g != 0.0)));
        let mut pinned = opened(&on_host, u64::MAX, false);
        assert!(first == trained(&mut pinned, &on_host), "{is_tied}");
        let lines = pinned.planned_on_host();
        assert!(!lines.iter().any(|line| is_not_pinned(&line)), "{lines:?}");
        let (all, passing) = (bytes(lines.iter()), bytes(lines.iter().filter(|line| line.name == PASSING)));
        // An embedding that is not tied is read in place.
        let least = if is_tied { 0 } else { 64 << 10 };
        for (index, limit) in [least, all / 3, all / 2, all - passing - 1].into_iter().enumerate() {
            let is_late = (index % 2 == 0) == is_tied;
            let mut cuda = opened(&on_host, limit.max(least), is_late);
            assert!(first == trained(&mut cuda, &on_host), "{is_tied}, {limit} of {all}, {is_late}");
            let lines = cuda.planned_on_host();
            let pinned = bytes(lines.iter().filter(|line| !is_not_pinned(line) && line.name != PASSING));
            assert!(lines.iter().any(|line| is_not_pinned(&line)), "{limit} of {all}: {lines:?}");
            assert!(pinned <= limit.max(least), "{limit} of {all}: {lines:?}");
            assert_eq!(bytes(lines.iter()), all, "{limit}: {lines:?}");
            tally.case();
        }
    }
}

/// A plan knows the limit: the run takes what it says, and a step takes longer by the copies.
#[test]
fn a_plan_counts_with_memory_that_is_not_pinned() {
    let (limit, host_limit) = (u64::MAX, u64::MAX);
    let budget = Budget { limit, in_use: 0, in_use_name: "", read_bytes: 0, host_limit, sharers: 1 };
    let stored = |_: &str| TensorStorage { dtype: StoredType::Bf16, resident_as: None };
    let [resident, on_host] = specs(false);
    let first = trained(&mut opened(&resident, u64::MAX, false), &resident);
    let planned = |spec: &ModelSpec, limit: Option<u64>| {
        let mut yaml = "device: cuda:99\ndevice_memory: 40GiB\n".to_owned();
        yaml += &limit.map_or(String::new(), |limit| format!("pinned_memory: {limit}\n"));
        let settings = Settings::from_yaml(&yaml, "limited.yaml", &[]).unwrap();
        let device = Device::choose_for_plan(&settings, None).unwrap();
        assert_eq!(device.pinned_limit(), limit);
        let plan = plan(&device, spec, &stored, PlannedJob::Train, budget).unwrap();
        let seconds = Speed::of(&device).step_seconds(spec, &plan);
        (plan, seconds)
    };
    let (whole, fastest) = planned(&on_host, None);
    assert_eq!((whole.unpinned_bytes(), unpinned_note(&whole)), (0, None));
    assert_eq!(whole.pinned_bytes(), whole.host_bytes());
    // Large allocations leave 64 MiB for small ones.
    let small = 64 << 20;
    for limit in [1, small, small + whole.host_bytes() / 4, small + whole.host_bytes() / 2] {
        let (plan, seconds) = planned(&on_host, Some(limit));
        let not_pinned = plan.unpinned_bytes();
        assert!(not_pinned > 0, "{limit}: {:?}", plan.on_host);
        assert_eq!((plan.host_bytes(), plan.pinned_bytes()), (whole.host_bytes(), whole.host_bytes() - not_pinned));
        assert!((seconds - fastest - not_pinned as f64 / 2e9).abs() < 1e-12, "{seconds} {fastest} {not_pinned}");
        let note = unpinned_note(&plan).unwrap();
        assert!(note.contains("are not pinned (at most ") && note.contains("`pinned_memory`"), "{note}");
        let mut cuda = opened(&on_host, u64::MAX, false).pinning_at_most(Some(limit));
        assert!(first == trained(&mut cuda, &on_host), "{limit}");
        assert_eq!(cuda.planned_on_host(), plan.on_host, "{limit}");
    }
    let (enough, seconds) = planned(&on_host, Some(small + whole.host_bytes()));
    assert_eq!((enough.on_host, seconds), (whole.on_host, fastest));
}

#[test]
fn commands_write_the_same_bytes_where_memory_is_not_pinned() {
    let directory = Directory::small();
    let run = |out: &str, more: &str, variables: &[(&str, &str)]| {
        let levers = "--weights host --optimizer-states host --gradient-checkpointing offload --lm-head host";
        let line = train_line(&format!("--output-dir {out} --device cuda {levers} {more}"));
        let output = directory.run_with(&line.replace("--max-steps 4", "--max-steps 2"), variables);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (refuses, late) = (("QLORA_EMULATION_PINNED", "200000"), ("QLORA_EMULATION_STREAM", "late"));
    let told = ["the system does not pin", "are not pinned (at most 1.0 KiB may be, `pinned_memory`)"];
    for (out, more, variables, words) in [
        ("pinned", "", vec![], [false, false]),
        ("refused", "", vec![refuses], [true, false]),
        ("late", "", vec![refuses, late], [true, false]),
        ("planned", "--pinned-memory 1KiB", vec![], [false, true]),
    ] {
        let (code, said) = run(out, more, &variables);
        assert_eq!(code, Some(0), "{out}: {said}");
        assert_eq!(told.map(|words| said.contains(words)), words, "{out}: {said}");
        assert!(said.matches(told[0]).count() <= 1, "{out}: {said}");
        let adapter = |out: &str| std::fs::read(directory.path(out).join("adapter_model.safetensors")).unwrap();
        assert!(adapter("pinned") == adapter(out), "{out}");
    }
    // Memory that the device reads in place is pinned, or the run ends with advice.
    let (code, said) = run("nothing", "", &[("QLORA_EMULATION_PINNED", "0")]);
    assert_eq!(code, Some(1), "{said}");
    for words in ["embedding: the GPU reads its", "cannot be pinned", ".wslconfig"] {
        assert!(said.contains(words), "{said}");
    }
}
