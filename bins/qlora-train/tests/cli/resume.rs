//! Checkpoints, and runs that go on from them bit for bit.

use crate::sandbox::{Sandbox, train};
use std::path::Path;

/// Everything that a resumed run could get wrong: masks, accumulation within an uneven last step, folded B, several
/// epochs, losses logged over several steps, evaluation.
pub const RUN: &str = "--max-steps 8 --packing false --gradient-accumulation-steps 5 --lora-dropout 0.1 --lora-r 3 \
                       --use-rslora --loraplus-lr-ratio 2 --logging-steps 3 --val-set-size 3 --save-steps 2";

/// A run that ends by itself right after the step.
pub fn stop_after(sandbox: &Sandbox, out: &str, step: usize, more: &str) {
    let done = sandbox.run_at_fault(&train(&format!("--output-dir {out} {RUN} {more}")), &format!("step:{step}"));
    assert_eq!(done.status, None, "{done:#?}");
}

#[test]
fn a_resumed_run_gives_the_bytes_and_the_log_of_an_uninterrupted_one() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", RUN).ok();
    for step in 1..=8 {
        let out = format!("out{step}");
        stop_after(&sandbox, &out, step, "");
        let resumed = sandbox.train_into(&out, &format!("{RUN} --resume-from-checkpoint")).ok();
        let expected = match (step - 1) / 2 * 2 {
            0 => format!("{out}: no checkpoint to resume from: starting at the first step"),
            saved => format!("resuming after step {saved} of 8 from {out}/checkpoint-{saved}"),
        };
        assert!(resumed.stderr.contains(&expected), "{expected:?} in {}", resumed.stderr);
        sandbox.assert_same_result(&out, "whole");
    }
}

/// Its adapter has the paths of the class that serves it.
#[test]
fn a_run_of_a_wrapped_model_goes_on() {
    for wrapped in ["gemma3", "mistral3", "qwen3_vl"] {
        let sandbox = Sandbox::new();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/wrapped").join(wrapped);
        let rows = (1..=12).map(|row| format!("{{\"input_ids\": [1, 2, 3, {row}], \"labels\": [1, 2, 3, {row}]}}\n"));
        sandbox.write("short.jsonl", &rows.collect::<String>());
        let run = |out: &str, more: &str| {
            let model = model.display();
            sandbox.train_into(out, &format!("--model {model} --data short.jsonl {RUN} {more}")).ok()
        };
        run("whole", "--save-total-limit 0");
        let resumed = run("resumed", "--resume-from-checkpoint whole/checkpoint-4 --save-total-limit 0");
        assert!(resumed.stderr.contains("resuming after step 4 of 8 from whole/checkpoint-4"), "{}", resumed.stderr);
        assert!(sandbox.bytes("resumed/adapter_model.safetensors") == sandbox.bytes("whole/adapter_model.safetensors"));
    }
}

