//! Rows that are tokenized once: a run is the same with and without, from its first start and from a later one.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, train};

/// The end of the line about rows that were kept, and about rows that are taken.
const KEPT: &str = "tokenized rows for the next start";
const TAKEN: &str = "tokenized rows of an earlier start";

/// Conversations of two tasks, one of them twice, with a key that nothing reads, beside token ids with weights.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::chat();
    let row = |at: usize| {
        let (question, answer) = (format!("what is {at}"), format!("it is {}", at * at));
        let turns = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        json!({"messages": turns, "task": if at.is_multiple_of(3) { "a" } else { "b" }, "shade": "red"}).to_string()
    };
    let mut rows: Vec<String> = (0..12).map(row).collect();
    rows.push(row(3));
    rows.extend((3..9).map(|at| json!({"input_ids": [at, at + 1, at + 2, at + 3], "weight": 0.5}).to_string()));
    sandbox.write("chat.jsonl", &rows.join("\n"));
    sandbox.write("val.jsonl", &[row(3), row(20), row(21)].join("\n"));
    sandbox
}

/// Lines that speak of rows, but for where they are kept and what memory they take.
fn told_of_rows(stderr: &str) -> Vec<&str> {
    let of_rows = |line: &&str| line.contains("row") && !line.contains("tokenized rows") && !line.contains("memory");
    stderr.lines().filter(of_rows).collect()
}

#[test]
fn a_run_is_the_same_with_and_without_and_says_the_same() {
    let sandbox = sandbox();
    let common = "--data chat.jsonl --gradient-accumulation-steps 2 --save-steps 3";
    for (at, more) in [
        "--val-set-size 3 --eval-steps 3 --packing false",
        "--val-data val.jsonl --eval-steps 3 --deduplicate --eval-answers 1 --eval-max-new-tokens 2",
        "--packing true --per-device-train-batch-size 2",
    ]
    .into_iter()
    .enumerate()
    {
        let (plain, first, second) = (format!("plain{at}"), format!("first{at}"), format!("second{at}"));
        let run = |out: &str, cache: &str| sandbox.train_into(out, &format!("{common} {more} {cache}")).ok().stderr;
        let said = run(&plain, "");
        let cache = format!("--tokenized-cache kept{at}");
        let (made, taken) = (run(&first, &cache), run(&second, &cache));
        let files = 1 + usize::from(more.contains("val-data"));
        for (text, kept, found) in [(&made, files, 0), (&taken, 0, files)] {
            assert_eq!((text.matches(KEPT).count(), text.matches(TAKEN).count()), (kept, found), "{text}");
            assert_eq!(told_of_rows(text), told_of_rows(&said));
        }
        for out in [&first, &second] {
            sandbox.assert_same_result(out, &plain);
            let identity = |out: &str| sandbox.json(&format!("{out}/run.json"))["identity"].clone();
            assert_eq!(identity(out), identity(&plain));
        }
        // Rows, and the hash of their tokens.
        assert_eq!(sandbox.names(&format!("kept{at}")).len(), files + 1);
    }
    // The rows of a plan are those of its run.
    let plan = format!("plan --model model {common} --max-length 64 --packing true --tokenized-cache kept2");
    let plan = sandbox.run(&plan).ok();
    assert!(plan.stderr.contains(TAKEN), "{}", plan.stderr);
}

#[test]
fn another_split_is_drawn_from_the_same_rows() {
    let sandbox = sandbox();
    let run = |out: &str, more: &str| {
        sandbox.train_into(out, &format!("--data chat.jsonl --tokenized-cache kept {more}")).ok()
    };
    for (out, more, kept) in [
        ("a", "--val-set-size 3", true),
        ("b", "--val-set-size 4", false),
        ("c", "--val-set-size 4 --seed 7", false),
        ("d", "", false),
        ("e", "--max-samples 5", true),
    ] {
        let done = run(out, more);
        assert_eq!(done.stderr.contains(KEPT), kept, "{}", done.stderr);
        let tokens = sandbox.json(&format!("{out}/run.json"))["identity"]["tokens"].clone();
        let plain = format!("{out}-plain");
        sandbox.train_into(&plain, &format!("--data chat.jsonl {more}")).ok();
        assert_eq!(sandbox.json(&format!("{plain}/run.json"))["identity"]["tokens"], tokens, "{more}");
        sandbox.assert_same_result(out, &plain);
    }
}

#[test]
fn a_run_goes_on_from_its_rows_and_without_them() {
    let sandbox = sandbox();
    let line = |out: &str| format!("--data chat.jsonl --save-steps 2 --output-dir {out}");
    let cache = "--tokenized-cache kept";
    sandbox.train(&line("whole")).ok();
    // With rows that are kept, with none any more, and with a file that was damaged meanwhile.
    for (out, told) in [("with", TAKEN), ("without", KEPT), ("damaged", "it is made anew")] {
        let killed = sandbox.run_at_fault(&train(&format!("{} {cache}", line(out))), "step:3");
        assert_eq!(killed.status, None, "{killed:?}");
        match out {
            "without" => std::fs::remove_dir_all(sandbox.path("kept")).unwrap(),
            "damaged" => {
                let names = sandbox.names("kept");
                let name = format!("kept/{}", names.iter().find(|name| name.ends_with(".rows")).unwrap());
                let mut bytes = sandbox.bytes(&name);
                bytes[5] ^= 1;
                std::fs::write(sandbox.path(&name), bytes).unwrap();
            }
            _ => {}
        }
        let resumed = sandbox.train(&format!("{} {cache} --resume-from-checkpoint", line(out))).ok();
        assert!(resumed.stderr.contains(told) && resumed.stderr.contains("resuming after step 2"), "{resumed:?}");
        sandbox.assert_same_result(out, "whole");
    }
}

