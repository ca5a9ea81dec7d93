//! A process killed at any moment loses nothing that was saved: the run goes on and ends in the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use qlora_kernels::rng::RngStream;
use qlora_train::files::failpoint::VARIABLE;

use crate::sandbox::{Sandbox, train};

/// Short, and with every kind of write in it: checkpoints that are pruned and a best one that is not, metrics,
/// evaluations, the adapter at the end. With rsLoRA at r = 3 the adapter's file does not hold B itself.
const RUN: &str = "--max-steps 7 --packing false --per-device-train-batch-size 3 --gradient-accumulation-steps 2 \
                   --lora-dropout 0.1 --lora-r 3 --use-rslora --lora-target-modules q_proj,down_proj --save-steps 2 \
                   --save-total-limit 1 --val-set-size 2 --eval-steps 3 --load-best-model-at-end --threads 1 \
                   --report false --resume-from-checkpoint";

/// The invariant at any moment: an adapter is there only as a whole, and every checkpoint can be resumed.
fn check_left(sandbox: &Sandbox) {
    if sandbox.path("out/adapter_config.json").exists() {
        qlora_train::adapter::Adapter::load(&sandbox.path("out")).unwrap();
    }
    for name in sandbox.names("out").iter().filter(|name| name.starts_with("checkpoint-")) {
        qlora_train::adapter::Adapter::load(&sandbox.path(&format!("out/{name}"))).unwrap();
        sandbox.json(&format!("out/{name}/trainer_state.json"));
    }
}

/// A finished run, however often it was killed: the same bytes, and nothing left over.
fn check_finished(sandbox: &Sandbox) {
    sandbox.assert_same_result("out", "whole");
    for path in sandbox.files().keys().filter(|path| path.starts_with(sandbox.path("out"))) {
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(name == ".lock" || !name.starts_with('.'), "{} is left over", path.display());
    }
    std::fs::remove_dir_all(sandbox.path("out")).unwrap();
}

#[test]
fn killed_at_every_fault_point_a_run_ends_in_the_same_bytes() {
    let sandbox = Sandbox::new();
    let line = train(RUN);
    let traced = sandbox.run_at_fault(&line, "trace").ok();
    std::fs::rename(sandbox.path("out"), sandbox.path("whole")).unwrap();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for place in traced.stderr.lines().filter_map(|line| line.strip_prefix("fault point ")) {
        *places.entry(place).or_default() += 1;
    }
    for file in [
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "optimizer.safetensors",
        "trainer_state.json",
        "run_state.json",
        "SHA256SUMS",
        "run.json",
        "metrics.jsonl",
    ] {
        for stage in ["write", "synced", "rename", "renamed"] {
            assert!(places.contains_key(format!("{stage}/{file}").as_str()), "{stage} of {file} in {places:?}");
        }
    }
    for place in ["checkpoint-begun", "checkpoint-whole", "checkpoint-in-place", "removal-begun", "removal"] {
        assert!(places.contains_key(place), "{place} in {places:?}");
    }

    let mut kills = 0;
    for (place, &times) in &places {
        // The first time, and the last, which is where the run ends.
        let mut when = vec![1, times];
        when.dedup();
        for nth in when {
            let done = sandbox.run_at_fault(&line, &format!("{place}:{nth}"));
            match done.status {
                None => {
                    kills += 1;
                    check_left(&sandbox);
                }
                // A run that was killed on the way there has fewer of them left; from the beginning it gets there.
                Some(0) => {
                    check_finished(&sandbox);
                    let done = sandbox.run_at_fault(&line, &format!("{place}:{nth}"));
                    assert_eq!(done.status, None, "{place}:{nth} {done:#?}");
                    kills += 1;
                    check_left(&sandbox);
                }
                Some(_) => panic!("{place}:{nth} {done:#?}"),
            }
        }
    }
    sandbox.run(&line).ok();
    check_finished(&sandbox);
    println!("killed {kills} times at {} fault points", places.len());
    assert!(kills >= places.len(), "{kills} kills at {} fault points", places.len());
}

/// Between the first files of a directory as well: what is left of them is this run's, and not a stranger's.
#[test]
fn killed_while_its_directory_is_made_a_run_may_be_started_again() {
    let sandbox = Sandbox::new();
    let line = train(RUN);
    sandbox.run(&line).ok();
    std::fs::rename(sandbox.path("out"), sandbox.path("whole")).unwrap();
    for file in ["run.json", "metrics.jsonl"] {
        for stage in ["write", "synced", "rename", "renamed"] {
            assert_eq!(sandbox.run_at_fault(&line, &format!("{stage}/{file}:1")).status, None, "{stage} of {file}");
            sandbox.run(&line).ok();
            check_finished(&sandbox);
        }
    }
}

