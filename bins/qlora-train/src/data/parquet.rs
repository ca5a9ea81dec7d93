//! Rows of a Parquet file, of its known columns only: a table's other columns cost nothing and may hold anything.

use std::fs::File;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::guard;
use super::reader::{Unit, at};
use super::rows::{KNOWN_KEYS, SUPPORTED, TASK};
use crate::error::{Context, Error, Result};
use crate::refuse;

/// Calls `each(number, row)` for every row, counted from 1, in order. Errors of `each` end the reading.
///
/// Refuses a file that is cut off or damaged, has no column that a row could be made of, or is compressed in a way
/// that is not built in (built in are none, Snappy, gzip and LZ4).
pub(super) fn read_rows(path: &Path, each: &mut dyn FnMut(usize, Value) -> Result<()>) -> Result<()> {
    let name = path.display();
    let (mut rows, expected) = guarded(path, || open(path))??;
    let mut number = 0;
    while let Some(row) = guarded(path, || rows.next())? {
        number += 1;
        let row = row.map_err(|error| damaged(path, &error))?;
        let row = object(&row).map_err(|why| at(path, Unit::Row, number, &why))?;
        each(number, row)?;
    }
    if i64::try_from(number) != Ok(expected) {
        refuse!("{name}: found {number} rows, its own header says {expected}; the file is damaged, get it again");
    }
    Ok(())
}

/// The rows with their known columns, and how many the file says it has.
fn open(path: &Path) -> Result<(RowIter<'static>, i64)> {
    let name = path.display();
    let file = File::open(path).or_refuse(|| format!("{name}: cannot open the data file"))?;
    let reader = SerializedFileReader::new(file).map_err(|error| damaged(path, &error))?;
    let metadata = reader.metadata().file_metadata();
    let (schema, expected) = (metadata.schema(), metadata.num_rows());
    let known = |name: &str| KNOWN_KEYS.contains(&name) || name == TASK;
    let (known, others): (Vec<_>, Vec<_>) = schema.get_fields().iter().cloned().partition(|field| known(field.name()));
    if known.iter().all(|field| field.name() == TASK) {
        let names: Vec<String> = others.iter().take(8).map(|field| format!("`{}`", field.name())).collect();
        refuse!("{name}: unknown kind of rows: found the columns {}; {SUPPORTED}", names.join(", "));
    }
    let projection = Type::group_type_builder(schema.name()).with_fields(known).build();
    let rows = projection.and_then(|projection| RowIter::from_file_into(Box::new(reader)).project(Some(projection)));
    Ok((rows.map_err(|error| damaged(path, &error))?, expected))
}

fn damaged(path: &Path, error: &ParquetError) -> Error {
    let error = error.to_string();
    let text = error.split_whitespace().collect::<Vec<_>>().join(" ");
    let cure = match text.contains("feature") || text.contains("codec") {
        true => "write it again with Snappy, gzip, LZ4 or no compression",
        false => "the file is cut off or damaged, get it again",
    };
    Error::Refused(format!("{}: cannot read as Parquet ({text}): {cure}", path.display()))
}

/// The library checks most of what it reads; on some damaged files it panics.
fn guarded<T>(path: &Path, work: impl FnOnce() -> T) -> Result<T> {
    guard::guarded(work).ok_or_else(|| {
        Error::Refused(format!("{}: cannot read as Parquet: the file is damaged, get it again", path.display()))
    })
}

fn object(row: &Row) -> Result<Value, String> {
    let mut map = Map::new();
    for (key, field) in row.get_column_iter() {
        if map.insert(key.clone(), value(field).map_err(|why| format!("`{key}`{why}"))?).is_some() {
            return Err(format!("the column `{key}` is there twice"));
        }
    }
    Ok(Value::Object(map))
}

fn value(field: &Field) -> Result<Value, String> {
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float16(x) => float(x.to_f64()),
        Field::Float(x) => float(f64::from(*x)),
        Field::Double(x) => float(*x),
        Field::Str(text) => Value::String(text.clone()),
        // Old writers leave out that a column of bytes is text.
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(error) => return Err(format!(" is not UTF-8 (byte {})", error.valid_up_to() + 1)),
        },
        Field::Group(row) => object(row).map_err(|why| format!(".{why}"))?,
        Field::ListInternal(list) => Value::Array(
            list.elements()
                .iter()
                .enumerate()
                .map(|(at, item)| value(item).map_err(|why| format!("[{at}]{why}")))
                .collect::<Result<_, _>>()?,
        ),
        Field::MapInternal(_)
        | Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => return Err(format!(" is {field}; expected text, a number, a list or a struct")),
    })
}
