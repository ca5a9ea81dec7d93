//! Rows of a CSV file: the first line names the columns, every value is text, or nothing.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::rc::Rc;

use serde_json::{Map, Number, Value};

use super::each::EachOf;
use super::json;
use super::weight;
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::report::status;

/// Longer headers and rows are refused, so that none fills the memory.
const MAX_HEADER_BYTES: u64 = 4 << 20;
const MAX_ROW_BYTES: u64 = 64 << 20;

/// The delimiter of a file, by its name; the ending of a compressed file stands before `.gz` or `.zst`.
pub(super) fn delimiter(path: &Path) -> Option<u8> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    match name {
        name if name.ends_with(".csv") => Some(b','),
        name if name.ends_with(".tsv") => Some(b'\t'),
        _ => None,
    }
}

/// The delimiter of a table with this header: other than the comma of its name if the header has no commas but
/// semicolons, tabs or bars, as spreadsheets and databases write them.
pub(super) fn delimiter_of(head: &[u8], named: u8) -> u8 {
    let header = head.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    let others = if named == b',' { &b";\t|"[..] } else { b"" };
    match header.contains(&named) {
        true => named,
        false => others.iter().copied().find(|other| header.contains(other)).unwrap_or(named),
    }
}

/// Calls `each(number, row)` for every row, counted from 1. A value that is JSON of a list or an object is read as
/// such, because that is how tables hold turns; so is a number or a truth value in a column of weights.
pub(super) fn read_rows(path: &Path, reader: impl Read, delimiter: u8, each: EachOf) -> Result<()> {
    let name = path.display();
    let left = Rc::new(Cell::new(MAX_HEADER_BYTES));
    let reader = Limited { reader, left: Rc::clone(&left) };
    let mut table = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(reader);
    let header = table.headers().usage_context(|| format!("{name}: the header"))?.clone();
    let mut seen = HashSet::new();
    if let Some((at, twice)) = header.iter().map(str::trim).enumerate().find(|(_, key)| !seen.insert(*key)) {
        let twice = json::shorten(twice);
        bail_usage!("{name}: the column {twice:?} is there twice (the second time as column {})", at + 1);
    }
    // Blanks around the name of a column are also around its cells.
    let trimmed: Vec<[bool; 2]> = header.iter().map(|key| [key.starts_with(BLANKS), key.ends_with(BLANKS)]).collect();
    if let Some(at) = trimmed.iter().position(|trims| trims.contains(&true)) {
        let key = json::shorten(header.get(at).unwrap_or_default());
        status!(
            "{name}: the header has blanks around the name {key:?}: those around such names and the cells below are left out"
        );
    }
    left.set(MAX_ROW_BYTES);
    for (number, record) in (1..).zip(table.records()) {
        left.set(MAX_ROW_BYTES);
        let row = match record {
            Ok(record) => {
                let cells = header.iter().zip(&trimmed).zip(record.iter());
                let entries = cells.map(|((key, ends), text)| {
                    let (key, text) = (key.trim(), without_blanks(text, *ends)?);
                    let value = if weight::KEYS.contains(&key) { weight_in(text) } else { value(text) };
                    Ok((key.to_owned(), value))
                });
                entries.collect::<Result<Map<_, _>, String>>().map(Value::Object)
            }
            Err(error) if error.is_io_error() => return Err(error).usage_context(|| format!("{name}: row {number}")),
            Err(error) => Err(format!("broken CSV: {error}")),
        };
        each(number, row)?;
    }
    Ok(())
}

/// A reader that fails when the present row takes more bytes than are `left` for it. What was read ahead for the next
/// row counts for this one.
struct Limited<R> {
    reader: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        match self.left.get().checked_sub(count as u64) {
            Some(left) => self.left.set(left),
            None => {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!(
                        "longer than {} MiB for a header or {} MiB for a row: a quote that is never closed makes one of all \
                         that follows; close it, or double those inside of cells",
                        MAX_HEADER_BYTES >> 20,
                        MAX_ROW_BYTES >> 20
                    ),
                ));
            }
        }
        Ok(count)
    }
}

const BLANKS: [char; 2] = [' ', '\t'];

/// A cell without the blanks at those ends at which the name of its column has some. Refused: quotes behind a blank.
fn without_blanks(text: &str, [begin, end]: [bool; 2]) -> Result<&str, String> {
    let text = if begin { text.trim_start_matches(BLANKS) } else { text };
    if begin && text.starts_with('"') {
        return Err("broken CSV: quotes behind a blank, which are read as letters; leave the blank out".to_owned());
    }
    Ok(if end { text.trim_end_matches(BLANKS) } else { text })
}

/// The value of a column for the weight of a row: `0`, `0.5`, `true`, and `False` as Python writes it.
fn weight_in(text: &str) -> Value {
    let word = text.trim();
    match word.to_lowercase().as_str() {
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    match super::json::parse(word) {
        Ok(number @ Value::Number(_)) => number,
        // Some programs write `.5` and `+1`.
        _ => match word.parse().ok().and_then(Number::from_f64) {
            Some(number) => Value::Number(number),
            // A `nan` must not silently count as a weight of 1.
            None if !text.is_empty() && NOTHING.contains(&text) => Value::String(text.to_owned()),
            None => value(text),
        },
    }
}

/// Empty cells, as pandas and so `datasets` reads them: `na_values` of `read_csv` where none are given.
const NOTHING: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

fn value(text: &str) -> Value {
    if NOTHING.contains(&text) {
        return Value::Null;
    }
    if text.starts_with(['[', '{']) && text.ends_with([']', '}']) {
        let parsed = super::json::parse(text).ok();
        return parsed.unwrap_or_else(|| Value::String(text.to_owned()));
    }
    Value::String(text.to_owned())
}
