//! `chat`: a conversation over standard input, as `generate` answers each of its turns.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::sandbox::Sandbox;

/// Text that is not empty, whatever the model is.
const DRAWN: &str = "--temperature 1 --seed 3";

/// Standard output of a conversation of these lines.
#[track_caller]
fn chat(sandbox: &Sandbox, more: &str, lines: &str) -> String {
    let mut command = sandbox.command(&format!("chat --model model --max-new-tokens 12 --device cpu {more}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn turns(sandbox: &Sandbox, more: &str, lines: &str) -> Vec<(String, String)> {
    let answer: Value = serde_json::from_str(&chat(sandbox, &format!("--json {more}"), lines)).unwrap();
    let text = |turn: &Value, key: &str| turn[key].as_str().unwrap().to_owned();
    answer["turns"].as_array().unwrap().iter().map(|turn| (text(turn, "prompt"), text(turn, "text"))).collect()
}

#[test]
fn each_turn_is_answered_with_those_before_it() {
    let sandbox = Sandbox::chat();
    sandbox.train_into("out", "--data chat.jsonl --lora-r 2").ok();
    let generate = |prompt: &str| {
        let line = format!("generate --model model --adapter out --prompt {prompt} --max-new-tokens 12 --json");
        sandbox.run(&format!("{line} {DRAWN} --device cpu")).json()["completions"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let said = turns(&sandbox, &format!("--adapter out {DRAWN}"), "hello\n\nwho\n/reset\nwho\n/quit\nnot asked\n");
    let prompts: Vec<&str> = said.iter().map(|(prompt, _)| prompt.as_str()).collect();
    assert_eq!(prompts, ["hello", "who", "who"]);
    assert_eq!((&said[0].1, &said[2].1), (&generate("hello"), &generate("who")));
    // The second turn was asked with the first before it.
    assert_ne!(said[1].1, said[2].1);
    // Text as it grows is the text.
    let grown = chat(&sandbox, &format!("--adapter out {DRAWN}"), "hello\n");
    assert_eq!(grown, format!("{}\n", qlora_train::report::printable_lines(&said[0].1)));
    let whole = chat(&sandbox, &format!("--adapter out --stop qqqq {DRAWN}"), "hello\n");
    assert_eq!(whole, grown);
}

#[test]
fn a_long_conversation_loses_its_oldest_turns() {
    let sandbox = Sandbox::chat();
    let one = turns(&sandbox, "--context 100", "who\n");
    // A turn that is too long gives a warning and is not sent; earlier turns are dropped if there is no room for them.
    let lines = format!("{}\nwho\n{}\nwho\n", "x".repeat(90), "y".repeat(30));
    let said = turns(&sandbox, "--context 100", &lines);
    assert_eq!(said.len(), 3);
    assert_eq!(said[0], one[0]);
    let done = sandbox.run("chat --model model --context 1000");
    assert!(done.status == Some(2) && done.stderr.contains("256 positions"), "{done:#?}");
    let done = sandbox.run("chat --model model --context 100 --max-new-tokens 100");
    assert!(done.status == Some(2) && done.stderr.contains("fewer than the 100"), "{done:#?}");
    let bare = Sandbox::new();
    let done = bare.run("chat --model model");
    assert!(done.status == Some(2) && done.stderr.contains("tokenizer.json"), "{done:#?}");
}
