//! `doctor` with the settings of a run: in one process, and in those of a launcher, which it compares.

use qlora_train::base::synthetic::{Synthetic, tiny_arch};
use serde_json::Value;
use trainer_lab::fixture;

use crate::launched::{Left, command, ended, free_port, spawn};
use crate::sandbox::Sandbox;

/// A run that is asked about, on the CPU.
const RUN: &str = "doctor --json --model model --data rows.jsonl --output-dir out --max-length 64 --lora-r 4 --seed 42 \
                   --allow all --threads 1 --device cpu --compute f32";

/// Parts that processes compare, by their keys.
const PARTS: [&str; 7] = ["settings", "device", "model", "base_weights", "data", "tokenizer", "chat_template"];

/// `doctor` in two processes, each with a line of its own.
fn of_two(sandbox: &Sandbox, lines: [&str; 2]) -> Vec<Left> {
    let port = free_port();
    let one = |rank: usize| spawn(sandbox, command(sandbox, lines[rank], rank, 2, port), rank);
    ended(sandbox, vec![one(0), one(1)])
}

/// The answer of rank 0, after all ended with this exit status.
#[track_caller]
fn answer(all: &[Left], status: i32) -> Value {
    assert!(all.iter().all(|left| left.status == Some(status)), "{all:#?}");
    assert!(all[1..].iter().all(|left| left.stdout.is_empty() && left.stderr.is_empty()), "{all:#?}");
    serde_json::from_str(&all[0].stdout).unwrap()
}

/// Parts of which something stands under `key`.
fn with(found: &Value, key: &str) -> Vec<&'static str> {
    let is_full = |part: &&str| !found[*part][key].as_array().unwrap_or_else(|| panic!("{part}: {found}")).is_empty();
    PARTS.into_iter().filter(is_full).collect()
}

#[test]
fn processes_that_are_to_train_alike_are_told_so_and_write_nothing() {
    let sandbox = Sandbox::chat();
    // Places may differ, contents count.
    std::fs::copy(sandbox.path("chat.jsonl"), sandbox.path("same.jsonl")).unwrap();
    for (one, other) in [("rows.jsonl", "rows.jsonl"), ("chat.jsonl", "same.jsonl")] {
        let lines = [one, other].map(|data| format!("{} --tokenized-cache kept", RUN.replace("rows.jsonl", data)));
        let found = answer(&of_two(&sandbox, [&lines[0], &lines[1]]), 0);
        assert_eq!((&found["ready"], found["processes"]["world_size"].as_u64()), (&true.into(), Some(2)), "{found}");
        assert!(with(&found, "missing").is_empty() && with(&found, "differences").is_empty(), "{found}");
        assert!(found["base_weights"]["found"].as_str().unwrap().starts_with("fingerprint "), "{found}");
        assert!(found["program"]["build"].as_str().unwrap().contains(env!("CARGO_PKG_VERSION")), "{found}");
    }
    let text = RUN.replace(" --json", "");
    let all = of_two(&sandbox, [&text, &text]);
    for part in ["program", "settings", "device", "model", "base weights", "data", "tokenizer", "chat template"] {
        let told = |line: &str| line.starts_with(&format!("ok      {part} "));
        assert!(all[0].stdout.lines().any(told), "{part}: {all:#?}");
    }
    assert!(all[0].stdout.ends_with("This run can begin.\n"), "{all:#?}");
    assert!(!sandbox.path("out").exists() && !sandbox.path("kept").exists());
}

