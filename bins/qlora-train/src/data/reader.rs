//! Reads the rows of a data file one by one, each with the line it starts on, or its number in a Parquet file (both
//! counted from 1).
//!
//! What a file is, is told by its first bytes and not by its name: data sets in JSON Lines often end in `.json`. JSON
//! Lines are read line by line, a Parquet file page by page; a JSON array is read whole.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{json, parquet};
use crate::error::{Context, Error, Result};
use crate::files::hash::{HashingReader, file_hash};
use crate::refuse;

/// Longer lines are refused, so that a file without line breaks does not fill the memory: parsed, a line of numbers takes
/// some twenty times its room.
const MAX_LINE_BYTES: u64 = 64 << 20;
/// Larger files that are one JSON array are refused, for the same reason: they are read whole, though parsed row by row.
const MAX_ARRAY_BYTES: u64 = 1 << 30;
const BOM: &[u8] = b"\xEF\xBB\xBF";
const SUPPORTED: &str = "supported are JSON Lines (one object a line), JSON (one array of objects) and Parquet";

/// What counts the rows of a file in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What a callback gets: the unit and number of a row, and the row.
pub(super) type Each<'a> = &'a mut dyn FnMut(Unit, usize, Value) -> Result<()>;

/// Calls `each` for every row of the file, in order, and returns the file's SHA-256 in hex. Errors of `each` end the
/// reading.
pub(super) fn read_rows(path: &Path, each: Each) -> Result<String> {
    let name = path.display();
    if path.is_dir() {
        refuse!("{name}: is a directory; give the data file itself ({SUPPORTED})");
    }
    let file = File::open(path).or_refuse(|| format!("{name}: cannot open the data file"))?;
    let mut reader = BufReader::with_capacity(1 << 16, HashingReader::new(file));
    let head = reader.fill_buf().or_refuse(|| format!("{name}: cannot read"))?;
    if head.starts_with(b"PAR1") {
        parquet::read_rows(path, &mut |number, row| each(Unit::Row, number, row))?;
        return file_hash(path);
    }
    if head.starts_with(&[0x1F, 0x8B]) || head.starts_with(&[0x28, 0xB5, 0x2F, 0xFD]) {
        refuse!("{name}: the file is compressed; decompress it first ({SUPPORTED})");
    }
    let bom = if head.starts_with(BOM) { BOM.len() } else { 0 };
    let first = head[bom..].iter().find(|byte| !byte.is_ascii_whitespace()).copied();
    reader.consume(bom);
    let each = &mut |line, row| each(Unit::Line, line, row);
    if first == Some(b'[') {
        read_array(path, &mut reader, each)?;
    } else {
        read_lines(path, &mut reader, each)?;
    }
    // Both read to the end.
    Ok(reader.into_inner().finish())
}

fn read_lines(path: &Path, mut reader: impl BufRead, each: &mut dyn FnMut(usize, Value) -> Result<()>) -> Result<()> {
    let name = path.display();
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        let count = (&mut reader)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut bytes)
            .or_refuse(|| format!("{name}: line {line}: cannot read"))?;
        if count == 0 {
            break;
        }
        if count as u64 > MAX_LINE_BYTES {
            refuse!("{name}: line {line}: longer than {} MiB; expected one row a line", MAX_LINE_BYTES >> 20);
        }
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text.trim(),
            Err(error) => refuse!("{name}: line {line}: not UTF-8 (byte {} of the line)", error.valid_up_to() + 1),
        };
        if text.is_empty() {
            continue;
        }
        match json::parse(text) {
            Ok(row) => each(line, row)?,
            Err(error) => refuse!("{name}: line {line}: {}; {SUPPORTED}", without_line(&error)),
        }
    }
    Ok(())
}

fn read_array(path: &Path, reader: impl Read, each: &mut dyn FnMut(usize, Value) -> Result<()>) -> Result<()> {
    let name = path.display();
    let too_large = || {
        let limit = MAX_ARRAY_BYTES >> 30;
        refuse!("{name}: one JSON array of more than {limit} GiB; write it as JSON Lines, one object a line");
    };
    // Known beforehand for a file, and only at the end for a pipe.
    if path.metadata().is_ok_and(|metadata| metadata.len() > MAX_ARRAY_BYTES) {
        return too_large();
    }
    let mut text = String::new();
    match reader.take(MAX_ARRAY_BYTES + 1).read_to_string(&mut text) {
        Err(error) if error.kind() == ErrorKind::InvalidData => refuse!("{name}: not UTF-8"),
        result => result.or_refuse(|| format!("{name}: cannot read"))?,
    };
    if text.len() as u64 > MAX_ARRAY_BYTES {
        return too_large();
    }
    let rows: Vec<&RawValue> = match serde_json::from_str(&text) {
        Ok(rows) => rows,
        Err(error) => refuse!("{name}: line {}: {}; {SUPPORTED}", error.line(), without_line(&error)),
    };
    let (mut line, mut counted) = (1, 0);
    for raw in rows {
        // Every raw value is a slice of `text`, so its address tells where it stands.
        let offset = raw.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text[counted..offset].matches('\n').count();
        counted = offset;
        if raw.get().len() as u64 > MAX_LINE_BYTES {
            refuse!("{name}: line {line}: a row of more than {} MiB", MAX_LINE_BYTES >> 20);
        }
        match json::parse(raw.get()) {
            Ok(row) => each(line, row)?,
            Err(error) => refuse!("{name}: line {}: {}", line + error.line().max(1) - 1, without_line(&error)),
        }
    }
    Ok(())
}

/// The message of a JSON error without its own position: a line is parsed alone, so it would always say line 1.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => format!("broken JSON: {} (column {})", &text[..end], error.column()),
        None => format!("broken JSON: {text}"),
    }
}
