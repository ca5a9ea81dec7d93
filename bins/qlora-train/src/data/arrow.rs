//! Rows of an Arrow file (Feather) or stream, as the `datasets` library keeps its tables, of its known columns only.
//!
//! Both forms are a row of messages, so both are read as a stream, one batch of rows at a time. The lengths that a
//! message claims are checked before anything is decoded.

use std::io::Read;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_ipc::{Message, root_as_message};
use arrow_schema::{DataType, Schema};
use serde_json::{Map, Number, Value};

use super::budget::{Budget, MAX_VALUES, too_many_values};
use super::columns::Columns;
use super::each::EachOf;
use super::guard::guarded;
use super::json;
use super::keys::{THERE, is_of_other_meaning};
use super::rows::SUPPORTED;
use super::unused::list_columns;
use crate::bail_usage;
use crate::error::{Context, Error, Result};

/// The magic at the beginning and the end of a file; a stream has none.
pub(super) const FILE_MAGIC: &[u8] = b"ARROW1";
/// The mark before every message.
pub(super) const CONTINUATION: [u8; 4] = [0xFF; 4];
/// The mark at the end of a stream.
const END: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
const MAX_PADDING_BYTES: usize = 256;
const MAX_HEADER_BYTES: u64 = 16 << 20;
const MAX_BODY_BYTES: u64 = 2 << 30;

/// Calls `each(number, row)` for every row, counted from 1, in order. Refused: a file that is cut off or damaged, or
/// without a column that a row could be made of.
pub(super) fn read_rows(path: &Path, mut reader: impl Read, columns: &Columns, each: EachOf) -> Result<()> {
    let name = path.display();
    let mut budget = Budget::new();
    let mut decoder = StreamDecoder::new();
    let mut head = [0; 8];
    fill(path, &mut reader, &mut head)?;
    let is_file = head.starts_with(FILE_MAGIC);
    if is_file {
        // Behind the magic stand zeros, as far as the writer aligns messages.
        for _ in 0..MAX_PADDING_BYTES / head.len() {
            fill(path, &mut reader, &mut head)?;
            if head != [0; 8] {
                break;
            }
        }
    }
    let mut pending = head.to_vec();
    let (mut number, mut known) = (0, false);
    let mut ended = false;
    while !ended {
        let frame = message(path, &mut reader, &mut pending, &mut budget)?;
        ended = frame.is_none();
        // The decoder gives a batch without a body with what follows it.
        let mut buffer = Buffer::from_vec(frame.unwrap_or_else(|| END.to_vec()));
        while !buffer.is_empty() {
            let decoded = guarded(|| decoder.decode(&mut buffer)).ok_or_else(|| damaged(path, ""))?;
            let Some(batch) = decoded.map_err(|error| damaged(path, &error.to_string()))? else { continue };
            if !known {
                check_columns(path, batch.schema_ref(), columns)?;
                known = true;
            }
            let ways = ways(batch.schema_ref(), columns);
            for at in 0..batch.num_rows() {
                number += 1;
                let mut row = guarded(|| row(&batch, at, &ways)).ok_or_else(|| damaged(path, ""))?;
                budget.spend_row(&row).usage_context(|| name.to_string())?;
                if let (1, Ok(Value::Object(row))) = (number, &mut row) {
                    list_columns(row, guarded(|| unread(&batch, columns)).ok_or_else(|| damaged(path, ""))?);
                }
                each(number, row)?;
            }
        }
    }
    if let Some(schema) = decoder.schema().filter(|_| !known) {
        check_columns(path, &schema, columns)?;
    }
    let mut tail = Vec::new();
    reader.take(MAX_BODY_BYTES).read_to_end(&mut tail).usage_context(|| format!("{name}: cannot read"))?;
    if is_file && !tail.ends_with(FILE_MAGIC) {
        return Err(damaged(path, "its end is missing"));
    }
    Ok(())
}

