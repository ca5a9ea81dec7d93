//! AdamW's states, alone and with the master copies, in pinned host memory, which pass through the device piece by
//! piece in each update.

use crate::adalora::adalora;
use crate::commands::{Directory, train};
use crate::methods::both;
use crate::planning::{bytes_of, whole_plan};
use crate::runs::{HYPER, Trained, train_each};
use crate::sources::{memory, small_config, spec};
use crate::token_rows::with_rows;
use lab::device::{Tally, set_schedule};
use qlora_kernels::device::{Device, UploadStaging};
use qlora_train::arch::Arch;
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Memory, OptimizerOnHost, Paging, Residency, StateFormat};
use qlora_train::model::{Activations, ModelSpec};
use std::rc::Rc;
use trainer_lab::model::Documents;

/// Documents of the batches of two steps; the second one of the longer run is two tiles.
const SHORT: [&[usize]; 2] = [&[12, 7, 1]; 2];
const LONG: [&[usize]; 2] = [&[12, 7, 1], &[100, 5, 150, 80, 194]];

/// A run in the memory of the device and the pinned memory that are planned, which a short batch takes too. The
/// emulation makes every second copy only when something waits for it: with one copy more before it has the other half
/// of a run's wait.
fn run(spec: &ModelSpec, copies_before: usize, steps: [&[usize]; 2]) -> Trained {
    let plan = whole_plan(spec);
    let device = Rc::new(Device::open_at(0).unwrap());
    let mut other = device.zeros::<u8>(1).unwrap();
    let mut staging = UploadStaging::new(&device, 1).unwrap();
    (0..copies_before).for_each(|_| staging.upload(&[1], &mut other).unwrap());
    // The seed of the first micro-batch, some of whose tokens have rows that are trained.
    let documents = steps.map(|lengths| Documents::random(lengths, spec.arch.vocab_size, 1));
    let batches = documents.each_ref().map(|documents| [documents.batch()]);
    let mut cuda = Cuda::on_device(device, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
    let steps = batches.each_ref().map(|batch| batch.as_slice());
    let trained = train_each(&mut cuda, &mut memory(&spec.arch), spec, &HYPER, &steps);
    assert_eq!(cuda.bytes(), plan.run_bytes, "{spec:?}");
    // The memory for pruning ranks is not the backend's.
    let on_host: Vec<_> = plan.on_host.into_iter().filter(|line| line.name != "LoRA importance of ranks").collect();
    assert_eq!(cuda.planned_on_host(), on_host, "{spec:?}");
    trained
}

/// Parts of the optimizer in host memory, and the lines of a plan that name them there and on the device.
const LEVELS: [(OptimizerOnHost, [&str; 2]); 2] = [
    (OptimizerOnHost::States, ["AdamW states in host memory", "AdamW states in use"]),
    (OptimizerOnHost::StatesAndMasters, ["AdamW states and masters in host memory", "AdamW states and masters in use"]),
];

/// Low-rank terms of every size, magnitudes and whole modules, rows of single tokens, and ranks that are cut.
#[test]
fn states_in_host_memory_give_the_same_bits_in_the_memory_that_is_planned() {
    let tally = Tally::new("training, states in host memory", 2);
    let specs = [
        ("terms", spec(Arch { num_layers: 3, ..small_config() })),
        ("magnitudes and whole modules", both(2)),
        ("rows", with_rows(small_config(), &["model.embed_tokens", "lm_head"])),
        ("ranks that are cut", adalora(small_config(), Some(3))),
    ];
    for (what, spec) in specs {
        for states in [StateFormat::F32, StateFormat::Blockwise8] {
            let spec = ModelSpec { states, activations: Vec::new(), ..spec.clone() };
            let resident = whole_plan(&spec);
            let paged = LEVELS.map(|(optimizer_on_host, lines)| {
                let paged = ModelSpec { optimizer_on_host, ..spec.clone() };
                let on_host = whole_plan(&paged);
                let Paging { bytes, piece, has_masters } = paged.paging().unwrap();
                let piece = piece as u64;
                let host_bytes = bytes_of(&on_host.on_host, lines[0]);
                assert!(host_bytes >= bytes && host_bytes.is_multiple_of(piece), "{what}: {host_bytes} of {bytes}");
                // More pieces than the device holds at a time, so that each of its slots is used again.
                assert!(host_bytes / piece > 4, "{what}: {host_bytes} in pieces of {piece}");
                assert_eq!(bytes_of(&on_host.buffers, lines[1]), 2 * piece, "{what}");
                assert_eq!(bytes_of(&on_host.buffers, "AdamW states"), 0, "{what}");
                // Four of six bytes per parameter belong to the master copy; those of magnitudes stay.
                let [before, here] = [&resident, &on_host].map(|plan| bytes_of(&plan.buffers, "LoRA A and B"));
                assert!(if has_masters { 2 * here < before } else { here == before }, "{what}: {here} of {before}");
                paged
            });
            let Paging { bytes, .. } = paged[0].paging().unwrap();
            assert!(bytes_of(&resident.buffers, "AdamW states") >= bytes, "{what}");

            let first = run(&spec, 0, SHORT);
            assert!(first.moved.iter().any(|(_, moved)| moved.iter().any(|&x| x != 0.0)), "{what}");
            // One of the two is enough for tensors that come by the same way.
            let orders: &[usize] = match (what, states) {
                ("terms", _) => &[0, 1],
                (_, StateFormat::F32) => &[0],
                (_, StateFormat::Blockwise8) => &[1],
            };
            for &copies_before in orders {
                for paged in &paged {
                    set_schedule(copies_before as u64);
                    let how = (states, paged.optimizer_on_host, copies_before);
                    assert!(first == run(paged, copies_before, SHORT), "{what}: {how:?}");
                    tally.case();
                }
            }
        }
    }
}

/// With every other lever, and all of them.
#[test]
fn states_in_host_memory_go_with_every_other_lever() {
    use Activations::{Keep, Offload, Recompute};
    use Residency::{Device as OnDevice, Pinned};
    let tally = Tally::new("training, states in host memory beside other levers", 1);
    let base = ModelSpec { tokens: 530, positions: 200, ..spec(Arch { num_layers: 2, ..small_config() }) };
    let base = ModelSpec { states: StateFormat::Blockwise8, activations: vec![Keep; 2], ..base };
    let [short, long] = [SHORT, LONG].map(|steps| run(&base, 0, steps));
    // The last place is that of the output layer. Every value of each lever is with both levels in one of them.
    for (copies_before, (activations, residency, token_tile, level)) in [
        ([Offload, Recompute], [OnDevice; 3], None, 0),
        ([Keep; 2], [Pinned, OnDevice, Pinned], None, 0),
        ([Keep; 2], [OnDevice, OnDevice, Pinned], None, 1),
        ([Keep; 2], [OnDevice; 3], Some(512), 0),
        ([Offload, Recompute], [Pinned; 3], Some(512), 1),
    ]
    .into_iter()
    .enumerate()
    {
        let (first, steps) = if token_tile.is_some() { (&long, LONG) } else { (&short, SHORT) };
        let (activations, residency) = (activations.to_vec(), residency.to_vec());
        let (optimizer_on_host, _) = LEVELS[level];
        let spec = ModelSpec { activations, residency, token_tile, optimizer_on_host, ..base.clone() };
        let what = (&spec.activations, &spec.residency, token_tile, optimizer_on_host);
        assert!(*first == run(&spec, copies_before, steps), "{what:?}");
        tally.case();
    }
}

/// A checkpoint has states and master copies wherever they are, and a run goes on with them in another place.
#[test]
fn a_run_goes_on_with_its_states_in_another_place() {
    let directory = Directory::new();
    // Enough states for the run to tell of them.
    for (optim, rank, moves) in [
        (
            "adamw_torch",
            64,
            &[("resident", "host"), ("host", "host_with_masters"), ("host_with_masters", "resident")][..],
        ),
        ("adamw_8bit", 128, &[("resident", "host_with_masters"), ("host_with_masters", "host")][..]),
    ] {
        let begun = |place: &str| format!("{optim}-{place}");
        // Two steps with a checkpoint after each.
        let run = |line: &str| {
            let line = train(line)
                .replace("--lora-r 24", &format!("--lora-r {rank}"))
                .replace("--max-steps 4", "--max-steps 2");
            let line = line.replace("--save-steps 2", "--save-steps 1");
            directory.done(&line.replace("--gradient-accumulation-steps 2", "--gradient-accumulation-steps 1")).1
        };
        for &(place, other) in moves {
            let line = |out: &str, place: &str, more: &str| {
                format!("--output-dir {out} --device cuda --optim {optim} --optimizer-states {place} {more}")
            };
            let said = run(&line(&begun(place), place, ""));
            let told = "AdamW's states and the f32 master copies wait in host memory: ";
            let told = (said.contains("AdamW's states wait in host memory: "), said.contains(told));
            assert_eq!(told, (place == "host", place == "host_with_masters"), "{said}");
            let from = format!("--resume-from-checkpoint {}/checkpoint-1", begun(place));
            run(&line(&format!("{}-on", begun(place)), other, &from));
        }
        let file = |run: &str, name: &str| std::fs::read(directory.path(run).join(name)).unwrap();
        for name in ["adapter_model.safetensors", "checkpoint-2/optimizer.safetensors"] {
            let first = file(&begun("resident"), name);
            for run in moves.iter().flat_map(|(place, _)| [begun(place), format!("{}-on", begun(place))]) {
                assert!(first == file(&run, name), "{run}, {name}");
            }
        }
    }
}

/// The plan names the place, what it saves and what it costs; the run takes what it says. The CPU has no other place.
#[test]
fn plan_says_where_the_states_are() {
    let directory = Directory::new();
    let line = "--model model --data rows.jsonl --max-length 64 --lora-r 64 --optim paged_adamw_32bit";
    let plan = |place: &str| directory.done(&format!("plan --json {line} --device cuda --optimizer-states {place}")).0;
    let [resident, host, masters, auto] = ["resident", "host", "host_with_masters", "auto"].map(plan);
    let words = |plan: &serde_json::Value| plan["optimizer_states"].as_str().unwrap().to_owned();
    assert_eq!([&resident, &host, &masters, &auto].map(words), ["resident", "host", "host_with_masters", "resident"]);
    let bytes = |plan: &serde_json::Value, place: &str| plan[place]["peak_bytes"].as_u64().unwrap();
    for (more, less) in [(&host, &resident), (&masters, &host)] {
        assert!(bytes(more, "device") < bytes(less, "device") && bytes(more, "host") > bytes(less, "host"));
    }
    for (place, told) in [
        ("host", "AdamW's states wait in host memory: "),
        ("host_with_masters", "AdamW's states and the f32 master copies wait in host memory: "),
    ] {
        let plan = directory.run(&format!("plan {line} --device cuda --optimizer-states {place}"));
        let text = String::from_utf8(plan.stdout).unwrap();
        for words in [told, "less on the GPU", "ms more a step", "in host memory, pinned"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }
    // If nothing else may change, auto takes what fits.
    let fixed = "--gradient-checkpointing true --weights resident --lm-head resident --token-tile off";
    let plan = |more: &str| directory.done(&format!("plan --json {line} --device cuda {fixed} {more}")).0;
    let peak = |more: &str, place: &str| bytes(&plan(&format!("{more} --optimizer-states {place}")), "device");
    let places = ["resident", "host", "host_with_masters"];
    let peaks = places.map(|place| peak("", place));
    assert!(peaks.is_sorted_by(|more, less| more > less), "{peaks:?}");
    for (index, place) in places.into_iter().enumerate() {
        let short_of_the_one_before = index.checked_sub(1).map(|before| peaks[before] - 1);
        for limit in short_of_the_one_before.into_iter().chain([peaks[index]]) {
            assert_eq!(words(&plan(&format!("--device-memory {limit}"))), place, "{limit} of {peaks:?}");
        }
    }
    // If the host's memory is short, the advice only names what fits then.
    let kept = "--gradient-checkpointing false --weights resident --lm-head resident --token-tile off";
    let on_host = format!("{line} --device cuda {kept} --device-memory 40GiB --optimizer-states host");
    let host = bytes(&directory.done(&format!("plan --json {on_host}")).0, "host");
    let short = directory.run(&format!("plan {on_host} --host-memory {}", host - 1));
    let text = String::from_utf8(short.stdout).unwrap();
    assert!(text.contains("suggestion: optimizer_states: auto fits\n"), "{text}");
    // The process's own memory is measured where there is a device.
    let most = peaks[0];
    let train = format!("train {line} {fixed} --max-steps 1");
    let short = format!("{train} --device cuda --device-memory {} --output-dir short", most - 1);
    let refused = directory.run(&format!("{short} --optimizer-states resident"));
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert!(errors.contains("optimizer_states: auto fits: ") && errors.contains("ms more a step"), "{errors}");
    assert!(!directory.path("short").exists());
    assert!(directory.run(&short).status.success());
    let refused = directory.run(&format!("{train} --device cpu --optimizer-states host --output-dir cpu"));
    let errors = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert!(errors.contains("`optimizer_states`: found host") && errors.contains("the CPU updates"), "{errors}");
}
