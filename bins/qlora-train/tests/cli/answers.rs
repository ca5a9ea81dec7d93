//! Evaluation by answers.

use serde_json::{Value, json};

use crate::sandbox::Sandbox;

fn row(question: &str, answer: &str, task: &str) -> String {
    let turns = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
    json!({"messages": turns, "task": task}).to_string()
}

/// The result of a name.
fn of<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let results = answer["results"].as_array().unwrap();
    results.iter().find(|result| result["name"] == name).unwrap_or_else(|| panic!("{name}: {answer}"))
}

/// The expected answers are what adapter and base say to the same questions.
#[test]
fn answers_of_adapter_and_base_are_compared_with_those_of_the_rows() {
    let sandbox = Sandbox::chat();
    sandbox.write("rows.jsonl", &[row("hello", "world", "sum"), row("who", "me", "name")].join("\n"));
    sandbox.train("--max-steps 20 --learning-rate 2e-2").ok();
    let line = "eval --model model --adapter out --data rows.jsonl --answers --with-base --max-new-tokens 12";
    let before = sandbox.run(&format!("{line} --json")).json();
    let said = |at: usize, who: &str| {
        let said = before["rows"][at]["said"].as_array().unwrap();
        said.iter().find(|said| said["name"] == who).unwrap()["text"].as_str().unwrap().to_owned()
    };
    assert_ne!(said(0, "out"), said(0, "base"));
    let (learned, part) = (said(0, "out"), said(1, "base").chars().take(3).collect::<String>());
    sandbox.write("rows.jsonl", &[row("hello", &learned, "sum"), row("who", &part, "name")].join("\n"));
    let answer = sandbox.run(&format!("{line} --match (?s)(.)$ --json")).json();
    assert_eq!(
        (&answer["rows"][0]["said"], &answer["rows"][1]["said"]),
        (&before["rows"][0]["said"], &before["rows"][1]["said"])
    );
    let task = |who: &str, name: &str| {
        let tasks = of(&answer, who)["tasks"].as_array().unwrap();
        tasks.iter().find(|task| task["name"] == name).unwrap().clone()
    };
    let of_adapter = task("out", "sum");
    for figure in ["exact_match", "contains", "match"] {
        assert_eq!(of_adapter[figure], 1.0, "{answer}");
    }
    assert_eq!(task("base", "sum")["exact_match"], 0.0, "{answer}");
    let of_base = task("base", "name");
    assert_eq!((&of_base["exact_match"], &of_base["contains"]), (&json!(0.0), &json!(1.0)), "{answer}");
    assert_eq!((&of(&answer, "out")["answers"], &of(&answer, "base")["answers"]), (&json!(2), &json!(2)));
    assert!(of(&answer, "out")["exact_match"] == 0.5 && of(&answer, "base")["exact_match"] == 0.0, "{answer}");
    let first = &answer["rows"][0];
    assert_eq!(first["expected"], learned.as_str());
    assert!(first["prompt"].as_str().unwrap().ends_with("<|im_start|>assistant\n"), "{first}");

    // For people: a table, and the first answers side by side.
    let text = sandbox.run(&format!("{line} --first 1 --show 1")).ok().stdout;
    let head: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["answers", "exact", "contains", "ROUGE-L"], "{text}");
    let figures: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().take(4).collect();
    assert_eq!(figures, ["out", "1", "100.0%", "100.0%"], "{text}");
    for part in ["answer 1 of 1 row\n  expected: ", "\n  out: ", "\n  base: "] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn rows_that_ask_nothing_and_patterns_that_find_nothing_are_refused() {
    let sandbox = Sandbox::chat();
    sandbox.write("text.jsonl", "{\"text\": \"hello\"}");
    let line = |data: &str, more: &str| format!("eval --model model --data {data} --answers --max-new-tokens 4 {more}");
    sandbox.refused(&line("text.jsonl", ""), &["no row has an answer with something before it"]);
    sandbox.refused(&line("chat.jsonl", "--match [0-9"), &["--match", "[0-9"]);
    sandbox.refused(&line("chat.jsonl", "--match [0-9]+"), &["found in no answer of the rows"]);
    let done = sandbox.run("eval --model model --data chat.jsonl --match x");
    assert!(done.status == Some(2) && done.stderr.contains("--answers"), "{done:#?}");
    sandbox.refused(&line("chat.jsonl", "").replace("tokens 4", "tokens 5000"), &["256 positions", "--max-new-tokens"]);
    // Several turns: the last answer is asked for, and what was said before is part of the question.
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let turns = [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")];
    sandbox.write("turns.jsonl", &json!({"messages": turns}).to_string());
    let answer = sandbox.run(&line("turns.jsonl", "--json")).json();
    assert_eq!(answer["rows"][0]["expected"], "d");
    assert!(answer["rows"][0]["prompt"].as_str().unwrap().contains("assistant\nb<|im_end|>"), "{answer}");
    assert_eq!(of(&answer, "base")["answers"], 1);
}
