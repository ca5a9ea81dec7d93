//! Runs that do not reach their end leave a reason, and never a part of an adapter.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::sandbox::{Sandbox, train};

fn adapter_files(sandbox: &Sandbox) -> Vec<String> {
    let entries = std::fs::read_dir(sandbox.path("out")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("adapter") || name == "README.md").collect()
}

#[test]
fn a_run_that_diverges_names_the_step_and_writes_no_adapter() {
    let sandbox = Sandbox::new();
    // Each step turns every weight into −999 times itself.
    let absurd = "--learning-rate 10 --weight-decay 100 --lr-scheduler-type constant --max-steps 100";
    sandbox.train(absurd).ended(
        1,
        &["step ", "the loss of micro-batch 1 is NaN", "(model.layers.", "row 0 (position 0", "learning_rate"],
    );
    assert_eq!(adapter_files(&sandbox), Vec::<String>::new());
    let logged = sandbox.read("out/metrics.jsonl");
    assert!(!logged.contains("null") && !logged.contains("NaN"), "{logged}");
}

#[test]
fn a_full_disk_ends_the_run() {
    let sandbox = Sandbox::new();
    let done = sandbox.run_at_fault(&train(""), "write/metrics.jsonl:3:full");
    done.ended(1, &["out/metrics.jsonl: cannot be written", "No space left"]);
    assert_eq!(adapter_files(&sandbox), Vec::<String>::new());
}

#[test]
fn a_directory_in_the_place_of_an_adapter_is_left_alone_and_told() {
    let sandbox = Sandbox::new();
    sandbox.train("").ok();
    std::fs::remove_file(sandbox.path("out/adapter_config.json")).unwrap();
    std::fs::create_dir_all(sandbox.path("out/adapter_config.json/taken")).unwrap();
    sandbox.train("").ended(2, &["out/adapter_config.json: found a directory, expected a file", "remove"]);
    assert!(sandbox.path("out/adapter_config.json/taken").is_dir());
}

#[test]
fn a_killed_run_leaves_no_part_of_an_adapter_and_may_be_started_again() {
    let sandbox = Sandbox::new();
    let endless = train("--max-steps 1000000 --packing false");
    for _ in 0..2 {
        let mut child = sandbox.command(&endless).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let metrics = sandbox.path("out/metrics.jsonl");
        let start = Instant::now();
        while std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < 3 {
            assert!(child.try_wait().unwrap().is_none(), "the run ended by itself");
            assert!(start.elapsed() < Duration::from_secs(120), "no step in two minutes");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        assert_eq!(adapter_files(&sandbox), Vec::<String>::new());
        assert!(sandbox.path("out/run.json").exists());
        std::fs::remove_file(metrics).unwrap();
    }
}

/// Somebody may leave the pager; the run goes on.
#[test]
fn closed_outputs_are_no_failure() {
    let sandbox = Sandbox::new();
    let mut child = sandbox.command(&train("")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(sandbox.path("out/adapter_config.json").exists());
}
