//! Fuzz targets for records: LLaMA-Factory's of data sets, a run's for its report, a cache's of fingerprints, an
//! unfinished upload's, and the hub's answers to one.

use std::fs;
use std::path::PathBuf;

use qlora_train::config::{Purpose, Settings};
use qlora_train::data::{recall, remember};
use qlora_train::error::Result;
use qlora_train::hub::{LocalFile, fuzzing};
use qlora_train::run_report::{RunData, html};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::fuzz_files::{empty, put};
use crate::fuzz_outside::check_error;

/// A refusal is bad input's.
fn taken<T>(result: Result<T>) -> Option<T> {
    result.inspect_err(|error| assert_eq!(error.exit_status(), 2, "{error}")).inspect_err(check_error).ok()
}

/// The names of data sets on a line, and LLaMA-Factory's file that explains them.
pub fn dataset_info(data: &[u8]) {
    are_data_sets(data);
}

/// True if all names of [`dataset_info`] are found.
pub fn are_data_sets(data: &[u8]) -> bool {
    thread_local!(static DIR: TempDir = empty());
    let dir = DIR.with(|dir| dir.path().to_owned());
    let line = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    put(&dir.join("dataset_info.json"), data.get(line + 1..).unwrap_or_default());
    let names = String::from_utf8_lossy(&data[..line]);
    // Enough of its keys for the file to be one of LLaMA-Factory's.
    let yaml = format!(
        "stage: sft\nfinetuning_type: lora\ncutoff_len: 99\ndataset_dir: {}\ndataset: {}\n",
        json!(dir),
        json!(names)
    );
    let Some(settings) = taken(Settings::from_yaml(&yaml, "run.yaml", &[])) else { return false };
    taken(settings.validate(Purpose::Preview));
    true
}

/// A run's `run.json` and `report.json` on a line each, then its `metrics.jsonl`, and the page that is made of them.
pub fn run_data(data: &[u8]) {
    is_run(data);
}

/// True if the records of [`run_data`] are read.
pub fn is_run(data: &[u8]) -> bool {
    thread_local!(static DIR: TempDir = empty());
    let dir = DIR.with(|dir| dir.path().to_owned());
    let mut parts = data.splitn(3, |&byte| byte == b'\n');
    for name in ["run.json", "report.json", "metrics.jsonl"] {
        put(&dir.join(name), parts.next().unwrap_or_default());
    }
    let Some(run) = taken(RunData::read(&dir)) else { return false };
    assert!(run.history.iter().all(|entry| entry.step <= run.steps()));
    // One page or the other: changes of an input change its length.
    let runs = match data.len().is_multiple_of(2) {
        true => vec![run],
        false => vec![run.clone(), run],
    };
    assert!(html(&runs).contains("</html>"));
    true
}

thread_local!(static FILE: LocalFile = LocalFile::of_bytes("adapter_model.safetensors", b"12345".to_vec()).unwrap());

/// The status of an answer of the hub on a line, and its text, for an upload of a small file. Behind `!` the record of
/// an unfinished one.
pub fn hub_upload(data: &[u8]) {
    parts_kept(data);
    answers_read(data);
}

/// The parts that the record of [`hub_upload`] has; none where it is an answer.
pub fn parts_kept(data: &[u8]) -> usize {
    thread_local!(static DIR: TempDir = empty());
    let Some(record) = data.strip_prefix(b"!") else { return 0 };
    FILE.with(|file| DIR.with(|dir| fuzzing::upload_record(dir.path(), record, file)))
}

/// The kinds of requests, of two, that the answer of [`hub_upload`] is one to; none where it is a record.
pub fn answers_read(data: &[u8]) -> usize {
    if data.starts_with(b"!") {
        return 0;
    }
    let line = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
    let status = String::from_utf8_lossy(&data[..line]).trim().parse().unwrap_or(200);
    let answer = data.get(line + 1..).unwrap_or_default();
    let errors = FILE.with(|file| fuzzing::upload_answer(status, answer, file));
    errors.iter().for_each(check_error);
    // One says what the status means, whatever the text is.
    3 - errors.len()
}

/// Key of a note, as the cache of quantized bases has it.
const KEY: &str = "fingerprint of the weights in files 5 7 2.000000003 4.000000005";

/// A note in a cache, or behind `=` the text of one with a true sum.
pub fn cache_note(data: &[u8]) {
    noted(data);
}

/// The text of the note of [`cache_note`], if it is believed.
pub fn noted(data: &[u8]) -> Option<String> {
    thread_local!(static PLACE: (TempDir, PathBuf) = kept_note());
    PLACE.with(|(dir, note)| {
        let text = data.strip_prefix(b"=").map(String::from_utf8_lossy);
        let bytes = text.as_ref().map_or_else(|| data.to_vec(), |text| true_note(text));
        fs::write(note, &bytes).unwrap();
        let found = recall(dir.path(), KEY);
        match (&text, &found) {
            (Some(text), Some(found)) => assert_eq!(text, found),
            // It is longer than any note.
            (Some(_), None) => assert!(bytes.len() > 4 << 10),
            // Other notes of the same text have other spaces, keys that nobody reads, or characters that are escaped.
            (None, Some(found)) => assert!(serde_json::from_slice::<Value>(&bytes).unwrap()["hash"] == **found),
            (None, None) => {}
        }
        assert_eq!(recall(dir.path(), "another key"), None);
        found
    })
}

/// A note with this text, as the cache writes it.
fn true_note(text: &str) -> Vec<u8> {
    let sum: String = Sha256::digest(format!("{KEY}\n{text}")).iter().map(|byte| format!("{byte:02x}")).collect();
    json!({"key": KEY, "hash": text, "sum": sum}).to_string().into_bytes()
}

/// A directory with a note, and the note's file.
fn kept_note() -> (TempDir, PathBuf) {
    let dir = empty();
    remember(dir.path(), KEY, "00").unwrap();
    let mut files = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let note = files.find(|path| path.extension().is_some_and(|end| end == "json")).expect("a note is a file");
    assert_eq!(fs::read(&note).unwrap(), true_note("00"));
    (dir, note)
}
