//! Small files that decode to much: refused soon, and within a memory that any machine has.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use trainer_lab::fixture;

use crate::sandbox::{Done, Sandbox};

/// Memory of the command, less than which no small file takes.
const MOST: u64 = 1 << 30;
const LINE: &str = "preview --model model --max-length 4096 --data";

#[track_caller]
fn watched(sandbox: &Sandbox, line: &str) -> Done {
    let (done, peak) = sandbox.run_watched(line);
    println!("{:5} MiB: {line}", peak >> 20);
    assert!(peak < MOST, "{peak} bytes: {line}");
    done
}

#[track_caller]
fn refused(sandbox: &Sandbox, file: &str, words: &[&str]) {
    assert!(std::fs::metadata(sandbox.path(file)).unwrap().len() < 400 << 10, "{file}");
    watched(sandbox, &format!("{LINE} {file}")).ended(2, words);
}

fn gzip(path: &Path, parts: impl Iterator<Item = String>) {
    let mut file = flate2::write::GzEncoder::new(File::create(path).unwrap(), flate2::Compression::best());
    parts.for_each(|part| file.write_all(part.as_bytes()).unwrap());
    file.finish().unwrap();
}

/// A column `text` of the same text in every row, which Parquet keeps once.
fn write_texts(path: &Path, text: &str, rows: usize) {
    let schema = Arc::new(parse_message_type("message rows { required binary text (UTF8); }").unwrap());
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(Default::default()))
        .set_dictionary_page_size_limit(64 << 20)
        .build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let text = ByteArray::from(text.as_bytes().to_vec());
    column.typed::<ByteArrayType>().write_batch(&vec![text; rows], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

/// Lists of one number many times over, under each of the names.
fn write_numbers(path: &Path, names: &[&str], count: usize) {
    let field =
        |name: &&str| format!("optional group {name} (LIST) {{ repeated group list {{ optional int64 element; }} }}");
    let fields: String = names.iter().map(field).collect();
    let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(Default::default())).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let levels: Vec<i16> = (0..count).map(|at| i16::from(at > 0)).collect();
    while let Some(mut column) = group.next_column().unwrap() {
        column.typed::<Int64Type>().write_batch(&vec![7; count], Some(&vec![3; count]), Some(&levels)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// A conversation of `count` equal turns.
fn write_turns(path: &Path, count: usize) {
    let schema = "message rows { optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); } } } }";
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(Default::default())).build();
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let levels: Vec<i16> = (0..count).map(|at| i16::from(at > 0)).collect();
    while let Some(mut column) = group.next_column().unwrap() {
        let text = ByteArray::from(b"user".to_vec());
        column.typed::<ByteArrayType>().write_batch(&vec![text; count], Some(&vec![4; count]), Some(&levels)).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

/// A word that the model's tokenizer has one token for, with a blank: texts of it are soon tokenized.
fn long_word(sandbox: &Sandbox) -> String {
    let (word, mut tokenizer) = ("ab".repeat(450), fixture::tokenizer_json());
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.last_mut().unwrap()["content"] = word.clone().into();
    fixture::write_json(&sandbox.path("model"), "tokenizer.json", &tokenizer);
    word + " "
}

#[test]
fn texts_that_are_kept_once_and_stand_in_many_rows_are_refused() {
    let sandbox = Sandbox::chat();
    let word = long_word(&sandbox);
    write_texts(&sandbox.path("few.parquet"), &word.repeat(10 << 10), 4);
    refused(&sandbox, "few.parquet", &["few.parquet", "becomes more than", "200 times its size"]);
    write_texts(&sandbox.path("many.parquet"), &word.repeat(17), 2500);
    refused(&sandbox, "many.parquet", &["many.parquet", "becomes more than"]);
    write_texts(&sandbox.path("long.parquet"), &"a".repeat(48 << 20), 1);
    refused(&sandbox, "long.parquet", &["long.parquet", "becomes more than"]);
}

#[test]
fn lists_of_millions_of_numbers_are_refused() {
    let sandbox = Sandbox::new();
    let names = ["input_ids", "labels", "attention_mask", "position_ids", "loss_mask"];
    write_numbers(&sandbox.path("one.parquet"), &names, 3 << 20);
    refused(&sandbox, "one.parquet", &["one.parquet", "values"]);
    write_numbers(&sandbox.path("most.parquet"), &names[..1], 4 << 20);
    watched(&sandbox, &format!("{LINE} most.parquet")).ended(2, &["most.parquet"]);
    write_turns(&sandbox.path("turns.parquet"), 2 << 20);
    refused(&sandbox, "turns.parquet", &["turns.parquet", "values of turns, more than real rows have"]);
    let ones = |count: usize| format!("{{\"input_ids\": [1{}]}}\n", ",1".repeat(count));
    gzip(&sandbox.path("one.jsonl.gz"), [ones(6 << 20)].into_iter());
    refused(&sandbox, "one.jsonl.gz", &["one.jsonl.gz: line 1", "more than the 4194304 values that a row may have"]);
    gzip(&sandbox.path("many.jsonl.gz"), (0..20).map(|_| ones(1 << 20)));
    refused(&sandbox, "many.jsonl.gz", &["many.jsonl.gz", "becomes more than"]);
    let empty = format!("{{\"input_ids\": [1], \"x\": [{}{{}}]}}", "{},".repeat(6 << 20));
    gzip(&sandbox.path("empty.jsonl.gz"), [empty].into_iter());
    refused(&sandbox, "empty.jsonl.gz", &["empty.jsonl.gz: line 1", "more than the 4194304 values"]);
}

#[test]
fn conversations_of_a_million_pieces_are_refused() {
    let sandbox = Sandbox::chat();
    let turns = r#"{"role":"user","content":"a"},{"role":"assistant","content":"b"}"#;
    let many = |one: &str| format!("{one}{}", format!(",{one}").repeat(300_000));
    let rows = [
        format!("{{\"messages\":[{}]}}", many(turns)),
        format!("{{\"instruction\":\"a\",\"output\":\"b\",\"history\":[{}]}}", many(r#"["a","b"]"#)),
        format!("{{\"messages\":[{turns}],\"tools\":[{}]}}", many(r#"{"name":"f","parameters":{}}"#)),
        format!("{{\"messages\":[{{\"role\":\"user\",\"content\":[{}]}}]}}", many(r#"{"type":"text","text":"a"}"#)),
    ];
    for row in rows {
        gzip(&sandbox.path("row.jsonl.gz"), [row].into_iter());
        refused(&sandbox, "row.jsonl.gz", &["row.jsonl.gz: line 1", "values", "a row of text may have; split it"]);
    }
}

/// Tokenized part by part, within the memory of a part.
#[test]
fn a_long_text_takes_the_memory_of_its_tokens() {
    let sandbox = Sandbox::chat();
    let row = |text: &str, times: usize| format!("{{\"text\": \"{}\"}}\n", text.repeat(times));
    sandbox.write("words.jsonl", &row("the words of a book ", 6 << 16));
    let line = |file: &str| format!("{LINE} {file} --too-long truncate");
    let (done, peak) = sandbox.run_watched(&line("words.jsonl"));
    done.ok();
    assert!(peak < 300 << 20, "{peak} bytes");
    // Two threads that each have a text which cannot be cut wait for each other.
    sandbox.write("runs.jsonl", &[row("1\\t", 500_000), row("2\\t", 500_000)].concat());
    watched(&sandbox, &line("runs.jsonl")).ok();
    sandbox.write("runs.jsonl", &row("1\\t", 1 << 20));
    watched(&sandbox, &line("runs.jsonl")).ended(2, &["runs.jsonl: line 1", "without an end of a word", "split it"]);
}

#[test]
fn templates_that_make_values_of_any_size_are_refused() {
    let sandbox = Sandbox::chat();
    // Several conversations, whose memory is bounded together.
    let row = "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":\"b\"}]}\n";
    sandbox.write("several.jsonl", &row.repeat(8));
    let nested =
        "{% set n = namespace(s=['x' * 1000]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}";
    for template in [
        "{{ (('{0:>9999}' * 1000) * 1000).format('a') | length }}".to_owned(),
        "{{ '%9999s' * 100000 % 'a' }}".to_owned(),
        "{{ ('a' * 100000) * 100000 }}".to_owned(),
        "{{ ('a' * 9999999) | replace('a', 'b' * 9999) | length }}".to_owned(),
        "{{ ('a' * 9999999).replace('a', 'b' * 9999) | length }}".to_owned(),
        "{{ ('b' * 9999).join(['a'] * 9999999) | length }}".to_owned(),
        "{{ (['a'] * 99999999) | join('b' * 9999) | length }}".to_owned(),
        "{{ ('a' * 99999).center(9999999999) | length }}".to_owned(),
        "{{ ([0] * 9999999999) | list | length }}".to_owned(),
        format!("{nested}{{{{ (n.s ~ n.s) | length }}}}"),
        format!("{nested}{{{{ '{{}}'.format(n.s) | length }}}}"),
        format!("{nested}{{{{ n.s | pprint | length }}}}"),
        "{% set n = namespace(s='abcdefgh') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s | length }}".to_owned(),
        "{% set n = namespace(s=[1, 2]) %}{% for i in range(60) %}{% set n.s = n.s | chain(n.s) %}{% endfor %}{{ n.s | list | length }}".to_owned(),
    ] {
        sandbox.write("stranger.jinja", &template);
        let (done, peak) = sandbox.run_watched(&format!("{LINE} several.jsonl --threads 4 --chat-template stranger.jinja"));
        let error = done.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        println!("{:4} MiB: {template}: {error}", peak >> 20);
        assert!(done.status == Some(2) && peak < 400 << 20, "{peak} bytes: {template}: {done:?}");
    }
}
