//! Files of rows: what is read, and what is refused with which words.

use proptest::prelude::*;
use qlora_train::config::TooLong;
use qlora_train::data::{DataOptions, RowPlace, Unit, describe, load, load_once};
use serde_json::json;

use trainer_lab::fixture::*;

#[test]
fn tokenized_rows_need_no_tokenizer_and_default_to_all_supervised() {
    let data = load_one(
        "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [4, 5, 6], \"labels\": [-100, 5, -100], \"attention_mask\": [1, 1, 1]}\n",
        None,
    )
    .unwrap();
    assert_eq!(data.rows[0].labels, [1, 2, 3]);
    assert_eq!(data.rows[1].labels, [-100, 5, -100]);
    assert_eq!((data.rows[0].supervised(), data.rows[1].supervised()), (2, 1));
    assert_eq!((data.rows[0].line, data.rows[1].line), (1, 2));
    assert_eq!((data.report.rows_read, data.report.rows_kept), (2, 2));
    assert_eq!((data.report.tokens, data.report.supervised_tokens, data.report.longest), (6, 3, 3));
}

#[test]
fn byte_order_mark_windows_line_ends_and_blank_lines_are_read() {
    let data = load_one("\u{FEFF}{\"input_ids\": [1, 2]}\r\n\r\n  \n{\"input_ids\": [3, 4]}", None).unwrap();
    assert_eq!(data.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn an_array_is_read_with_the_line_of_each_row() {
    let content = "\n[\n  {\"input_ids\": [1, 2]},\n {\"input_ids\":\n[3, 4]},\n\n {\"input_ids\": [5, 6]}\n]\n";
    for name in ["rows.json", "rows.jsonl"] {
        let file = file(name, content);
        let data = load(std::slice::from_ref(&file.path), None, &options()).unwrap();
        assert_eq!(data.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [3, 4, 7]);
        assert_eq!(data.report.files[0].unit, Unit::Line);
        assert_eq!(data.rows[2].input_ids, [5, 6]);
    }
}

/// An array as `json.dump` writes it: a line would name all of its rows.
#[test]
fn rows_that_share_a_line_are_told_apart_by_their_numbers() {
    let tokenizer = chat_tokenizer(CHATML);
    let row = |train: bool| {
        let asked = json!({"role": "user", "content": "q", "train": train});
        json!({"messages": [asked, {"role": "assistant", "content": "a"}]})
    };
    let rows = json!([row(true), row(false), row(true)]).to_string();
    for content in [rows.clone(), format!("\n[\n{}", &rows[1..]), format!("{{\n\"data\": {rows}}}")] {
        let data = load_one(&content, Some(&tokenizer)).unwrap();
        assert_eq!(data.report.files[0].unit, Unit::Row, "{content}");
        assert_eq!(data.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3]);
        assert_says(&data.report.to_string(), &["in 2 rows (row 1, 3) a user turn is marked to be learned"]);
    }
    for (broken, why) in [
        ("[{\"input_ids\": [1]}, {\"input_ids\": [1 2]}]", "broken JSON"),
        ("[{\"input_ids\": [1]}, 3]", "expected a row"),
    ] {
        assert_says(&refusal(load_one(broken, None)), &["rows.jsonl: row 2: ", why]);
    }
}

#[test]
fn more_rows_than_one_chunk_keep_their_order() {
    let content: String = (0..1500).map(|i| format!("{{\"input_ids\": [{}, {}]}}\n", i % 250, i / 250)).collect();
    let data = load_one(content, None).unwrap();
    assert_eq!(data.rows.len(), 1500);
    for (i, row) in data.rows.iter().enumerate() {
        assert_eq!((row.line, row.input_ids[0], row.input_ids[1]), (i + 1, i as u32 % 250, i as u32 / 250));
    }
}

#[test]
fn wrong_rows_are_refused_with_their_line_and_what_was_expected() {
    let good = "{\"input_ids\": [1, 2]}";
    let too_large = format!("{{\"input_ids\": [1, {VOCAB_SIZE}]}}");
    let table: &[(&str, &[&str])] = &[
        (&too_large, &["`input_ids[1]`", "the number 268", "0 to 267"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1, -1]}", &["`labels[1]`", "-1", "-100"]),
        ("{\"input_ids\": [1, 2], \"labels\": [1]}", &["`labels` has 1", "`input_ids` 2"]),
        ("{\"input_ids\": [1, 2.5]}", &["`input_ids[1]`", "2.5"]),
        ("{\"input_ids\": [1, \"2\"]}", &["`input_ids[1]`", "the string \"2\""]),
        ("{\"input_ids\": \"1 2\"}", &["`input_ids` must be an array"]),
        ("{\"input_ids\": [[1, 2]]}", &["`input_ids[0]`", "an array of 2 items"]),
        ("{\"input_ids\": [1, 2], \"attention_mask\": [1, 0]}", &["`attention_mask[1]`", "all ones"]),
        ("{\"input_ids\": [1, 2], \"attention_mask\": [1]}", &["`attention_mask` has 1"]),
        ("{\"input_ids\": [1, 2]", &["broken JSON"]),
        ("{\"input_ids\": [1], \"input_ids\": [2]}", &["`input_ids` is given twice"]),
        ("[1, 2]", &["expected a row (a JSON object)", "an array of 2 items"]),
        ("7", &["expected a row", "the number 7"]),
        ("{\"messages\": [], \"input_ids\": []}", &["both `messages` and `input_ids`"]),
        ("{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}", &["messages rows need", "tokenizer"]),
        ("{\"messages\": null, \"conversations\": null}", &["unknown kind of row", "`messages` is null"]),
        ("{\"prompt\": \"a\", \"id\": 3}", &["`completion` is missing", "`prompt` + `completion`"]),
        ("{\"instruction\": \"a\", \"output\": null}", &["`output` is null", "Alpaca"]),
        (
            "{\"instruction\": \"a\", \"output\": \"b\", \"text\": \"c\"}",
            &["`instruction` + `output` and `text`", "ambiguous"],
        ),
        ("{\"labels\": null}", &["unknown kind of row", "`labels` is null"]),
        (
            "{\"input_ids\": [1, 2, 260], \"labels\": [1, 2, -100]}",
            &["`labels[2]`", "EOS (token 260)", "learn to stop"],
        ),
        ("{\"question\": \"a\"}", &["unknown kind of row", "`question`", "supported are"]),
        ("{}", &["an empty object"]),
        ("{\"a\": \"\\ud800\"}", &["broken JSON"]),
    ];
    for (row, parts) in table {
        let message = refusal(load_one(format!("{good}\n\n{row}\n"), None));
        assert_says(&message, parts);
        assert_says(&message, &["rows.jsonl", "line 3: "]);
    }
}

#[test]
fn rows_that_are_not_utf8_are_refused_with_their_line() {
    let mut content = b"{\"input_ids\": [1, 2]}\n{\"input_ids\": [1], \"note\": \"".to_vec();
    content.extend([0xFF, 0xFE, b'"', b'}']);
    assert_says(&refusal(load_one(content, None)), &["line 2", "not UTF-8"]);
    assert_says(&refusal(load_one([b'[', 0xFF, b']'], None)), &["not UTF-8"]);
}

#[test]
fn errors_in_an_array_name_the_line() {
    let broken = "[\n{\"input_ids\": [1, 2]},\n{\"input_ids\": [1, 2}\n]";
    assert_says(&refusal(load_one(broken, None)), &["line 3", "broken JSON"]);
    let twice = "[\n{\"input_ids\": [1, 2]},\n{\n\"input_ids\": [1, 2],\n\"input_ids\": []}\n]";
    assert_says(&refusal(load_one(twice, None)), &["line 5", "given twice"]);
    assert_says(&refusal(load_one("[\n{\"input_ids\": [1, 2]},\n3]", None)), &["line 3", "expected a row"]);
}

#[test]
fn files_that_hold_no_rows_are_refused() {
    for empty in ["", "\n\n", "[]", "\u{FEFF}"] {
        assert_says(&refusal(load_one(empty, None)), &["rows.jsonl", "no row found"]);
    }
    assert_says(&refusal(load_one(b"PAR1\x00\x00", None)), &["Parquet", "cut off or damaged"]);
    assert_says(&refusal(load_one(b"\x1F\x8B\x08\x00", None)), &["compressed"]);
    let dir = tempfile::tempdir().unwrap();
    assert_says(&refusal(load(&[dir.path().join("no.jsonl")], None, &options())), &["no.jsonl", "cannot open"]);
    assert_says(&refusal(load(&[dir.path().to_path_buf()], None, &options())), &["is a directory"]);
    assert_says(&refusal(load(&[], None, &options())), &["no data file"]);
}

#[test]
fn a_broken_object_is_refused_with_what_is_supported() {
    assert_says(&refusal(load_one("{ \"input_ids\": [1]\n}", None)), &["line 1", "JSON Lines", "one array"]);
}

fn lengths(too_long: TooLong) -> qlora_train::error::Result<qlora_train::data::Dataset> {
    let rows = "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [1, 2, 3, 4, 5]}\n\
                {\"input_ids\": [1, 2, 3, 4, 5, 6], \"labels\": [-100, -100, -100, -100, 5, 6]}\n{\"input_ids\": [1, 2, 3, 4]}\n";
    let file = file("rows.jsonl", rows);
    load(
        std::slice::from_ref(&file.path),
        None,
        &DataOptions { max_length: 4, too_long, vocab_size: 10, ..DataOptions::default() },
    )
}

#[test]
fn too_long_rows_are_dropped_and_counted() {
    let data = lengths(TooLong::Drop).unwrap();
    assert_eq!(data.lengths(), [3, 4]);
    assert_eq!((data.report.dropped, data.report.truncated, data.report.unsupervised), (2, 0, 0));
    assert_says(&data.report.to_string(), &["2 rows left out: longer than max_length 4 (the longest has 6 tokens)"]);
}

#[test]
fn too_long_rows_are_truncated_and_skipped_when_nothing_supervised_is_left() {
    let data = lengths(TooLong::Truncate).unwrap();
    assert_eq!(data.lengths(), [3, 4, 4]);
    assert_eq!(data.rows[1].labels, [1, 2, 3, 4]);
    assert_eq!((data.report.dropped, data.report.truncated, data.report.unsupervised), (0, 2, 1));
    assert_eq!(data.report.unsupervised_rows, [RowPlace { file: 0, line: 3 }]);
    assert_says(&data.report.to_string(), &["2 rows cut to max_length 4", "1 row left out: no supervised token"]);
}

/// One long prompt with a long answer: both are cut, and what is learned is the answer's beginning.
#[test]
fn too_long_rows_are_cut_in_prompt_and_answer_in_proportion() {
    let data = lengths(TooLong::Proportional).unwrap();
    assert_eq!(data.lengths(), [3, 4, 4, 4]);
    // A text is cut at its end; of four tokens asked and two answered, the answer has a third.
    assert_eq!(data.rows[1].input_ids, [1, 2, 3, 4]);
    assert_eq!(
        (&data.rows[2].input_ids[..], &data.rows[2].labels[..]),
        (&[1, 2, 3, 5][..], &[-100, -100, -100, 5][..])
    );
    assert_eq!((data.report.dropped, data.report.truncated, data.report.unsupervised), (0, 2, 0));
    assert_says(&data.report.to_string(), &["2 rows cut to max_length 4", "in the prompt and the answer of each turn"]);
}

#[test]
fn long_texts_are_cut_into_rows_of_which_every_token_is_predicted_once() {
    let ids = |range: std::ops::Range<u32>| range.collect::<Vec<u32>>();
    let text = json!({"input_ids": ids(1..10), "weight": [1, 2, 3, 4, 5, 6, 7, 8, 9], "task": "t"});
    let asked = json!({"input_ids": ids(1..10), "labels": [-100, -100, 3, 4, 5, 6, 7, 8, 9]});
    let rows = file("rows.jsonl", format!("{text}\n{asked}\n{}", json!({"input_ids": [7, 8]})));
    for (max_length, expected) in [
        (4, vec![vec![1, 2, 3, 4], vec![4, 5, 6, 7], vec![7, 8, 9]]),
        (5, vec![vec![1, 2, 3, 4, 5], vec![5, 6, 7, 8, 9]]),
        (2, (1..9).map(|id| vec![id, id + 1]).collect()),
        (8, vec![vec![1, 2, 3, 4, 5, 6, 7, 8], vec![8, 9]]),
    ] {
        let options = DataOptions { max_length, too_long: TooLong::Chunk, vocab_size: 16, ..options() };
        let data = load(std::slice::from_ref(&rows.path), None, &options).unwrap();
        let (last, pieces) = data.rows.split_last().unwrap();
        assert_eq!(last.input_ids, [7, 8], "{max_length}");
        assert_eq!(pieces.iter().map(|row| row.input_ids.clone()).collect::<Vec<_>>(), expected, "{max_length}");
        assert_eq!(pieces.iter().map(|row| row.supervised()).sum::<usize>(), 8, "{max_length}");
        for row in pieces {
            assert!(row.task.as_deref() == Some("t") && row.line == 1);
            assert!(row.input_ids.iter().enumerate().all(|(at, id)| row.weight(at) == *id as f32), "{row:?}");
        }
        // A row with a prompt has no beginning to go on from.
        assert_eq!((data.report.chunked, data.report.pieces, data.report.dropped), (1, expected.len(), 1));
        let said = format!("1 long text cut into {} rows of at most max_length {max_length}", expected.len());
        assert_says(&data.report.to_string(), &[said.as_str(), "1 row left out: longer than max_length"]);
    }
}

#[test]
fn too_long_rows_are_refused_on_request() {
    assert_says(&refusal(lengths(TooLong::Error)), &["line 2", "5 tokens", "max_length 4", "drop or truncate"]);
}

#[test]
fn rows_that_were_there_before_are_left_out_where_the_settings_say_so() {
    let tokenizer = chat_tokenizer(LLAMA3);
    let rows = [
        r#"{"input_ids": [1, 2, 3]}"#,
        r#"{"input_ids": [1, 2, 3], "id": 7, "task": "other keys do not count"}"#,
        r#"{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}"#,
        r#"{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}"#,
        r#"{"input_ids": [1, 2, 3], "weight": 0.5}"#,
        r#"{"input_ids": [1, 2]}"#,
        r#"{"text": "one"}"#,
        r#"{"prompt": "", "completion": "one"}"#,
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#,
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]}"#,
    ];
    let file = file("rows.jsonl", rows.join("\n"));
    let twice = [file.path.clone(), file.path.clone()];
    let read = |paths: &[std::path::PathBuf], options: &DataOptions| load(paths, Some(&tokenizer), options);
    let lines = |data: &qlora_train::data::Dataset| data.rows.iter().map(|row| row.line).collect::<Vec<_>>();
    let all = read(&twice, &options()).unwrap();
    assert_eq!((all.rows.len(), all.report.duplicates), (22, 0));
    let deduplicated = DataOptions { deduplicate: true, ..options() };
    let data = read(&twice, &deduplicated).unwrap();
    assert_eq!((lines(&data), data.report.duplicates, data.report.rows_read), (vec![1, 4, 5, 6, 7, 9, 11], 15, 22));
    assert_says(&data.report.to_string(), &["15 rows left out: each the same as another one before it (deduplicate)"]);
    // Rows of another data set, such as those that are trained on.
    let known_rows = std::sync::Arc::new(qlora_train::data::identities(&data.rows[..3]));
    let rest = read(&twice[..1], &DataOptions { known_rows: known_rows.clone(), ..deduplicated.clone() }).unwrap();
    assert_eq!(lines(&rest), [6, 7, 9, 11]);
    let known_rows = std::sync::Arc::new(qlora_train::data::identities(&data.rows));
    let message = refusal(read(&twice, &DataOptions { known_rows, ..deduplicated }));
    assert_says(&message, &["no row is left", "22 are there before (deduplicate)"]);
}