#[test]
fn a_disk_without_room_for_the_rows_is_told_and_leaves_nothing() {
    let sandbox = sandbox();
    let line = train("--data chat.jsonl --tokenized-cache kept");
    for (fault, words) in [
        ("write/tokenized-rows:1:full", &["No space left on device", "make room", "`tokenized_cache`"][..]),
        ("write/tokenized-rows:1:read-only", &["Read-only file system", "`tokenized_cache`"]),
        ("rename/tokenized-rows:1:full", &["No space left on device", "make room"]),
    ] {
        sandbox.run_at_fault(&line, fault).ended(1, words);
        assert_eq!(sandbox.names("kept"), [""; 0], "{fault}");
        assert!(!sandbox.path("out").exists(), "{fault}");
    }
    // Half of a write, or one that is interrupted, is gone on with.
    for (fault, out) in [("write/tokenized-rows:1:short", "short"), ("write/tokenized-rows:1:interrupted", "again")] {
        let line = train(&format!("--data chat.jsonl --tokenized-cache {out}-rows --output-dir {out}"));
        let done = sandbox.run_at_fault(&line, fault).ok();
        assert!(done.stderr.contains(KEPT), "{}", done.stderr);
    }
    sandbox.run(&line).ok();
    sandbox.assert_same_result("short", "out");
    sandbox.assert_same_result("again", "out");
}

#[test]
fn a_process_that_is_killed_while_it_writes_leaves_no_rows_that_are_trusted() {
    let sandbox = sandbox();
    let line = |out: &str| train(&format!("--data chat.jsonl --tokenized-cache kept --output-dir {out}"));
    for fault in ["write/tokenized-rows:1", "rename/tokenized-rows:1"] {
        let killed = sandbox.run_at_fault(&line("out"), fault);
        assert_eq!(killed.status, None, "{killed:?}");
        let names = sandbox.names("kept");
        assert!(names.iter().all(|name| name.starts_with('.')), "{names:?}");
    }
    let done = sandbox.run(&line("out")).ok();
    assert!(done.stderr.contains(KEPT), "{}", done.stderr);
    let done = sandbox.run(&line("later")).ok();
    assert!(done.stderr.contains(TAKEN), "{}", done.stderr);
    sandbox.assert_same_result("later", "out");
}

#[test]
fn rows_that_are_refused_are_refused_at_every_start() {
    let sandbox = sandbox();
    sandbox.write("bad.jsonl", "{\"text\": \"a\"}\n{\"text\": 7}\n");
    let line = train("--data bad.jsonl --tokenized-cache kept");
    for _ in 0..2 {
        sandbox.run(&line).ended(2, &["bad.jsonl: line 2", "`text`"]);
        assert_eq!(sandbox.names("kept"), [""; 0]);
    }
    let file = train("--data chat.jsonl --tokenized-cache rows.jsonl");
    sandbox.refused(&file, &["`tokenized_cache`", "rows.jsonl"]);
    let below = train("--data chat.jsonl --tokenized-cache rows.jsonl/below");
    sandbox.refused(&below, &["`tokenized_cache`", "rows.jsonl/below"]);
}

/// Bytes of memory that a plan counts for rows, tokenizer and program.
fn held(sandbox: &Sandbox, more: &str) -> u64 {
    let line = format!("plan --model model --data many.jsonl --max-length 64 --device cpu --json {more}");
    let plan = sandbox.run(&line).json();
    let is_of_rows = |buffer: &&Value| buffer["name"].as_str().is_some_and(|name| name.starts_with("rows, tokenizer"));
    plan["buffers"].as_array().unwrap().iter().find(is_of_rows).unwrap()["bytes"].as_u64().unwrap()
}

#[test]
fn rows_in_a_file_are_no_memory_of_the_plan() {
    const ROWS: usize = 40_000;
    const TOKENS: usize = 60;
    let sandbox = Sandbox::new();
    let row = |at: usize| json!({"input_ids": (0..TOKENS).map(|t| (at + t) % 90).collect::<Vec<_>>()}).to_string();
    sandbox.write("many.jsonl", &(0..ROWS).map(row).collect::<Vec<_>>().join("\n"));
    let in_memory = held(&sandbox, "");
    held(&sandbox, "--tokenized-cache kept");
    let in_file = held(&sandbox, "--tokenized-cache kept");
    // An id and a label of four bytes each, against some fifty bytes a row; half of it for what the plan adds.
    let least = (ROWS * (8 * TOKENS - 50) / 2) as u64;
    assert!(in_file + least < in_memory, "{in_file} {in_memory}");
}
