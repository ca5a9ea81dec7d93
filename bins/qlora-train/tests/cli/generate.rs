//! `generate`: drawn tokens follow the seed, text as it grows is the text, and several adapters answer as each alone.

use serde_json::Value;

use qlora_train::report::printable_lines;

use crate::sandbox::Sandbox;

/// Two adapters of different rank, trained on different rows.
fn with_adapters() -> Sandbox {
    let sandbox = Sandbox::chat();
    sandbox.train_into("a", "--data chat.jsonl --lora-r 2").ok();
    sandbox.train_into("b", "--data rows.jsonl --learning-rate 3e-2 --seed 7").ok();
    sandbox
}

const GENERATE: &str = "generate --model model --prompt hello --max-new-tokens 24";

#[track_caller]
fn texts(sandbox: &Sandbox, more: &str) -> Vec<String> {
    let answer = sandbox.run(&format!("{GENERATE} --json {more}")).json();
    let completions = answer["completions"].as_array().unwrap();
    completions.iter().map(|completion| completion["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn sampled_text_follows_the_seed_and_greedy_text_does_not() {
    let sandbox = Sandbox::chat();
    let sampled = texts(&sandbox, "--temperature 1 --seed 1");
    assert_eq!(texts(&sandbox, "--temperature 1 --seed 1"), sampled);
    assert_eq!(texts(&sandbox, "--temperature 1 --seed 1 --threads 3"), sampled);
    assert_ne!(texts(&sandbox, "--temperature 1 --seed 2"), sampled);
    let greedy = texts(&sandbox, "");
    assert_ne!(sampled, greedy);
    for more in ["--temperature 0 --seed 1", "--temperature 0 --seed 2 --top-p 0.3", "--temperature 1 --top-p 1e-6"] {
        assert_eq!(texts(&sandbox, more), greedy, "{more}");
    }
    // What has no effect because nothing is sampled is told.
    for (more, told) in [("--top-p 0.3", true), ("--top-k 3", true), ("--top-k 3 --temperature 1", false)] {
        let said = sandbox.run(&format!("{GENERATE} {more}")).ok().stderr;
        assert_eq!(said.contains("nothing is sampled without a --temperature above 0"), told, "{more}: {said}");
    }
    // Prompts side by side draw from streams of their own.
    let pair = texts(&sandbox, "--prompt hello --temperature 1 --seed 1");
    assert_eq!((pair.len(), &pair[0]), (2, &sampled[0]));
    assert_ne!(pair[1], pair[0]);
}

#[test]
fn prompts_come_from_a_file_and_repeated_tokens_can_be_made_less_likely() {
    let sandbox = with_adapters();
    sandbox.write("prompts.txt", "hello\n\nwho\n");
    sandbox.write("prompts.jsonl", "{\"prompt\": \"hello\"}\n{\"prompt\": \"who\", \"x\": 1}\n");
    let both = texts(&sandbox, "--adapter a --prompt who");
    let of = |file: &str| {
        let line = format!("generate --model model --adapter a --prompts {file} --max-new-tokens 24 --json");
        sandbox.run(&line).json()["completions"].clone()
    };
    let text = |completion: &Value| completion["text"].as_str().unwrap().to_owned();
    assert_eq!(of("prompts.txt").as_array().unwrap().iter().map(text).collect::<Vec<_>>(), both);
    assert_eq!(of("prompts.jsonl"), of("prompts.txt"));
    assert_eq!(of("prompts.txt --prompt hello").as_array().unwrap().len(), 3);
    for (name, text, words) in [
        ("empty.txt", "\n", "no prompt"),
        ("none.jsonl", "{\"text\": \"x\"}", "line 1: found no text under `prompt`"),
        ("broken.jsonl", "{", "broken.jsonl, line 1"),
    ] {
        sandbox.write(name, text);
        sandbox.refused(&format!("generate --model model --prompts {name}"), &[name, words]);
    }
    sandbox.refused("generate --model model --prompts missing.txt", &["missing.txt"]);
    assert_eq!(texts(&sandbox, "--repetition-penalty 1"), texts(&sandbox, ""));
    let distinct = |text: &str| text.chars().collect::<std::collections::BTreeSet<_>>().len();
    let (plain, varied) = (texts(&sandbox, "")[0].clone(), texts(&sandbox, "--repetition-penalty 50")[0].clone());
    assert!(distinct(&varied) > distinct(&plain), "{varied:?} {plain:?}");
}

#[test]
fn text_written_as_it_grows_is_the_text() {
    let sandbox = Sandbox::chat();
    for more in ["", "--temperature 1 --seed 3", "--temperature 2 --seed 4", "--raw --temperature 1"] {
        let grown = sandbox.run(&format!("{GENERATE} {more}")).ok().stdout;
        // Printed, it has no control characters.
        assert_eq!(grown, format!("{}\n", printable_lines(&texts(&sandbox, more)[0])), "{more}");
    }
}

#[test]
fn several_adapters_answer_as_each_alone() {
    let sandbox = with_adapters();
    for more in ["", "--temperature 1 --seed 5", "--prompt who --temperature 1"] {
        let alone = ["a", "b"].map(|adapter| texts(&sandbox, &format!("{more} --adapter {adapter}")));
        assert_ne!(alone[0], alone[1], "{more}: the adapters are to differ");
        assert_eq!(texts(&sandbox, &format!("{more} --adapter a --adapter b")), alone.concat(), "{more}");
        // And in the other order, after a smaller rank and after a larger one.
        let [a, b] = &alone;
        let both = texts(&sandbox, &format!("{more} --adapter b --adapter a --adapter b"));
        assert_eq!(both, [b.as_slice(), a, b].concat(), "{more}");
    }
    let answer = sandbox.run(&format!("{GENERATE} --json --adapter a --adapter b")).json();
    let names: Vec<&Value> = answer["completions"].as_array().unwrap().iter().map(|c| &c["adapter"]).collect();
    assert_eq!(names, ["a", "b"]);
}

#[test]
fn several_adapters_are_evaluated_as_each_alone() {
    let sandbox = with_adapters();
    let eval = |adapters: &str| sandbox.run(&format!("eval --model model --data rows.jsonl --json {adapters}")).json();
    let alone = ["a", "b"].map(|adapter| eval(&format!("--adapter {adapter}")));
    assert_ne!(alone[0]["loss"], alone[1]["loss"]);
    let both = eval("--adapter b --adapter a --adapter b");
    for (found, expected, name) in [(0, 1, "b"), (1, 0, "a"), (2, 1, "b")] {
        let found = &both["adapters"][found];
        assert_eq!(found["adapter"], name);
        for key in ["loss", "perplexity", "tokens"] {
            assert_eq!(found[key], alone[expected][key], "{name} {key}");
        }
    }
}