#[test]
fn a_row_whose_only_label_is_its_first_token_has_nothing_to_predict() {
    let data =
        load_one("{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n{\"input_ids\": [1, 2]}\n{\"input_ids\": []}", None)
            .unwrap();
    assert_eq!((data.rows.len(), data.report.unsupervised), (1, 2));
}

#[test]
fn data_without_any_supervised_token_is_refused() {
    let rows = "{\"input_ids\": [1, 2], \"labels\": [-100, -100]}\n{\"input_ids\": [3]}\n";
    assert_says(&refusal(load_one(rows, None)), &["rows.jsonl", "no row is left", "2 have no supervised"]);
}

#[test]
fn two_bos_at_the_start_are_refused() {
    let tokenizer = chat_tokenizer(CHATML);
    assert_says(&refusal(load_one("{\"input_ids\": [259, 259, 3]}", Some(&tokenizer))), &["line 1", "two BOS"]);
    assert!(load_one("{\"input_ids\": [259, 3, 259]}", Some(&tokenizer)).is_ok());
}

#[test]
fn several_files_may_differ_in_format() {
    let (ids, chat) = (
        file("ids.jsonl", "{\"input_ids\": [1, 2]}"),
        file(
            "chat.jsonl",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"a\"}]}",
        ),
    );
    let tokenizer = chat_tokenizer(CHATML);
    let data = load(&[ids.path.clone(), chat.path.clone()], Some(&tokenizer), &options()).unwrap();
    assert_eq!(data.rows.iter().map(|row| row.file).collect::<Vec<_>>(), [0, 1]);
    assert_says(&data.report.to_string(), &["ids.jsonl: 1 tokenized row", "chat.jsonl: 1 messages row"]);
    // The tokenizer is opened at the first row of text, once, and not for token ids.
    let (opened, options) = (std::cell::Cell::new(0), options());
    let open = || {
        opened.set(opened.get() + 1);
        Ok(&tokenizer)
    };
    assert_eq!(load_once(std::slice::from_ref(&ids.path), &open, &options).unwrap().rows.len(), 1);
    assert_eq!(opened.get(), 0);
    let once = load_once(&[ids.path.clone(), chat.path.clone(), chat.path.clone()], &open, &options).unwrap();
    assert_eq!((opened.get(), &once.rows[..2]), (1, &data.rows[..]));
    assert_eq!(once.hashes[1], once.hashes[2]);
    assert_eq!(once.hashes[0], "5f77904015b835462fd8c77d39e233ce0e50646c5e968f511339c5b28a271f7c");
    let odd = file("odd.jsonl", "{\"x\": 1}");
    assert_says(
        &refusal(load_once(&[ids.path, odd.path.clone()], &open, &options)),
        &["odd.jsonl: line 1", "unknown kind"],
    );
    assert_says(&refusal(load(&[chat.path], None, &options)), &["line 1", "need the model's tokenizer"]);
}

