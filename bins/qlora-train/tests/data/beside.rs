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
            // Empty values, and values that are no text, are not lost.
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

/// The named column is the one that is read; the other one gives a note unless it has the same text.
#[test]
fn every_column_whose_place_a_named_one_takes_is_warned_of() {
    let pair = |prompt: &str, completion: &str| Columns::new(Some(prompt), Some(completion), None, None, None, None);
    let list = |name: &str| Columns::new(None, None, None, None, Some(name), None);
    let text = |name: &str| Columns::new(None, None, None, None, None, Some(name));
    let turns = |answer: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]);
    let said = |answer: &str| json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]);
    let (read_turns, read_said) = (json!({"messages": turns("a")}), json!({"conversations": said("a")}));
    let (lost, lost_turns, lost_said) =
        (json!("what stood there"), turns("what stood there"), said("what stood there"));
    let copy = json!("a");
    for (row, columns, key, value, same, plain, flag) in [
        (
            json!({"prompt": "q", "answer": "a"}),
            pair("prompt", "answer"),
            "completion",
            &lost,
            &copy,
            json!({"prompt": "q", "completion": "a"}),
            "completion-column answer",
        ),
        (
            json!({"instruction": "q", "answer": "a"}),
            pair("instruction", "answer"),
            "output",
            &lost,
            &copy,
            json!({"instruction": "q", "output": "a"}),
            "completion-column answer",
        ),
        (json!({"body": "a"}), text("body"), "text", &lost, &copy, json!({"text": "a"}), "text-column body"),
        (
            json!({"talk": turns("a")}),
            list("talk"),
            "messages",
            &lost_turns,
            &turns("a"),
            read_turns.clone(),
            "messages-column talk",
        ),
        (
            json!({"talk": said("a")}),
            list("talk"),
            "messages",
            &lost_turns,
            &turns("a"),
            read_said.clone(),
            "messages-column talk",
        ),
        (
            json!({"talk": turns("a")}),
            list("talk"),
            "conversations",
            &lost_said,
            &said("a"),
            read_turns.clone(),
            "messages-column talk",
        ),
        (
            read_said.clone(),
            list("conversations"),
            "messages",
            &lost_turns,
            &turns("a"),
            read_said.clone(),
            "messages-column conversations",
        ),
        (
            read_turns.clone(),
            list("messages"),
            "conversations",
            &lost_said,
            &said("a"),
            read_turns.clone(),
            "messages-column messages",
        ),
    ] {
        let plain = read(&plain, Columns::default());
        let with = |value: &Value| {
            let mut row = row.clone();
            row[key] = value.clone();
            let data = read(&row, columns.clone());
            assert_eq!(data.rows[0].input_ids, plain.rows[0].input_ids, "{row}");
            assert_eq!(data.rows[0].labels, plain.rows[0].labels, "{row}");
            data.report.to_string()
        };
        let words = ["warning: ", &format!("the row has the key `{key}`, which nothing reads"), flag];
        assert_says(&with(value), &words);
        for nothing in [same, &json!(null), &json!([]), &json!("")] {
            let report = with(nothing);
            assert!(!report.contains("names another column"), "{key} {nothing}: {report}");
        }
    }
    // By the keys of turns alone it is not known which list is meant.
    let both = json!({"messages": turns("a"), "conversations": said("b")});
    let keys = || Columns::default().turn_keys(Some("role"), Some("content"));
    assert_says(&refusal(load_with(&both, keys())), &["both `messages` and `conversations`", "--messages-column"]);
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
            let words = ["line 1", "one turn of a conversation", "`messages`"];
            let refused = refusal(load_with(&row, columns));
            assert_says(&refused, &words);
            let of_tree = ["OpenAssistant's `.messages.jsonl`", "along `parent_id`", "`prompter` is the user"];
            assert!(row.get("parent_id").is_none() || of_tree.iter().all(|word| refused.contains(word)), "{refused}");
        }
    }
    let reply = json!({"text": "Hello", "role": "assistant", "replies": []});
    let whole = json!({"message_tree_id": "t", "tree_state": "ready_for_export",
                       "prompt": {"text": "Hi", "role": "prompter", "replies": [reply]}});
    let words =
        ["line 1", "OpenAssistant's `.trees.jsonl`", "one row of `messages`", "`text` is the content", "`rank` 0"];
    assert_says(&refusal(load_with(&whole, Columns::default())), &words);
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
    for (history, words) in [
        (json!([["a"]]), "`history[0]`"),
        (json!([["a", "b"], "c"]), "`history[1]`"),
        (json!(["x", "y"]), "`history[0]` is the string"),
        (json!([{"speaker": "x"}]), "`history[0]` is an object with the keys `speaker`"),
        (
            json!([{"prompt": "a", "completion": "b", "system": "s"}]),
            "`history[0]` is an object with the keys `prompt`",
        ),
        (json!([{"prompt": "a", "query": "b"}]), "`history[0]` is an object"),
        (json!("[[\"a\"]]"), "`history[0]`"),
        (json!([{"role": "user", "text": "a"}]), "`history[0]` has no `content`"),
    ] {
        assert_says(&refusal(load_with(&row(history), columns())), &["line 1", words, "leave the key out"]);
    }
    let object = refusal(load_with(&row(json!({"prompt": "a", "completion": "b"})), columns()));
    assert_says(&object, &["`history` is an object with the keys", "array of pairs", "leave the key out"]);
    let pairs = read(&row(json!([["a", "b"]])), columns());
    for (asked, answered) in
        [("prompt", "completion"), ("query", "response"), ("instruction", "output"), ("question", "answer")]
    {
        let said = json!([{answered: "b", asked: "a", "turn": 1, "input": ""}]);
        assert_eq!(read(&row(said.clone()), columns()).rows[0], pairs.rows[0], "{said}");
        assert_eq!(read(&row(json!(said.to_string())), columns()).rows[0], pairs.rows[0], "{said}");
        let alpaca = |history: Value| json!({"instruction": "q", "output": "r", "system": "s", "history": history});
        assert_eq!(read(&alpaca(said.to_string().into()), Columns::default()).rows[0], pairs.rows[0], "{said}");
    }
    for said in [
        json!([["a", "b"]]),
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]),
    ] {
        assert_eq!(read(&row(said.clone()), columns()).rows[0], pairs.rows[0], "{said}");
        assert_eq!(read(&row(json!(said.to_string())), columns()).rows[0], pairs.rows[0], "{said}");
    }
    // Other programs keep other things under this key.
    for (history, words) in [(json!("x"), "`history` is the string"), (json!(7), "`history` is the number 7")] {
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

/// A system turn of the history and the row's `system` are one, or refused; so is a question that is asked twice.
#[test]
fn a_history_says_nothing_a_second_time() {
    let turn = |role: &str, text: &str| json!({"role": role, "content": text});
    let history = |system: &str| json!([turn("system", system), turn("user", "a"), turn("assistant", "b")]);
    for [prompt, answer] in [["prompt", "completion"], ["instruction", "output"]] {
        let row =
            |system: &str, history: Value| json!({prompt: "q", answer: "r", "system": system, "history": history});
        let one = texts(&read(&row("s", json!([["a", "b"]])), Columns::default()));
        assert_eq!(texts(&read(&row("s", history("s")), Columns::default())), one);
        assert_eq!(texts(&read(&row("", history("s")), Columns::default())), one);
        let twice = refusal(load_with(&row("s", history("other")), Columns::default()));
        assert_says(&twice, &["line 1", "`system` and a system turn", "keep one"]);
        let asked = json!([turn("user", "a"), turn("assistant", "b"), turn("user", " q ")]);
        let error = refusal(load_with(&row("s", asked), Columns::default()));
        assert_says(&error, &["line 1", "`history` ends with the question", "leave it out"]);
        let other = json!([turn("user", "a"), turn("assistant", "b"), turn("user", "wait")]);
        assert!(texts(&read(&row("s", other), Columns::default())).0.contains("user\nwait<|im_end|>"));
    }
}

/// Rows that were made for a trainer which writes no end of its own.
#[test]
fn an_answer_that_has_the_end_of_its_turn_already_is_warned_of() {
    let warned = |answer: &str| {
        let rows = [
            json!({"prompt": "q", "completion": answer}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}),
        ];
        rows.map(|row| read(&row, Columns::default()).report.to_string().contains("so that two are learned"))
    };
    assert_eq!(warned("a<|im_end|>"), [true; 2]);
    assert_eq!(warned("a<|im_end|>\n"), [true; 2]);
    assert_eq!(warned("a"), [false; 2]);
    assert_eq!(warned("<|im_end|> ends a turn"), [false; 2]);
    let asked =
        json!({"messages": [{"role": "user", "content": "q<|im_end|>"}, {"role": "assistant", "content": "a"}]});
    assert!(!read(&asked, Columns::default()).report.to_string().contains("so that two are learned"));
}

