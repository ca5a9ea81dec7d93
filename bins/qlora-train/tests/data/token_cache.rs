//! Rows that are tokenized once: what a file gives is what the data gives, or the file is made anew.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use qlora_train::config::{BadRow, PromptCompletion, TooLong};
use qlora_train::data::{
    ChatTokenizer, Columns, DataOptions, Dataset, Row, Rows, TokenCache, TokenizedRows, load_once, load_tokenized,
    recall, remember,
};
use qlora_train::error::Result;
use serde_json::json;
use tempfile::TempDir;

use trainer_lab::fixture::*;

/// Rows of every kind: labels of other ids, weights, tasks, keys that nothing reads, a text of several pieces, a row
/// twice, one that is no row, and one that teaches nothing.
const ROWS: [&str; 14] = [
    r#"{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}], "task": "a"}"#,
    r#"{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "world"}]}"#,
    r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a b c"}], "shade": "red"}"#,
    r#"{"prompt": "one two", "completion": "three", "weight": 0.5}"#,
    r#"{"text": "a long text of many words that goes on and on and on until it is cut", "task": "b"}"#,
    r#"{"text": "short", "task": "a"}"#,
    r#"{"input_ids": [1, 2, 3], "labels": [-100, 7, 3]}"#,
    r#"{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9], "weight": [1, 0, 1, 2, 0.25, 1, 1, 1, 1]}"#,
    r#"{"input_ids": [1, 2], "labels": [1, -100]}"#,
    r#"{"input_ids": [267, 266]}"#,
    r#"{"instruction": "do", "output": "done", "task": "c"}"#,
    r#"{"text": "again"}"#,
    r#"{"text": "and again"}"#,
    r#"{"text": 7}"#,
];

fn everything() -> DataOptions {
    DataOptions { on_bad_row: BadRow::Skip, max_length: 40, too_long: TooLong::Chunk, ..options() }
}

/// A model with a tokenizer, a file of rows, and room for a cache.
struct Place {
    dir: TempDir,
    model: TempDir,
}

impl Place {
    fn new(rows: &[&str]) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), model: model_dir(Some(CHATML)) };
        fs::write(place.data(), rows.join("\n")).unwrap();
        place
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("rows.jsonl")
    }

    fn cache(&self) -> TokenCache {
        TokenCache { dir: self.dir.path().join("kept"), of: "model".to_owned(), clock: None }
    }

    fn tokenizer(&self) -> ChatTokenizer {
        ChatTokenizer::open(self.model.path(), None).unwrap()
    }

    /// The file of rows, of which there is one.
    fn file(&self) -> PathBuf {
        let files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }

    fn files(&self) -> Vec<PathBuf> {
        match fs::read_dir(self.cache().dir) {
            Ok(entries) => entries.map(|entry| entry.unwrap().path()).collect(),
            Err(_) => Vec::new(),
        }
    }

    fn load(&self, options: &DataOptions) -> Result<TokenizedRows> {
        self.load_with(&self.tokenizer(), options, &self.cache())
    }

    fn load_with(&self, tokenizer: &ChatTokenizer, options: &DataOptions, cache: &TokenCache) -> Result<TokenizedRows> {
        load_tokenized(&[self.data()], &|| Ok(tokenizer), options, None, Some(cache))
    }

    fn fresh(&self, options: &DataOptions) -> Dataset {
        let tokenizer = self.tokenizer();
        load_once(&[self.data()], &|| Ok(&tokenizer), options).unwrap()
    }
}

fn all(rows: &Rows) -> Vec<Row> {
    rows.iter().map(|row| row.unwrap().into_owned()).collect()
}

