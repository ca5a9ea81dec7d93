//! `preview`: the rows as they are trained on.

use serde_json::{Value, json};

use crate::sandbox::{Sandbox, keys};

#[test]
fn supervised_tokens_are_marked_and_special_ones_visible() {
    let sandbox = Sandbox::chat();
    let text = sandbox.run("preview --model model --data chat.jsonl").ok().stdout;
    assert!(text.contains("chat.jsonl line 1: "), "{text}");
    assert!(text.contains("<|im_start|> u s e r Ċ hel l o <|im_end|> Ċ <|im_start|> "), "{text}");
    assert!(text.contains("a n t Ċ ⟦w o r l d <|im_end|>⟧"), "{text}");
    assert!(text.contains("2 of 2 rows"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour where there is no terminal");
}

#[test]
fn json_holds_ids_labels_and_tokens() {
    let sandbox = Sandbox::new();
    sandbox.write("rows.jsonl", "{\"input_ids\": [5, 6, 7], \"labels\": [-100, 6, -100]}\n{\"input_ids\": [8, 9]}\n");
    let answer: Value = sandbox.run("preview --model model --data rows.jsonl --rows 1 --json").json();
    assert_eq!((keys(&answer), &answer["rows_in_all"]), (vec!["rows", "rows_in_all"], &json!(2)));
    let expected = json!({
        "file": "rows.jsonl", "line": 1, "length": 3, "supervised": 1, "input_ids": [5, 6, 7],
        "labels": [-100, 6, -100], "tokens": ["<5>", "<6>", "<7>"],
    });
    assert_eq!(answer["rows"], json!([expected]));
    let text = sandbox.run("preview --model model --data rows.jsonl --rows 9").ok().stdout;
    assert!(text.contains("rows.jsonl line 1: 3 tokens, 1 supervised\n<5> ⟦<6>⟧ <7>\n"), "{text}");
    assert!(text.contains("rows.jsonl line 2: 2 tokens, 1 supervised\n<8> ⟦<9>⟧\n"), "{text}");
}