#[test]
fn a_token_that_ends_turns_within_an_answer_is_warned_of() {
    let is_told = |row: &Value| read(row, Columns::default()).report.to_string().contains("before its own end");
    let warned = |answer: &str| {
        let rows = [
            json!({"prompt": "q", "completion": answer}),
            json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}),
        ];
        rows.map(|row| is_told(&row))
    };
    for answer in ["a<|im_end|> more", "<|im_end|> a", "a<|im_end|> b<|im_end|>"] {
        assert_eq!(warned(answer), [true; 2], "{answer}");
    }
    for answer in ["a", "a<|im_end|>", "a<|im_end|>\n"] {
        assert_eq!(warned(answer), [false; 2], "{answer}");
    }
    let first = json!({"role": "assistant", "content": "a<|im_end|> b", "train": false});
    let asked = json!({"role": "user", "content": "q"});
    let turns = [asked.clone(), first, asked, json!({"role": "assistant", "content": "c"})];
    assert!(!is_told(&json!({ "messages": turns })), "what is not learned");
    let notes = |prompt| chat_tokenizer(CHATML).encode_completion(prompt, "a<|im_end|>b").unwrap().notes.len();
    assert_eq!((notes("q"), notes("")), (1, 0), "a text by itself may be a conversation");
}

#[test]
fn what_is_no_row_is_told_what_to_do() {
    let why = |row: &Value, columns: Columns| refusal(load_with(row, columns));
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    for table in [
        json!({"prompt": ["q"], "completion": ["a"]}),
        json!({"prompt": {"0": "q"}, "completion": {"0": "a"}}),
        json!({"messages": [turns, turns]}),
        json!({"input_ids": [[1, 2], [3]]}),
        json!({"question": ["q"], "answer": ["a"]}),
        json!({"columns": ["prompt"], "index": [0], "data": [["q"]]}),
    ] {
        assert_says(&why(&table, Columns::default()), &["line 1", "a whole table by columns", "orient=\"records\""]);
    }
    let whole = "{\"messages\": [...]}";
    assert_says(&why(&turns, Columns::default()), &["the turn of a conversation", whole]);
    let second = load_one(format!("{{\"text\": \"a\"}}\n{turns}"), Some(&chat_tokenizer(CHATML)));
    assert_says(&refusal(second), &["line 2", "an array of 2 items", whole]);
    let share_gpt = json!({"messages": [{"from": "human", "value": "q"}]});
    assert_says(&why(&share_gpt, Columns::default()), &["`conversations`", "`--messages-column messages`"]);
    // By the names that the settings have.
    let twice = Columns::new(Some("q"), Some("q"), None, None, None, None);
    assert_says(&why(&json!({"q": "a"}), twice), &["`q` is named twice", "prompt", "completion"]);
    let text = |column| Columns::new(None, None, None, None, None, Some(column));
    let words = ["`messages`", "`dataset_text_field`", "holds turns", "`--messages-column messages`"];
    assert_says(&why(&json!({ "messages": turns }), text("messages")), &words);
    assert_says(&why(&json!({"body": 3}), text("body")), &["`body` is the number 3", "a string"]);
}

#[test]
fn parts_of_the_types_that_say_whose_text_it_is_are_text() {
    let part = |kind: &str, text: &str| json!([{"type": kind, "text": text}]);
    let row = json!({"messages": [{"role": "user", "content": part("input_text", "q")},
                                  {"role": "assistant", "content": part("output_text", "a")}]});
    assert_eq!(texts(&read(&row, Columns::default())).1, "a<|im_end|>");
}

#[test]
fn a_prompt_that_is_turns_as_a_text_is_warned_of() {
    let turns = json!([{"role": "user", "content": "q"}]).to_string();
    let warned = |prompt: &str| {
        let row = json!({"prompt": prompt, "completion": "a"});
        read(&row, Columns::default()).report.to_string().contains("a list of turns as a text of JSON")
    };
    assert!(warned(&turns) && warned(&format!(" {turns}\n")));
    for prompt in ["q", "[1, 2]", "[{\"x\": 1}]", "[{\"role\": \"user\", \"content\": \"q\"}] is what?", "["] {
        assert!(!warned(prompt), "{prompt}");
    }
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
