//! The form in which rows are read is that in which an adapter is asked: said, recorded, and taken from the record.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::sandbox::{Done, Sandbox};

/// Rows of texts under prompt and completion, in two files.
fn pairs() -> Sandbox {
    let sandbox = Sandbox::chat();
    for (name, words) in [("pairs.jsonl", ["hello", "who", "what"]), ("val.jsonl", ["hello", "where", "how"])] {
        let rows = words.map(|word| json!({"prompt": format!("{word} there"), "completion": " hello"}).to_string());
        sandbox.write(name, &rows.join("\n"));
    }
    sandbox
}

fn loss(done: Done) -> f64 {
    done.json()["loss"].as_f64().unwrap()
}

#[test]
fn train_eval_and_generate_read_a_prompt_in_one_form() {
    let sandbox = pairs();
    for form in ["auto", "text", "chat"] {
        let data = "--data pairs.jsonl --val-data val.jsonl --save-steps 3";
        let trained = sandbox.train_into(form, &format!("{data} --prompt-completion {form}")).json();
        let trained = trained["eval_loss"].as_f64().unwrap();
        // The adapter alone, or its checkpoint, is evaluated as its run read rows.
        let alone = sandbox.run(&format!("eval --adapter {form} --data val.jsonl --json")).ok();
        let said = if form == "text" { "read as plain text" } else { "read as a user turn and an answer" };
        assert!(alone.stderr.contains(said), "{form}: {}", alone.stderr);
        assert!((loss(alone) - trained).abs() < 1e-6 * trained, "{form}");
        let checkpoint = format!("{form}/checkpoint-3");
        let of = |more: &str| loss(sandbox.run(&format!("eval --adapter {checkpoint} --data val.jsonl --json {more}")));
        assert_eq!(of(""), of(&format!("--prompt-completion {form}")), "{form}");
        let other = if form == "text" { "chat" } else { "text" };
        assert_ne!(of(""), of(&format!("--prompt-completion {other}")), "{form}");
        // And generate asks so, and says how.
        let end = "--prompt hello --max-new-tokens 4 --temperature 1";
        let asked = |more: &str| sandbox.run(&format!("generate --adapter {form} {end} {more}")).ok();
        let said =
            if form == "text" { "asked as they stand, without the chat template" } else { "asked as user turns" };
        assert!(asked("").stderr.contains(said), "{form}: {}", asked("").stderr);
        assert_eq!(asked("").stdout, asked(&format!("--prompt-completion {form}")).stdout, "{form}");
    }
    // A settings file says it for the adapter that its run left, and for others where it chooses one.
    let file = "model: model\nmax_length: 64\ndata: pairs.jsonl\nval_data: val.jsonl\noutput_dir: text\n";
    sandbox.write("silent.yaml", file);
    sandbox.write("chat.yaml", &format!("{file}prompt_completion: chat\n"));
    let of = |line: &str| loss(sandbox.run(&format!("eval --json {line}")));
    assert_eq!(of("silent.yaml"), of("silent.yaml --prompt-completion text"));
    assert_eq!(of("chat.yaml"), of("chat.yaml --prompt-completion chat"));
    assert_ne!(of("chat.yaml"), of("silent.yaml"));

    let words = ["`prompt_completion: chat`", "`text`", "--prompt-completion"];
    sandbox.refused("eval --adapter text --adapter chat --data val.jsonl", &words);
    sandbox.refused("generate --adapter text --adapter chat --prompt hello", &words);
    sandbox.run("eval --adapter text --adapter chat --data val.jsonl --prompt-completion text").ok();
    sandbox.refused("generate --adapter text --prompt hello --system x", &["--system", "--prompt-completion chat"]);
    sandbox.refused(
        "generate --adapter text --prompt x --prompt-completion maybe",
        &["prompt-completion", "maybe", "text or chat"],
    );
}

/// Without a template rows of texts are read as they stand, and an adapter is asked so; a base alone is not.
#[test]
fn without_a_template_an_adapter_is_asked_as_its_rows_were_read() {
    let sandbox = pairs();
    let config = trainer_lab::fixture::tokenizer_config(None);
    trainer_lab::fixture::write_json(&sandbox.path("model"), "tokenizer_config.json", &config);
    sandbox.train("--data pairs.jsonl").ok();
    let asked = |line: &str| sandbox.run(&format!("generate --prompt hello --max-new-tokens 3 {line}")).ok();
    let done = asked("--adapter out");
    assert!(done.stderr.contains("asked as they stand: the model has no chat template"), "{}", done.stderr);
    assert_eq!(done.stdout, asked("--adapter out --prompt-completion text").stdout);
    sandbox.refused("generate --model model --prompt hello", &["no chat template", "--prompt-completion text"]);
    assert!(asked("--model model --raw").stderr.contains("continued as they stand"));
}

