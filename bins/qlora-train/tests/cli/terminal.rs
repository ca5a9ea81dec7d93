//! Text of files on the terminal: whatever a file says, no character of it moves the cursor, colors the screen or turns
//! the direction of writing.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::sandbox::{Done, Sandbox, train};

/// Titles a terminal, clears it by the one-byte control, turns the direction, and begins the line anew.
const HOSTILE: &str = "\u{1b}]0;pwned\u{7}\u{9b}2J\u{202e}\u{2066}\r\u{7f}";

fn is_harmful(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Nothing harmful in both outputs, and the text itself was said: the sink was reached.
#[track_caller]
fn check(case: &str, done: &Done) {
    for (output, text) in [("stdout", &done.stdout), ("stderr", &done.stderr)] {
        if let Some(c) = text.chars().find(|c| is_harmful(*c)) {
            panic!("{case}: {c:?} on {output}: {text:?}");
        }
    }
    assert!(done.stdout.contains("pwned") || done.stderr.contains("pwned"), "{case} said nothing of it: {done:#?}");
}

fn row(value: &Value) -> String {
    value.to_string() + "\n"
}

#[test]
fn text_of_rows_is_escaped() {
    let sandbox = Sandbox::chat();
    let turns = |content: &str| json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]});
    let tokens = |task: &str| json!({"input_ids": [1, 2, 3], "task": task});
    let rows = [
        ("a key", row(&json!({HOSTILE: 1}))),
        ("a key nothing reads", row(&json!({"prompt": "a", "completion": "b", HOSTILE: 1}))),
        ("a key of a turn", row(&json!({"messages": [{"role": "user", HOSTILE: "a"}]}))),
        (
            "a role",
            row(&json!({"messages": [{"role": HOSTILE, "content": "a"}, {"role": "assistant", "content": "b"}]})),
        ),
        ("text", row(&turns(HOSTILE))),
        ("a value of a wrong type", row(&json!({"input_ids": HOSTILE}))),
        ("a label", row(&json!({"input_ids": [1, 2], "labels": [HOSTILE, 2]}))),
        ("broken JSON", format!("{{\"{HOSTILE}")),
        ("a tool", row(&json!({"messages": turns("a")["messages"], "tools": HOSTILE}))),
        ("CSV", format!("prompt,{HOSTILE}\na,b\n")),
        ("two tasks", row(&tokens(HOSTILE)) + &row(&tokens("b"))),
    ];
    let mut reached = 0;
    for (case, text) in rows {
        let name = if case == "CSV" { "r.csv" } else { "r.jsonl" };
        sandbox.write(name, &text);
        let mut said = 0;
        for line in [
            format!("preview --model model --data {name} --output-dir x"),
            format!("preview --model model --data {name} --output-dir x --json"),
            format!("preview --model model --data {name} --output-dir x --on-bad-row skip"),
            format!("eval --model model --data {name}"),
            format!("eval --model model --data {name} --json"),
            train(&format!("--data {name} --max-steps 1 --val-data {name} --output-dir x{}", case.len())),
        ] {
            let done = sandbox.run(&line);
            for text in [&done.stdout, &done.stderr] {
                assert!(!text.contains(is_harmful), "{case}: {line}: {text:?}");
            }
            said += usize::from(done.stdout.contains("pwned") || done.stderr.contains("pwned"));
        }
        reached += usize::from(said > 0);
    }
    // The reader says the place of broken JSON, not its text.
    assert!(reached >= 8, "the text of only {reached} of 11 rows was said");
}

#[test]
fn colors_of_the_preview_are_its_own() {
    let sandbox = Sandbox::chat();
    sandbox.write("r.jsonl", &row(&json!({"prompt": HOSTILE, "completion": HOSTILE})));
    let mut command = sandbox.command("preview --model model --data r.jsonl --output-dir x");
    let output = command.env("CLICOLOR_FORCE", "1").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("pwned") && text.contains("\u{1b}[32m"), "{text:?}");
    // Without the styles that the preview writes, nothing is left.
    let plain = ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[32m"].iter().fold(text, |text, style| text.replace(style, ""));
    assert!(!plain.contains(is_harmful), "{plain:?}");
}