#[track_caller]
fn assert_same(found: &Dataset<Rows>, expected: &Dataset) {
    assert_eq!(all(&found.rows), expected.rows);
    assert_eq!(found.report, expected.report);
    assert_eq!(found.report.lines(), expected.report.lines());
    assert_eq!(found.hashes, expected.hashes);
    let held = Rows::from(expected.rows.clone());
    let facts = |rows: &Rows, at: usize| {
        let numbers = (rows.tokens(at), rows.supervised(at), rows.file(at), rows.hash(at));
        (numbers, rows.task(at).map(str::to_owned))
    };
    assert_eq!(found.rows.len(), held.len());
    (0..held.len()).for_each(|at| assert_eq!(facts(&found.rows, at), facts(&held, at), "row {at}"));
    assert_eq!(found.rows.supervised_tokens(), held.supervised_tokens());
    assert_eq!(found.rows.lengths().collect::<Vec<_>>(), held.lengths().collect::<Vec<_>>());
    assert_eq!(found.rows.identities().unwrap(), held.identities().unwrap());
    let ids = |rows: &Rows| rows.ids().collect::<BTreeSet<u32>>();
    assert_eq!(ids(&found.rows), ids(&held));
}

/// The message about a file of rows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Origin {
    Data,
    File,
    /// It was there and is made anew.
    Anew,
}

#[track_caller]
fn origin(read: &TokenizedRows) -> Origin {
    let said: Vec<&str> = read.said.iter().map(String::as_str).collect();
    match said[..] {
        [line] if line.ends_with("tokenized rows of an earlier start") => Origin::File,
        [line] if line.contains("tokenized rows for the next start, ") => Origin::Data,
        [why, line] if line.contains("tokenized rows for the next start, ") => {
            assert!(why.starts_with("warning: ") && why.ends_with("; it is made anew"), "{why}");
            Origin::Anew
        }
        _ => panic!("{said:?}"),
    }
}

