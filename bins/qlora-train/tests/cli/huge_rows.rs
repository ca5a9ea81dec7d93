//! Rows and files of unusual size: shown in part, planned with what reading them takes, and rendered in turns.

use qlora_kernels::rng::RngStream;
use serde_json::{Value, json};

use crate::sandbox::{Sandbox, train};

/// Tokens of a row that `preview` shows as text, those of them at its end, and those that `--json` answers with.
const SHOWN: usize = 16_384;
const AT_END: usize = 1_024;
const ANSWERED: usize = 131_072;

/// A row of ids that count from 3 to 90, over and over.
fn counting(length: usize) -> String {
    let ids: Vec<usize> = (0..length).map(|at| 3 + at % 88).collect();
    json!({"input_ids": ids}).to_string()
}

#[test]
fn long_rows_are_shown_in_part_and_say_so() {
    let sandbox = Sandbox::new();
    for (length, left_out) in [(SHOWN, None), (SHOWN + 1, Some("1 token")), (SHOWN + 2500, Some("2,500 tokens"))] {
        sandbox.write("rows.jsonl", &counting(length));
        let text = sandbox.run("preview --model model --max-length 100000 --data rows.jsonl").ok().stdout;
        let shown = text.matches('<').count();
        assert_eq!(shown, SHOWN, "{length}");
        let last = format!("<{}>", 3 + (length - 1) % 88);
        match left_out {
            None => assert!(!text.contains("left out here") && text.contains(&format!("{last}⟧"))),
            Some(count) => {
                let (before, after) = text.split_once(&format!("\n… {count} left out here …\n")).unwrap();
                assert_eq!((before.matches('<').count(), after.matches('<').count()), (SHOWN - AT_END, AT_END));
                let first = 3 + (length - AT_END) % 88;
                assert!(after.starts_with(&format!("⟦<{first}>")) && after.contains(&format!("{last}⟧")), "{length}");
            }
        }
        assert!(text.contains(&format!("rows.jsonl line 1: {length} tokens, {} supervised\n", length - 1)));
    }
    for length in [ANSWERED, ANSWERED + 7] {
        sandbox.write("rows.jsonl", &counting(length));
        let answer = sandbox.run("preview --model model --max-length 1000000 --data rows.jsonl --json").json();
        let row = &answer["rows"][0];
        assert_eq!((&row["length"], &row["supervised"]), (&json!(length), &json!(length - 1)));
        for name in ["input_ids", "labels", "tokens"] {
            assert_eq!(row[name].as_array().unwrap().len(), ANSWERED, "{name}");
        }
        assert_eq!(row.get("left_out"), (length > ANSWERED).then(|| json!(length - ANSWERED)).as_ref());
    }
}

/// Text with learned and other turns is cut in the same way, between whatever stands there.
#[test]
fn long_conversations_are_shown_in_part() {
    let sandbox = Sandbox::chat();
    let turn = |at: usize| {
        let role = if at.is_multiple_of(2) { "user" } else { "assistant" };
        json!({"role": role, "content": format!("wörd {at} 🦀 x")})
    };
    sandbox.write("rows.jsonl", &json!({"messages": (0..3000).map(turn).collect::<Vec<_>>()}).to_string());
    let text = sandbox.run("preview --model model --max-length 1000000 --data rows.jsonl").ok().stdout;
    assert!(text.contains("⟦wörd 1 🦀 x<|im_end|>⟧") && text.contains("wörd 2999 🦀 x<|im_end|>"), "{text}");
    assert_eq!(text.matches(" tokens left out here …").count(), 1);
    assert!(!text.contains("wörd 1501 🦀"), "the middle is left out");
    assert!(text.len() < 8 * SHOWN + 4096, "{}", text.len());
}

/// Showing a row takes no memory to speak of beside that of reading it.
#[test]
fn showing_a_huge_row_takes_little_memory() {
    let sandbox = Sandbox::chat();
    let words = "the words of a book ".repeat(1 << 16);
    sandbox.write("text.jsonl", &json!({"text": words}).to_string());
    sandbox.write("ids.jsonl", &counting(750_000));
    for file in ["text.jsonl", "ids.jsonl"] {
        let line = |more: &str| format!("preview --model model --max-length 16000000 --data {file} {more}");
        let (done, read) = sandbox.run_watched(&line("--rows 0"));
        done.ok();
        for more in ["", "--json", "--longest"] {
            let (done, peak) = sandbox.run_watched(&line(more));
            let length = done.ok().stdout.len();
            println!("{file} {more}: {} MiB, reading alone {} MiB, {length} bytes said", peak >> 20, read >> 20);
            // Ids, labels and tokens as JSON, each some tens of bytes.
            assert!(length < 64 * ANSWERED, "{file} {more}: {length} bytes");
            assert!(peak < read + read / 8 + (96 << 20), "{file} {more}: {peak} of {read}");
        }
    }
}

/// Names in files may be of any length, and are printed in part.
#[test]
fn long_names_are_told_in_part() {
    let sandbox = Sandbox::chat();
    let name = "K".repeat(1 << 20);
    let turns = |user: Value| json!({"messages": [user, {"role": "assistant", "content": "b"}]});
    let user = || json!({"role": "user", "content": "a"});
    let with = |mut value: Value, name: &str| {
        value[name] = json!(1);
        value
    };
    let said = json!({"role": "user", "content": [with(json!({"type": "text", "text": "a"}), &name)]});
    for row in [
        with(turns(user()), &name),
        turns(with(user(), &name)),
        turns(said),
        turns(json!({"role": name, "content": "a"})),
        json!({"input_ids": [1, 2], "task": name}),
        json!({name.as_str(): 1}),
    ] {
        sandbox.write("rows.jsonl", &row.to_string());
        for line in ["preview --model model --data rows.jsonl", "eval --model model --data rows.jsonl --json"] {
            let done = sandbox.run(line);
            assert!(matches!(done.status, Some(0 | 2)), "{line}");
            let longest = done.stdout.lines().chain(done.stderr.lines()).map(str::len).max().unwrap_or(0);
            // The longest line is that of an error, or of JSON.
            assert!(longest < 9000, "{line}: a line of {longest} bytes");
        }
    }
    sandbox.write("rows.jsonl", &json!({"input_ids": [1, 2], "task": name}).to_string());
    sandbox.refused("eval --model model --data rows.jsonl", &["line 1", "`task` is a text of 1048576 bytes"]);
}

