//! Adapters used together: each row with the one that it names, in one batch, and weighted sums.

use serde_json::{Value, json};

use crate::sandbox::Sandbox;

/// Two adapters of different rank and layers, trained on different rows.
fn with_adapters() -> Sandbox {
    let sandbox = Sandbox::chat();
    sandbox.train_into("a", "--data chat.jsonl --lora-r 2 --lora-target-modules q_proj,down_proj").ok();
    sandbox.train_into("b", "--data rows.jsonl --learning-rate 3e-2 --seed 7").ok();
    sandbox
}

const GENERATE: &str = "generate --model model --max-new-tokens 24 --compute f32 --json";
const EVAL: &str = "eval --model model --compute f32 --json";

fn number(json: &Value) -> f64 {
    json.as_f64().unwrap()
}

#[track_caller]
fn assert_near(found: &Value, expected: &Value) {
    let (found, expected) = (number(found), number(expected));
    assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{found} {expected}");
}

#[test]
fn prompts_are_answered_by_the_adapters_that_they_name() {
    let sandbox = with_adapters();
    let lines = [
        json!({"prompt": "hello", "adapter": "x"}),
        json!({"prompt": "who"}),
        json!({"prompt": "who", "adapter": " a "}),
        json!({"prompt": "hello", "adapter": null}),
        json!({"prompt": "hello", "adapter": "a"}),
    ];
    let text: Vec<String> = lines.iter().map(|line| line.to_string()).collect();
    sandbox.write("prompts.jsonl", &text.join("\n"));
    let line = format!("{GENERATE} --adapter a --adapter x=b --prompts prompts.jsonl");
    let completions = sandbox.run(&format!("{line} --adapter-by-row")).json()["completions"].clone();
    let alone = |prompt: &str, adapter: &str| {
        let of = if adapter.is_empty() { String::new() } else { format!("--adapter {adapter}") };
        sandbox.run(&format!("{GENERATE} --prompt {prompt} {of}")).json()["completions"][0]["text"].clone()
    };
    let expected = [("hello", "b", "x"), ("who", "", ""), ("who", "a", "a"), ("hello", "", ""), ("hello", "a", "a")];
    assert_eq!(completions.as_array().unwrap().len(), expected.len());
    for (at, (prompt, adapter, name)) in expected.into_iter().enumerate() {
        let found = &completions[at];
        assert_eq!((&found["prompt"], &found["text"]), (&json!(prompt), &alone(prompt, adapter)), "{at}");
        assert_eq!(found["adapter"].as_str().unwrap_or_default(), name);
    }
    // Without the flag each adapter answers all prompts, and a note says that lines name others.
    let done = sandbox.run(&line).ok();
    assert!(done.stderr.contains("--adapter-by-row"), "{}", done.stderr);
    assert_eq!(done.json()["completions"].as_array().unwrap().len(), 2 * lines.len());
}

/// Rows that count upwards, with an adapter each.
fn named_rows(sandbox: &Sandbox, name: &str, adapters: &[Option<&str>]) {
    let row = |(at, adapter): (usize, &Option<&str>)| {
        let ids: Vec<usize> = (5 + 3 * at..15 + 4 * at).collect();
        json!({"input_ids": ids, "adapter": adapter}).to_string()
    };
    sandbox.write(name, &adapters.iter().enumerate().map(row).collect::<Vec<_>>().join("\n"));
}

#[test]
fn rows_are_evaluated_with_the_adapters_that_they_name() {
    let sandbox = with_adapters();
    let of_rows = [Some("a"), None, Some("x"), Some("a"), Some(""), Some("x")];
    named_rows(&sandbox, "named.jsonl", &of_rows);
    let all = sandbox.read("named.jsonl");
    let line = "--adapter a --adapter x=b --adapter-by-row --with-base";
    let found = sandbox.run(&format!("{EVAL} --data named.jsonl {line}")).json();
    let parts = found["adapters"].as_array().unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base", "a", "x"]);
    let (mut loss, mut tokens) = (0.0, 0.0);
    for (part, (keys, adapter)) in
        parts.iter().zip([([None, Some("")], ""), ([Some("a"); 2], "--adapter a"), ([Some("x"); 2], "--adapter b")])
    {
        let own = all.lines().zip(of_rows).filter(|(_, of_row)| keys.contains(of_row)).map(|(line, _)| line);
        sandbox.write("own.jsonl", &own.collect::<Vec<_>>().join("\n"));
        let alone = sandbox.run(&format!("{EVAL} --data own.jsonl {adapter}")).json();
        assert_near(&part["loss"], &alone["loss"]);
        assert_eq!(part["tokens"], alone["tokens"]);
        loss += number(&alone["loss"]) * number(&alone["tokens"]);
        tokens += number(&alone["tokens"]);
    }
    assert_near(&found["loss"], &json!(loss / tokens));
    assert_eq!(number(&found["tokens"]), tokens);
    assert_near(&found["base"]["loss"], &sandbox.run(&format!("{EVAL} --data named.jsonl")).json()["loss"]);
    let text = sandbox.run(&format!("eval --model model --data named.jsonl {line}")).ok().stdout;
    assert!(text.contains("adapter x: loss"), "{text}");
}