#[test]
fn rows_of_every_kind_and_all_that_is_said_of_them_are_the_same_from_a_file() {
    for too_long in [TooLong::Drop, TooLong::Truncate, TooLong::Proportional, TooLong::Chunk] {
        for deduplicate in [false, true] {
            let place = Place::new(&ROWS);
            let options = DataOptions { too_long, deduplicate, ..everything() };
            let expected = place.fresh(&options);
            let lines = expected.report.lines().join("\n");
            let words = ["1 row skipped", "no supervised token", "with weights", "3 tasks", "not used: `shade`"];
            assert_says(&lines, &words);
            for wanted in [Origin::Data, Origin::File, Origin::File] {
                let read = place.load(&options).unwrap();
                assert_eq!(origin(&read), wanted, "{too_long:?} {deduplicate}");
                assert_same(&read.dataset, &expected);
                // Rows are held back as from memory.
                let (training, validation) = read.dataset.rows.split(3.0, 5).unwrap();
                let split = expected.clone().split(3.0, 5).unwrap();
                assert_eq!((all(&training), all(&validation)), split);
            }
            assert_eq!(place.files().len(), 1);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn rows_of_any_tokens_labels_and_weights_are_the_same_from_a_file(
        rows in prop::collection::vec(prop::collection::vec((0u32..268, 0u32..4, 0u32..4), 2..40), 1..30),
    ) {
        let line = |row: &Vec<(u32, u32, u32)>| {
            let ids: Vec<u32> = row.iter().map(|(id, _, _)| id % 259).collect();
            // The second token is learned, so that no row is left out.
            let label = |(at, (id, kind, _)): (usize, &(u32, u32, u32))| match kind {
                0 if at != 1 => -100,
                1 => i64::from(*id),
                _ => i64::from(id % 259),
            };
            let labels: Vec<i64> = row.iter().enumerate().map(label).collect();
            let weights: Vec<f64> = row.iter().map(|(_, _, weight)| f64::from(*weight) / 2.0 + 0.5).collect();
            json!({"input_ids": ids, "labels": labels, "loss_weight": weights}).to_string()
        };
        let lines: Vec<String> = rows.iter().map(line).collect();
        let place = Place::new(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        // Without an EOS, whose label may not be masked.
        let options = DataOptions { eos_token_ids: Vec::new(), ..options() };
        let expected = place.fresh(&options);
        for wanted in [Origin::Data, Origin::File] {
            let read = place.load(&options).unwrap();
            prop_assert_eq!(origin(&read), wanted);
            assert_same(&read.dataset, &expected);
        }
    }
}

#[test]
fn every_option_and_every_byte_of_the_data_has_rows_of_its_own() {
    let place = Place::new(&ROWS);
    let columns = Columns::new(None, None, None, None, None, Some("text"));
    let others = [
        DataOptions { max_length: 39, ..everything() },
        DataOptions { too_long: TooLong::Drop, ..everything() },
        DataOptions { vocab_size: VOCAB_SIZE + 1, ..everything() },
        DataOptions { eos_token_ids: vec![260, 261], ..everything() },
        DataOptions { columns, ..everything() },
        DataOptions { max_samples: Some(12), ..everything() },
        DataOptions { max_samples_of_each: vec![12], ..everything() },
        DataOptions { deduplicate: true, ..everything() },
        DataOptions { prompt_completion: PromptCompletion::Chat, ..everything() },
    ];
    assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::Data);
    for (at, options) in others.iter().enumerate() {
        for wanted in [Origin::Data, Origin::File] {
            let read = place.load(options).unwrap();
            assert_eq!(origin(&read), wanted, "{options:?}");
            assert_same(&read.dataset, &place.fresh(options));
        }
        assert_eq!(place.files().len(), at + 2);
        assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::File);
    }
    let tokenizer = place.tokenizer();
    let of_another = TokenCache { of: "another".to_owned(), ..place.cache() };
    assert_eq!(origin(&place.load_with(&tokenizer, &everything(), &of_another).unwrap()), Origin::Data);
    // Memory decides no row.
    let small = DataOptions { memory: 1 << 20, ..everything() };
    assert_eq!(origin(&place.load(&small).unwrap()), Origin::File);
    // One byte more, which makes no row; then another letter, with the size and the time of before.
    let text = fs::read_to_string(place.data()).unwrap();
    fs::write(place.data(), format!("{text}\n")).unwrap();
    assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::Data);
    let written = fs::metadata(place.data()).unwrap().modified().unwrap();
    fs::write(place.data(), format!("{}\n", text.replace("world", "WORLD"))).unwrap();
    fs::File::options().append(true).open(place.data()).unwrap().set_modified(written).unwrap();
    let read = place.load(&everything()).unwrap();
    assert_eq!(origin(&read), Origin::Data);
    assert_same(&read.dataset, &place.fresh(&everything()));
    // Under another name, by which messages call it.
    let moved = place.dir.path().join("moved.jsonl");
    fs::copy(place.data(), &moved).unwrap();
    let read = load_tokenized(&[moved], &|| Ok(&tokenizer), &everything(), None, Some(&place.cache())).unwrap();
    assert_eq!(origin(&read), Origin::Data);
    assert_says(&read.dataset.report.lines().join("\n"), &["moved.jsonl"]);
}

#[test]
fn every_part_of_a_tokenizer_counts() {
    let place = Place::new(&ROWS);
    assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::Data);
    let write = |name: &str, text: &str| fs::write(place.model.path().join(name), text).unwrap();
    let read = |name: &str| fs::read_to_string(place.model.path().join(name)).unwrap_or_default();
    let added = json!({"added_tokens_decoder": null, "additional_special_tokens": ["zzz"]}).to_string();
    let changes = [
        ("tokenizer.json", read("tokenizer.json").replace("[\"h e\",\"he l\",", "[\"h e\",")),
        ("tokenizer_config.json", tokenizer_config(Some(LLAMA3)).to_string()),
        ("special_tokens_map.json", added),
        ("chat_template.jinja", format!("{{# another #}}{CHATML}")),
        ("additional_chat_templates/tool_use.jinja", CHATML.to_owned()),
    ];
    fs::create_dir(place.model.path().join("additional_chat_templates")).unwrap();
    for (name, text) in changes {
        assert_ne!(read(name), text, "{name}");
        write(name, &text);
        let anew = place.load(&everything()).unwrap();
        assert_eq!(origin(&anew), Origin::Anew, "{name}");
        assert_says(&anew.said[0], &["is of another tokenizer, chat template or date"]);
        assert_same(&anew.dataset, &place.fresh(&everything()));
        assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::File, "{name}");
    }
}

