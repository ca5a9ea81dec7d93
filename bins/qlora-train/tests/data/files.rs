//! Files as people have them: compressed, tables, printed over several lines, folders and patterns; columns of other
//! names, and rows that cannot be trained on.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use qlora_train::config::{BadRow, PromptCompletion};
use qlora_train::data::{Columns, DataFiles, DataOptions, Dataset, RowKind, UNSUPERVISED, load};
use serde_json::{Value, json};

use trainer_lab::fixture::*;

fn chat(answer: &str) -> Value {
    json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]})
}

fn load_named(name: &str, content: impl AsRef<[u8]>, options: &DataOptions) -> qlora_train::error::Result<Dataset> {
    let file = file(name, content);
    load(std::slice::from_ref(&file.path), Some(&chat_tokenizer(LLAMA3)), options)
}

#[track_caller]
fn read(name: &str, content: impl AsRef<[u8]>) -> Dataset {
    load_named(name, content, &options()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(content).unwrap();
    out.finish().unwrap()
}

#[test]
fn rows_in_every_wrapping_are_the_same_rows() {
    let rows = [chat("one"), chat("two")];
    let expected: Vec<Vec<u32>> =
        read("a.jsonl", format!("{}\n{}\n", rows[0], rows[1])).rows.into_iter().map(|row| row.input_ids).collect();
    let lines = format!("{}\n{}\n", rows[0], rows[1]);
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    let zstd = |content: &[u8]| zstd::encode_all(content, 3).unwrap();
    // A frame of four bytes that decoders skip.
    let skipped = |number: u8| [&[0x50 + number, 0x2A, 0x4D, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
    let wrapped: [(&str, Vec<u8>); 20] = [
        ("Zstandard", zstd(lines.as_bytes())),
        ("Zstandard of an array", zstd(json!(rows).to_string().as_bytes())),
        (
            "two Zstandard frames",
            [zstd(format!("{}\n", rows[0]).as_bytes()), zstd(rows[1].to_string().as_bytes())].concat(),
        ),
        ("gzip", gzip(lines.as_bytes())),
        ("gzip of an array", gzip(json!(rows).to_string().as_bytes())),
        (
            "two gzip members",
            [gzip(format!("{}\n", rows[0]).as_bytes()), gzip(rows[1].to_string().as_bytes())].concat(),
        ),
        ("array", json!(rows).to_string().into()),
        ("pretty array", pretty(&json!(rows)).into()),
        ("pretty rows", format!("{}\n{}", pretty(&rows[0]), pretty(&rows[1])).into()),
        ("object of rows", pretty(&json!({"train": rows})).into()),
        ("object of data", pretty(&json!({"data": rows})).into()),
        ("object of data on one line", json!({"data": rows}).to_string().into()),
        ("object of data on one line, with blank lines", format!("\n{}\n \n", json!({"data": rows})).into()),
        ("object with other keys", json!({"version": "1", "data": rows, "n": 2}).to_string().into()),
        ("object with a type", pretty(&json!({"type": "conversation", "instances": rows})).into()),
        ("object that goes on", format!("{{\"data\": [\n{},\n{}\n]}}\n", rows[0], rows[1]).into()),
        (
            "rows that begin on the line of their braces",
            format!("{}\n{}", pretty(&rows[0]).replacen("{\n", "{ ", 1), pretty(&rows[1]).replacen("{\n", "{ ", 1))
                .into(),
        ),
        ("a Zstandard frame that is skipped", [skipped(0), zstd(lines.as_bytes())].concat()),
        ("skipped frames before and behind", [skipped(15), zstd(lines.as_bytes()), skipped(7)].concat()),
        ("CRLF", lines.replace('\n', "\r\n").into()),
    ];
    for (name, content) in wrapped {
        let got: Vec<Vec<u32>> = read("rows.json", content).rows.into_iter().map(|row| row.input_ids).collect();
        assert_eq!(got, expected, "{name}");
    }
}

/// The user has to choose among several lists; an object that only looks like a list of rows is a row.
#[test]
fn an_object_of_several_lists_and_a_row_with_a_list_are_told() {
    let rows = [chat("one"), chat("two")];
    let several = json!({"train": rows, "validation": [chat("three")]});
    for text in [several.to_string(), serde_json::to_string_pretty(&several).unwrap()] {
        let message = refusal(load_named("a.json", text, &options()));
        assert_says(&message, &["line 1", "several lists of rows", "`train` (2), `validation` (1)", "`val_data`"]);
    }
    // One of several rows is no file in one object.
    let row = json!({"data": rows});
    let message = refusal(load_named("a.jsonl", format!("{row}\n\n{row}\n"), &options()));
    assert_says(&message, &["line 1", "unknown kind of row", "`data`, give that list alone"]);
    let turns = json!({"items": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    let message = refusal(load_named("a.json", turns.to_string(), &options()));
    assert_says(&message, &["unknown kind of row", "`--messages-column items`"]);
    let columns = Columns::new(None, None, None, None, Some("items"), None);
    assert_eq!(load_named("a.json", turns.to_string(), &DataOptions { columns, ..options() }).unwrap().rows.len(), 1);
    // Lines are counted behind the blank ones too, and a row that is cut off is one row.
    let bad = format!("{}\n\n\n{{\"text\": 7}}\n", chat("a"));
    assert_says(&refusal(load_named("a.jsonl", bad, &options())), &["line 4", "`text` is the number 7"]);
    let skip = DataOptions { on_bad_row: BadRow::Skip, ..options() };
    let cut = format!("{{\"messages\": [{{\"role\": \"us\n{}", format!("{}\n", chat("a")).repeat(20));
    assert_eq!(load_named("a.jsonl", cut, &skip).unwrap().rows.len(), 20);
}

#[test]
fn lines_of_rows_printed_over_several_lines_are_named() {
    let bad = json!({"messages": []});
    let text = format!(
        "{}\n{}",
        serde_json::to_string_pretty(&chat("a")).unwrap(),
        serde_json::to_string_pretty(&bad).unwrap()
    );
    let line = serde_json::to_string_pretty(&chat("a")).unwrap().lines().count() + 1;
    assert_says(&refusal(load_named("a.json", text, &options())), &[&format!("line {line}"), "non-empty array"]);
    assert_says(&refusal(load_named("a.json", "{\n\"text\": \"a\"", &options())), &["broken JSON"]);
}

#[test]
fn numbers_that_json_does_not_have_are_nothing() {
    for number in ["NaN", "Infinity", "-Infinity"] {
        let row = chat("a").to_string().replacen('{', &format!("{{\"score\": {number}, "), 1);
        assert_eq!(read("a.jsonl", &row).rows.len(), 1, "{number}");
        assert_eq!(read("a.json", format!("[{row}, {row}]")).rows.len(), 2, "{number}");
        // In a string they are words, and where a value is needed they are missing.
        let said = format!("{{\"text\": \"NaN is {number}\", \"x\": [{number}]}}");
        let tokenizer = chat_tokenizer(LLAMA3);
        let text = tokenizer.decode(&read("a.jsonl", said).rows[0].input_ids, false).unwrap();
        assert_eq!(text, format!("<bos>NaN is {number}<eos>"));
        assert_says(
            &refusal(load_named("a.jsonl", format!("{{\"text\": {number}}}"), &options())),
            &["`text` is null"],
        );
        let labels = format!("{{\"input_ids\": [1, 2], \"labels\": [1, {number}]}}");
        assert_says(&refusal(load_named("a.jsonl", labels, &options())), &["labels[1]", "null"]);
    }
    assert_says(&refusal(load_named("a.jsonl", "{\"text\": NotANumber}", &options())), &["broken JSON"]);
}

#[test]
fn tables_of_text_are_read_by_their_header() {
    let rows = read("a.csv", "prompt,completion,id\n\"hello, w\",\"two\nlines\",7\nq,a,\n").rows;
    let tokenizer = chat_tokenizer(LLAMA3);
    let texts: Vec<String> = rows.iter().map(|row| tokenizer.decode(&row.input_ids, false).unwrap()).collect();
    assert_eq!(texts, ["<bos>hello, wtwo\nlines<eos>", "<bos>qa<eos>"]);
    assert_eq!(read("a.tsv", "text\tid\nhello\t1\n").rows.len(), 1);
    assert_eq!(read("a.csv.gz", gzip(b"text\nhello\n")).rows.len(), 1);
    let turns = chat("a")["messages"].to_string().replace('"', "\"\"");
    assert_eq!(read("a.csv", format!("messages\n\"{turns}\"\n")).rows.len(), 1);
    for (content, parts) in [
        ("text,text\na,b\n", ["column \"text\"", "twice"]),
        // Blanks around a name are no part of it.
        ("text,id, text\na,b,c\n", ["column \"text\"", "twice (the second time as column 3)"]),
        ("text,id\na\n", ["row 1", "broken CSV"]),
        ("a,b\n1,2\n", ["unknown kind of row", "`a`"]),
    ] {
        assert_says(&refusal(load_named("a.csv", content, &options())), &parts);
    }
}

#[test]
fn blanks_around_the_name_of_a_column_are_left_out_of_its_cells_too() {
    let ids = |table: &str| read("a.csv", table).rows[0].input_ids.clone();
    let expected = ids("prompt,completion\nq,a\n");
    for table in ["prompt, completion\nq, a\n", "prompt ,completion\nq ,a\n", "prompt,\tcompletion \nq,\ta \n"] {
        assert_eq!(ids(table), expected, "{table:?}");
    }
    for table in ["prompt,completion\nq, a\n", "prompt, completion\nq , a\n"] {
        assert_ne!(ids(table), expected, "{table:?}");
    }
    let quoted = refusal(load_named("a.csv", "prompt, completion\nq, \"a\"\n", &options()));
    assert_says(&quoted, &["row 1", "quotes behind a blank"]);
}

/// Cells of CSV files, read as pandas does, and `datasets` by it.
#[test]
fn cells_that_say_nothing_are_null() {
    let expected = read("a.csv", "instruction,input,output\ni,,o\n").rows[0].input_ids.clone();
    for nothing in [
        "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
        "NULL", "NaN", "None", "n/a", "nan", "null", "\"NaN\"",
    ] {
        let table = format!("instruction,input,output\ni,{nothing},o\n");
        assert_eq!(read("a.csv", table).rows[0].input_ids, expected, "{nothing}");
        let answer = refusal(load_named("a.csv", format!("prompt,completion\nq,{nothing}\n"), &options()));
        assert_says(&answer, &["row 1", "`completion` is null", "in CSV an empty cell is null", "as JSON Lines"]);
    }
    // Longer texts, and those in other letters, are texts.
    for text in ["none", "NAN", "Null", "NaN.", " NA", "not applicable"] {
        let table = format!("instruction,input,output\ni,{text},o\n");
        assert_ne!(read("a.csv", table).rows[0].input_ids, expected, "{text}");
    }
}

/// The columns of a table may be many.
#[test]
fn a_table_of_many_columns_is_read() {
    let columns: Vec<String> = (0..200_000).map(|at| format!("c{at}")).collect();
    let table = |header: &str| format!("{header},{}\nhello{}\n", columns.join(","), ",x".repeat(columns.len()));
    assert_eq!(read("a.csv", table("text")).rows.len(), 1);
    let twice = refusal(load_named("a.csv", table("c199999"), &options()));
    assert_says(&twice, &["a.csv", "column \"c199999\"", "twice (the second time as column 200001)"]);
}

#[test]
fn files_of_another_kind_are_named() {
    for (content, kind) in [
        (&b"\x28\xB5\x2F\xFD\x04"[..], "Zstandard"),
        (b"PK\x03\x04", "a zip archive"),
        (b"BZh9", "bzip2"),
        (b"\xFD7zXZ\0", "xz"),
        (b"SQLite format 3\0", "SQLite"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "HTML"),
    ] {
        assert_says(&refusal(load_named("rows.jsonl", content, &options())), &["rows.jsonl: is", kind]);
    }
}

#[test]
fn columns_of_other_names_are_read_by_the_settings_and_guessed_in_the_error() {
    let pairs = [
        ("question", "answer"),
        ("query", "response"),
        ("input", "target"),
        ("problem", "solution"),
        ("prompt", "response"),
        ("question", "completion"),
    ];
    let tokenizer = chat_tokenizer(LLAMA3);
    for (prompt, completion) in pairs {
        let row = json!({prompt: "q ", completion: "a", "id": 3}).to_string();
        if completion != "completion" {
            let message = refusal(load_named("a.jsonl", &row, &options()));
            let flag = if prompt == "prompt" { "--completion-column response" } else { "-column" };
            assert_says(&message, &["did you mean", flag, completion]);
        }
        let columns = Columns::new(Some(prompt), Some(completion), None, None, None, None);
        let data = load_named("a.jsonl", &row, &DataOptions { columns, ..options() }).unwrap();
        let labels = data.rows[0].labels.iter().filter(|&&label| label != UNSUPERVISED).count();
        assert_eq!(tokenizer.decode(&data.rows[0].input_ids, false).unwrap(), "<bos>q a<eos>", "{prompt}");
        assert_eq!(labels, 2, "{prompt}");
    }
    let columns = Columns::new(Some("q"), None, None, None, None, None);
    let missing =
        load_named("a.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}", &DataOptions { columns, ..options() });
    assert_says(&refusal(missing), &["the column `q` is missing", "`prompt`"]);
}

/// A data set's own rendering beside its parts: `tatsu-lab/alpaca` has both.
#[test]
fn named_columns_say_which_of_two_formats_is_meant() {
    let row = r#"{"instruction": "q", "input": "", "output": "a", "text": "whole"}"#;
    let turns = "<bos><|start|>user<|stop|>\n\nq<|eot|><|start|>assistant<|stop|>\n\na<|eot|>";
    let read = |row: &str, columns: Columns| {
        let data = load_named("a.jsonl", row, &DataOptions { columns, ..options() });
        data.map(|data| chat_tokenizer(LLAMA3).decode(&data.rows[0].input_ids, false).unwrap())
    };
    let of = |prompt, completion, messages, text| Columns::new(prompt, completion, None, None, messages, text);
    let message = refusal(read(row, Columns::default()));
    assert_says(
        &message,
        &["ambiguous", "--prompt-column instruction --completion-column output", "--text-column text"],
    );
    assert_eq!(read(row, of(Some("instruction"), Some("output"), None, None)).unwrap(), turns);
    assert_eq!(read(row, of(None, Some("output"), None, None)).unwrap(), turns);
    assert_eq!(read(row, of(None, None, None, Some("text"))).unwrap(), "<bos>whole<eos>");
    assert_eq!(read(row, Columns::default().meaning(RowKind::Alpaca)).unwrap(), turns);
    let row =
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "text": "whole"}"#;
    assert_eq!(read(row, of(None, None, Some("messages"), None)).unwrap(), turns);
    assert_eq!(read(row, of(None, None, None, Some("text"))).unwrap(), "<bos>whole<eos>");
    // A chosen format does not change a row of another one.
    assert_eq!(read(r#"{"text": "whole"}"#, Columns::default().meaning(RowKind::Alpaca)).unwrap(), "<bos>whole<eos>");
}

#[test]
fn a_system_text_beside_a_prompt_is_a_turn_or_refused() {
    let read = |row: &str, system: Option<&str>, prompt_completion| {
        let columns = Columns::new(None, None, None, system, None, None);
        let data = load_named("a.jsonl", row, &DataOptions { columns, prompt_completion, ..options() });
        data.map(|data| chat_tokenizer(LLAMA3).decode(&data.rows[0].input_ids, false).unwrap())
    };
    let turns = "<bos><|start|>system<|stop|>\n\nbe brief<|eot|><|start|>user<|stop|>\n\nq<|eot|><|start|>assistant<|stop|>\n\na<|eot|>";
    for (row, column) in [
        (r#"{"prompt": "q", "completion": "a", "system": "be brief"}"#, None),
        (r#"{"prompt": "q", "completion": "a", "sys": "be brief"}"#, Some("sys")),
        (
            r#"{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}], "system": "be brief"}"#,
            None,
        ),
    ] {
        assert_eq!(read(row, column, PromptCompletion::Chat).unwrap(), turns, "{row}");
    }
    let row = r#"{"prompt": "q", "completion": "a", "system": "be brief"}"#;
    let message = refusal(read(row, None, PromptCompletion::Text));
    assert_says(&message, &["line 1", "`system`", "plain text", "prompt_completion: chat"]);
    let row = r#"{"prompt": "q", "completion": "a", "system": " "}"#;
    assert_eq!(read(row, None, PromptCompletion::Text).unwrap(), "<bos>qa<eos>");
}

#[test]
fn plain_text_is_told_how_to_become_rows() {
    for text in ["Hello world\nsecond\n", "\n  1 thing\n", "# A title\n"] {
        let message = refusal(load_named("notes.txt", text, &options()));
        assert_says(&message, &["notes.txt: line", "plain text", "{\"text\": \"...\"}"]);
    }
    // JSON with a fault is no plain text, nor is a line of words behind rows.
    for text in ["{\"text\": 1,}\n", "{\"text\": \"a\"}\nHello\n", "\"text\": 1\n"] {
        let message = refusal(load_named("rows.jsonl", text, &options()));
        assert!(message.contains("broken JSON") && !message.contains("plain text"), "{message}");
    }
}

#[test]
fn a_prompt_and_its_completion_are_turns_where_the_settings_say_so() {
    let row = "{\"prompt\": \"q\", \"completion\": \"a\"}";
    let tokenizer = chat_tokenizer(LLAMA3);
    let text = |data: &Dataset| tokenizer.decode(&data.rows[0].input_ids, false).unwrap();
    let plain = load_named("a.jsonl", row, &options()).unwrap();
    assert_eq!(text(&plain), "<bos>qa<eos>");
    assert_says(
        &plain.report.to_string(),
        &["plain text, without the chat template", "`generate` with the adapter asks in that form"],
    );
    // By default as `generate` asks.
    for prompt_completion in [PromptCompletion::Chat, PromptCompletion::Auto, DataOptions::default().prompt_completion]
    {
        let turns = load_named("a.jsonl", row, &DataOptions { prompt_completion, ..options() }).unwrap();
        assert_eq!(text(&turns), "<bos><|start|>user<|stop|>\n\nq<|eot|><|start|>assistant<|stop|>\n\na<|eot|>");
        assert_says(&turns.report.to_string(), &["a user turn and an answer"]);
    }
    // Without a template there is nothing to choose.
    let bare = qlora_train::data::ChatTokenizer::open(model_dir(None).path(), None).unwrap();
    let file = file("a.jsonl", row);
    for prompt_completion in [PromptCompletion::Text, PromptCompletion::Auto] {
        let options = DataOptions { prompt_completion, ..options() };
        let plain = load(std::slice::from_ref(&file.path), Some(&bare), &options).unwrap();
        assert!(plain.report.remarks.is_empty());
        assert_eq!(bare.decode(&plain.rows[0].input_ids, false).unwrap(), "<bos>qa<eos>");
    }
    let options = DataOptions { prompt_completion: PromptCompletion::Chat, ..options() };
    let message = refusal(load(std::slice::from_ref(&file.path), Some(&bare), &options));
    assert_says(&message, &["the model has no chat template"]);
}

#[test]
fn bad_rows_are_skipped_counted_and_bounded_where_the_settings_say_so() {
    let options = DataOptions { on_bad_row: BadRow::Skip, ..options() };
    let good = "{\"text\": \"a\"}\n";
    let bad = ["{\"text\": 7}\n", "{\"text\"\n", "[1]\n", "{\"nothing\": 1}\n", "{\"text\": \"a\", \"label\": true}\n"];
    for row in bad {
        assert!(load_named("a.jsonl", format!("{good}{row}"), &trainer_lab::fixture::options()).is_err(), "{row}");
        let data = load_named("a.jsonl", format!("{good}{row}{}", good.repeat(8)), &options).unwrap();
        assert_eq!((data.rows.len(), data.report.skipped), (9, 1), "{row}");
        assert_says(&data.report.to_string(), &["warning: 1 row skipped", "a.jsonl: line 2"]);
        // Few rows have the bound too: one of nine is more than a tenth.
        let few = refusal(load_named("a.jsonl", format!("{good}{row}{}", good.repeat(7)), &options));
        assert_says(&few, &["1 of 9 rows", "more than the tenth"]);
    }
    let all = load_named("a.jsonl", good.repeat(100) + &bad.concat().repeat(2), &options).unwrap();
    assert_eq!((all.rows.len(), all.report.skipped, all.report.bad_rows.len()), (100, 10, 5));
    let message = refusal(load_named("a.jsonl", good.repeat(50) + &bad.concat().repeat(2), &options));
    assert_says(&message, &["10 of 60 rows", "more than the tenth", "a.jsonl: line 5"]);
}

fn touch(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "{\"text\": \"a\"}\n").unwrap();
    path
}

fn find(paths: &[&Path]) -> qlora_train::error::Result<DataFiles> {
    DataFiles::find(&paths.iter().map(|path| path.to_path_buf()).collect::<Vec<_>>())
}

#[test]
fn folders_and_patterns_stand_for_their_files() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (a, b) = (touch(dir, "parts/a.jsonl"), touch(dir, "parts/b.jsonl"));
    touch(dir, "parts/notes.txt");
    assert_eq!(find(&[&dir.join("parts/*.jsonl")]).unwrap().training, [a.clone(), b]);
    assert_says(&refusal(find(&[&dir.join("parts/*.csv")])), &["*.csv", "no file matches"]);
    // Older copies that notebooks and editors keep are no rows, where the pattern does not mean them.
    let copy = touch(dir, "parts/.ipynb_checkpoints/a-checkpoint.jsonl");
    let hidden = touch(dir, "parts/.b.jsonl");
    for pattern in ["parts/*.jsonl", "parts/**/*.jsonl", "**/*.jsonl"] {
        let found = find(&[&dir.join(pattern)]).unwrap().training;
        assert_eq!(found, [dir.join("parts/a.jsonl"), dir.join("parts/b.jsonl")], "{pattern}");
    }
    assert_eq!(find(&[&dir.join("parts/.*.jsonl")]).unwrap().training, [hidden]);
    assert_eq!(find(&[&dir.join("parts/.ipynb_checkpoints/*.jsonl")]).unwrap().training, [copy]);
    assert_says(&refusal(find(&[&dir.join("parts/*_checkpoints/*")])), &["no file matches"]);
    assert_says(&refusal(find(&[&dir.join("parts")])), &["parts", "without files of rows for training", "train.jsonl"]);
    // A file whose own name looks like a pattern.
    let odd = touch(dir, "odd[1].jsonl");
    assert_eq!(find(&[&odd]).unwrap().training, [odd]);
    assert_eq!(find(&[&dir.join("missing.jsonl")]).unwrap().training, [dir.join("missing.jsonl")]);

    let (train, valid) = (touch(dir, "mlx/train.jsonl"), touch(dir, "mlx/valid.jsonl"));
    touch(dir, "mlx/test.jsonl");
    assert_eq!(find(&[&dir.join("mlx")]).unwrap(), DataFiles { training: vec![train], validation: vec![valid] });
    let shards = [touch(dir, "hub/train-00000-of-00002.parquet"), touch(dir, "hub/train-00001-of-00002.parquet")];
    let validation = touch(dir, "hub/validation-00000-of-00001.parquet");
    let hub = find(&[&dir.join("hub")]).unwrap();
    assert_eq!((hub.training, hub.validation), (shards.to_vec(), vec![validation]));
    // `hf download` leaves files below data/; rows for tests are validated on where there are no others.
    let below =
        [touch(dir, "repo/data/train-00000-of-00001.parquet"), touch(dir, "repo/data/test-00000-of-00001.parquet")];
    touch(dir, "repo/README.md");
    let repo = find(&[&dir.join("repo")]).unwrap();
    assert_eq!((repo.training, repo.validation), (vec![below[0].clone()], vec![below[1].clone()]));
    let validation = touch(dir, "repo/data/validation-00000-of-00001.parquet");
    assert_eq!(find(&[&dir.join("repo")]).unwrap().validation, [validation]);
    touch(dir, "subsets/main/train-00000-of-00001.parquet");
    touch(dir, "subsets/other/train-00000-of-00001.parquet");
    assert_says(&refusal(find(&[&dir.join("subsets")])), &["subsets/main", "subsets/other", "give one of them"]);
    let nested = [touch(dir, "nested/train/data.jsonl"), touch(dir, "nested/validation/data.jsonl")];
    let found = find(&[&dir.join("nested")]).unwrap();
    assert_eq!((found.training, found.validation), (vec![nested[0].clone()], vec![nested[1].clone()]));
}

#[test]
fn share_gpt_turns_may_stand_under_messages_where_it_is_named() {
    let row = json!({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]});
    let columns = Columns::new(None, None, None, None, Some("messages"), None);
    let named = load_named("a.jsonl", row.to_string(), &DataOptions { columns, ..options() }).unwrap();
    assert_eq!(named.rows[0].input_ids, read("a.jsonl", chat("a").to_string()).rows[0].input_ids);
}

/// Turns are learned by the keys that are named, whatever else they hold.
#[test]
fn turns_are_read_by_the_keys_that_are_named() {
    let expected = read("a.jsonl", chat("a").to_string()).rows[0].input_ids.clone();
    let keyed = |role: &str, content: &str| {
        let columns = Columns::default().turn_keys(Some(role), Some(content));
        DataOptions { columns, ..options() }
    };
    for (role, content, roles) in [
        ("from", "value", ["human", "gpt"]),
        ("speaker", "text", ["user", "assistant"]),
        ("role", "value", ["user", "gpt"]),
    ] {
        let turn = |who: &str, text: &str| {
            let mut turn = json!({"content": "other", "role": "system", "from": "system"});
            (turn[role], turn[content]) = (who.into(), text.into());
            turn
        };
        for list in ["messages", "conversations"] {
            let row = json!({list: [turn(roles[0], "q"), turn(roles[1], "a")]}).to_string();
            let data = load_named("a.jsonl", &row, &keyed(role, content)).unwrap();
            assert_eq!(data.rows[0].input_ids, expected, "{role} {content} {list}");
        }
    }
    let first = chat("a").to_string();
    let message = refusal(load_named("a.jsonl", &first, &keyed("from", "value")));
    assert_says(&message, &["line 1", "`messages[0]` has no `from`", "`role`, `content`"]);
    // Rows without turns have none of these keys.
    let plain = r#"{"instruction": "q", "output": "a"}"#;
    assert_eq!(load_named("a.jsonl", plain, &keyed("from", "value")).unwrap().rows[0].input_ids, expected);
}

#[test]
fn turns_may_have_other_names_for_roles() {
    let expected = read("a.jsonl", chat("a").to_string()).rows[0].input_ids.clone();
    let names = ["customer", "agent"].map(str::to_owned).into_iter().zip(["user", "assistant"]).collect::<Vec<_>>();
    let turn = |keys: [&str; 2], who: &str, said: &str| json!({keys[0]: who, keys[1]: said});
    for (list, keys) in
        [("messages", ["role", "content"]), ("conversations", ["from", "value"]), ("messages", ["who", "said"])]
    {
        let columns = || match keys[0] {
            "who" => Columns::default().turn_keys(Some("who"), Some("said")),
            _ => Columns::default(),
        };
        let row = json!({list: [turn(keys, "customer", "q"), turn(keys, "agent", "a")]}).to_string();
        let options = DataOptions { columns: columns().roles(&names), ..options() };
        assert_eq!(load_named("a.jsonl", &row, &options).unwrap().rows[0].input_ids, expected, "{row}");
        let unknown = refusal(load_named("a.jsonl", &row, &DataOptions { columns: columns(), ..options }));
        assert_says(&unknown, &["[0]`", "\"customer\"", "`--roles user=NAME`"]);
    }
    // By such a role it is known that a turn without a content may call.
    let columns = || Columns::default().turn_keys(Some("who"), Some("said")).roles(&names);
    let call = json!({"who": "agent", "tool_calls": [{"function": {"name": "lookup", "arguments": {}}}]});
    let row = json!({"messages": [turn(["who", "said"], "customer", "q"), call]}).to_string();
    let options = DataOptions { columns: columns(), ..options() };
    let refused = refusal(load_named("a.jsonl", &row, &options));
    assert_says(&refused, &["`messages[1]`", "does not write the turn's `tool_calls`"]);
    // Earlier turns, in a table a text of JSON.
    let before = json!([turn(["role", "content"], "customer", "b"), turn(["role", "content"], "agent", "c")]);
    let row = |history: Value| json!({"instruction": "q", "output": "a", "history": history}).to_string();
    let options = DataOptions { columns: Columns::default().roles(&names), ..options };
    let pairs = load_named("a.jsonl", row(json!([["b", "c"]])), &options).unwrap();
    for history in [before.clone(), json!(before.to_string())] {
        assert_eq!(load_named("a.jsonl", row(history), &options).unwrap().rows[0], pairs.rows[0]);
    }
}

/// A row that has the known column instead of the one that is named is not read by it.
#[test]
fn a_row_without_the_named_column_is_refused_by_its_line() {
    let of = |prompt, completion, messages| Columns::new(prompt, completion, None, None, messages, None);
    let turns = r#"[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
    for (columns, row, words) in [
        (of(None, None, Some("conversations")), format!(r#"{{"messages": {turns}}}"#), "`conversations` is missing"),
        (
            of(None, None, Some("talk")),
            format!(r#"{{"messages": {turns}, "talk": null}}"#),
            "the column `talk` is null",
        ),
        (
            of(Some("prompt"), Some("completion"), None),
            r#"{"instruction": "q", "output": "a"}"#.to_owned(),
            "`prompt` is missing",
        ),
        (of(None, Some("reply"), None), format!(r#"{{"messages": {turns}, "reply": "r"}}"#), "expected one of"),
    ] {
        let message = refusal(load_named("a.jsonl", &row, &DataOptions { columns, ..options() }));
        assert_says(&message, &["a.jsonl: line 1: ", words]);
    }
}

#[test]
fn a_column_without_a_name_is_called_so() {
    let data = read("a.csv", ",prompt,completion\n0,q,a\n");
    assert_says(&data.report.to_string(), &["not used: a column without a name of"]);
    let half = refusal(load_named("a.jsonl", "{\"output\": \"a\"}", &options()));
    assert_says(&half, &["in an Alpaca row"]);
}

#[test]
fn addresses_are_refused_with_a_reason() {
    for address in ["https://example.org/rows.jsonl", "s3://bucket/rows.jsonl", "hf://datasets/a/b"] {
        assert_says(&refusal(find(&[Path::new(address)])), &[address, "an address", "download it first"]);
    }
    for name in ["identity", "identity,alpaca_en_demo"] {
        let said = ["found no such file", "dataset_info.json", "several as a list", "org/name"];
        assert_says(&refusal(find(&[Path::new(name)])), &[&[name][..], &said].concat());
    }
}

/// Tables of spreadsheets, and turns as texts of JSON.
#[test]
fn tables_are_read_as_programs_write_them() {
    let expected = read("a.csv", "prompt,completion\n\"q, r\",a\n").rows[0].input_ids.clone();
    for (name, table) in [
        ("a.csv", "prompt;completion\n\"q, r\";a\n"),
        ("a.csv", "prompt\tcompletion\r\n\"q, r\"\ta\r\n"),
        ("a.tsv", "prompt\tcompletion\nq, r\ta\n"),
        ("a.csv", "prompt|completion|id\nq, r|a|7\n"),
        ("a.csv", "completion,prompt\na,\"q, r\"\n"),
    ] {
        assert_eq!(read(name, table).rows[0].input_ids, expected, "{table:?}");
    }
    let turns = chat("a")["messages"].to_string();
    for list in ["messages", "conversations"] {
        let row = json!({list: turns}).to_string();
        assert_eq!(read("a.jsonl", row).rows[0].input_ids, read("a.jsonl", chat("a").to_string()).rows[0].input_ids);
    }
    let message = refusal(load_named("a.jsonl", json!({"messages": "[broken"}).to_string(), &options()));
    assert_says(&message, &["`messages` must be a non-empty array", "the string \"[broken\""]);
}

#[test]
fn columns_of_weights_are_numbers_and_truth_values() {
    for (name, delimiter) in [("a.csv", ","), ("a.tsv", "\t")] {
        let table = |column: &str, value: &str| format!("text,{column}\na,{value}\n0,1\n").replace(',', delimiter);
        for column in ["train", "training", "trainable", "weight", "loss_weight", "loss_mask"] {
            for value in ["0", "0.0", " 0", ".0", "false", "False", "FALSE"] {
                assert_eq!(read(name, table(column, value)).rows.len(), 1, "{column}: {value}");
            }
            for value in ["1", "1.0", "+1", "true", "True", ""] {
                assert_eq!(read(name, table(column, value)).rows.len(), 2, "{column}: {value}");
            }
            let message = refusal(load_named(name, table(column, "x"), &options()));
            assert_says(&message, &[&format!("`{column}` of the row is the string \"x\"")]);
        }
        for value in ["0.5", ".5", "5e-1"] {
            let rows = read(name, table("weight", value)).rows;
            assert!(rows[0].weights.contains(&0.5) && !rows[0].weights.contains(&5.0), "{value}");
        }
        assert_eq!(read(name, table("loss", "False")).rows.len(), 1);
        assert_eq!(read(name, table("loss", "2.35")).rows.len(), 2);
        for (column, value, found) in [("weight", "-1", "-1"), ("train", "0.5", "0.5")] {
            let message = refusal(load_named(name, table(column, value), &options()));
            assert_says(&message, &[&format!("`{column}` of the row is the number {found}")]);
        }
        assert_says(&refusal(load_named(name, table("weight", "nan"), &options())), &["the string \"nan\""]);
    }
    let text = refusal(load_named("a.jsonl", "{\"text\": \"a\", \"weight\": \"0\"}", &options()));
    assert_says(&text, &["`weight` of the row is the string \"0\""]);
}