/// Refuses a table without a column that a row could be made of.
fn check_columns(path: &Path, schema: &Schema, columns: &Columns) -> Result<()> {
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    if !names.iter().any(|name| columns.makes_rows(name)) {
        let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{}`", json::shorten(name))).collect();
        bail_usage!(
            "{}: unknown kind of rows: found the columns {}; {SUPPORTED}{}",
            path.display(),
            shown.join(", "),
            Columns::guess_names(&names)
        );
    }
    Ok(())
}

/// The next message with its body; none at the end, which a stream must mark.
fn message(path: &Path, reader: &mut impl Read, pending: &mut Vec<u8>, budget: &mut Budget) -> Result<Option<Vec<u8>>> {
    let mut prefix = [0; 8];
    match std::mem::take(pending) {
        known if known.len() == prefix.len() => prefix.copy_from_slice(&known),
        _ => fill(path, reader, &mut prefix)?,
    }
    let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
    if prefix[..4] != CONTINUATION {
        return Err(damaged(path, "no message where one should begin"));
    }
    let header = u64::from(number(4));
    if header == 0 {
        return Ok(None);
    }
    if header > MAX_HEADER_BYTES {
        return Err(damaged(path, &format!("a header of {header} bytes")));
    }
    let mut frame = prefix.to_vec();
    append(path, reader, header, &mut frame)?;
    let parsed = guarded(|| root_as_message(&frame[prefix.len()..]).map(|message| message.bodyLength()));
    let body = parsed.and_then(Result::ok).and_then(|body| u64::try_from(body).ok());
    let body = body.filter(|body| *body <= MAX_BODY_BYTES);
    let body = body.ok_or_else(|| damaged(path, "a message that is none"))?;
    let begins = frame.len();
    append(path, reader, body, &mut frame)?;
    budget.allow(frame.len() as u64);
    let (header, body) = (&frame[prefix.len()..begins], &frame[begins..]);
    let expanded = guarded(|| root_as_message(header).map_or(0, |message| expanded(&message, body)));
    // The memory is freed with its batch: only the largest counts.
    let expanded = expanded.ok_or_else(|| damaged(path, "a message that is none"))?;
    if expanded > MAX_BODY_BYTES {
        return Err(damaged(path, "a batch of more than 2 GiB"));
    }
    budget.clone().spend(expanded).usage_context(|| path.display().to_string())?;
    Ok(Some(frame))
}

/// Decompressed bytes that the buffers of a message claim.
fn expanded(message: &Message, body: &[u8]) -> u64 {
    let batch = message.header_as_record_batch();
    let batch = batch.or_else(|| message.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()));
    let Some(buffers) = batch.filter(|batch| batch.compression().is_some()).and_then(|batch| batch.buffers()) else {
        return 0;
    };
    let claimed = buffers.iter().filter(|buffer| buffer.length() >= 8).map(|buffer| {
        let at = usize::try_from(buffer.offset()).unwrap_or(usize::MAX);
        let claim = body.get(at..).and_then(|rest| rest.first_chunk::<8>());
        claim.map_or(u64::MAX, |claim| u64::try_from(i64::from_le_bytes(*claim)).unwrap_or(0))
    });
    claimed.fold(0, u64::saturating_add)
}

fn fill(path: &Path, reader: &mut impl Read, to: &mut [u8]) -> Result<()> {
    reader.read_exact(to).map_err(|_| damaged(path, "it ends within a message, or says no end"))
}

/// Reads `bytes` bytes; memory is allocated as they arrive, not as they are claimed.
fn append(path: &Path, reader: &mut impl Read, bytes: u64, to: &mut Vec<u8>) -> Result<()> {
    let read = reader.take(bytes).read_to_end(to).usage_context(|| format!("{}: cannot read", path.display()))?;
    if read as u64 == bytes { Ok(()) } else { Err(damaged(path, "it ends within a message")) }
}

fn damaged(path: &Path, why: &str) -> Error {
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    let why = if why.is_empty() { why } else { format!(" ({why})") };
    let name = path.display();
    Error::Refused(format!("{name}: cannot read as Arrow{why}: the file is cut off or damaged, get it again"))
}

/// True if a column is of plain numbers, truth values or texts, or of lists.
fn may_be_flags(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => may_be_flags(values),
        DataType::Boolean | DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => true,
        kind => kind.is_integer() || kind.is_floating() || kind.is_string(),
    }
}

/// The columns that are not read and hold something.
fn unread(batch: &RecordBatch, columns: &Columns) -> Vec<String> {
    let fields = batch.schema_ref().fields().iter().zip(batch.columns());
    let unread = fields.filter(|(field, column)| {
        let is_read = columns.reads(field.name()) || columns.warns_of(field.name()) && may_be_flags(field.data_type());
        !is_read && *field.data_type() != DataType::Null && column.logical_null_count() < column.len()
    });
    unread.map(|(field, _)| field.name().clone()).collect()
}

/// A way to read a column
enum Way {
    Whole,
    /// Only its presence matters; it may be the bytes of an image.
    Presence,
    /// Only the length of a list matters; it may be the pixels of an image.
    Length,
    Not,
}

/// The way of each column, found once: finding it for each row would take longer than reading.
fn ways(schema: &Schema, columns: &Columns) -> Vec<Way> {
    let way = |(name, kind): (&String, &DataType)| {
        let is_number = kind.is_numeric() || *kind == DataType::Boolean;
        let is_list = matches!(kind, DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..));
        match columns.reads(name) {
            true if is_of_other_meaning(name) && !is_number => Way::Presence,
            true => Way::Whole,
            false if !(columns.warns_of(name) && may_be_flags(kind)) => Way::Not,
            false if is_list => Way::Length,
            false => Way::Whole,
        }
    };
    schema.fields().iter().map(|field| way((field.name(), field.data_type()))).collect()
}

fn row(batch: &RecordBatch, at: usize, ways: &[Way]) -> Result<Value, String> {
    let mut map = Map::new();
    let mut left = MAX_VALUES;
    for ((field, column), way) in batch.schema_ref().fields().iter().zip(batch.columns()).zip(ways) {
        let name = field.name();
        let is_there = || !column.is_null(at) && !is_empty_list(column.as_ref(), at);
        let value = match way {
            Way::Not => continue,
            Way::Whole => {
                value(column.as_ref(), at, &mut left).map_err(|why| format!("`{}`{why}", json::shorten(name)))?
            }
            Way::Presence if is_there() => Value::from(THERE),
            Way::Length if is_there() => Value::from(vec![THERE]),
            Way::Presence | Way::Length => Value::Null,
        };
        if map.insert(name.clone(), value).is_some() {
            return Err(format!("the column `{}` is there twice", json::shorten(name)));
        }
    }
    Ok(Value::Object(map))
}

fn is_empty_list(array: &dyn Array, at: usize) -> bool {
    match array.data_type() {
        DataType::List(_) => array.as_list::<i32>().value_length(at) == 0,
        DataType::LargeList(_) => array.as_list::<i64>().value_length(at) == 0,
        DataType::FixedSizeList(_, length) => *length == 0,
        _ => false,
    }
}

/// One entry of a column. Keys of structs that are null are left out: a struct has every key of every row.
fn value(array: &dyn Array, at: usize, left: &mut usize) -> Result<Value, String> {
    *left = left.checked_sub(1).ok_or_else(|| format!(": {}", too_many_values()))?;
    if array.is_null(at) {
        return Ok(Value::Null);
    }
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    let mut items = |items: &dyn Array| -> Result<Value, String> {
        let items = (0..items.len()).map(|at| value(items, at, left).map_err(|why| format!("[{at}]{why}")));
        items.collect::<Result<_, _>>().map(Value::Array)
    };
    Ok(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(at).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(at).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(at).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(at).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(at).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(at).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(at).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(at).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(at).into(),
        DataType::Float16 => float(array.as_primitive::<Float16Type>().value(at).to_f64()),
        DataType::Float32 => float(array.as_primitive::<Float32Type>().value(at).into()),
        DataType::Float64 => float(array.as_primitive::<Float64Type>().value(at)),
        DataType::Utf8 => array.as_string::<i32>().value(at).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(at).into(),
        DataType::Utf8View => array.as_string_view().value(at).into(),
        DataType::List(_) => items(array.as_list::<i32>().value(at).as_ref())?,
        DataType::LargeList(_) => items(array.as_list::<i64>().value(at).as_ref())?,
        DataType::FixedSizeList(..) => items(array.as_fixed_size_list().value(at).as_ref())?,
        DataType::Struct(fields) => {
            let mut map = Map::new();
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                let value =
                    value(column.as_ref(), at, left).map_err(|why| format!(".{}{why}", json::shorten(field.name())))?;
                if !value.is_null() {
                    map.insert(field.name().clone(), value);
                }
            }
            Value::Object(map)
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = value(dictionary.keys(), at, left)?.as_u64().ok_or(" has a key that is none")?;
            value(dictionary.values().as_ref(), key as usize, left)?
        }
        other => return Err(format!(" has the type {other}; expected text, a number, a list or a struct")),
    })
}
