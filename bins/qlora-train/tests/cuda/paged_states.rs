//! AdamW's states in pinned host memory, which pass through the device piece by piece in each update.

use crate::adalora::adalora;
use crate::commands::{Directory, train};
use crate::methods::both;
use crate::planning::{bytes_of, whole_plan};
use crate::runs::{Trained, train_on};
use crate::sources::{TOKENS, memory, small_config, spec};
use crate::token_rows::with_rows;
use lab::device::{Tally, set_schedule};
use qlora_kernels::device::{Device, UploadStaging};
use qlora_train::arch::Arch;
use qlora_train::backend::cuda::Cuda;
use qlora_train::backend::{Memory, Residency, StateFormat};
use qlora_train::model::{Activations, ModelSpec};
use std::rc::Rc;
use trainer_lab::model::Documents;

/// A run in the memory of the device and the pinned memory that are planned. The emulation makes every second copy only
/// when something waits for it: with one copy more before it has the other half of a run's wait.
fn run(spec: &ModelSpec, copies_before: usize) -> Trained {
    let plan = whole_plan(spec);
    let device = Rc::new(Device::open_at(0).unwrap());
    let mut other = device.zeros::<u8>(1).unwrap();
    let mut staging = UploadStaging::new(&device, 1).unwrap();
    (0..copies_before).for_each(|_| staging.upload(&[1], &mut other).unwrap());
    let lengths: &[usize] = if spec.tokens == TOKENS { &[37, 20, 6, 1] } else { &[100, 5, 150, 80, 194] };
    let documents = Documents::random(lengths, spec.arch.vocab_size, 3);
    let mut cuda = Cuda::on_device(device, spec.run_shape(), &spec.arch, plan.run_bytes).unwrap();
    let trained = train_on(&mut cuda, &mut memory(&spec.arch), spec, 2, &[documents.batch()]);
    assert_eq!(cuda.bytes(), plan.run_bytes, "{spec:?}");
    // What cuts ranks is no memory of the backend's.
    let on_host: Vec<_> = plan.on_host.into_iter().filter(|line| line.name != "LoRA importance of ranks").collect();
    assert_eq!(cuda.planned_on_host(), on_host, "{spec:?}");
    trained
}

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
            let paged = ModelSpec { states_on_host: true, ..spec.clone() };
            let (bytes, piece) = paged.paged_states().unwrap();
            let piece = piece as u64;
            let [resident, on_host] = [&spec, &paged].map(whole_plan);
            let host_bytes = bytes_of(&on_host.on_host, "AdamW states in host memory");
            assert!(host_bytes >= bytes && host_bytes.is_multiple_of(piece), "{what}: {host_bytes} of {bytes}");
            // More pieces than the device holds at a time, so that each of its slots is used again.
            assert!(host_bytes / piece > 4, "{what}: {host_bytes} in pieces of {piece}");
            assert_eq!(bytes_of(&on_host.buffers, "AdamW states in use"), 2 * piece, "{what}");
            assert_eq!(bytes_of(&on_host.buffers, "AdamW states"), 0, "{what}");
            assert!(bytes_of(&resident.buffers, "AdamW states") >= bytes, "{what}");

            let first = run(&spec, 0);
            assert!(first.moved.iter().any(|(_, moved)| moved.iter().any(|&x| x != 0.0)), "{what}");
            // One of the two is enough for tensors that come by the same way.
            let orders: &[usize] = match (what, states) {
                ("terms", _) => &[0, 1],
                (_, StateFormat::F32) => &[0],
                (_, StateFormat::Blockwise8) => &[1],
            };
            for &copies_before in orders {
                set_schedule(copies_before as u64);
                assert!(first == run(&paged, copies_before), "{what}: {states:?}, {copies_before} copies before");
                tally.case();
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
    // Two tiles.
    let base = ModelSpec { tokens: 530, positions: 200, ..spec(Arch { num_layers: 2, ..small_config() }) };
    let base = ModelSpec { states: StateFormat::Blockwise8, activations: vec![Keep; 2], ..base };
    let first = run(&base, 0);
    // The last place is that of the output layer.
    for (copies_before, (activations, residency, token_tile)) in [
        ([Recompute; 2], [OnDevice; 3], None),
        ([Offload; 2], [OnDevice; 3], None),
        ([Keep; 2], [Pinned, OnDevice, OnDevice], None),
        ([Keep; 2], [OnDevice, OnDevice, Pinned], None),
        ([Keep; 2], [OnDevice; 3], Some(512)),
        ([Offload, Recompute], [Pinned; 3], Some(512)),
    ]
    .into_iter()
    .enumerate()
    {
        let (activations, residency) = (activations.to_vec(), residency.to_vec());
        let spec = ModelSpec { activations, residency, token_tile, states_on_host: true, ..base.clone() };
        assert!(first == run(&spec, copies_before), "{:?} {:?} {token_tile:?}", spec.activations, spec.residency);
        tally.case();
    }
}