#[test]
fn rows_of_token_ids_need_no_tokenizer_at_any_start() {
    let place = Place::new(&[r#"{"input_ids": [1, 2, 3]}"#, r#"{"input_ids": [4, 5]}"#]);
    let (tokenizer, opened) = (place.tokenizer(), Cell::new(0));
    let open = || {
        opened.set(opened.get() + 1);
        Ok(&tokenizer)
    };
    for wanted in [Origin::Data, Origin::File] {
        let read = load_tokenized(&[place.data()], &open, &options(), None, Some(&place.cache())).unwrap();
        assert_eq!((origin(&read), opened.get()), (wanted, 0));
    }
    // Rows of text open it, those of a file too: what a run records of it is the same.
    fs::write(place.data(), "{\"text\": \"a\"}").unwrap();
    for wanted in [Origin::Data, Origin::File] {
        opened.set(0);
        let read = load_tokenized(&[place.data()], &open, &options(), None, Some(&place.cache())).unwrap();
        assert_eq!(origin(&read), wanted);
        assert!(opened.get() > 0);
    }
}

#[test]
fn a_damaged_file_is_told_and_made_anew() {
    let place = Place::new(&ROWS);
    let (expected, tokenizer) = (place.fresh(&everything()), place.tokenizer());
    let load = |options: &DataOptions| place.load_with(&tokenizer, options, &place.cache()).unwrap();
    load(&everything());
    let whole = fs::read(place.file()).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    };
    let end = whole.len() - 80;
    let mut damaged: Vec<Vec<u8>> = (0..end).step_by(17).chain((end..whole.len()).step_by(3)).map(flipped).collect();
    damaged.extend([0, 1, 71, 72, 100, whole.len() / 2, whole.len() - 1].map(|length| whole[..length].to_vec()));
    damaged.push([&whole[..], b"\0"].concat());
    damaged.push([&whole[..], &whole[..]].concat());
    damaged.push(vec![0; whole.len()]);
    for bytes in damaged {
        fs::write(place.file(), &bytes).unwrap();
        let read = load(&everything());
        assert_eq!(origin(&read), Origin::Anew, "{} bytes", bytes.len());
        let why = &read.said[0];
        assert!(why.contains("damaged") || why.contains("cannot be read"), "{why}");
        assert_same(&read.dataset, &expected);
        assert_eq!(origin(&load(&everything())), Origin::File);
    }
    // A whole file under the name of another one.
    let name = place.file();
    load(&DataOptions { max_length: 39, ..everything() });
    let other = place.files().into_iter().find(|file| *file != name).unwrap();
    fs::copy(other, name).unwrap();
    let read = load(&everything());
    assert_eq!(origin(&read), Origin::Anew);
    assert_says(&read.said[0], &["holds other rows than its name says"]);
    assert_same(&read.dataset, &expected);
}

#[test]
fn a_file_that_changes_while_it_is_in_use_is_an_error_and_no_signal() {
    let place = Place::new(&ROWS);
    place.load(&everything()).unwrap();
    let file = place.file();
    let whole = fs::read(&file).unwrap();
    let changes: [&dyn Fn(&Path); 3] = [
        &|file| fs::File::options().write(true).open(file).unwrap().set_len(10).unwrap(),
        &|file| fs::File::options().write(true).open(file).unwrap().set_len(0).unwrap(),
        &|file| fs::write(file, vec![7; 10_000]).unwrap(),
    ];
    for change in changes {
        let rows = place.load(&everything()).unwrap().dataset.rows;
        assert!(rows.get(rows.len() - 1).is_ok());
        change(&file);
        let error = rows.get(rows.len() - 1).unwrap_err();
        assert_eq!(error.exit_status(), 1, "{error}");
        let words = [file.to_str().unwrap(), "changed while", "resume_from_checkpoint", "made anew"];
        assert_says(&error.to_string(), &words);
        fs::write(&file, &whole).unwrap();
    }
    // One that is put in its place, or removed, changes nothing for who has it open.
    let rows = place.load(&everything()).unwrap().dataset.rows;
    let before = all(&rows);
    fs::remove_file(&file).unwrap();
    assert_eq!(all(&rows), before);
    assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::Data);
    assert_eq!(all(&rows), before);
}