#[test]
fn a_tokenized_row_is_described_token_by_token() {
    let tokenizer = chat_tokenizer(CHATML);
    let data = load_one("{\"input_ids\": [104, 256, 262], \"labels\": [104, -100, 262]}", None).unwrap();
    let spelt = |text: &str, supervised| (text.to_owned(), supervised);
    assert_eq!(
        describe(&data.rows[0], Some(&tokenizer)),
        [spelt("h", false), spelt("he", false), spelt("<|im_end|>", true)]
    );
    assert_eq!(describe(&data.rows[0], None)[1], spelt("<256>", false));
}

proptest! {
    #[test]
    fn garbage_never_panics_and_is_either_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        match load_one(&bytes, None) {
            Ok(data) => prop_assert!(!data.rows.is_empty()),
            Err(error) => prop_assert_eq!(error.exit_status(), 2),
        }
    }

    /// Text that looks like rows goes deeper than random bytes do.
    #[test]
    fn almost_rows_never_panic(pieces in prop::collection::vec(prop::sample::select(vec![
        "{", "}", "[", "]", ",", ":", "\n", "\"input_ids\"", "\"labels\"", "\"messages\"", "\"role\"", "\"content\"",
        "\"assistant\"", "\"user\"", "1", "-100", "1e999", "99999999999999999999", "null", "\"é\"", " ",
    ]), 0..40), array: bool) {
        let tokenizer = chat_tokenizer(CHATML);
        let text = if array { format!("[{}]", pieces.concat()) } else { pieces.concat() };
        if let Err(error) = load_one(text, Some(&tokenizer)) {
            prop_assert_eq!(error.exit_status(), 2);
        }
    }

    #[test]
    fn any_json_under_the_known_keys_never_panics(key in prop::sample::select(vec![
            "messages", "input_ids", "labels", "conversations", "prompt", "completion", "instruction", "output", "input",
            "history", "text", "system", "tools"]),
        value in json_value()) {
        let tokenizer = chat_tokenizer(CHATML);
        let turn = serde_json::json!([{"role": "assistant", "content": "a"}]);
        let base = match key {
            "input_ids" | "labels" => serde_json::json!({"input_ids": [1, 2]}),
            "prompt" | "completion" => serde_json::json!({"prompt": turn, "completion": turn}),
            "instruction" | "output" | "input" | "history" => serde_json::json!({"instruction": "a", "output": "b"}),
            "system" => serde_json::json!({"conversations": [{"from": "gpt", "value": "a"}]}),
            "tools" => serde_json::json!({"messages": turn}),
            _ => serde_json::json!({}),
        };
        let mut row = base.as_object().unwrap().clone();
        row.insert(key.into(), value);
        if let Err(error) = load_one(serde_json::Value::Object(row).to_string(), Some(&tokenizer)) {
            prop_assert_eq!(error.exit_status(), 2);
        }
    }
}

