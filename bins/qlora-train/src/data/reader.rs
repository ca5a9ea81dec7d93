//! Reads the rows of a data file one by one, each with the line it starts on, or its number in a table and in an array
//! whose rows share a line (both counted from 1).
//!
//! The first bytes of a file determine its type, not its name: data sets in JSON Lines often end in `.json`. Only CSV
//! is recognized by its name. JSON Lines are read line by line, a JSON array row by row, Parquet page by page, Arrow
//! batch by batch; an object that holds all rows ([`super::nested_rows`]) is read whole. A file compressed by gzip or
//! Zstandard is read as what it holds.
//!
//! A file is opened once, and its hash is of what was read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::budget::{Counted, Expanded};
use super::columns::Columns;
use super::json_stream::{Between, JsonStream, Text};
use super::nested_rows::{Nested, begins_with_list, nested_rows};
use super::{arrow, csv, json, parquet};
use crate::bail_usage;
use crate::error::{Context, Error, Result};
use crate::files::hash::{HashingReader, hash_of};
use crate::report::status;

/// Longer lines are refused, so that a file without line breaks does not fill the memory: parsed, a line of numbers
/// takes some twenty times its room.
const MAX_LINE_BYTES: u64 = 64 << 20;
/// A longer object that holds all rows is refused: it is read whole, though its rows are parsed one by one.
const MAX_OBJECT_BYTES: usize = 1 << 30;
const BOM: &[u8] = b"\xEF\xBB\xBF";
const SUPPORTED: &str = "supported are JSON Lines (one object a line), JSON (one array of objects), Parquet, Arrow and CSV; \
                         JSON and CSV also compressed by gzip or Zstandard";
/// Advice for a file of plain text, whose division into rows only its owner knows.
const PLAIN_TEXT: &str = "this looks like plain text: make it JSON Lines with one text a line, {\"text\": \"...\"}, where each is \
                          learned from its first token to its end";
const GZIP: [u8; 2] = [0x1F, 0x8B];
const ZSTANDARD: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
/// Bytes after the first byte (0x50 to 0x5F) of a skippable frame of Zstandard: some programs write one before the
/// others.
const SKIPPED: [u8; 3] = [0x2A, 0x4D, 0x18];

/// Unit that counts the rows of a file in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    Line,
    Row,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Line => "line",
            Unit::Row => "row",
        }
    }
}

/// A row at fault.
pub(super) fn at(path: &Path, unit: Unit, number: usize, why: &str) -> Error {
    Error::Refused(format!("{}: {} {number}: {why}", path.display(), unit.name()))
}

/// A callback that gets the unit and number of a row, and the row, or the reason why it cannot be read.
pub(super) type Each<'a> = &'a mut dyn FnMut(Unit, usize, Result<Value, String>) -> Result<()>;

/// Calls `each` for every row of the file, in order, and returns the file's SHA-256 in hex. Errors of `each` end the
/// reading.
pub(super) fn read_rows(path: &Path, columns: &Columns, each: Each) -> Result<String> {
    let name = path.display();
    if path.is_dir() {
        bail_usage!("{name}: is a directory; give the data file itself ({SUPPORTED})");
    }
    let file = File::open(path).usage_context(|| format!("{name}: cannot open the data file"))?;
    let mut reader = BufReader::with_capacity(1 << 16, HashingReader::new(file));
    let head = reader.fill_buf().usage_context(|| format!("{name}: cannot read"))?;
    if head.starts_with(b"PAR1") {
        return read_parquet(path, reader.into_inner().into_inner(), columns, each);
    }
    if head.starts_with(&GZIP) {
        let (counted, input) = Counted::new(&mut reader);
        read_compressed(path, "gzip", Expanded::new(MultiGzDecoder::new(counted), input), columns, each)?;
    } else if is_zstandard(head) {
        let (counted, input) = Counted::new(&mut reader);
        let decoder = zstd::stream::read::Decoder::with_buffer(counted);
        let decoder = decoder.usage_context(|| format!("{name}: cannot read"))?;
        read_compressed(path, "Zstandard", Expanded::new(decoder, input), columns, each)?;
    } else if head.starts_with(arrow::FILE_MAGIC) || head.starts_with(&arrow::CONTINUATION) {
        arrow::read_rows(path, &mut reader, columns, &mut |number, row| each(Unit::Row, number, row))?;
    } else {
        read_text_rows(path, &mut reader, columns, each)?;
    }
    std::io::copy(&mut reader, &mut std::io::sink()).usage_context(|| format!("{name}: cannot read"))?;
    Ok(reader.into_inner().finish())
}

