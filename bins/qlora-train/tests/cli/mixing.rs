//! Rows of several files in an epoch.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, train};

/// Ten rows from token 5 on, and four from token 40 on.
fn two_files() -> Sandbox {
    let sandbox = Sandbox::new();
    let rows = |from: u32, rows: u32| -> String {
        let row = |at: u32| json!({"input_ids": (from + at..from + at + 6).collect::<Vec<_>>()}).to_string();
        (0..rows).map(row).collect::<Vec<_>>().join("\n")
    };
    sandbox.write("a.jsonl", &rows(5, 10));
    sandbox.write("b.jsonl", &rows(40, 4));
    sandbox
}

const FILES: &str = "--data a.jsonl --data b.jsonl --num-train-epochs 2 --max-steps 0 --packing false";

fn parts(sandbox: &Sandbox, more: &str) -> Vec<(f64, u64, u64)> {
    let shown = sandbox.run(&format!("preview --model model --json --data a.jsonl --data b.jsonl {more}")).json();
    let number = |part: &Value, key: &str| part[key].as_u64().unwrap();
    let parts = shown["mix"].as_array().unwrap().iter();
    parts.map(|p| (p["weight"].as_f64().unwrap(), number(p, "rows"), number(p, "rows_in_epoch"))).collect()
}

#[test]
fn weights_and_shares_are_shown_and_count_the_steps() {
    let sandbox = two_files();
    for (mix, expected) in [
        ("--data-weights 0.5 --data-weights 3", vec![(0.5, 10, 5), (3.0, 4, 12)]),
        ("--mix-strategy interleave_under --interleave-probs 0.5,0.5", vec![(0.4, 10, 4), (1.0, 4, 4)]),
        ("--mix-strategy interleave_over --interleave-probs 0.5,0.5", vec![(1.0, 10, 10), (2.5, 4, 10)]),
        ("--data-weights 1,1", vec![]),
    ] {
        assert_eq!(parts(&sandbox, mix), expected, "{mix}");
        let rows: u64 = if expected.is_empty() { 14 } else { expected.iter().map(|part| part.2).sum() };
        let done = sandbox.train_into(&format!("out{}", rows), &format!("{FILES} {mix}"));
        assert_eq!(done.json()["steps"], 2 * rows, "{mix}");
    }
    let done = sandbox.train_into("told", &format!("{FILES} --data-weights 0.5,3")).ok();
    let line = "mixing: 17 rows in an epoch: a.jsonl × 0.5 (10 → 5 rows), 29.4%; b.jsonl × 3 (4 → 12 rows), 70.6%";
    assert!(done.stderr.contains(line), "{}", done.stderr);
    // The rows of the packs are those of the mix.
    let files = "--data a.jsonl --data b.jsonl --data-weights 0.5,3 --max-length 12";
    let shown = sandbox.run(&format!("preview --model model --packs --rows 99 --json {files}")).json();
    let packs = shown["packs"].as_array().unwrap().iter();
    let of_b = |pack: &Value| pack.as_array().unwrap().iter().filter(|row| row["file"] == "b.jsonl").count();
    assert_eq!((packs.len(), packs.map(of_b).sum::<usize>()), (9, 12));
}

/// Weights that are whole are the same run as files that are named as often, in the order of the files.
#[test]
fn a_weight_of_two_trains_as_the_file_named_twice() {
    let sandbox = two_files();
    let line = "--num-train-epochs 1 --max-steps 0 --shuffle false --per-device-train-batch-size 3";
    for (packing, out) in [("false", "plain"), ("true", "packed")] {
        let line = format!("{line} --packing {packing}");
        sandbox.train_into(out, &format!("{line} --data a.jsonl --data b.jsonl --data-weights 1,2")).ok();
        let twice = format!("{out}-twice");
        sandbox.train_into(&twice, &format!("{line} --data a.jsonl --data b.jsonl --data b.jsonl")).ok();
        let file = "adapter_model.safetensors";
        assert!(sandbox.bytes(&format!("{out}/{file}")) == sandbox.bytes(&format!("{twice}/{file}")), "{out}");
        assert_eq!(sandbox.metrics(out), sandbox.metrics(&twice));
    }
}

#[test]
fn each_entry_has_a_number_of_rows_of_its_own_and_patterns_share_theirs() {
    let sandbox = two_files();
    let yaml = "data:\n- {path: a.jsonl, max_samples: 3, weight: 2}\n- b.jsonl\n";
    sandbox.write("run.yaml", yaml);
    let shown = sandbox.run("preview run.yaml --model model --json").json();
    assert_eq!((&shown["files"][0]["rows"], &shown["files"][1]["rows"]), (&json!(3), &json!(4)));
    assert_eq!(shown["mix"][0]["rows_in_epoch"], 6);
    // A flag for the rows takes the numbers of the file's entries away.
    let shown = sandbox.run("preview run.yaml --model model --json --data b.jsonl").json();
    assert_eq!((&shown["files"][0]["rows"], &shown["mix"]), (&json!(4), &json!([])));
    let shown =
        sandbox.run("preview --model model --json --data [ab].jsonl --data-max-samples 2 --data-weights 1.5").json();
    assert_eq!((&shown["rows_in_all"], &shown["mix"][1]["rows_in_epoch"]), (&json!(4), &json!(3)));
}

#[test]
fn a_mixed_run_that_is_killed_goes_on_with_the_same_rows() {
    let sandbox = two_files();
    let line = format!("{FILES} --data-weights 0.5,2.5 --save-steps 4");
    sandbox.train(&line).ok();
    let killed = sandbox.run_at_fault(&train(&format!("--output-dir other {line}")), "step:19");
    assert_eq!(killed.status, None);
    sandbox.train_into("other", &format!("{line} --resume-from-checkpoint")).ok();
    sandbox.assert_same_result("other", "out");
    let changed = sandbox.train(&format!("{FILES} --data-weights 0.5,2 --save-steps 4"));
    changed.ended(2, &["data_weights", "[0.5,2.5]"]);
}

#[test]
fn numbers_that_fit_no_file_are_refused() {
    let sandbox = two_files();
    let line = |more: &str| train(&format!("{FILES} {more}"));
    for (more, words) in [
        ("--data-weights 2", &["data_weights", "1 numbers for 2 entries"][..]),
        ("--data-weights 2,0", &["data-weights", "above 0"]),
        ("--data-max-samples 2,x", &["data-max-samples", "found `x`"]),
        ("--interleave-probs 1,1", &["interleave_probs", "mix_strategy"]),
        ("--mix-strategy interleave_over", &["interleave_over", "interleave_probs"]),
        ("--mix-strategy interleave_over --interleave-probs 1,1 --shuffle false", &["shuffle"]),
        ("--mix-strategy stack", &["stack", "interleave_under"]),
    ] {
        sandbox.refused(&line(more), words);
    }
    let shares = "--mix-strategy interleave_over --interleave-probs 1";
    sandbox.refused(&train(&format!("--data [ab].jsonl {shares}")), &["[ab].jsonl stands for 2 files", "one by one"]);
}