#[test]
fn a_process_that_would_train_something_else_is_named_with_what_differs() {
    let sandbox = Sandbox::chat();
    sandbox.write_rows("others.jsonl", 12, 2);
    let arch = tiny_arch();
    Synthetic::new(tiny_arch(), 1).write(&sandbox.path("one")).unwrap();
    Synthetic::new(arch, 2).write(&sandbox.path("other")).unwrap();
    sandbox.write("other.jinja", &format!("{}{{# other #}}", fixture::CHATML));
    let of_ids = RUN.replace("--model model", "--model one");
    let of_texts = RUN.replace("rows.jsonl", "chat.jsonl");
    for (line, from, to, part, name) in [
        (&of_ids, "--seed 42", "--seed 43", "settings", "`seed`"),
        (&of_ids, "--data rows.jsonl", "--data others.jsonl", "data", "the contents of `data`"),
        (&of_ids, "--model one", "--model other", "base_weights", "the base's weights"),
        (&of_texts, "--seed 42", "--seed 42 --chat-template other.jinja", "chat_template", "`chat_template`"),
    ] {
        let other = line.replace(from, to);
        assert_ne!(*line, other);
        let found = answer(&of_two(&sandbox, [line, &other]), 1);
        let differ = with(&found, "differences");
        // Other words around the same texts may be learned otherwise.
        assert!(differ == [part] || (line == &of_texts && differ.contains(&part)), "{found}");
        assert!(found["ready"] == false && with(&found, "missing").is_empty(), "{found}");
        let differences = found[part]["differences"].as_array().unwrap();
        let is_named = |of: &Value| of["rank"] == 1 && of["name"].as_str().unwrap().contains(name);
        assert!(differences.iter().any(is_named), "{found}");
        let mut problems = found["problems"].as_array().unwrap().iter().filter_map(Value::as_str);
        let told =
            |problem: &str| problem.contains("rank 1 (") && problem.contains(name) && problem.contains("rank 0 (");
        assert!(problems.any(told), "{found}");
    }
    let text = |seed: u32| of_ids.replace(" --json", "").replace("--seed 42", &format!("--seed {seed}"));
    let all = of_two(&sandbox, [&text(42), &text(43)]);
    let told = |line: &str| line.starts_with("differs settings ") && line.contains("has 43 in `seed`, and rank 0 (");
    assert!(all[0].stdout.lines().any(told), "{all:#?}");
    assert!(!sandbox.path("out").exists());
}

/// One look tells all: what a process cannot read keeps nobody from the rest.
#[test]
fn a_process_that_cannot_read_a_part_is_named_and_the_rest_is_compared() {
    let sandbox = Sandbox::new();
    Synthetic::new(tiny_arch(), 2).write(&sandbox.path("other")).unwrap();
    let other = RUN.replace("rows.jsonl", "none.jsonl").replace("--model model", "--model other");
    let found = answer(&of_two(&sandbox, [RUN, &other]), 1);
    assert_eq!(with(&found, "differences"), ["base_weights"], "{found}");
    assert_eq!(with(&found, "missing"), ["data", "tokenizer", "chat_template"], "{found}");
    let missing = &found["data"]["missing"][0];
    assert!(missing["rank"] == 1 && missing["why"].as_str().unwrap().contains("none.jsonl"), "{found}");
    let unread = RUN.replace("--lora-r 4", "--lora-r 0");
    let found = answer(&of_two(&sandbox, [&unread, RUN]), 1);
    assert_eq!(
        (found["settings"]["missing"][0]["rank"].as_u64(), with(&found, "missing").len()),
        (Some(0), 7),
        "{found}"
    );
}

#[test]
fn a_process_that_is_alone_is_told_what_its_run_lacks() {
    let sandbox = Sandbox::new();
    let found = sandbox.run(RUN).json();
    assert_eq!(found["ready"], true, "{found}");
    assert!(found["data"]["found"].as_str().unwrap().starts_with("1 file, "), "{found}");
    assert!(found["base_weights"].is_null() && found["program"].is_null(), "weights are not read: {found}");
    sandbox.write("run.yaml", "model: model\ndata: rows.jsonl\nmax_length: 64\ndevice: cpu\n");
    let text = sandbox.run("doctor run.yaml --output-dir out").ok().stdout;
    assert!(text.ends_with("This run can begin.\n"), "{text}");
    assert!(!sandbox.path("out").exists());
    // Without an output directory or data, the other parts are still checked.
    assert!(sandbox.run("doctor --model model --device cpu").ok().stdout.contains("\nok      data "));
    for (line, part, words) in [
        ("doctor run.yaml --lora-r 0", "settings", "lora"),
        ("doctor none.yaml", "settings", "none.yaml"),
        ("doctor run.yaml --init-adapter absent", "settings", "`init_adapter`: absent: found no such directory"),
        ("doctor run.yaml --val-data none.jsonl", "data", "none.jsonl"),
        ("doctor --model absent --device cpu", "model", "absent: found no such directory"),
    ] {
        let done = sandbox.run(line);
        assert_eq!(done.status, Some(1), "{line}: {done:#?}");
        let told = |said: &str| said.starts_with(&format!("missing {part} ")) && said.contains(words);
        assert!(done.stdout.lines().any(told), "{line}: {done:#?}");
        assert!(done.stdout.ends_with("This run cannot begin as it is.\n"), "{line}: {done:#?}");
    }
    sandbox.run("doctor run.yaml --gpu h100").ended(2, &["--gpu", "h100", "the number of a GPU"]);
    sandbox.run("doctor --gpu 0 --device cuda").ended(2, &["--gpu and --device"]);
}
