//! Fuzz targets for words of other programs while a run begins: the hub, a cache of tokenized rows, other ranks.

use std::fs;
use std::path::PathBuf;

use qlora_train::comm::agreement::{agree, agree_on_results};
use qlora_train::comm::{Communicator, Signs};
use qlora_train::data::DataOptions;
use qlora_train::error::{Error, Result};
use qlora_train::hub::{DataSetId, HubId, Slice};
use qlora_train::{comm, data, hub};
use serde_json::{Map, Value, json};

use crate::fixture::{VOCAB_SIZE, options};

/// A message that a person can read, whoever is at fault.
pub(crate) fn check_error(error: &Error) {
    assert!([1, 2].contains(&error.exit_status()), "{error}");
    check_sentence(&error.to_string());
}

fn check_sentence(text: &str) {
    assert!(!text.is_empty() && text.len() < 40_000, "a message of {} bytes", text.len());
}

/// The hub's answer that lists the files of a commit.
pub fn hub_listing(data: &[u8]) {
    match hub::fuzzing::listing(data) {
        Ok(files) => assert!(files <= data.len()),
        Err(error) => check_error(&error),
    }
}

/// The card of a data set, after the requested part and the names of its files, each on a line.
pub fn hub_card(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (head, card) = match text.find("\n---") {
        Some(end) => (&text[..end], &text[end + 1..]),
        None => (&text[..], ""),
    };
    let mut lines = head.lines();
    // Longer ones are none of an id.
    let part = lines.next().filter(|part| (1..=200).contains(&part.len()));
    let names: Vec<&str> = lines.collect();
    for card in [card, ""] {
        match hub::fuzzing::data_set(&names, card, part) {
            Ok([training, validation]) => assert!(training.len().max(validation.len()) <= names.len()),
            Err(why) => check_sentence(&why),
        }
    }
}

/// The id of a data set or a model, with what may stand behind it.
pub fn hub_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(id) = HubId::parse(text) {
        let again = id.revision.as_ref().map_or_else(|| id.name.clone(), |revision| format!("{}@{revision}", id.name));
        assert_eq!(again, text);
        assert!(id.clone().at(id.revision.as_deref()).is_ok_and(|same| same == id));
    }
    match DataSetId::parse(text) {
        Ok(Some(DataSetId { id, rows, .. })) => {
            assert!(text.starts_with(&id.name));
            check_rows(rows.unwrap_or(Slice::ALL));
        }
        Ok(None) => {}
        Err(error) => assert_eq!(error.exit_status(), 2, "{error}"),
    }
}

fn check_rows(slice: Slice) {
    assert_eq!(Slice::parse(&slice.to_string()), Some(slice));
    for rows in [0, 1, 7, 100, u64::MAX] {
        let range = slice.of(rows);
        assert!(range.start.max(range.end) <= rows, "{slice} of {rows}");
    }
}

/// A file of tokenized rows with true sums: facts on a line, the number of rows in a byte, their heads, the rows.
/// Behind
/// `!` all bytes are the file, whose sums are hardly true then.
pub fn token_rows(data: &[u8]) {
    rows_taken(data);
}