/// Checkpoint 0 is replaced by a later state of the same step; wherever that ends, one of the two is found.
#[test]
fn killed_while_a_checkpoint_replaces_another_a_run_keeps_one_of_them() {
    let sandbox = Sandbox::new();
    let line = train(RUN);
    sandbox.run(&line).ok();
    std::fs::rename(sandbox.path("out"), sandbox.path("whole")).unwrap();
    // One run, whose second checkpoint is written twice.
    let mut kills = 0;
    for place in ["checkpoint-whole:1", "checkpoint-set-aside:1", "checkpoint-in-place:1", "removal:1"] {
        assert_eq!(sandbox.run_at_fault(&line, "step:3").status, None);
        let again = train(&format!("{RUN} out/checkpoint-2"))
            .replace("--save-steps 2 --save-total-limit 1", "--save-steps 1 --save-total-limit 0");
        let first = sandbox.run_at_fault(&again, "step:2");
        assert_eq!(first.status, None, "{first:#?}");
        assert!(sandbox.path("out/checkpoint-3").exists());
        let done = sandbox.run_at_fault(&again, place);
        assert_eq!(done.status, None, "{place} {done:#?}");
        kills += 3;
        check_left(&sandbox);
        sandbox.run(&line).ok();
        sandbox.assert_same_result("out", "whole");
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
    }
    assert_eq!(kills, 12);
}

/// Variants of a run beside [`RUN`]: packing, states of 8 bits, early stopping, the best checkpoint, none kept but the
/// newest.
const OTHERS: [&str; 3] = [
    "--max-steps 6 --max-length 48 --lora-r 64 --optim adamw_8bit --lora-dropout 0.2 --lora-target-modules q_proj,k_proj \
     --save-steps 1 --save-total-limit 2 --val-set-size 2 --eval-steps 2 --threads 1 --resume-from-checkpoint",
    "--max-steps 40 --packing false --learning-rate 1 --lr-scheduler-type constant --val-set-size 3 --eval-steps 1 \
     --early-stopping-patience 2 --load-best-model-at-end --save-steps 3 --save-total-limit 1 --threads 1 \
     --resume-from-checkpoint",
    "--max-steps 5 --gradient-accumulation-steps 3 --packing false --lora-dropout 0.1 --save-steps 0 --val-set-size 2 \
     --eval-steps 2 --load-best-model-at-end --threads 1 --resume-from-checkpoint",
];

/// Number of kills: `QLORA_KILLS`, else 24. `benches/reliability` counts those of hundreds.
fn kills_wanted() -> usize {
    std::env::var("QLORA_KILLS").map_or(24, |number| number.parse().expect("QLORA_KILLS is a number"))
}

#[test]
fn killed_at_random_moments_a_run_ends_in_the_same_bytes() {
    let wanted = kills_wanted();
    let mut stream = RngStream::new(std::process::id().into(), 11);
    let start = Instant::now();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let settings: Vec<&str> = std::iter::once(RUN).chain(OTHERS).collect();
    for (at, settings) in settings.iter().enumerate() {
        let share = (wanted + at) / 4;
        let sandbox = Sandbox::new();
        let line = train(settings);
        sandbox.run(&line).ok();
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
        let begun = Instant::now();
        sandbox.run(&line).ok();
        let whole = begun.elapsed();
        std::fs::rename(sandbox.path("out"), sandbox.path("whole")).unwrap();
        let steps = sandbox.json("whole/trainer_state.json")["global_step"].as_u64().unwrap();
        let (mut kills, mut resumed) = (0, 0);
        // Few kills may all be in a first process: then there are more, until one is not.
        while kills < share || resumed == 0 && kills < 4 * share {
            let mut command = sandbox.command(&line);
            let said = File::create(sandbox.path("said")).unwrap();
            let mut child = command.env_remove(VARIABLE).stdout(Stdio::null()).stderr(said).spawn().unwrap();
            std::thread::sleep(whole.mul_f32(stream.uniform() * 1.1));
            child.kill().unwrap();
            let status = child.wait().unwrap();
            match status.code() {
                None => {
                    kills += 1;
                    if sandbox.path("out").exists() {
                        check_left(&sandbox);
                    }
                    let moment = moment(&sandbox, steps);
                    resumed += usize::from(moment == RESUMED);
                    *counts.entry(moment).or_default() += 1;
                }
                Some(0) => {
                    *counts.entry("runs that finished on the way").or_default() += 1;
                    check_finished(&sandbox);
                }
                Some(code) => panic!("exit status {code} after {kills} kills: {}", sandbox.read("said")),
            }
            assert!(start.elapsed() < Duration::from_secs(60 + 3 * wanted as u64), "{kills} kills take too long");
        }
        *counts.entry("kills").or_default() += kills;
        sandbox.run(&line).ok();
        check_finished(&sandbox);
    }
    println!("{counts:?}: nothing lost, no byte changed");
    assert!(counts["kills"] >= wanted, "{counts:?}");
    assert!(counts.get(RESUMED).is_some_and(|count| *count > wanted / 20), "{counts:?}");
}

const RESUMED: &str = "killed after it resumed";

/// The moment at which a run was killed, by its output and its files.
fn moment(sandbox: &Sandbox, steps: u64) -> &'static str {
    if !sandbox.path("out/metrics.jsonl").exists() {
        return "killed before it began";
    }
    let last = sandbox
        .read("out/metrics.jsonl")
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64())
        .next_back();
    if last == Some(steps) {
        return "killed while it finished";
    }
    if sandbox.read("said").contains("resuming after") { RESUMED } else { "killed in its first process" }
}
