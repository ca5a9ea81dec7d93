//! Checkpoints that a run cannot go on from: the message names what is wrong, and nothing changes.

use std::fs;

use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::{Value, json};

use crate::resume::{RUN, stop_after};
use crate::sandbox::{Sandbox, train};

fn latest(more: &str) -> String {
    train(&format!("{RUN} --resume-from-checkpoint {more}"))
}

/// A run stopped after step 5, with two checkpoints.
fn stopped() -> Sandbox {
    let sandbox = Sandbox::new();
    stop_after(&sandbox, "out", 5, "");
    sandbox
}

#[test]
fn a_damaged_or_half_deleted_checkpoint_is_named_with_the_one_before() {
    let sandbox = stopped();
    let newest = sandbox.path("out/checkpoint-4");
    let whole = sandbox.path("whole");
    fs::rename(&newest, &whole).unwrap();
    let before = "the one before is `--resume-from-checkpoint out/checkpoint-2`";
    for name in
        ["adapter_model.safetensors", "optimizer.safetensors", "run_state.json", "trainer_state.json", "SHA256SUMS"]
    {
        let bytes = fs::read(whole.join(name)).unwrap();
        let mut flipped = bytes.clone();
        // The sum of a card says nothing: it may be edited.
        let sums = String::from_utf8_lossy(&bytes);
        let of_weights = sums.lines().take_while(|line| !line.ends_with("adapter_model.safetensors"));
        let at = if name == "SHA256SUMS" {
            3 + of_weights.map(|line| line.len() + 1).sum::<usize>()
        } else {
            bytes.len() / 2
        };
        flipped[at] ^= 1;
        for damage in [None, Some(&bytes[..bytes.len() / 2]), Some(&[][..]), Some(&flipped)] {
            fs::create_dir(&newest).unwrap();
            for entry in fs::read_dir(&whole).unwrap().map(Result::unwrap) {
                fs::copy(entry.path(), newest.join(entry.file_name())).unwrap();
            }
            match damage {
                Some(bytes) => fs::write(newest.join(name), bytes).unwrap(),
                None => fs::remove_file(newest.join(name)).unwrap(),
            }
            // A flipped sum is reported at the file it belongs to.
            sandbox.refused(&latest(""), &["out/checkpoint-4", before]);
            fs::remove_dir_all(&newest).unwrap();
        }
    }
    fs::create_dir(&newest).unwrap();
    sandbox.refused(&latest(""), &["out/checkpoint-4: found no run_state.json", before]);
    fs::remove_dir(&newest).unwrap();
    fs::rename(&whole, &newest).unwrap();
    fs::remove_dir_all(sandbox.path("out/checkpoint-2")).unwrap();
    fs::write(newest.join("optimizer.safetensors"), "x").unwrap();
    sandbox.refused(&latest(""), &["optimizer.safetensors: found a SHA-256", "damaged", "there is no earlier one"]);
}

#[test]
fn a_path_that_is_no_checkpoint() {
    let sandbox = stopped();
    sandbox.train_into("foreign", "--max-steps 2").ok();
    for (path, words) in [
        ("nowhere", &["nowhere: found no such directory"][..]),
        ("rows.jsonl", &["rows.jsonl: found no such directory"]),
        ("model", &["model: found no run_state.json", "no checkpoint of this program"]),
        // A checkpoint of transformers has this file too.
        ("foreign", &["foreign: found no run_state.json", "one of another program"]),
    ] {
        sandbox.refused(&train(&format!("{RUN} --resume-from-checkpoint {path}")), words);
    }
}

/// Writes `run_state.json` anew, and its sum, so that only its content is at fault.
fn rewrite(sandbox: &Sandbox, change: impl Fn(&mut Value)) {
    use sha2::{Digest, Sha256};
    let mut state = sandbox.json("out/checkpoint-4/run_state.json");
    change(&mut state);
    let text = state.to_string();
    let sum: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    let sums = sandbox.read("out/checkpoint-4/SHA256SUMS");
    let sums = sums.lines().map(|line| match line.split_once("  ") {
        Some((_, "run_state.json")) => format!("{sum}  run_state.json\n"),
        _ => format!("{line}\n"),
    });
    sandbox.write("out/checkpoint-4/SHA256SUMS", &sums.collect::<String>());
    sandbox.write("out/checkpoint-4/run_state.json", &text);
}

#[test]
fn a_checkpoint_of_another_version() {
    let sandbox = stopped();
    let words =
        ["run_state.json: found format 99", "\"9.9.9\"", "this program", "resume it with the version that wrote"];
    rewrite(&sandbox, |state| {
        state["format"] = 99.into();
        state["version"] = "9.9.9".into();
    });
    sandbox.refused(&latest(""), &words);
    rewrite(&sandbox, |state| drop(state.as_object_mut().unwrap().remove("format")));
    sandbox.refused(&latest(""), &["found format none"]);
    // A version that packed other rows into the next step.
    rewrite(&sandbox, |state| {
        state["format"] = 2.into();
        state["cursor"]["next_rows"] = "0".into();
    });
    sandbox.refused(&latest(""), &["out/checkpoint-4: goes on with other rows"]);
    rewrite(&sandbox, |state| state["cursor"] = json!(5));
    sandbox.refused(&latest(""), &["run_state.json: not readable", "damaged"]);
}

#[test]
fn a_checkpoint_of_another_run() {
    let sandbox = stopped();
    let into = |more: &str| train(&format!("{RUN} --output-dir new --resume-from-checkpoint out/checkpoint-4 {more}"));
    for (more, what) in [
        ("--seed 7", "`seed` was 42 and is 7 now"),
        ("--learning-rate 1e-3", "`learning_rate` was 0.01 and is 0.001 now"),
        ("--weight-decay 0.1", "`weight_decay` was 0 and is 0.1 now"),
        ("--max-length 32", "`max_length` was 64 and is 32 now"),
        ("--quantization none", "`quantization` was \"nf4\" and is \"none\" now"),
    ] {
        sandbox.refused(&into(more), &["out/checkpoint-4: is of a different run", what]);
        sandbox.refused(&latest(more), &["out: holds a different run", what]);
    }
    let rows = sandbox.read("rows.jsonl");
    sandbox.write_rows("rows.jsonl", 12, 9);
    sandbox.refused(&into(""), &["out/checkpoint-4: is of a different run: the contents of `data` changed"]);
    sandbox.refused(&latest(""), &["out: holds a different run: the contents of `data` changed"]);
    sandbox.write("rows.jsonl", &rows);
    Synthetic::new(tiny_arch(), 2).write(&sandbox.path("model")).unwrap();
    sandbox.refused(&into(""), &["out/checkpoint-4: was trained on another base", "fingerprint"]);
    sandbox.refused(&latest(""), &["out: holds a run on another base", "fingerprint"]);
}