fn is_zstandard(head: &[u8]) -> bool {
    let skipped = matches!(head, [0x50..=0x5F, rest @ ..] if rest.starts_with(&SKIPPED));
    head.starts_with(&ZSTANDARD) || skipped
}

/// Parquet is read from its end, in pieces, so its bytes are hashed by themselves. Refused: it is a pipe, or was
/// written to meanwhile.
fn read_parquet(path: &Path, mut file: File, columns: &Columns, each: Each) -> Result<String> {
    let name = path.display();
    let cannot = || format!("{name}: cannot read");
    let before = file.metadata().usage_context(cannot)?;
    if !before.is_file() {
        bail_usage!("{name}: Parquet from a pipe, which cannot be read from its end; write it to a file first");
    }
    let rows = file.try_clone().usage_context(cannot)?;
    parquet::read_rows(path, rows, columns, &mut |number, row| each(Unit::Row, number, row))?;
    file.rewind().usage_context(cannot)?;
    let hash = hash_of(&file).usage_context(cannot)?;
    let after = file.metadata().usage_context(cannot)?;
    if (before.len(), before.modified().ok()) != (after.len(), after.modified().ok()) {
        bail_usage!("{name}: was written to while it was read; begin again when it is whole");
    }
    Ok(hash)
}

fn read_compressed(path: &Path, by: &str, reader: impl Read, columns: &Columns, each: Each) -> Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, reader);
    reader.fill_buf().usage_context(|| format!("{}: is compressed by {by}, and damaged or cut off", path.display()))?;
    read_text_rows(path, reader, columns, each)
}

/// Rows of JSON or CSV.
fn read_text_rows(path: &Path, mut reader: impl BufRead, columns: &Columns, each: Each) -> Result<()> {
    let name = path.display();
    let head = reader.fill_buf().usage_context(|| format!("{name}: cannot read"))?;
    if let Some(kind) = other_kind(head) {
        bail_usage!("{name}: is {kind}; {SUPPORTED}");
    }
    let bom = if head.starts_with(BOM) { BOM.len() } else { 0 };
    let first = head[bom..].iter().find(|byte| !byte.is_ascii_whitespace()).copied();
    reader.consume(bom);
    if !matches!(first, Some(b'[' | b'{'))
        && let Some(delimiter) = csv::delimiter(path)
    {
        let head = reader.fill_buf().usage_context(|| format!("{name}: cannot read"))?;
        let delimiter = csv::delimiter_of(head, delimiter);
        return csv::read_rows(path, reader, delimiter, &mut |number, row| each(Unit::Row, number, row));
    }
    if first == Some(b'[') { read_array(path, reader, 1, each) } else { read_lines(path, reader, columns, each) }
}

/// A file of another kind, by its first bytes.
fn other_kind(head: &[u8]) -> Option<&'static str> {
    let kinds: [(&[u8], &str); 12] = [
        (arrow::FILE_MAGIC, "a compressed Arrow file: decompress it first"),
        (&arrow::CONTINUATION, "a compressed Arrow stream: decompress it first"),
        (&GZIP, "compressed twice: decompress it first"),
        (&ZSTANDARD, "compressed twice: decompress it first"),
        (b"PAR1", "a compressed Parquet file: decompress it first"),
        (b"PK\x03\x04", "a zip archive"),
        (b"BZh", "compressed with bzip2"),
        (b"\xFD7zXZ", "compressed with xz"),
        (b"\x04\x22\x4D\x18", "compressed with lz4"),
        (b"SQLite format 3", "an SQLite database"),
        (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: get it with `git lfs pull`"),
        (b"<", "HTML or XML, perhaps the page that should have sent the file"),
    ];
    kinds.into_iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, kind)| kind)
}