#[test]
fn rows_are_answered_by_the_adapters_that_they_name() {
    let sandbox = with_adapters();
    let row = |prompt: &str, adapter: &str| {
        let turns = json!([{"role": "user", "content": prompt}, {"role": "assistant", "content": "world"}]);
        json!({"messages": turns, "adapter": adapter}).to_string()
    };
    sandbox.write("named.jsonl", &[row("hello", "b"), row("who", "a"), row("hello", "")].join("\n"));
    let answers = |line: &str| {
        let line = format!("{EVAL} --answers --max-new-tokens 12 --data named.jsonl {line}");
        let rows = sandbox.run(&line).json()["rows"].clone();
        rows.as_array().unwrap().iter().map(|row| row["said"][0]["text"].clone()).collect::<Vec<_>>()
    };
    let [a, b, base] = ["--adapter a", "--adapter b", ""].map(answers);
    let found = answers("--adapter a --adapter b --adapter-by-row");
    assert_eq!(found, [b[0].clone(), a[1].clone(), base[2].clone()]);
}

#[test]
fn adapters_with_weights_are_added_up() {
    let sandbox = with_adapters();
    let loss = |line: &str| sandbox.run(&format!("{EVAL} --data rows.jsonl {line}")).json()["loss"].clone();
    let (a, b, base) = (loss("--adapter a"), loss("--adapter b"), loss(""));
    assert!((number(&b) - number(&base)).abs() > 1e-2 * number(&base), "{b} {base}");
    for (line, expected) in [
        ("--adapter a:1 --adapter b:0", &a),
        ("--adapter a:0 --adapter b", &b),
        ("--adapter b:0.25 --adapter b:0.75", &b),
        ("--adapter x=b:2 --adapter b:-1", &b),
        ("--adapter b:1 --adapter b:-1", &base),
    ] {
        assert_near(&loss(line), expected);
    }
    let both = number(&loss("--adapter a:0.5 --adapter b:0.5"));
    assert!([a, b, base].iter().all(|one| (number(one) - both).abs() > 1e-6), "{both}");
    let text = |line: &str| sandbox.run(&format!("{GENERATE} --prompt hello {line}")).json()["completions"].clone();
    assert_eq!(text("--adapter b:0.5 --adapter b:0.5")[0]["text"], text("--adapter b")[0]["text"]);
}

#[test]
fn what_cannot_be_used_together_is_refused() {
    let sandbox = with_adapters();
    sandbox.write("one.jsonl", &json!({"prompt": "hello", "adapter": "c"}).to_string());
    sandbox.write("number.jsonl", &json!({"prompt": "hello", "adapter": 3}).to_string());
    named_rows(&sandbox, "rows_c.jsonl", &[Some("a"), Some("c")]);
    sandbox.train_into("dora", "--use-dora true --lora-dropout 0").ok();
    let generate = "generate --model model --prompts one.jsonl --adapter-by-row";
    for (line, words) in [
        (generate.to_owned(), &["--adapter-by-row", "no adapter"][..]),
        (format!("{generate} --adapter a --adapter b"), &["`adapter`", "\"c\"", "\"a\", \"b\""]),
        (format!("{generate} --adapter c=a --adapter b:0.5"), &["weight"]),
        (format!("{generate} --adapter c=a --adapter c=b"), &["twice", "\"c\""]),
        (format!("{generate} --adapter c=a --adapter dora"), &["dora", "DoRA", "plain LoRA"]),
        (
            "generate --model model --prompts number.jsonl --adapter a".to_owned(),
            &["number.jsonl, line 1", "`adapter`"],
        ),
        ("generate --model model --prompt x --adapter a:0.5 --adapter dora".to_owned(), &["dora", "plain LoRA"]),
        ("generate --model model --prompt x --adapter a:nan".to_owned(), &["a:nan", "finite"]),
        ("eval --model model --data rows_c.jsonl --adapter a --adapter-by-row".to_owned(), &["`adapter`", "\"c\""]),
        ("chat --model model --adapter a --adapter b".to_owned(), &["one at a time", "weights"]),
    ] {
        sandbox.refused(&line, words);
    }
}