/// The rows that a cache takes from the file of [`token_rows`]. None: it would make the file anew.
pub fn rows_taken(data: &[u8]) -> Option<usize> {
    const HEAD: usize = 33;
    thread_local!(static DIR: tempfile::TempDir = tempfile::tempdir().unwrap());
    let path = DIR.with(|dir| dir.path().join("key.rows"));
    let file = match data.strip_prefix(b"!") {
        Some(file) => file.to_vec(),
        None => {
            let line = data.iter().position(|&byte| byte == b'\n').unwrap_or(data.len());
            let (facts, rest) = (&data[..line], data.get(line + 1..).unwrap_or_default());
            let (count, rest) = rest.split_first().unwrap_or((&0, &[][..]));
            let (heads, rows) = rest.split_at(rest.len().min(usize::from(*count) * HEAD));
            data::fuzzing::sealed_rows(rows, heads, facts)
        }
    };
    fs::write(&path, file).unwrap();
    let options = DataOptions { max_length: 4096, memory: 1 << 20, ..options() };
    let found = match data::fuzzing::cached_rows(&path, &[PathBuf::from("rows.jsonl")], &options) {
        Ok(found) => found,
        Err(error) => {
            check_error(&error);
            return None;
        }
    };
    let dataset = found?;
    let mut supervised = 0;
    for (at, row) in dataset.rows.iter().enumerate() {
        let row = row.unwrap();
        assert!(row.len() <= options.max_length && row.labels.len() == row.len() && row.supervised() > 0);
        assert!(row.weights.is_empty() || row.weights.len() == row.len());
        assert!(row.input_ids.iter().all(|&id| (id as usize) < VOCAB_SIZE));
        assert!(row.labels.iter().all(|&label| label == data::UNSUPERVISED || (label as usize) < VOCAB_SIZE));
        assert_eq!((dataset.rows.tokens(at), dataset.rows.supervised(at)), (row.len(), row.supervised()));
        assert_eq!(dataset.rows.task(at), row.task.as_deref());
        assert!(!dataset.report.place(row.file, row.line).is_empty());
        supervised += row.supervised();
    }
    assert_eq!(dataset.report.supervised_tokens, supervised);
    assert!(!dataset.report.lines().is_empty() && !dataset.report.validation_lines().is_empty());
    assert!(!dataset.report.lengths.to_string().is_empty());
    assert!(dataset.rows.ids().all(|id| (id as usize) < VOCAB_SIZE));
    Some(dataset.rows.len())
}

/// Frames of a connection between two ranks, and what all ranks gave as rank 0 sends it on.
pub fn rank_frames(data: &[u8]) {
    comm::fuzzing::frames(data);
    for ranks in [0, 1, 3] {
        assert!(comm::fuzzing::gathered(data, ranks).is_none_or(|all| all.len() == ranks));
    }
}

/// Words of introduction of the processes that come to rank 0, a line each.
pub fn rank_meeting(data: &[u8]) {
    comm::fuzzing::meeting(data);
}

/// A rank beside another, which gives these bytes to everything.
struct Beside<'a>(&'a [u8]);

impl Communicator for Beside<'_> {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        2
    }

    fn on_this_machine(&self) -> (usize, usize) {
        (0, 2)
    }

    fn all_reduce_sum(&mut self, _gradients: &mut [f32], _totals: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn all_gather(&mut self, _what: &str, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec(), self.0.to_vec()])
    }

    fn broadcast(&mut self, _what: &str, _own: Vec<u8>) -> Result<Vec<u8>> {
        Ok(self.0.to_vec())
    }
}

/// Bytes of another rank where all have to agree: its settings, its results, its signals.
pub fn rank_agreement(data: &[u8]) {
    let values = json!({"`seed`": 1, "`data`": {"rows": [1, 2.5, null, "x"]}, "`lora_r`": 16});
    let own = values.as_object().cloned().unwrap_or_default();
    let other = &mut Beside(data);
    let is_own = serde_json::from_slice::<Map<String, Value>>(data).is_ok_and(|map| map == own);
    match agree(other, "settings", &own) {
        Ok(()) => assert!(is_own),
        Err(error) => {
            assert!(!is_own && [1, 2].contains(&error.exit_status()), "{error}");
        }
    }
    assert_eq!(agree_on_results(other, "adapter", b"abc").is_ok(), data == b"abc");
    let signs = Signs { signal: None, step: 3, norm: 7 };
    match signs.agreed(other) {
        Ok(signal) => assert_eq!(signal.unwrap_or(0).to_le_bytes(), data[..4]),
        Err(error) => check_error(&error),
    }
}
