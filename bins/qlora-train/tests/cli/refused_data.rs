//! Rows that are refused, through the binary: file and line, exit status 2, nothing written.

use crate::sandbox::{Sandbox, train};

/// `rows.jsonl` with one more line, its 13th.
fn with_line(line: &str) -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", &format!("{}\n{line}\n", sandbox.read("rows.jsonl")));
    sandbox
}

#[test]
fn a_wrong_row_is_named_by_its_line() {
    for (line, words) in [
        (r#"{"input_ids": [1, 2, 3]"#, &["broken JSON"][..]),
        (r#"[1, 2, 3]"#, &["expected a row (a JSON object)"]),
        (r#"{"ids": [1, 2]}"#, &["unknown kind of row", "`input_ids`"]),
        (r#"{"input_ids": "1 2 3"}"#, &["`input_ids` must be an array"]),
        (r#"{"input_ids": [1, 2.5]}"#, &["`input_ids[1]` is the number 2.5", "whole numbers from 0 to 95"]),
        (r#"{"input_ids": [1, 96]}"#, &["`input_ids[1]` is the number 96", "from 0 to 95 (the model's vocabulary)"]),
        (r#"{"input_ids": [1, -1]}"#, &["`input_ids[1]` is the number -1"]),
        (r#"{"input_ids": [1, 2], "labels": [1]}"#, &["`labels` has 1 entries, `input_ids` 2"]),
        (r#"{"input_ids": [1, 2], "labels": [1, -5]}"#, &["`labels[1]` is the number -5", "-100"]),
        (r#"{"prompt": "x"}"#, &["`completion` is missing"]),
        (r#"{"text": "x", "input_ids": [1, 2]}"#, &["both `text` and `input_ids`", "ambiguous"]),
        (r#"{"input_ids": [1, 2], "input_ids": [3, 4]}"#, &["input_ids"]),
    ] {
        let words = [&["rows.jsonl: line 13: "], words].concat();
        let sandbox = with_line(line);
        sandbox.refused(&train(""), &words);
        sandbox.refused("plan --model model --data rows.jsonl", &words);
        sandbox.refused("preview --model model --data rows.jsonl", &words);
        sandbox.refused("eval --model model --data rows.jsonl", &words);
    }
}

#[test]
fn nothing_to_learn_from() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", r#"{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}"#);
    let words = ["rows.jsonl: no row is left", "1 has no supervised token"];
    sandbox.refused(&train(""), &words);
    sandbox.refused("eval --model model --data rows.jsonl", &words);
    sandbox.write("rows.jsonl", "\n\n");
    sandbox.refused(&train(""), &["rows.jsonl: no row found"]);
    std::fs::remove_file(sandbox.path("rows.jsonl")).unwrap();
    sandbox.refused(&train(""), &["rows.jsonl: cannot open"]);
    // In a conversation: nobody answers.
    let sandbox = Sandbox::chat();
    sandbox.write("chat.jsonl", r#"{"messages": [{"role": "user", "content": "x"}]}"#);
    sandbox.refused(&train("--data chat.jsonl"), &["chat.jsonl", "no supervised token"]);
}

#[test]
fn rows_that_are_too_long() {
    let sandbox = Sandbox::new();
    let long: Vec<u32> = (0..90).collect();
    sandbox.write("long.jsonl", &format!("{{\"input_ids\":{long:?}}}"));
    let words = ["long.jsonl: line 1: 90 tokens, longer than max_length 64"];
    sandbox.refused(&format!("{} --too-long error", train("--data long.jsonl")), &words);
    sandbox.refused(&train("--val-data long.jsonl --too-long error"), &words);
    sandbox.refused(&train("--val-data long.jsonl"), &["long.jsonl: no row is left", "1 is longer"]);
    sandbox.refused("eval --model model --data long.jsonl --max-length 64", &words);
    sandbox.refused(&train("--val-set-size 12"), &["val_set_size", "leaves no row to train on"]);
    sandbox.train("--val-data long.jsonl --too-long truncate").ok();
}

#[test]
fn conversations_need_a_tokenizer_and_a_template() {
    let sandbox = Sandbox::chat();
    let line = train("--data chat.jsonl");
    trainer_lab::fixture::write_json(
        &sandbox.path("model"),
        "tokenizer_config.json",
        &trainer_lab::fixture::tokenizer_config(None),
    );
    sandbox.refused(&line, &["no chat template", "`chat_template`"]);
    sandbox.refused("generate --model model --prompt x", &["no chat template", "`chat_template`"]);
    sandbox.refused(&format!("{line} --chat-template nonsense"), &["chat_template", "\"nonsense\""]);
    sandbox.run(&format!("{line} --chat-template chatml")).ok();
    std::fs::remove_file(sandbox.path("model/tokenizer.json")).unwrap();
    sandbox.refused(&line.replace("--output-dir out", "--output-dir other"), &["model/tokenizer.json", "not found"]);
    // One row of text among others is enough.
    let mixed = with_line(r#"{"text": "x"}"#);
    mixed.refused(&train(""), &["model/tokenizer.json", "not found"]);
    // A tokenizer of another model gives tokens that this one does not have.
    let sandbox = Sandbox::new();
    let chat = Sandbox::chat();
    for name in ["model/tokenizer.json", "model/tokenizer_config.json", "chat.jsonl"] {
        std::fs::copy(chat.path(name), sandbox.path(name)).unwrap();
    }
    sandbox.refused(&line, &["chat.jsonl: line 1", "vocabulary of 96", "tokenizer of this model?"]);
}

/// The limit on the process is a tenth of what the parsed line would take.
#[cfg(target_os = "linux")]
#[test]
fn a_line_of_100_mb_is_refused_in_little_memory() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", &format!("{{\"input_ids\": [1{}]}}\n", ",1".repeat(50 << 20)));
    let program = env!("CARGO_BIN_EXE_qlora-train");
    let line = "preview --model model --data rows.jsonl";
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("ulimit -v 400000 && exec {program} {line}")])
        .current_dir(sandbox.path("."))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("rows.jsonl: line 1: longer than 64 MiB"), "{said}");
}

/// The name of a data set of the hub is no path; a path that is not there is no name.
#[test]
fn the_name_of_a_data_set_of_the_hub_is_told() {
    let sandbox = Sandbox::new();
    sandbox.refused(&train("--data org/rows"), &["org/rows: cannot open", "hf download --repo-type dataset org/rows"]);
    for path in ["rows/missing.jsonl", "missing", "./a/b", "a/b/c", "../missing", "/no/such"] {
        let done = sandbox.run(&train(&format!("--data {path}")));
        assert!(done.status == Some(2) && !done.stderr.contains("hf download"), "{path}: {done:#?}");
    }
}