#[test]
fn names_of_files_are_escaped() {
    let sandbox = Sandbox::chat();
    let name = format!("train-{HOSTILE}.jsonl");
    fs::create_dir(sandbox.path("folder")).unwrap();
    fs::copy(sandbox.path("chat.jsonl"), sandbox.path("folder").join(&name)).unwrap();
    fs::copy(sandbox.path("chat.jsonl"), sandbox.path("folder").join("train-b.jsonl")).unwrap();
    for line in ["preview --model model --data folder --output-dir x", "eval --model model --data folder"] {
        check(line, &sandbox.run(line));
        check(line, &sandbox.run(&format!("{line} --json")));
    }
    // A model and an output directory of such names.
    fs::rename(sandbox.path("model"), sandbox.path(HOSTILE)).unwrap();
    for (at, json) in [false, true].into_iter().enumerate() {
        let out = format!("{at}{HOSTILE}");
        for line in [
            &["train", "--data", "chat.jsonl", "--max-steps", "1", "--output-dir", &out][..],
            &["train", "--data", "chat.jsonl", "--max-steps", "2", "--output-dir", &out],
            &["quantize", "--output", &format!("q{out}")],
            &["eval", "--data", HOSTILE],
        ] {
            let mut command = sandbox.command("");
            command.args(line).args(["--model", HOSTILE]).args(json.then_some("--json"));
            let output = command.output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            let done = Done { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
            check(line[0], &done);
        }
    }
}

fn change(path: &Path, with: impl Fn(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    with(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// The header of a safetensors file, changed.
fn change_header(path: &Path, with: impl Fn(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    with(&mut header);
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut changed = (text.len() as u64).to_le_bytes().to_vec();
    changed.extend(text);
    changed.extend(&bytes[8 + length..]);
    fs::write(path, changed).unwrap();
}

/// A change of a model's file.
type Change<'a> = &'a dyn Fn(&Path);

/// Hostile text in a stranger's model, file by file.
#[test]
fn text_of_models_is_escaped() {
    let original = Sandbox::chat();
    let path = |name: &str| -> PathBuf { original.path(&format!("model/{name}")) };
    let changes: [(&str, Change); 15] = [
        ("config.json", &|file| change(file, |c| c["model_type"] = HOSTILE.into())),
        ("config.json", &|file| change(file, |c| c["architectures"] = json!([HOSTILE]))),
        ("config.json", &|file| change(file, |c| c["hidden_act"] = HOSTILE.into())),
        ("config.json", &|file| change(file, |c| c["hidden_size"] = HOSTILE.into())),
        ("config.json", &|file| change(file, |c| c["rope_scaling"] = json!({"rope_type": HOSTILE}))),
        ("config.json", &|file| change(file, |c| c["quantization_config"] = json!({"quant_method": HOSTILE}))),
        ("config.json", &|file| fs::write(file, format!("{{\"{HOSTILE}\": 1, \"{HOSTILE}\": 2}}")).unwrap()),
        ("model.safetensors", &|file| {
            change_header(file, |h| h[HOSTILE] = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}));
        }),
        ("model.safetensors", &|file| {
            change_header(file, |h| h[HOSTILE] = json!({"dtype": "F32", "shape": [7], "data_offsets": [0, 0]}));
        }),
        ("model.safetensors", &|file| change_header(file, |h| h[HOSTILE] = json!({"dtype": HOSTILE}))),
        ("model.safetensors", &|file| {
            change_header(file, |h| h["__metadata__"] = json!({"qlora.base_fingerprint": HOSTILE, "format": HOSTILE}));
        }),
        ("tokenizer_config.json", &|file| change(file, |c| c["eos_token"] = HOSTILE.into())),
        ("tokenizer_config.json", &|file| {
            change(file, |c| c["chat_template"] = format!("{{{{ raise_exception('{HOSTILE}') }}}}").into())
        }),
        ("tokenizer_config.json", &|file| change(file, |c| c["chat_template"] = format!("{{% {HOSTILE}").into())),
        ("tokenizer.json", &|file| change(file, |c| c["model"] = json!({"type": HOSTILE}))),
    ];
    let mut reached = 0;
    for (at, (name, with)) in changes.iter().enumerate() {
        let whole = fs::read(path(name)).unwrap();
        with(&path(name));
        let mut said = 0;
        for line in [
            "preview --model model --data chat.jsonl --output-dir x",
            "plan --model model --data chat.jsonl --output-dir x",
            "eval --model model --data chat.jsonl",
            "quantize --model model --output q",
            "generate --model model --prompt a --max-new-tokens 2",
        ] {
            for json in ["", " --json"] {
                let done = original.run(&format!("{line}{json}"));
                for text in [&done.stdout, &done.stderr] {
                    assert!(!text.contains(is_harmful), "{at} {name}: {line}: {text:?}");
                }
                said += usize::from(done.stdout.contains("pwned") || done.stderr.contains("pwned"));
                let _ = fs::remove_dir_all(original.path("q"));
            }
        }
        reached += usize::from(said > 0);
        fs::write(path(name), whole).unwrap();
    }
    assert!(reached >= 10, "the text of only {reached} of 15 changes was said");
    // The index of shards.
    let text = json!({"metadata": {}, "weight_map": {"model.norm.weight": HOSTILE}}).to_string();
    fs::rename(path("model.safetensors"), original.path("kept")).unwrap();
    fs::write(path("model.safetensors.index.json"), text).unwrap();
    check("index", &original.run("eval --model model --data chat.jsonl"));
    fs::remove_file(path("model.safetensors.index.json")).unwrap();
    fs::rename(original.path("kept"), path("model.safetensors")).unwrap();
}

#[test]
fn text_of_adapters_and_settings_is_escaped() {
    let sandbox = Sandbox::new();
    sandbox.train("--max-steps 1").ok();
    let whole = fs::read(sandbox.path("out/adapter_config.json")).unwrap();
    let eval = "eval --model model --adapter out --data rows.jsonl";
    let changes: [&dyn Fn(&mut Value); 6] = [
        &|config| config[HOSTILE] = 1.into(),
        &|config| config["target_modules"] = json!([HOSTILE]),
        &|config| config["peft_type"] = HOSTILE.into(),
        &|config| config["base_model_name_or_path"] = HOSTILE.into(),
        &|config| config["rank_pattern"] = json!({HOSTILE: 1}),
        &|config| config["r"] = HOSTILE.into(),
    ];
    let mut reached = Vec::new();
    for (at, with) in changes.iter().enumerate() {
        change(&sandbox.path("out/adapter_config.json"), with);
        let done = sandbox.run(eval);
        assert!(!done.stderr.contains(is_harmful) && !done.stdout.contains(is_harmful), "{at}: {done:?}");
        if done.stderr.contains("pwned") {
            reached.push(at);
        }
        fs::write(sandbox.path("out/adapter_config.json"), &whole).unwrap();
    }
    // The others are reported without their text: a list of modules, the name of the base, a pattern that matches
    // nothing.
    assert_eq!(reached, [0, 2, 5], "changes whose text was said");
    fs::remove_file(sandbox.path("out/SHA256SUMS")).unwrap();
    change_header(&sandbox.path("out/adapter_model.safetensors"), |header| {
        header[HOSTILE] = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]});
    });
    check("an adapter's tensor", &sandbox.run(eval));
    let yaml = serde_json::to_string(HOSTILE).unwrap();
    for text in [
        format!("{yaml}: 1\n"),
        format!("model: {yaml}\nlora_r: {yaml}\n"),
        format!("lora_r: 1 # {HOSTILE}\nx: 2\n"),
        HOSTILE.to_owned(),
    ] {
        sandbox.write("run.yaml", &text);
        for line in ["train run.yaml", "train run.yaml --json"] {
            let done = sandbox.run(line);
            assert_eq!(done.status, Some(2), "{done:#?}");
            assert!(!done.stderr.contains(is_harmful) && !done.stdout.contains(is_harmful), "{done:?}");
        }
    }
    // The record of a run in the directory.
    change(&sandbox.path("out/run.json"), |run| run["identity"]["settings"]["seed"] = HOSTILE.into());
    check("the record of a run", &sandbox.train("--max-steps 1"));
    change(&sandbox.path("out/run.json"), |run| run["base"]["fingerprint"] = HOSTILE.into());
    let done = sandbox.train("--max-steps 1 --seed 42");
    assert!(!done.stderr.contains(is_harmful), "{done:?}");
}