#[test]
fn rows_that_are_refused_are_refused_at_every_start_and_leave_no_file() {
    let place = Place::new(&ROWS);
    let strict = DataOptions { on_bad_row: BadRow::Error, ..everything() };
    for _ in 0..2 {
        assert_says(&refusal(place.load(&strict)), &["rows.jsonl: line 14", "`text`"]);
        assert_eq!(place.files(), [] as [PathBuf; 0]);
    }
    let nothing = DataOptions { max_length: 2, too_long: TooLong::Drop, on_bad_row: BadRow::Skip, ..options() };
    let place = Place::new(&[r#"{"input_ids": [1, 2, 3]}"#]);
    for _ in 0..2 {
        assert_says(&refusal(place.load(&nothing)), &["no row is left"]);
        assert_eq!(place.files(), [] as [PathBuf; 0]);
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_refused() {
    let place = Place::new(&ROWS);
    for dir in [place.data(), place.data().join("below")] {
        let cache = TokenCache { dir: dir.clone(), ..place.cache() };
        let message = refusal(place.load_with(&place.tokenizer(), &everything(), &cache));
        assert_says(&message, &["`tokenized_cache`", dir.to_str().unwrap()]);
    }
}

/// Memory holds some bytes of each row in a file, and all of rows that stay in memory.
#[test]
fn rows_in_a_file_take_little_memory() {
    let rows = vec![r#"{"input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]}"#; 2000];
    let place = Place::new(&rows);
    let options = DataOptions { memory: 100 << 10, ..options() };
    let tokenizer = place.tokenizer();
    assert_says(&refusal(load_once(&[place.data()], &|| Ok(&tokenizer), &options)), &["host_memory"]);
    for wanted in [Origin::Data, Origin::File] {
        let read = place.load(&options).unwrap();
        assert_eq!((origin(&read), read.dataset.rows.len()), (wanted, 2000));
    }
    // Less than that is refused, whoever reads the rows.
    let less = DataOptions { memory: 50 << 10, ..options };
    assert_says(&refusal(place.load(&less)), &["2,000 rows", "50.0 KiB", "max_samples", "host_memory"]);
    fs::remove_file(place.file()).unwrap();
    assert_says(&refusal(place.load(&less)), &["rows.jsonl: line ", "50.0 KiB", "max_samples", "host_memory"]);
    assert_eq!(place.files(), [] as [PathBuf; 0]);
}

#[test]
fn rows_of_a_pipe_are_read_and_not_kept() {
    let place = Place::new(&ROWS);
    let expected = place.fresh(&everything());
    let pipe = place.dir.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let text = fs::read(place.data()).unwrap();
    let writer = {
        let pipe = pipe.clone();
        std::thread::spawn(move || fs::write(pipe, text).unwrap())
    };
    let tokenizer = place.tokenizer();
    let paths = [pipe];
    let read = load_tokenized(&paths, &|| Ok(&tokenizer), &everything(), None, Some(&place.cache())).unwrap();
    writer.join().unwrap();
    assert_says(&read.said.join("\n"), &["`tokenized_cache`: nothing is kept", "pipe is no plain file"]);
    assert_eq!((all(&read.dataset.rows), read.dataset.hashes), (expected.rows, expected.hashes));
    assert_eq!(place.files(), [] as [PathBuf; 0]);
    // Without a cache nothing is said.
    let paths = [place.data()];
    let read = load_tokenized(&paths, &|| Ok(&tokenizer), &everything(), None, None).unwrap();
    assert_eq!(read.said, [] as [String; 0]);
}

#[test]
fn rows_that_are_known_from_another_data_set_are_part_of_the_key() {
    let place = Place::new(&ROWS);
    let other = place.dir.path().join("other.jsonl");
    fs::write(&other, [ROWS[1], ROWS[11], r#"{"text": "new"}"#].join("\n")).unwrap();
    let options = DataOptions { deduplicate: true, ..everything() };
    let (tokenizer, paths, cache) = (place.tokenizer(), [other], place.cache());
    let read = |known: &Rows| load_tokenized(&paths, &|| Ok(&tokenizer), &options, Some(known), Some(&cache)).unwrap();
    for wanted in [Origin::Data, Origin::File] {
        let training = place.load(&options).unwrap().dataset.rows;
        let validation = read(&training);
        assert_eq!((origin(&validation), validation.dataset.rows.len()), (wanted, 1));
        assert_eq!(validation.dataset.report.duplicates, 2);
    }
    // Other rows that are known leave out others.
    fs::write(place.data(), ROWS[11]).unwrap();
    let validation = read(&place.load(&options).unwrap().dataset.rows);
    assert_eq!((origin(&validation), validation.dataset.rows.len()), (Origin::Data, 2));
    // Rows that are not in a file have no key.
    let held = Rows::from(place.fresh(&options).rows);
    let validation = read(&held);
    assert_eq!(validation.dataset.rows.len(), 2);
    assert_says(&validation.said.join("\n"), &["nothing is kept"]);
}

#[test]
fn a_date_counts_as_far_as_the_template_writes_it() {
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let dated = |format: &str| format!("{{{{ {format} }}}}{CHATML}");
    let (day, second) = (dated("strftime_now('%d %b %Y')"), dated("strftime_now('%S')"));
    let unknown = dated("strftime_now('%d ' + '%b')");
    for (template, later, wanted) in [
        (&day, "2026-03-01T23:59:59Z", Origin::File),
        (&day, "2026-03-02T00:00:00Z", Origin::Anew),
        (&second, "2026-03-01T10:01:00Z", Origin::File),
        (&second, "2026-03-01T10:00:01Z", Origin::Anew),
        (&unknown, "2026-03-01T10:00:00Z", Origin::File),
        (&unknown, "2026-03-01T10:00:01Z", Origin::Anew),
    ] {
        let place = Place::new(&ROWS);
        fs::write(place.model.path().join("chat_template.jinja"), template).unwrap();
        let load = |clock: Option<Timestamp>| {
            let mut tokenizer = place.tokenizer();
            tokenizer.set_now(clock.unwrap().to_zoned(TimeZone::UTC)).unwrap();
            let read = place.load_with(&tokenizer, &everything(), &TokenCache { clock, ..place.cache() }).unwrap();
            let expected = load_once(&[place.data()], &|| Ok(&tokenizer), &everything()).unwrap();
            assert_same(&read.dataset, &expected);
            origin(&read)
        };
        assert_eq!(load(at("2026-03-01T10:00:00Z")), Origin::Data);
        assert_eq!(load(at(later)), wanted, "{template} {later}");
    }
    // A tokenizer without a given time has that of its opening, which no other run has.
    let place = Place::new(&ROWS);
    fs::write(place.model.path().join("chat_template.jinja"), &day).unwrap();
    assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::Data);
    assert_eq!(origin(&place.load(&everything()).unwrap()), Origin::Anew);
}

#[test]
fn a_hash_is_remembered_under_its_key_and_damage_of_it_is_no_hash() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("made");
    assert_eq!(recall(&kept, "key"), None);
    remember(&kept, "key", "abc").unwrap();
    assert_eq!(recall(&kept, "key"), Some("abc".to_owned()));
    assert_eq!(recall(&kept, "another"), None);
    let file = fs::read_dir(&kept).unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&file).unwrap();
    for damaged in [text.replace("abc", "abx"), text.replace("\"key\":\"key\"", "\"key\":\"kex\""), "{".to_owned()] {
        assert_ne!(damaged, text);
        fs::write(&file, damaged).unwrap();
        assert_eq!(recall(&kept, "key"), None);
    }
    remember(&kept, "key", "def").unwrap();
    assert_eq!(recall(&kept, "key"), Some("def".to_owned()));
}
