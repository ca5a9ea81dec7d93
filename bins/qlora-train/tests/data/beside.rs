//! Texts beside those of a row's format: parts of what is asked are read or warned of, never left out in silence.

use qlora_train::config::PromptCompletion;
use qlora_train::data::{ChatTokenizer, Columns, DataOptions, Dataset, UNSUPERVISED, load};
use serde_json::{Value, json};

use trainer_lab::fixture::*;

fn load_with(row: &Value, columns: Columns) -> qlora_train::error::Result<Dataset> {
    let file = file("rows.jsonl", row.to_string());
    let prompt_completion = PromptCompletion::Chat;
    let options = DataOptions { columns, prompt_completion, ..options() };
    load(std::slice::from_ref(&file.path), Some(&chat_tokenizer(CHATML)), &options)
}

#[track_caller]
fn read(row: &Value, columns: Columns) -> Dataset {
    load_with(row, columns).unwrap_or_else(|error| panic!("{row}: {error}"))
}

/// The only row as text, and what is learned of it.
fn texts(data: &Dataset) -> (String, String) {
    let tokenizer: ChatTokenizer = chat_tokenizer(CHATML);
    let row = &data.rows[0];
    let learned: Vec<u32> = row.labels.iter().filter(|&&l| l != UNSUPERVISED).map(|&l| l as u32).collect();
    (tokenizer.decode(&row.input_ids, false).unwrap(), tokenizer.decode(&learned, false).unwrap())
}

#[test]
fn a_part_of_what_is_asked_that_nothing_reads_is_warned_of() {
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let said = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
    let lost = "of passage and rules, at some length";
    for (mut row, keys) in [
        (json!({"messages": turns}), &["history", "input", "instruction", "context", "system_prompt"][..]),
        (json!({"conversations": said}), &["history", "input", "context", "systemPrompt"]),
        (json!({"instruction": "q", "output": "a"}), &["context", "system_prompt", "background"]),
        (json!({"prompt": "q", "completion": "a"}), &["input", "instruction", "context", "system_message"]),
        (json!({"text": "q a"}), &["input", "system", "history", "context"]),
    ] {
        let plain = read(&row, Columns::default());
        assert!(!plain.report.to_string().contains("which nothing reads"), "{row}: {}", plain.report);
        for &key in keys {
            row[key] = lost.into();
            let data = read(&row, Columns::default());
            assert_eq!(data.rows[0].input_ids, plain.rows[0].input_ids, "{key}");
            let warned = format!("the row has the key `{key}`, which nothing reads in a row of");
            let lines = data.report.lines_of_run();
            assert!(
                lines.iter().any(|line| line.starts_with("warning: ") && line.contains(&warned)),
                "{row}: {lines:?}"
            );
            // What says nothing, or is no text, is not lost.
            for nothing in [json!(""), json!(null), json!([]), json!(7)] {
                row[key] = nothing;
                let report = read(&row, Columns::default()).report.to_string();
                assert!(!report.contains(&warned), "{row}: {report}");
            }
            row.as_object_mut().unwrap().remove(key);
        }
    }
    // A copy of what is read is not lost either.
    let whole = json!({"text": format!("Context: {lost} Answer: a"), "context": lost});
    assert!(!read(&whole, Columns::default()).report.to_string().contains("which nothing reads"));
    let warns = |row: &Value| read(row, Columns::default()).report.to_string().contains("which nothing reads");
    assert!(!warns(&json!({"text": "Input: 2+2. Answer: 4", "input": "2+2", "instruction": "Input: 2"})));
    assert!(warns(&json!({"text": "a catalog", "input": "cat"})));
    // Token ids were made of something.
    let ids = json!({"input_ids": [1, 2], "instruction": "q", "context": lost});
    assert!(!read(&ids, Columns::default()).report.to_string().contains("which nothing reads"));
}

/// Each costs a search of the row, and there may be as many as one likes.
#[test]
fn only_so_many_texts_that_nothing_reads_are_looked_for() {
    let mut row = json!({"text": "q a"});
    for count in 0..40 {
        row[format!("{}system_prompt", "_".repeat(count))] = "be brief".into();
    }
    let report = read(&row, Columns::default()).report.to_string();
    assert_eq!(report.matches("which nothing reads in a row of").count(), 16, "{report}");
    let spaced = json!({"prompt": "q", "completion": "a", "System Prompt": "be brief"});
    assert_says(&read(&spaced, Columns::default()).report.to_string(), &["`--system-column 'System Prompt'`"]);
}

