//! Branches of the hub that move between the start of a run and its next: the run stays on the commits that it began
//! on.

use std::fs;

use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use qlora_train::files::failpoint::VARIABLE;
use serde_json::json;

use crate::hub::{World, lines};
use crate::sandbox::train;

fn line(more: &str) -> String {
    train(&format!("--model org/tiny --data org/rows --max-steps 4 --save-steps 2 --save-total-limit 0 {more}"))
}

/// Begins the run that `line` says, and ends it by itself right after a step.
fn stop_after(world: &World, line: &str, step: usize) {
    let fault = format!("step:{step}");
    let done = world.run_with(line, &[(VARIABLE, fault.as_str())]);
    assert_eq!(done.status, None, "{done:#?}");
}

/// Moves the branch of the model: the same config, other weights. Returns the commit.
fn move_model(world: &World) -> String {
    let moved = world.sandbox.path("moved");
    Synthetic::new(tiny_arch(), 2).write(&moved).unwrap();
    world.hub.add_dir("models/org/tiny", &moved, &[])
}

#[test]
fn a_run_goes_on_with_the_commits_that_it_began_on() {
    let world = World::new();
    let rows = |to: usize| world.hub.add("datasets/org/rows", "main", &[("train.jsonl", &lines(&world, 0, to)[..])]);
    let began = rows(12);
    world.run(&line("--output-dir whole")).ok();
    stop_after(&world, &line(""), 3);
    let (model, moved) = (move_model(&world), rows(6));
    let run = |out: &str| world.sandbox.json(&format!("{out}/run.json"));

    // Otherwise the run would silently begin anew; the error names both commits.
    let (now, pinned) = (format!("org/rows is at commit {}", &moved[..12]), format!("org/rows@{began}"));
    let both = [
        "out: holds a different run: the contents of `data` changed",
        &now,
        &pinned,
        "the model org/tiny is at commit",
        "--resume-from-checkpoint goes on with the commits",
    ];
    world.run(&line("")).ended(2, &both);

    // The plan is for the files that the run would read.
    let told = format!("org/rows: commit {} of `main`, on which the run began", &began[..12]);
    world.hub.forget();
    let plan = world.run(&line("--resume-from-checkpoint").replacen("train", "plan", 1)).ok();
    assert!(world.hub.requests().is_empty() && plan.stderr.contains(&told), "{plan:#?}");
    let resumed = world.run(&line("--resume-from-checkpoint")).ok();
    assert!(world.hub.requests().is_empty(), "{:?}", world.hub.requests());
    for words in ["resuming after step 2 of 4", &told] {
        assert!(resumed.stderr.contains(words), "{words:?} in {}", resumed.stderr);
    }
    world.sandbox.assert_same_result("out", "whole");
    assert_eq!(run("out")["base"]["revision"], json!(world.commit));
    assert_eq!(run("out")["hub_commits"], run("whole")["hub_commits"]);
    let data = json!({"kind": "data_set", "name": "org/rows", "revision": "main", "commit": began});
    assert!(run("out")["hub_commits"].as_array().unwrap().contains(&data), "{}", run("out"));

    // A checkpoint says it too, and a directory of its own begins with what the branches are now.
    world.run(&line("--output-dir new --resume-from-checkpoint whole/checkpoint-2")).ok();
    let adapter = |out: &str| world.sandbox.bytes(&format!("{out}/adapter_model.safetensors"));
    assert!(adapter("new") == adapter("whole"));
    world.run(&line("--output-dir fresh")).ok();
    assert_eq!(run("fresh")["base"]["revision"], json!(model));

    // Files that the cache lacks are still on the hub.
    fs::remove_dir_all(world.sandbox.path("home/hub")).unwrap();
    let longer = line("--resume-from-checkpoint --max-steps 6");
    let longer = longer.replacen(" --max-steps 4", "", 1);
    let words = ["org/rows", &began[..], "HF_HUB_OFFLINE", "of `main` on which the run began"];
    world.run_with(&longer, &[("HF_HUB_OFFLINE", "1")]).ended(2, &words);
    world.hub.forget();
    world.run(&longer).ok();
    assert!(world.hub.requests().iter().any(|request| request.path.contains(&began)), "{:?}", world.hub.requests());
    assert!(!world.hub.requests().iter().any(|request| request.path.contains("/main")), "{:?}", world.hub.requests());
    assert_eq!(run("out")["base"]["revision"], json!(world.commit));
}

/// A run that was stopped before its first checkpoint, on a base of which only the weights changed.
#[test]
fn a_base_that_moved_is_told_and_a_run_without_a_checkpoint_begins_on_its_own() {
    let world = World::new();
    let line = |more: &str| train(&format!("--model org/tiny --max-steps 2 --save-steps 100 {more}"));
    world.run(&line("--output-dir whole")).ok();
    stop_after(&world, &line(""), 1);
    let moved = move_model(&world);
    let (now, pinned) = (format!("org/tiny is at commit {}", &moved[..12]), format!("org/tiny@{}", world.commit));
    world.run(&line("")).ended(2, &["out: holds a run on another base", &now, &pinned]);
    // A revision that is named is taken by its name.
    world.run(&line(&format!("--revision {moved}"))).ended(2, &["out: holds a run on another base"]);
    world.run(&line("--resume-from-checkpoint")).ok();
    world.sandbox.assert_same_result("out", "whole");
}