/// Reading takes more than the rows take then: it is planned, so that no run holds more than its plan.
#[test]
fn reading_rows_is_planned() {
    let sandbox = Sandbox::chat();
    let mut stream = RngStream::new(5, 3);
    let mut words = |count: usize| -> String { (0..count).map(|_| format!("word{} ", stream.below(1000))).collect() };
    let turns = |content: &str| {
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]}).to_string()
    };
    let long = words(1 << 17);
    sandbox.write("text.jsonl", &json!({"text": long}).to_string());
    sandbox.write("chat_long.jsonl", &turns(&long));
    sandbox.write("chat_lines.jsonl", &turns(&long.replace(' ', "\n")));
    let many: Vec<String> = (0..50_000).map(|_| json!({"text": words(3)}).to_string()).collect();
    sandbox.write("many.jsonl", &many.join("\n"));
    sandbox.write("array.json", &format!("[{}]", many.join(",\n")));
    sandbox.write("ids.jsonl", &counting(1_000_000));
    let several: Vec<String> = (0..16).map(|_| json!({"text": words(10_000)}).to_string()).collect();
    sandbox.write("several.jsonl", &several.join("\n"));
    for file in
        ["text.jsonl", "chat_long.jsonl", "chat_lines.jsonl", "many.jsonl", "array.json", "ids.jsonl", "several.jsonl"]
    {
        let more = format!("--data {file} --too-long truncate --max-steps 1 --device cpu");
        let plan = sandbox.run(&train(&more).replacen("train", "plan", 1)).json();
        let planned = plan["host"]["peak_bytes"].as_u64().unwrap();
        let buffers = plan["buffers"].as_array().unwrap();
        let sum: u64 = buffers.iter().map(|buffer| buffer["bytes"].as_u64().unwrap()).sum();
        assert_eq!(planned, sum, "{file}");
        let (done, measured) = sandbox.run_watched(&train(&more));
        done.ok();
        std::fs::remove_dir_all(sandbox.path("out")).unwrap();
        println!("planned {:5} MiB, measured {:5} MiB: {file}", planned >> 20, measured >> 20);
        assert!(measured <= planned, "{measured} of {planned}: {file}");
        assert!(planned <= 2 * measured + (32 << 20), "{planned} for {measured}: {file}");
    }
    // A limit that reading alone is beyond.
    let line = train("--data ids.jsonl --too-long truncate --device cpu --host-memory 48MiB");
    sandbox.run(&line).ended(2, &["48.0 MiB"]);
}

/// Conversations that need much memory to be rendered take turns: what one may take does not depend on the others, on
/// their number or on the threads, and together they take it once.
#[test]
fn conversations_that_need_much_memory_take_turns() {
    let sandbox = Sandbox::chat();
    let turns = |content: &str| {
        json!({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]}).to_string()
    };
    // Each takes 40 MiB for a moment, where its content is "much".
    let template = |endless: &str| {
        format!(
            "{{% for m in messages %}}{{% if m.content == 'much' %}}{{{{ '' if (m.content * 10485760) | length else 'x' }}}}\
             {{% endif %}}{endless}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let rows: Vec<String> = (0..8).map(|at| turns(if at % 3 == 0 { "little" } else { "much" })).collect();
    sandbox.write("rows.jsonl", &rows.join("\n"));
    sandbox.write("much.jinja", &template(""));
    let line = "preview --model model --data rows.jsonl --rows 100 --chat-template";
    let mut texts = Vec::new();
    for threads in ["1", "2", "8"] {
        let (done, peak) = sandbox.run_watched(&format!("{line} much.jinja --threads {threads}"));
        println!("{threads} threads: {} MiB", peak >> 20);
        assert!(peak < 128 << 20, "{peak} bytes with {threads} threads");
        texts.push(done.ok().stdout);
    }
    assert!(texts[0].contains("8 of 8 rows"), "{}", texts[0]);
    assert!(texts.iter().all(|text| *text == texts[0]));
    // One row that needs more than may be taken is refused by its line, whatever is done with other rows at fault.
    let rows: Vec<String> = (0..6).map(|at| turns(if at == 4 { "endless" } else { "much" })).collect();
    sandbox.write("rows.jsonl", &rows.join("\n"));
    let endless = "{% if m.content == 'endless' %}{% set n = namespace(s=[]) %}{% for i in range(20) %}\
                   {% set n.s = n.s + [m.content * 5000000] %}{% endfor %}{% endif %}";
    sandbox.write("endless.jinja", &template(endless));
    for (threads, bad) in [("1", "error"), ("8", "error"), ("1", "skip"), ("8", "skip")] {
        let (done, peak) = sandbox.run_watched(&format!("{line} endless.jinja --threads {threads} --on-bad-row {bad}"));
        assert!(peak < 400 << 20, "{peak} bytes with {threads} threads");
        done.ended(2, &["rows.jsonl: line 5: ", "the chat template takes too much memory"]);
    }
}