fn json_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        prop::sample::select(vec!["user", "assistant", "text", "", "é"]).prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::Array),
            prop::collection::vec(
                (prop::sample::select(vec!["role", "content", "type", "text", "weight"]), inner),
                0..4
            )
            .prop_map(|entries| entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

/// The text between rows is checked although each row is read by itself.
#[test]
fn an_array_is_refused_where_it_is_broken_between_its_rows() {
    let row = "{\"input_ids\": [1, 2]}";
    for (broken, line, why) in [
        (format!("[{row},\n]"), 2, "trailing comma"),
        (format!("[{row}\n{row}]"), 2, "trailing characters"),
        (format!("[{row}]\n{row}"), 2, "trailing characters"),
        (format!("[{row},\n,{row}]"), 2, "broken JSON"),
        (format!("[{row}\n"), 1, "ends within"),
        (format!("[{row}"), 1, "ends within"),
        (format!("[{row},\n"), 2, "ends within"),
        ("[\n{\"input_ids\": [1, 2}, {\"a\": \"".to_owned(), 2, "ends within"),
        (format!("[{row}}}]"), 1, "expected `,` or `]`"),
    ] {
        assert_says(&refusal(load_one(&broken, None)), &[&format!("line {line}"), why]);
    }
    // Objects that hold nothing but rows, in an array of their own, with the lines of the file.
    let data = load_one(format!("{{\n\"train\":\n[{row},\n{row}]}}"), None).unwrap();
    assert_eq!(data.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [3, 4]);
    assert_says(&refusal(load_one(format!("{{\n\"train\": [{row}, 3]}}"), None)), &["line 1"]);
}

/// Rows with NaN, which Python writes, in an array.
#[test]
fn an_array_may_hold_what_python_writes() {
    let data = load_one("[{\"input_ids\": [1, 2], \"task\": NaN},\n{\"input_ids\": [3, 4]}]", None).unwrap();
    assert_eq!(data.rows.len(), 2);
}

/// One row that takes more to be read than there is.
#[test]
fn a_row_that_is_longer_than_the_memory_is_refused() {
    let file = file("rows.jsonl", format!("{{\"text\": \"a\"}}\n{{\"text\": \"{}\"}}\n", "a ".repeat(1 << 20)));
    let (tokenizer, paths) = (chat_tokenizer(CHATML), std::slice::from_ref(&file.path));
    let at = |memory| load(paths, Some(&tokenizer), &DataOptions { memory, too_long: TooLong::Drop, ..options() });
    let message = refusal(at(7 << 20));
    assert_says(&message, &["rows.jsonl: line 2: a row of 2.0 MiB", "7.0 MiB of memory", "split it", "host_memory"]);
    assert_eq!(at(9 << 20).unwrap().rows.len(), 1);
}

/// Rows that would take more memory than there is are refused while they are read, and not by the system.
#[test]
fn rows_end_where_the_memory_does() {
    let content = "{\"input_ids\": [1, 2, 3, 4]}\n".repeat(2000);
    let options = DataOptions { memory: 100 << 10, ..options() };
    let file = file("rows.jsonl", &content);
    let message = refusal(load(std::slice::from_ref(&file.path), None, &options));
    assert_says(&message, &["rows.jsonl: line ", "100.0 KiB of memory", "host_memory", "max_samples"]);
    let few = DataOptions { max_samples: Some(300), ..options };
    assert_eq!(load(std::slice::from_ref(&file.path), None, &few).unwrap().rows.len(), 300);
}