#[test]
fn the_column_that_a_warning_names_is_read_by_that_setting() {
    let row = json!({"instruction": "q", "output": "a", "context": "ctx", "system_prompt": "sys"});
    let named = Columns::new(None, None, Some("context"), Some("system_prompt"), None, None);
    let data = read(&row, named);
    let whole =
        "<|im_start|>system\nsys<|im_end|>\n<|im_start|>user\nq\n\nctx<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n";
    assert_eq!(texts(&data), (whole.to_owned(), "a<|im_end|>".to_owned()));
    assert!(!data.report.to_string().contains("which nothing reads"), "{}", data.report);
}

#[test]
fn a_text_whose_place_a_named_column_takes_is_warned_of() {
    let of = |named: [Option<&str>; 4]| Columns::new(named[0], named[1], named[2], named[3], None, None);
    let input = || of([None, None, Some("context"), None]);
    let system = || of([None, None, None, Some("sp")]);
    let prompt = || of([Some("question"), Some("completion"), None, None]);
    let lost = "what stood there";
    for (row, columns, key, flag) in [
        (
            json!({"instruction": "q", "output": "a", "context": "c", "input": lost}),
            input(),
            "input",
            "input-column context",
        ),
        (json!({"prompt": "q", "completion": "a", "sp": "s", "system": lost}), system(), "system", "system-column sp"),
        (json!({"question": "q", "completion": "a", "prompt": lost}), prompt(), "prompt", "prompt-column question"),
    ] {
        let report = read(&row, columns.clone()).report.to_string();
        let words = ["warning: ", &format!("the row has the key `{key}`, which nothing reads"), flag];
        assert_says(&report, &words);
        let mut same = row.clone();
        for nothing in [json!(""), json!(null), json!(7)] {
            same[key] = nothing;
            let report = read(&same, columns.clone()).report.to_string();
            assert!(!report.contains("names another column"), "{same}: {report}");
        }
    }
    let held = json!({"question": "Read this: what stood there", "completion": "a", "prompt": lost});
    assert!(!read(&held, prompt()).report.to_string().contains("names another column"));
    // Columns may have the known names of each other.
    let swapped =
        read(&json!({"prompt": "a", "completion": "q"}), of([Some("completion"), Some("prompt"), None, None]));
    assert_eq!(texts(&swapped).1, "a<|im_end|>");
}

#[test]
fn a_text_that_is_one_turn_of_a_conversation_is_refused() {
    let tree = json!({"message_id": "m", "parent_id": null, "text": "Hi", "role": "prompter", "deleted": false,
                      "labels": {"name": ["spam"], "value": [0.1]}});
    let text = || Columns::new(None, None, None, None, None, Some("text"));
    for row in
        [tree, json!({"text": "Hi", "role": "Assistant"}), json!({"text": "Hi", "message_id": 2, "parent_id": 1})]
    {
        for columns in [Columns::default(), text()] {
            let words = ["line 1", "one turn of a conversation", "`messages`", "`parent_id`"];
            assert_says(&refusal(load_with(&row, columns)), &words);
        }
    }
    read(&json!({"text": "Hi", "role": "engineer", "message_id": 2}), Columns::default());
    let table = file("rows.csv", "text,role\nHi,prompter\n");
    let table = load(std::slice::from_ref(&table.path), Some(&chat_tokenizer(CHATML)), &options());
    assert_says(&refusal(table), &["`role` (prompter)"]);
}

#[test]
fn a_system_text_that_stands_twice_is_one() {
    let columns = Columns::default;
    for (row, plain) in [
        (
            json!({"system": "s", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                                               {"role": "assistant", "content": "a"}]}),
            json!({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                                {"role": "assistant", "content": "a"}]}),
        ),
        (
            json!({"system": "s", "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                                                    {"from": "gpt", "value": "a"}]}),
            json!({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
                                     {"from": "gpt", "value": "a"}]}),
        ),
    ] {
        assert_eq!(read(&row, columns()).rows[0], read(&plain, columns()).rows[0]);
    }
}