fn read_lines(path: &Path, mut reader: impl BufRead, columns: &Columns, each: Each) -> Result<()> {
    let name = path.display();
    let (mut bytes, mut first, mut next) = (Vec::new(), true, 1);
    loop {
        let line = next;
        next += 1;
        bytes.clear();
        let count = (&mut reader)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut bytes)
            .usage_context(|| format!("{name}: line {line}: cannot read"))?;
        if count == 0 {
            break;
        }
        if count as u64 > MAX_LINE_BYTES {
            if first && begins_with_list(&bytes) {
                return read_values(path, bytes.as_slice().chain(reader), line, columns, each);
            }
            bail_usage!("{name}: line {line}: longer than {} MiB; expected one row a line", MAX_LINE_BYTES >> 20);
        }
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text.trim(),
            Err(error) => {
                each(Unit::Line, line, Err(format!("not UTF-8 (byte {} of the line)", error.valid_up_to() + 1)))?;
                continue;
            }
        };
        if text.is_empty() {
            continue;
        }
        let first = std::mem::take(&mut first);
        let nested = if first && text.starts_with('{') { nested_rows(text, columns) } else { Nested::Row };
        if !matches!(nested, Nested::Row) {
            let mut rest = JsonStream::new(&mut reader, next);
            let is_alone = rest.peek().usage_context(|| format!("{name}: line {next}: cannot read"))?.is_none();
            next = rest.line();
            if is_alone {
                return give_nested(path, line, text, nested, each);
            }
        }
        match json::parse(text) {
            Ok(row) => each(Unit::Line, line, Ok(row))?,
            // The first of objects that are printed over several lines.
            Err(error) if first && error.is_eof() && goes_on(text) => {
                return read_values(path, bytes.as_slice().chain(reader), line, columns, each);
            }
            Err(error) => {
                let hint = if first && is_plain_text(text) { PLAIN_TEXT } else { SUPPORTED };
                each(Unit::Line, line, Err(format!("{}; {hint}", without_line(&error))))?;
            }
        }
    }
    Ok(())
}

/// True if a line is the beginning of an object that is printed over several lines, and not a row that is cut off.
fn goes_on(line: &str) -> bool {
    line.starts_with('{') && line.ends_with(['{', '[', ',', ':'])
}

/// The rows that one object holds, which begins on a line.
fn give_nested(path: &Path, line: usize, text: &str, nested: Nested, each: Each) -> Result<()> {
    match nested {
        Nested::Row => give(line, text, each),
        Nested::Several(why) => each(Unit::Line, line, Err(why)),
        Nested::Rows { key, rows, others } => {
            let beside = if others.is_empty() { String::new() } else { format!("; not used beside it: {others}") };
            status!("{}: one object, whose rows are the list under `{key}`{beside}", path.display());
            let begins = rows.as_ptr() as usize - text.as_ptr() as usize;
            read_array(path, rows.as_bytes(), line + text[..begins].matches('\n').count(), each)
        }
    }
}

/// True for a line of words; false for JSON with a fault in it.
fn is_plain_text(line: &str) -> bool {
    line.starts_with(|first: char| !matches!(first, '{' | '[' | '"' | '}' | ']'))
}

