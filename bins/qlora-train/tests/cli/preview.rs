//! `preview`: the rows as they are trained on.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keys};

#[test]
fn supervised_tokens_are_marked_and_special_ones_visible() {
    let sandbox = Sandbox::chat();
    let text = sandbox.run("preview --model model --data chat.jsonl").ok().stdout;
    assert!(text.contains("chat.jsonl line 1: "), "{text}");
    // Rows are shown as text: no pieces of the vocabulary, and the turns on lines of their own.
    assert!(text.contains("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n⟦world<|im_end|>⟧"), "{text}");
    assert!(text.contains("2 of 2 rows"), "{text}");
    assert!(!text.contains('\u{1b}'), "no color where there is no terminal");
}

#[test]
fn color_on_request_checks_lengths_and_packing_are_shown() {
    let sandbox = Sandbox::chat();
    let output =
        sandbox.command("preview --model model --data chat.jsonl").env("CLICOLOR_FORCE", "1").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\u{1b}[32mworld\u{1b}[0m"), "supervised tokens are green: {text}");
    assert!(text.contains("\u{1b}[1m<|im_end|>\u{1b}[0m"), "special tokens are bold: {text}");
    for part in [
        "warning: BOS: 2 of 2 rows",
        "end: in all 2 rows",
        "lengths of the 2 rows read",
        "packing: 2 rows in 1 pack of",
    ] {
        assert!(text.contains(part), "{part:?} is missing: {text}");
    }
}

#[test]
fn rows_that_are_trained_on_are_left_out_of_validation() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"input_ids\": [5, 6, 7]}\n{\"input_ids\": [8, 9]}\n");
    sandbox.write("val.jsonl", "{\"input_ids\": [5, 6, 7]}\n{\"input_ids\": [9, 8]}\n");
    let told = |more: &str| {
        let line = format!("preview --model model --data rows.jsonl --val-data val.jsonl {more}");
        sandbox.run(&line).ok().stderr.contains("1 row left out: the same as another one before it (deduplicate)")
    };
    assert!(told("--deduplicate") && !told(""));
}

#[test]
fn json_holds_ids_labels_and_tokens() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, -100]}\n{\"input_ids\": [8, 9]}\n");
    let answer: Value = sandbox.run("preview --model model --data rows.jsonl --rows 1 --json").json();
    let expected =
        ["rows", "rows_in_all", "files", "counts", "checks", "lengths", "mix", "packing", "packs", "chat_template"];
    assert_eq!((&keys(&answer)[..], &answer["rows_in_all"]), (&expected[..], &json!(2)));
    assert_eq!(answer["files"], json!([{"path": "rows.jsonl", "rows": 2, "notes": [], "formats": {"tokenized": 2}}]));
    assert_eq!(answer["lengths"], json!([{"from": 2, "to": 2, "rows": 1}, {"from": 3, "to": 4, "rows": 1}]));
    assert_eq!(answer["packing"], json!({"packs": 1, "max_length": 2048, "efficiency": 5.0 / 2048.0}));
    assert_eq!((&answer["checks"]["without_end"], &answer["counts"]["kept"]), (&json!(2), &json!(2)));
    let expected = json!({
        "file": "rows.jsonl", "line": 1, "length": 3, "supervised": 1, "input_ids": [5, 6, 7],
        "labels": [-100, 6, -100], "tokens": ["<5>", "<6>", "<7>"],
    });
    assert_eq!(answer["rows"], json!([expected]));
    let text = sandbox.run("preview --model model --data rows.jsonl --rows 9").ok().stdout;
    assert!(text.contains("rows.jsonl line 1: 3 tokens, 1 supervised\n<5> ⟦<6>⟧ <7>\n"), "{text}");
    assert!(text.contains("rows.jsonl line 2: 2 tokens, 1 supervised\n<8> ⟦<9>⟧\n"), "{text}");
}

#[test]
fn packs_name_the_rows_that_share_them() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"input_ids\": [5, 6]}\n{\"input_ids\": [7, 8, 9]}\n{\"input_ids\": [4, 4, 4, 4]}\n");
    let line = "preview --model model --data rows.jsonl --max-length 5 --packs";
    let json = sandbox.run(&format!("{line} --json")).json();
    let row = |line: usize, length: usize| json!({"file": "rows.jsonl", "line": line, "length": length});
    let mut packs = json["packs"].as_array().unwrap().clone();
    packs.sort_by_key(|pack| pack.as_array().unwrap().len());
    assert_eq!(packs, [json!([row(3, 4)]), json!([row(2, 3), row(1, 2)])]);
    let text = sandbox.run(line).ok().stdout;
    assert!(text.contains("5 of 5 tokens\n  rows.jsonl line 2: 3 tokens\n  rows.jsonl line 1: 2 tokens"), "{text}");
    assert!(text.contains("4 of 5 tokens\n  rows.jsonl line 3: 4 tokens"), "{text}");
    assert_eq!(sandbox.run(&format!("{line} --json --rows 1")).json()["packs"].as_array().unwrap().len(), 1);
    assert_eq!(sandbox.run("preview --model model --data rows.jsonl --json").json()["packs"], json!([]));
    sandbox.refused(&format!("{line} --packing false"), &["--packs", "`packing` is off"]);
}

/// Learned parts are shown on lines of their own, also if the template writes no line ends.
#[test]
fn what_is_learned_stands_apart() {
    let sandbox = Sandbox::chat();
    let template = "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}";
    sandbox.write("flat.jinja", template);
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let turns = [turn("user", "hé"), turn("assistant", "wörld"), turn("user", "who"), turn("assistant", "me")];
    sandbox.write("turns.jsonl", &json!({"messages": turns}).to_string());
    let line = "preview --model model --data turns.jsonl --chat-template flat.jinja";
    let text = sandbox.run(line).ok().stdout;
    let expected =
        "[user]hé<|im_end|>[assistant]¬\n⟦wörld<|im_end|>⟧¬\n[user]who<|im_end|>[assistant]¬\n⟦me<|im_end|>⟧\n";
    assert!(text.contains(expected), "{text}");
    let json = sandbox.run(&format!("{line} --json")).json();
    assert_eq!(
        json["rows"][0]["text"],
        "[user]hé<|im_end|>[assistant]wörld<|im_end|>[user]who<|im_end|>[assistant]me<|im_end|>"
    );
    assert_eq!(json["chat_template"], json!({"origin": "flat.jinja", "source": template}));
}

#[test]
fn one_row_the_longest_and_random_ones_can_be_asked_for() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"input_ids\": [5, 6]}\n{\"input_ids\": [7, 8, 9]}\n{\"input_ids\": [4, 4]}\n");
    let of = |more: &str| {
        let answer = sandbox.run(&format!("preview --model model --data rows.jsonl --json {more}")).json();
        let rows = answer["rows"].as_array().unwrap().iter().map(|row| row["line"].as_u64().unwrap());
        rows.collect::<Vec<u64>>()
    };
    assert_eq!(of("--row 2"), [2]);
    assert_eq!(of("--longest --rows 1"), [2]);
    let random = of("--random --seed 5");
    assert_eq!(random, of("--random --seed 5"));
    assert!((0..20).any(|seed| of(&format!("--random --seed {seed}")) != [1, 2, 3]));
    sandbox.refused("preview --model model --data rows.jsonl --row 4", &["--row", "from 1 to 3"]);
}