#[test]
fn an_empty_list_of_rows_and_a_refusal_are_named() {
    let empty = refusal(load_with(&json!({"data": []}), Columns::default()));
    assert_says(&empty, &["the list under `data` is empty"]);
    let refused = json!({"messages": [{"role": "user", "content": "q"},
                                      {"role": "assistant", "content": null, "refusal": "I cannot."}]});
    assert_says(&refusal(load_with(&refused, Columns::default())), &["`messages[1]`", "`refusal`", "`content`"]);
}

/// Rows of ms-swift and of ChatGLM: pairs of a question and its answer that came before.
#[test]
fn the_history_of_a_prompt_is_its_earlier_turns() {
    let columns = || Columns::new(Some("query"), Some("response"), None, None, None, None);
    let row = |history: Value| json!({"query": "q", "response": "r", "system": "s", "history": history});
    let data = read(&row(json!([["a", "b"], ["c", "d"]])), columns());
    let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
    let asked = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "q")];
    let before: String = asked.iter().map(|(role, text)| turn(role, text)).collect();
    assert_eq!(texts(&data), (before + &turn("assistant", "r"), "r<|im_end|>".to_owned()));
    for nothing in [json!([]), json!(null), json!("")] {
        let expected = turn("system", "s") + &turn("user", "q") + &turn("assistant", "r");
        assert_eq!(texts(&read(&row(nothing), columns())).0, expected);
    }
    for (history, words) in [(json!([["a"]]), "`history[0]`"), (json!([["a", "b"], "c"]), "`history[1]`")] {
        assert_says(&refusal(load_with(&row(history), columns())), &["line 1", words, "pair", "leave the key out"]);
    }
    let said = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    assert_eq!(read(&row(said), columns()).rows[0], read(&row(json!([["a", "b"]])), columns()).rows[0]);
    // Other programs keep other things under this key.
    for (history, words) in [
        (json!("x"), "`history` is the string"),
        (json!(["x", "y"]), "`history` is an array of 2 items"),
        (json!([{"speaker": "x"}]), "`history[0]`"),
    ] {
        let data = read(&row(history), columns());
        assert_eq!(data.rows[0].input_ids, read(&row(json!(null)), columns()).rows[0].input_ids);
        assert_says(&data.report.to_string(), &["warning: ", "a `history` that is not read", words]);
    }
    // In plain text there are no turns.
    let file = file("rows.jsonl", json!({"prompt": "q", "completion": "r", "history": [["a", "b"]]}).to_string());
    let plain = load(std::slice::from_ref(&file.path), Some(&chat_tokenizer(CHATML)), &options());
    assert_says(&refusal(plain), &["`history` has no place", "prompt_completion: chat"]);
    let turns = json!([{"role": "user", "content": "q"}]);
    let answer = json!([{"role": "assistant", "content": "r"}]);
    let row = json!({"prompt": turns, "completion": answer, "history": [["a", "b"]]});
    assert_says(&refusal(load_with(&row, Columns::default())), &["`history` has no place beside turns"]);
}

#[test]
fn the_class_of_a_text_whose_column_is_named_is_passed_over() {
    let text = |name| Columns::new(None, None, None, None, None, Some(name));
    for (row, column) in [
        (json!({"text": "a b", "label": 1}), "text"),
        (json!({"text": "a b", "label": "pos"}), "text"),
        (json!({"review": "a b", "label": true}), "review"),
    ] {
        let data = read(&row, text(column));
        assert_eq!(data.rows[0].input_ids, read(&json!({"text": "a b"}), Columns::default()).rows[0].input_ids);
        assert_says(&data.report.to_string(), &["not used: `label` of rows"]);
    }
    for (row, column) in
        [(json!({"text": "a b", "label": 1}), "text"), (json!({"review": "a b", "label": 1}), "review")]
    {
        let flag = format!("`--text-column {column}`");
        let words = ["`label`: ", "class of a text", &flag];
        assert_says(&refusal(load_with(&row, Columns::default())), &words);
    }
    let pair = refusal(load_with(&json!({"prompt": "q", "completion": "a", "label": true}), Columns::default()));
    assert!(pair.contains("`label`: ") && !pair.contains("--text-column"), "{pair}");
    // Beside an answer it says whether that is good, and other keys say so of a text too.
    for row in [json!({"prompt": "q", "completion": "a", "label": 1}), json!({"text": "a", "kto_tag": true})] {
        assert_says(&refusal(load_with(&row, text("text"))), &["line 1"]);
    }
}