/// The value of a stream as UTF-8. Refused: the file ends within it, or it is longer than a row may be.
fn checked(path: &Path, text: Text, most: usize) -> Result<(usize, Result<String, String>)> {
    let (name, line) = (path.display(), text.line);
    if text.too_long {
        bail_usage!("{name}: line {line}: a row of more than {} MiB", most >> 20);
    }
    if text.cut {
        bail_usage!("{name}: line {line}: broken JSON: the file ends within what begins here; {SUPPORTED}");
    }
    let text = String::from_utf8(text.bytes)
        .map_err(|error| format!("not UTF-8 (byte {} of the row)", error.utf8_error().valid_up_to() + 1));
    Ok((line, text))
}

/// Parses a row that begins on `line`.
fn give(line: usize, text: &str, each: Each) -> Result<()> {
    match json::parse(text) {
        Ok(row) => each(Unit::Line, line, Ok(row)),
        Err(error) => each(Unit::Line, line + error.line().max(1) - 1, Err(without_line(&error))),
    }
}

/// Objects printed over several lines, one behind the other, from the given line on. One object may hold all rows.
fn read_values(path: &Path, reader: impl BufRead, first: usize, columns: &Columns, each: Each) -> Result<()> {
    let cannot = || format!("{}: cannot read", path.display());
    let mut stream = JsonStream::new(reader, first);
    let mut most = MAX_OBJECT_BYTES;
    while stream.peek().usage_context(cannot)?.is_some() {
        let text = stream.value(Between::Blanks, most).usage_context(cannot)?;
        match checked(path, text, most)? {
            (line, Ok(text)) => give_nested(path, line, &text, nested_rows(&text, columns), each)?,
            (line, Err(why)) => each(Unit::Line, line, Err(why))?,
        }
        most = MAX_LINE_BYTES as usize;
    }
    Ok(())
}

/// Rows of an array that begins on `first`, each parsed as it is read. If the first two share a line, rows are
/// identified by their numbers: most programs write an array on one line.
fn read_array(path: &Path, reader: impl BufRead, first: usize, each: Each) -> Result<()> {
    let name = path.display();
    let cannot = || format!("{name}: cannot read");
    let mut stream = JsonStream::new(reader, first);
    let broken = |line: usize, what: &str| -> Result<()> {
        bail_usage!("{name}: line {line}: broken JSON: {what}; {SUPPORTED}");
    };
    stream.peek().usage_context(cannot)?;
    stream.take(1);
    let mut next = stream.peek().usage_context(cannot)?;
    let (mut number, mut unit) = (0, None);
    while next != Some(b']') {
        let text = stream.value(Between::Commas, MAX_LINE_BYTES as usize).usage_context(cannot)?;
        let (line, text) = checked(path, text, MAX_LINE_BYTES as usize)?;
        let separator = stream.peek().usage_context(cannot)?;
        if separator == Some(b',') {
            stream.take(1);
            next = stream.peek().usage_context(cannot)?;
        }
        number += 1;
        let shares_line = separator == Some(b',') && stream.line() == line;
        match (unit.get_or_insert(if shares_line { Unit::Row } else { Unit::Line }), text) {
            (Unit::Line, Ok(text)) => give(line, text.trim_end(), each)?,
            (Unit::Line, Err(why)) => each(Unit::Line, line, Err(why))?,
            (Unit::Row, text) => {
                let row = text.and_then(|text| json::parse(text.trim_end()).map_err(|error| without_line(&error)));
                each(Unit::Row, number, row)?;
            }
        }
        match separator {
            Some(b',') if next == Some(b']') => return broken(stream.line(), "trailing comma"),
            Some(b',') => {}
            Some(b']') => break,
            _ => return broken(stream.line(), "expected `,` or `]`"),
        }
    }
    stream.take(1);
    match stream.peek().usage_context(cannot)? {
        None => Ok(()),
        Some(_) => broken(stream.line(), "trailing characters"),
    }
}

/// The message of a JSON error without its own position: a line is parsed alone, so it would always say line 1.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("broken JSON: {} (column {})", &text[..end], error.column()),
        None => format!("broken JSON: {text}"),
    }
}

#[cfg(test)]
mod tests;