/// A checkpoint has the states wherever they are, and a run goes on with them in the other place.
#[test]
fn a_run_goes_on_with_its_states_in_the_other_place() {
    let directory = Directory::new();
    for optim in ["adamw_torch", "adamw_8bit"] {
        let begun = |place: &str| format!("{optim}-{place}");
        // Enough states for the run to tell of them.
        let run = |line: &str| directory.done(&train(line).replace("--lora-r 24", "--lora-r 128")).1;
        for (place, other) in [("resident", "host"), ("host", "resident")] {
            let line = |out: &str, place: &str, more: &str| {
                format!("--output-dir {out} --device cuda --optim {optim} --optimizer-states {place} {more}")
            };
            let said = run(&line(&begun(place), place, ""));
            assert_eq!(said.contains("AdamW's states wait in host memory: "), place == "host", "{said}");
            let from = format!("--resume-from-checkpoint {}/checkpoint-2", begun(place));
            run(&line(&format!("{}-on", begun(place)), other, &from));
        }
        let file = |run: &str, name: &str| std::fs::read(directory.path(run).join(name)).unwrap();
        for name in ["adapter_model.safetensors", "checkpoint-4/optimizer.safetensors"] {
            let first = file(&begun("resident"), name);
            for run in ["resident-on", "host", "host-on"] {
                assert!(first == file(&begun(run), name), "{optim}: {run}, {name}");
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
    let [resident, host, auto] = ["resident", "host", "auto"].map(plan);
    let words = |plan: &serde_json::Value| plan["optimizer_states"].as_str().unwrap().to_owned();
    assert_eq!([&resident, &host, &auto].map(words), ["resident", "host", "resident"]);
    let bytes = |plan: &serde_json::Value, place: &str| plan[place]["peak_bytes"].as_u64().unwrap();
    assert!(bytes(&host, "device") < bytes(&resident, "device") && bytes(&host, "host") > bytes(&resident, "host"));
    let text = String::from_utf8(directory.run(&format!("plan {line} --device cuda --optimizer-states host")).stdout);
    let text = text.unwrap();
    for words in ["AdamW's states wait in host memory: ", "less on the GPU", "ms more a step", "in host memory, pinned"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Where nothing else may change, auto takes what fits.
    let fixed = "--gradient-checkpointing true --weights resident --lm-head resident --token-tile off";
    let plan = |more: &str| directory.done(&format!("plan --json {line} --device cuda {fixed} {more}")).0;
    let peak = |more: &str, place: &str| bytes(&plan(&format!("{more} --optimizer-states {place}")), "device");
    let [most, least] = ["resident", "host"].map(|place| peak("", place));
    assert!(least < most, "{least} {most}");
    for (limit, place) in [(most, "resident"), (most - 1, "host"), (least, "host")] {
        assert_eq!(words(&plan(&format!("--device-memory {limit}"))), place, "{limit} of {least} to {most}");
    }
    // Where the host's memory is short, the advice has nothing to add to what fits then.
    let kept = "--gradient-checkpointing false --weights resident --lm-head resident --token-tile off";
    let on_host = format!("{line} --device cuda {kept} --device-memory 40GiB --optimizer-states host");
    let host = bytes(&directory.done(&format!("plan --json {on_host}")).0, "host");
    let short = directory.run(&format!("plan {on_host} --host-memory {}", host - 1));
    let text = String::from_utf8(short.stdout).unwrap();
    assert!(text.contains("suggestion: optimizer_states: auto fits\n"), "{text}");
    // What the process itself takes is measured where there is a device.
    let most = peak("", "resident");
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