#[test]
fn eight_bit_states_resume_bit_for_bit() {
    let sandbox = Sandbox::new();
    // Tensors large enough for 8-bit states, and smaller ones beside them.
    let run =
        RUN.replace("--lora-r 3 --use-rslora", "--lora-r 128 --optim adamw_8bit --lora-target-modules q_proj,k_proj");
    sandbox.train_into("whole", &run).ok();
    let killed = sandbox.run_at_fault(&train(&run), "step:5");
    assert_eq!(killed.status, None, "{killed:#?}");
    let states = sandbox.bytes("out/checkpoint-4/optimizer.safetensors");
    let header = String::from_utf8_lossy(&states);
    assert!(header.contains(".lora_A.weight.m_absmax"), "8-bit states");
    sandbox.train(&format!("{run} --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("out", "whole");
}

#[test]
fn a_checkpoint_is_an_adapter_with_what_the_run_goes_on_with() {
    let sandbox = Sandbox::new();
    sandbox.train(RUN).ok();
    let mut expected = vec![
        "README.md",
        "SHA256SUMS",
        "adapter_config.json",
        "adapter_model.safetensors",
        "optimizer.safetensors",
        "run_state.json",
        "trainer_state.json",
    ];
    assert_eq!(sandbox.names("out/checkpoint-6"), expected);
    // The last step was a multiple of save_steps too, and the newest two are kept.
    let kept: Vec<String> = sandbox.names("out").into_iter().filter(|name| name.contains("checkpoint")).collect();
    assert_eq!(kept, ["checkpoint-6", "checkpoint-8"]);
    let name = "adapter_model.safetensors";
    assert!(sandbox.bytes(&format!("out/checkpoint-8/{name}")) == sandbox.bytes(&format!("out/{name}")));
    sandbox.eval("--adapter out/checkpoint-6 --data rows.jsonl");
    let checked = std::process::Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(sandbox.path("out/checkpoint-6"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");

    let state = sandbox.json("out/checkpoint-6/trainer_state.json");
    assert_eq!((&state["global_step"], &state["max_steps"]), (&6.into(), &8.into()));
    assert_eq!(state["log_history"].as_array().unwrap().len(), 2);
    assert!(state["num_input_tokens_seen"].as_u64().unwrap() > 0);
    let run = sandbox.json("out/checkpoint-6/run_state.json");
    // 9 rows in batches of one: 5 and 4 micro-batches.
    assert_eq!(run["cursor"]["epoch"], 3);
    assert_eq!(run["generator"]["draw"], 30);
    assert_eq!(run["base_fingerprint"], sandbox.json("out/run.json")["base"]["fingerprint"]);

    // Conversations: an engine finds the tokenizer beside the adapter.
    let chat = Sandbox::chat();
    chat.train("--data chat.jsonl --save-steps 3").ok();
    expected.extend(["tokenizer.json", "tokenizer_config.json"]);
    expected.sort();
    assert_eq!(chat.names("out/checkpoint-3"), expected);
}

#[test]
fn the_limit_keeps_the_newest_and_0_keeps_all() {
    let sandbox = Sandbox::new();
    let steps = |out: &str| {
        let mut steps: Vec<usize> =
            sandbox.names(out).iter().filter_map(|name| name.strip_prefix("checkpoint-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    };
    sandbox.train_into("all", "--max-steps 11 --save-steps 1 --save-total-limit 0").ok();
    assert_eq!(steps("all"), (1..=11).collect::<Vec<_>>());
    sandbox.train_into("one", "--max-steps 11 --save-steps 3 --save-total-limit 1").ok();
    assert_eq!(steps("one"), [9]);
    sandbox.train_into("nothing", "--max-steps 11 --save-steps 0").ok();
    assert!(steps("nothing").is_empty());
    sandbox.train_into("share", "--max-steps 11 --save-steps 0.3 --save-total-limit 3").ok();
    assert_eq!(steps("share"), [4, 8]);
}

#[test]
fn a_given_checkpoint_is_resumed_in_its_own_directory_and_in_another() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", RUN).ok();
    stop_after(&sandbox, "out", 7, "--save-total-limit 0");
    for checkpoint in ["out/checkpoint-2", "out/checkpoint-4"] {
        sandbox.train_into("elsewhere", &format!("{RUN} --resume-from-checkpoint {checkpoint}")).ok();
        sandbox.assert_same_result("elsewhere", "whole");
        std::fs::remove_dir_all(sandbox.path("elsewhere")).unwrap();
    }
    // The later ones are written anew as the run passes them.
    let line = format!("{RUN} --save-total-limit 0 --resume-from-checkpoint out/checkpoint-2");
    sandbox.train(&line).ok();
    sandbox.assert_same_result("out", "whole");
    let files = sandbox.names("out");
    let found: Vec<&String> = files.iter().filter(|name| name.starts_with("checkpoint")).collect();
    assert_eq!(found, ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]);
}

#[test]
fn settings_that_change_no_result_may_change_on_the_way() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", RUN).ok();
    stop_after(&sandbox, "out", 5, "--threads 1");
    let other =
        RUN.replace("--save-steps 2", "--save-steps 3 --threads 2 --gradient-checkpointing --save-total-limit 1");
    std::fs::rename(sandbox.path("rows.jsonl"), sandbox.path("moved.jsonl")).unwrap();
    sandbox.train(&format!("{other} --data moved.jsonl --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("out", "whole");
}

#[test]
fn a_run_that_could_go_on_does_not_start_over_by_itself() {
    let sandbox = Sandbox::new();
    stop_after(&sandbox, "out", 5, "");
    let words = ["out: holds this run", "step 4", "`--resume-from-checkpoint` goes on", "choose another output_dir"];
    sandbox.refused(&train(RUN), &words);
}

#[test]
fn two_runs_in_one_directory_are_refused() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&train(RUN));
    command.env(qlora_train::files::failpoint::VARIABLE, "step:2:pause:60000").stderr(std::process::Stdio::piped());
    let mut first = command.stdout(std::process::Stdio::null()).spawn().unwrap();
    crate::child::wait_for(&mut first, "fault point reached");
    for more in ["", "--resume-from-checkpoint", "--seed 7"] {
        sandbox.refused(&train(&format!("{RUN} {more}")), &["out: another process is training in it"]);
    }
    sandbox.train_into("other", RUN).ok();
    // However it ends, it lets go of the directory.
    first.kill().unwrap();
    first.wait().unwrap();
    sandbox.train(&format!("{RUN} --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("out", "other");
}

#[test]
fn a_disk_that_fills_up_leaves_the_earlier_checkpoints_whole() {
    let sandbox = Sandbox::new();
    sandbox.train_into("whole", RUN).ok();
    for (place, words) in [
        ("checkpoint-begun:3:full", &["checkpoint-6: cannot be written", "No space left"][..]),
        ("write/adapter_model.safetensors:3:full", &["adapter_model.safetensors: cannot be written", "No space left"]),
        ("write/optimizer.safetensors:3:full", &["optimizer.safetensors: cannot be written", "No space left"]),
        ("synced/trainer_state.json:3:full", &["trainer_state.json: cannot be written"]),
        ("rename/run_state.json:3:read-only", &["run_state.json: cannot be put in place", "Read-only file system"]),
        ("write/SHA256SUMS:3:read-only", &["SHA256SUMS: cannot be written", "Read-only file system"]),
        ("checkpoint-whole:3:full", &["checkpoint-6: cannot be written"]),
    ] {
        sandbox.run_at_fault(&train(RUN), place).ended(1, words);
        let left = ["checkpoint-2", "checkpoint-4", ".lock", "metrics.jsonl", "report.html", "report.json", "run.json"];
        let mut left = left.map(str::to_owned).to_vec();
        left.sort();
        assert_eq!(sandbox.names("out"), left, "{place}");
        sandbox.train(&format!("{RUN} --resume-from-checkpoint")).ok();
        sandbox.assert_same_result("out", "whole");
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
    // The adapter at the end.
    sandbox.run_at_fault(&train(RUN), "write/adapter_config.json:5:full").ended(1, &["out/adapter_config.json"]);
    assert!(!sandbox.path("out/adapter_model.safetensors").exists());
    sandbox.train(&format!("{RUN} --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("out", "whole");
}

/// A full disk on a small file system of its own, where the machine lets a user have one.
#[test]
fn a_small_disk_is_filled_up_and_the_run_goes_on_when_there_is_room() {
    let sandbox = Sandbox::new();
    let run = format!("{RUN} --save-total-limit 0");
    sandbox.train_into("whole", &run).ok();
    let size = |dir: &str| -> u64 {
        let names = sandbox.names(dir);
        names.iter().map(|name| sandbox.bytes(&format!("{dir}/{name}")).len().next_multiple_of(4096) as u64).sum()
    };
    let room = (size("whole/checkpoint-2") * 5 / 2 + (32 << 10)) >> 10;
    std::fs::create_dir(sandbox.path("disk")).unwrap();
    let binary = env!("CARGO_BIN_EXE_qlora-train");
    let line = train(&format!("{run} --output-dir disk/out"));
    let script = format!(
        "mount -t tmpfs -o size={room}k tmpfs disk || exit 77
         {binary} {line} >/dev/null 2>errors; echo status $?; ls -A disk/out
         mount -o remount,size=64m disk
         {binary} {line} --resume-from-checkpoint >/dev/null 2>&1 && cp -r disk/out out"
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).current_dir(sandbox.path(""));
    let Ok(output) = command.output() else { return println!("not run: there is no `unshare`") };
    let text = String::from_utf8_lossy(&output.stdout);
    if !text.contains("status") {
        return println!("not run: no file system of its own: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(text.starts_with("status 1\n"), "{text} {}", sandbox.read("errors"));
    let left: Vec<&str> =
        text.lines().skip(1).filter(|name| name.contains("checkpoint") || name.starts_with('.')).collect();
    assert_eq!(left, [".lock", "checkpoint-2", "checkpoint-4"], "{text}");
    assert!(sandbox.read("errors").contains("No space left on device"), "{}", sandbox.read("errors"));
    sandbox.assert_same_result("out", "whole");
}