/// `generate --json` with a text on standard input.
fn piped(sandbox: &Sandbox, line: &str, input: &[u8]) -> Value {
    let mut command = sandbox.command(&format!("generate --model model --json --max-new-tokens 8 {line}"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_prompt_comes_from_standard_input() {
    let sandbox = Sandbox::chat();
    let plain = piped(&sandbox, "--prompt hello", b"");
    for input in [&b"hello"[..], b"hello\n", b"hello\r\n"] {
        assert_eq!(piped(&sandbox, "--prompt -", input), plain);
    }
    let lines = piped(&sandbox, "-p - -p who", b"one\ntwo\n\n");
    let prompts: Vec<&Value> =
        lines["completions"].as_array().unwrap().iter().map(|answer| &answer["prompt"]).collect();
    assert_eq!(prompts, ["one\ntwo\n", "who"]);
    sandbox.refused("generate --model model -p - -p -", &["--prompt", "twice"]);
}

/// The answer to hello with these arguments.
fn answer(sandbox: &Sandbox, more: &str) -> String {
    let line = format!("generate --model model --prompt hello --max-new-tokens 24 --json {more}");
    let answer = sandbox.run(&line).json();
    answer["completions"][0]["text"].as_str().unwrap().to_owned()
}

/// The characters of a text that can stand alone in a line of arguments.
fn graphic(text: &str) -> Vec<String> {
    text.chars().filter(char::is_ascii_graphic).map(String::from).collect()
}

/// An answer with several such characters, and the arguments that draw it.
fn drawn(sandbox: &Sandbox) -> (String, String) {
    let drawn = (1..40).map(|seed| format!("--temperature 1 --seed {seed}")).map(|more| (answer(sandbox, &more), more));
    drawn.into_iter().find(|(text, _)| graphic(text).len() > 4).unwrap()
}

#[test]
fn answers_end_with_the_texts_that_a_model_says() {
    let sandbox = Sandbox::chat();
    let (whole, more) = drawn(&sandbox);
    let stop = &graphic(&whole)[2];
    let end = whole.find(stop).unwrap() + stop.len();
    for texts in [json!([stop]), json!(stop), json!(["no such text", stop])] {
        sandbox.write("model/generation_config.json", &json!({"stop_strings": texts}).to_string());
        assert_eq!(answer(&sandbox, &more), whole[..end], "{whole:?} {texts}");
        // One warning is printed.
        let said = sandbox.run(&format!("generate --model model --prompt hello --max-new-tokens 2 {more}")).ok().stderr;
        assert_eq!(said.matches("`stop_strings` of generation_config.json").count(), 1, "{said}");
        // A text of the user's ends it before, and stands in for the model's.
        assert_eq!(answer(&sandbox, &format!("{more} --stop={stop}")), whole[..end - stop.len()], "{whole:?} {texts}");
        assert_eq!(answer(&sandbox, &format!("{more} --stop=no-such-text")), whole, "{texts}");
    }
    for texts in [json!([]), Value::Null, json!(["no such text"])] {
        sandbox.write("model/generation_config.json", &json!({"stop_strings": texts}).to_string());
        assert_eq!(answer(&sandbox, &more), whole, "{texts}");
    }
    sandbox.write("model/generation_config.json", r#"{"stop_strings": [3]}"#);
    sandbox.refused("generate --model model --prompt hello", &["generation_config.json", "stop_strings"]);
}

#[test]
fn an_answer_ends_before_a_stop_text_and_top_k_of_one_is_greedy() {
    let sandbox = Sandbox::chat();
    let of = |more: &str| answer(&sandbox, more);
    let (whole, more) = drawn(&sandbox);
    let stops = graphic(&whole);
    let stops = [&stops[stops.len() / 2], &stops[stops.len() - 1]];
    let cut = |stop: &str| whole.find(stop).unwrap();
    for stop in stops {
        assert_eq!(of(&format!("{more} --stop={stop}")), &whole[..cut(stop)], "{whole:?} {stop:?}");
    }
    let both = of(&format!("{more} --stop={} --stop={}", stops[0], stops[1]));
    assert_eq!(both, &whole[..cut(stops[0]).min(cut(stops[1]))]);
    assert_eq!(of(&format!("{more} --stop no-such-text-at-all")), whole);
    assert_eq!(of("--temperature 1 --top-k 1 --seed 9"), of(""));
    assert_ne!(of("--temperature 2 --top-k 2 --seed 9"), of("--temperature 2 --seed 9"));
    let empty = sandbox.run("generate --model model --prompt x --stop= --max-new-tokens 2");
    assert!(empty.status == Some(2) && empty.stderr.contains("--stop"), "{empty:#?}");
}

/// The result of a command under --json is an object on standard output, also an error.
#[test]
fn every_command_gives_its_error_as_an_object() {
    let sandbox = Sandbox::chat();
    sandbox.write("bad.yaml", "model: model\ndata: rows.jsonl\nlora_r: many\n");
    for line in [
        "eval --model model --data missing.jsonl",
        "eval --model missing --data rows.jsonl",
        "eval --adapter missing --data rows.jsonl",
        "eval bad.yaml",
        "eval --model model --data rows.jsonl --compute maybe",
        "eval --model model --data rows.jsonl --on-bad-row maybe",
        "eval --model model --data rows.jsonl --prompt-completion maybe",
        "eval --model model --data rows.jsonl --messages-column missing",
        "eval",
        "generate --adapter missing --prompt x",
        "generate bad.yaml --prompt x",
        "generate --model model --prompt x --temperature hot",
        "preview --model model --data missing.jsonl",
        "plan bad.yaml",
        "train bad.yaml",
        "quantize --model missing --output q",
        "bench --shape missing --seq 8",
        "doctor --device moon",
        "init missing/dir/file.yaml",
    ] {
        let done = sandbox.run(&format!("{line} --json"));
        let told: Value = serde_json::from_str(&done.stdout).unwrap_or_else(|_| panic!("{line}: {done:#?}"));
        assert_eq!((told["error"]["exit_status"].as_i64(), done.status), (Some(2), Some(2)), "{line}: {done:#?}");
        let message = told["error"]["message"].as_str().unwrap();
        let told = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        let first = told(message.lines().next().unwrap());
        assert!(!first.is_empty() && told(&done.stderr).contains(&first), "{line}: {done:#?}");
    }
}
