//! Base weights that stay on disk: the run is the one in memory, and a file that changes meanwhile ends it.

use std::fs::OpenOptions;
use std::process::{Child, Stdio};
use std::time::{Duration, SystemTime};

use qlora_train::arch::Arch;
use qlora_train::base::synthetic::tiny_arch;

use crate::sandbox::{Sandbox, keys, train};

const LAYERS: usize = 5;

/// A model of several layers and its copy in NF4, `nf4`, in two files or more.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::chat_of(Arch { num_layers: LAYERS, ..tiny_arch() });
    sandbox.run("quantize --model model --output nf4 --max-shard-size 60KB").ok();
    assert!(sandbox.path("nf4/model.safetensors.index.json").is_file());
    sandbox
}

/// Bytes of the layers' NF4 weights, as stored.
fn layer_bytes(sandbox: &Sandbox) -> Vec<u64> {
    let checkpoint = qlora_train::base::Checkpoint::open(&sandbox.path("nf4")).unwrap();
    let of = |layer: usize| {
        let prefix = format!("model.layers.{layer}.");
        let names = checkpoint.names().filter(|name| name.starts_with(&prefix) && checkpoint.is_nf4(name));
        names.map(|name| checkpoint.on_disk(name).unwrap().stored_bytes()).sum()
    };
    (0..LAYERS).map(of).collect()
}

#[test]
fn a_run_on_weights_that_stay_on_disk_is_the_run_in_memory() {
    let sandbox = sandbox();
    let layers = layer_bytes(&sandbox);
    for (i, settings) in [
        "--max-steps 3",
        "--max-steps 3 --packing false --per-device-train-batch-size 2 --gradient-accumulation-steps 2 --lora-dropout 0.1 \
         --gradient-checkpointing true --compute f32",
        "--max-steps 4 --val-set-size 2 --eval-steps 2 --load-best-model-at-end --gradient-checkpointing true",
    ]
    .into_iter()
    .enumerate()
    {
        let (resident, disk) = (format!("resident-{i}"), format!("disk-{i}"));
        let line = format!("--model nf4 {settings} --weights");
        let in_memory = sandbox.train_into(&resident, &format!("{line} resident")).json();
        let done = sandbox.train_into(&disk, &format!("{line} disk"));
        assert!(done.stderr.contains("the base weights stay on disk, two layers in memory"), "{}", done.stderr);
        let streamed = done.json();
        sandbox.assert_same_result(&resident, &disk);
        assert_eq!(in_memory["weights_read"], serde_json::Value::Null);
        assert_eq!(keys(&streamed["weights_read"]), ["bytes", "seconds", "waited_seconds"]);
        if i == 0 {
            // Three passes to and fro over the layers, of which the last two stay in memory where it turns.
            let turn: u64 = layers[2..].iter().sum::<u64>() + layers[..LAYERS - 2].iter().sum::<u64>();
            assert_eq!(streamed["weights_read"]["bytes"], layers[0] + layers[1] + 3 * turn);
        }
        // The plan is what is held: two layers of five.
        let plan = |weights: &str| {
            let data = "--data rows.jsonl --max-length 64 --lora-r 4";
            sandbox.run(&format!("plan --json --model nf4 {data} {settings} --weights {weights}")).json()
        };
        for (weights, answer) in [("resident", &in_memory), ("disk", &streamed)] {
            let plan = plan(weights);
            assert_eq!(plan["weights"], weights);
            let beside = |name: &str| name.starts_with("rows, tokenizer") || name.starts_with("saving");
            let buffers = plan["buffers"].as_array().unwrap();
            let own = buffers.iter().filter(|buffer| !beside(buffer["name"].as_str().unwrap()));
            let planned: u64 = own.map(|buffer| buffer["bytes"].as_u64().unwrap()).sum();
            assert_eq!(answer["peak_bytes"], planned, "{weights} {settings}");
        }
        let peak = |answer: &serde_json::Value| answer["peak_bytes"].as_u64().unwrap();
        let held: u64 = layers[..LAYERS - 2].iter().sum();
        assert!(peak(&in_memory) - peak(&streamed) > held * 9 / 10, "{} {}", peak(&in_memory), peak(&streamed));
    }
    for command in ["eval --data rows.jsonl", "generate --prompt hello --max-new-tokens 4"] {
        let answer = |weights: &str| {
            sandbox
                .run(&format!("{command} --json --model nf4 --adapter disk-0 --adapter disk-1 --weights {weights}"))
                .ok()
        };
        let (resident, disk) = (answer("resident"), answer("disk"));
        assert!(disk.stderr.contains("the base weights stay on disk"), "{}", disk.stderr);
        assert_eq!(resident.stdout, disk.stdout, "{command}");
    }
}