/// Ends the line that quotes it, and says one that looks like the program's own.
const LINES: &str = "x\nerror: forged\nwarning: forged\r\nerror: forged";

/// No line is the file's own, and the text itself was said.
#[track_caller]
fn check_lines(case: &str, done: &Done) -> bool {
    for text in [&done.stdout, &done.stderr] {
        let forged = text.lines().find(|line| line.starts_with("error: forged") || line.starts_with("warning: forged"));
        assert_eq!(forged, None, "{case}: {text:?}");
    }
    done.stdout.contains("forged") || done.stderr.contains("forged")
}

#[test]
fn no_file_says_a_line_of_its_own() {
    let sandbox = Sandbox::chat();
    let answer = json!({"role": "assistant", "content": "b"});
    let rows = [
        ("a key", row(&json!({LINES: 1}))),
        ("a key nothing reads", row(&json!({"prompt": "a", "completion": "b", LINES: 1}))),
        ("a key of a turn", row(&json!({"messages": [{"role": "user", "content": "a", LINES: "a"}, answer]}))),
        ("a role", row(&json!({"messages": [{"role": LINES, "content": "a"}, answer]}))),
        ("a value", row(&json!({"input_ids": LINES}))),
        ("a label", row(&json!({"input_ids": [1, 2], "labels": [LINES, 2]}))),
        (
            "two tasks",
            row(&json!({"input_ids": [1, 2, 3], "task": LINES})) + &row(&json!({"input_ids": [1, 2, 3], "task": "b"})),
        ),
    ];
    let mut reached = 0;
    for (case, text) in &rows {
        sandbox.write("r.jsonl", text);
        let mut said = 0;
        for line in [
            "preview --model model --data r.jsonl --output-dir x".to_owned(),
            "preview --model model --data r.jsonl --output-dir x --on-bad-row skip".to_owned(),
            "eval --model model --data r.jsonl".to_owned(),
            train("--data r.jsonl --val-data r.jsonl --max-steps 1 --output-dir x --overwrite-output-dir true"),
        ] {
            said += usize::from(check_lines(case, &sandbox.run(&line)));
        }
        reached += usize::from(said > 0);
    }
    assert!(reached >= 6, "the text of only {reached} of {} rows was said", rows.len());

    let path = |name: &str| -> PathBuf { sandbox.path(&format!("model/{name}")) };
    let changes: [(&str, Change); 6] = [
        ("config.json", &|file| change(file, |c| c["model_type"] = LINES.into())),
        ("config.json", &|file| fs::write(file, json!({LINES: 1}).to_string().repeat(2)).unwrap()),
        ("model.safetensors", &|file| {
            change_header(file, |h| h[LINES] = json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}));
        }),
        ("tokenizer_config.json", &|file| {
            let template = format!("{{{{ raise_exception({}) }}}}", json!(LINES));
            change(file, |c| c["chat_template"] = template.clone().into())
        }),
        ("tokenizer_config.json", &|file| change(file, |c| c["chat_template"] = format!("{{% {LINES}").into())),
        ("tokenizer.json", &|file| change(file, |c| c["model"] = json!({"type": LINES}))),
    ];
    let mut reached = Vec::new();
    for (at, (name, with)) in changes.iter().enumerate() {
        let whole = fs::read(path(name)).unwrap();
        with(&path(name));
        let lines = ["preview --model model --data chat.jsonl --output-dir x", "eval --model model --data chat.jsonl"];
        let said = lines.iter().filter(|line| check_lines(name, &sandbox.run(line))).count();
        if said > 0 {
            reached.push(at);
        }
        fs::write(path(name), whole).unwrap();
    }
    // The others are reported by their place: text behind a document, a template's syntax, a tokenizer of no known
    // kind.
    assert_eq!(reached, [0, 2, 3], "changes whose text was said");

    // Names of files and directories, and settings.
    fs::copy(sandbox.path("chat.jsonl"), sandbox.path(LINES)).unwrap();
    for line in
        [&["preview", "--output-dir", "x"][..], &["eval"], &["train", "--max-steps", "1", "--output-dir", LINES]]
    {
        let mut command = sandbox.command("");
        let output = command.args(line).args(["--model", "model", "--data", LINES]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let done = Done { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        assert!(check_lines(line[0], &done), "{done:#?}");
    }
    let key = serde_json::to_string(LINES).unwrap();
    for text in [format!("{key}: 1\n"), format!("model: {key}\nlora_r: {key}\n"), format!("{key}: 1\n{key}: 2\n")] {
        sandbox.write("run.yaml", &text);
        let done = sandbox.run("train run.yaml");
        assert_eq!(done.status, Some(2), "{done:#?}");
        assert!(check_lines("settings", &done), "{done:#?}");
    }
    let two = "lora_r: 0\nlora_alpha: x\n";
    sandbox.write("run.yaml", two);
    let done = sandbox.run("train run.yaml");
    let errors = done.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert!(errors == 2 && done.stderr.lines().count() > 4, "each fault with its line of the file: {done:#?}");
}

/// A tokenizer that spells every token so: what a model says is no command to a terminal. Line breaks and tabs are.
#[test]
fn generated_text_is_escaped() {
    let sandbox = Sandbox::chat();
    change(&sandbox.path("model/tokenizer.json"), |tokenizer| {
        let spell = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": format!("{HOSTILE}\n\tx")});
        tokenizer["decoder"] = json!({"type": "Sequence", "decoders": [spell]});
    });
    let line = "generate --model model --prompt a --max-new-tokens 3";
    let done = sandbox.run(line).ok();
    check("streamed", &done);
    assert!(done.stdout.contains("\n\tx"), "{done:?}");
    check("side by side", &sandbox.run(&format!("{line} --prompt b")));
    let json = sandbox.run(&format!("{line} --json")).ok();
    check("to a program", &json);
    let answer: Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(answer["completions"][0]["text"].as_str().unwrap().contains(HOSTILE), "the text itself is whole: {answer}");
    check("preview", &sandbox.run("preview --model model --data chat.jsonl --output-dir x"));
}

/// Everything that is printed passes one of these files, and each escapes.
#[test]
fn nothing_prints_past_the_sinks() {
    const SINKS: [(&str, &[&str]); 7] = [
        // Lines for people
        ("report/console.rs", &["stderr()"]),
        // Only whether it is a terminal
        ("report/bar.rs", &["stderr()"]),
        ("cli/preview.rs", &["stdout()"]),
        // Answers
        ("cli/mod.rs", &["stdout()"]),
        ("cli/generate.rs", &["stdout()"]),
        ("cli/chat.rs", &["stdout()"]),
        // Only test builds have them.
        ("files/failpoint/enabled.rs", &["stderr()"]),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let (mut found, mut files) = (Vec::new(), 0);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            // Output of tests is for those who run them.
            if path.ends_with("tests.rs") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let allowed = SINKS.iter().find(|(file, _)| *file == name).map_or(&[][..], |(_, words)| words);
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                for word in ["println!", "eprintln!", "print!(", "eprint!(", "dbg!", "stdout()", "stderr()", "/dev/tty"]
                {
                    // `println!` holds `print`; the macro's own name has to begin there.
                    let used =
                        line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric()));
                    if used && !allowed.contains(&word) {
                        found.push(format!("{name}: {}", line.trim()));
                    }
                }
            }
        }
    }
    assert!(files > 100, "{files} files");
    assert!(found.is_empty(), "{found:#?}");
}