/// The place of the weights is not part of the run's identity: it resumes with another one.
#[test]
fn a_killed_run_goes_on_with_its_weights_elsewhere() {
    let sandbox = sandbox();
    let line = "--model nf4 --save-steps 1 --gradient-accumulation-steps 2 --resume-from-checkpoint true";
    sandbox.train_into("whole", &format!("{line} --weights resident")).ok();
    for (first, second) in [("disk", "resident"), ("disk", "disk"), ("resident", "disk")] {
        let out = format!("{first}-{second}");
        let killed = train(&format!("{line} --output-dir {out} --weights {first}"));
        assert_eq!(sandbox.run_at_fault(&killed, "checkpoint-in-place:3").status, None);
        let resumed = sandbox.train_into(&out, &format!("{line} --weights {second}")).ok();
        assert!(resumed.stderr.contains("resuming after step"), "{}", resumed.stderr);
        sandbox.assert_same_result("whole", &out);
    }
}

#[test]
fn weights_that_cannot_stay_on_disk_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.refused(&train("--weights disk"), &["`weights`", "NF4", "qlora-train quantize"]);
    sandbox.refused(&train("--weights host --device cpu"), &["`weights`", "host", "resident or disk"]);
    sandbox.refused("eval --model model --data rows.jsonl --weights disk", &["`weights`", "NF4"]);
}

/// Ends the process where a test fails before it does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a run that is far longer than the test, and has it save a checkpoint.
fn begin(sandbox: &Sandbox, after: usize) -> Running {
    let said = std::fs::File::create(sandbox.path("said")).unwrap();
    let line = train(
        "--model nf4 --weights disk --max-steps 100000 --save-steps 1 --save-total-limit 1 --resume-from-checkpoint true",
    );
    let child = sandbox.command(&line).stdout(Stdio::null()).stderr(said).spawn().unwrap();
    let mut running = Running(child);
    let saved =
        |name: &String| name.strip_prefix("checkpoint-").is_some_and(|n| n.parse::<usize>().is_ok_and(|n| n > after));
    while !(sandbox.path("out").is_dir() && sandbox.names("out").iter().any(saved)) {
        assert_eq!(running.0.try_wait().unwrap(), None, "{}", sandbox.read("said"));
        std::thread::sleep(Duration::from_millis(2));
    }
    running
}

#[test]
fn a_file_that_changes_during_the_run_ends_it_and_what_was_saved_goes_on() {
    let sandbox = sandbox();
    let names = sandbox.names("nf4");
    let shard = names.iter().rfind(|name| name.ends_with(".safetensors")).unwrap();
    let file = sandbox.path(&format!("nf4/{shard}"));
    let whole = std::fs::read(&file).unwrap();
    let mut saved = 0;
    let truncate = || OpenOptions::new().write(true).open(&file).unwrap().set_len(whole.len() as u64 / 2).unwrap();
    let rewrite = || {
        let handle = OpenOptions::new().write(true).open(&file).unwrap();
        handle.set_modified(SystemTime::now() + Duration::from_secs(2)).unwrap();
    };
    for change in [&truncate as &dyn Fn(), &rewrite] {
        let mut running = begin(&sandbox, saved);
        change();
        let status = running.0.wait().unwrap();
        let said = sandbox.read("said");
        assert_eq!(status.code(), Some(1), "{said}");
        let last = said.lines().last().unwrap();
        for word in
            [shard.as_str(), "tensor `model.layers.", "was changed while its weights were in use", "put it back"]
        {
            assert!(last.contains(word), "{word}: {last}");
        }
        assert!(!sandbox.path("out/adapter_config.json").exists());
        std::fs::write(&file, &whole).unwrap();
        let newest = |name: &String| name.strip_prefix("checkpoint-")?.parse::<usize>().ok();
        saved = sandbox.names("out").iter().filter_map(newest).max().unwrap();
    }
    // It goes on where it was saved.
    drop(begin(&sandbox, saved));
    assert!(sandbox.read("said").contains("resuming after step"), "{}", sandbox.read("said"));
}
