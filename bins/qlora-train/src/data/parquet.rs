//! Rows of a Parquet file, of its known columns only: a table's other columns cost nothing and may hold anything.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use parquet::basic::{ConvertedType, Type as PhysicalType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::statistics::Statistics;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};

use super::budget::{Budget, MAX_VALUES, too_many_values};
use super::columns::Columns;
use super::each::EachOf;
use super::guard;
use super::json;
use super::keys::{THERE, is_of_other_meaning};
use super::parquet_claims;
use super::rows::{MAX_TEXT_VALUES, SUPPORTED};
use super::unused::list_columns;
use crate::bail_usage;
use crate::error::{Context, Error, Result};

/// Values beyond those of one row, for each byte of a group of rows.
const MAX_VALUES_OF_A_BYTE: i64 = 100;
/// Names on the way to the numbers of a list.
const LIST_DEPTH: usize = 3;

/// Calls `each(number, row)` for every row, counted from 1, in order. Errors of `each` end the reading.
///
/// Refuses a file that is cut off or damaged, has no column that a row could be made of, decompresses to far more than
/// its size, or is compressed in a way that is not built in (built in are none, Snappy, gzip, LZ4 and Zstandard).
pub(super) fn read_rows(path: &Path, file: File, columns: &Columns, each: EachOf) -> Result<()> {
    let name = path.display();
    let bytes = file.metadata().map_or(0, |metadata| metadata.len());
    let mut budget = Budget::new();
    budget.allow(bytes);
    let Opened { mut rows, expected, unread } = guarded(path, || open(path, file, columns, &budget))??;
    let mut number = 0;
    while let Some(row) = guarded(path, || rows.next())? {
        number += 1;
        let row = row.map_err(|error| damaged(path, &error))?;
        let mut left = MAX_VALUES;
        let mut row = object(&row, Some(columns), &mut left);
        budget.spend_row(&row).usage_context(|| name.to_string())?;
        if let (1, Ok(Value::Object(row))) = (number, &mut row) {
            list_columns(row, unread.iter().cloned());
        }
        each(number, row)?;
    }
    if i64::try_from(number) != Ok(expected) {
        bail_usage!("{name}: found {number} rows, its own header says {expected}; the file is damaged, get it again");
    }
    Ok(())
}

/// Number of rows that a file claims to have. None: it is no Parquet file.
pub(super) fn claimed_rows(path: &Path, mut file: File) -> Result<Option<u64>> {
    let mut magic = [0; 4];
    let begins = file.read_exact(&mut magic).is_ok() && magic == *b"PAR1";
    if !begins || !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Ok(None);
    }
    parquet_claims::check_footer(&mut file).map_err(|why| damaged(path, &ParquetError::General(why)))?;
    let reader = guarded(path, || SerializedFileReader::new(file))?.map_err(|error| damaged(path, &error))?;
    Ok(Some(u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0)))
}

/// A file that was opened.
struct Opened {
    /// Rows with their known columns
    rows: RowIter<'static>,
    /// Number of rows that the file claims
    expected: i64,
    /// Columns that are not read and hold something
    unread: Vec<String>,
}

/// Opens a file for its known columns, once what it claims to hold is checked.
fn open(path: &Path, mut file: File, columns: &Columns, budget: &Budget) -> Result<Opened> {
    let name = path.display();
    let header = |why: String| damaged(path, &ParquetError::General(why));
    parquet_claims::check_footer(&mut file).map_err(header)?;
    let mut headers = file.try_clone().usage_context(|| format!("{name}: cannot read"))?;
    let reader = SerializedFileReader::new(file).map_err(|error| damaged(path, &error))?;
    let metadata = reader.metadata().file_metadata();
    let (schema, expected) = (metadata.schema(), metadata.num_rows());
    let known: Vec<_> = schema.get_fields().iter().filter(|field| is_read(field, columns)).cloned().collect();
    let most_values = MAX_VALUES as i64;
    for group in reader.metadata().row_groups() {
        // A few bytes may decode to any number of values, and any amount of text.
        let read = |column: &&ColumnChunkMetaData| {
            column.column_path().parts().first().is_some_and(|root| known.iter().any(|field| field.name() == root))
        };
        let sum = |of: fn(&ColumnChunkMetaData) -> i64| -> i64 {
            group.columns().iter().filter(read).map(|column| of(column).max(0)).fold(0, i64::saturating_add)
        };
        let values = sum(ColumnChunkMetaData::num_values);
        if values / group.num_rows().max(1) > most_values {
            bail_usage!("{name}: rows of {values} values, {}", too_many_values());
        }
        // On the average; and one row may have all of a group's.
        let bytes = group.compressed_size().max(0);
        if values > most_values.saturating_add(bytes.saturating_mul(MAX_VALUES_OF_A_BYTE)) {
            bail_usage!("{name}: {bytes} bytes decode to {values} values, more than real rows have");
        }
        // Lists of structs, each with keys of its own.
        let nested = |column: &&ColumnChunkMetaData| read(column) && column.column_path().parts().len() > LIST_DEPTH;
        let pieces: i64 = group.columns().iter().filter(nested).map(|column| column.num_values().max(0)).sum();
        if pieces > (MAX_TEXT_VALUES as i64).saturating_add(bytes.saturating_mul(MAX_VALUES_OF_A_BYTE)) {
            bail_usage!("{name}: {bytes} bytes decode to {pieces} values of turns, more than real rows have");
        }
        let mut left = budget.clone();
        for column in group.columns().iter().filter(read) {
            let (start, length) = column.byte_range();
            let claims = parquet_claims::of_pages(&mut headers, start..start.saturating_add(length)).map_err(header)?;
            if claims.values > column.num_values().unsigned_abs() {
                return Err(header(format!("{} values in pages of {}", claims.values, column.num_values())));
            }
            left.spend(claims.bytes).usage_context(|| name.to_string())?;
        }
    }
    let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    if !names.iter().any(|name| columns.makes_rows(name)) {
        let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{}`", json::shorten(name))).collect();
        bail_usage!(
            "{name}: unknown kind of rows: found the columns {}; {SUPPORTED}{}",
            shown.join(", "),
            Columns::guess_names(&names)
        );
    }
    let holds_something = |chunk: &&ColumnChunkMetaData| {
        let nulls = chunk.statistics().and_then(Statistics::null_count_opt);
        nulls.is_none_or(|nulls| i64::try_from(nulls) != Ok(chunk.num_values()))
    };
    let chunks = reader.metadata().row_groups().iter().flat_map(|group| group.columns()).filter(holds_something);
    let roots: BTreeSet<&str> =
        chunks.filter_map(|chunk| Some(chunk.column_path().parts().first()?.as_str())).collect();
    let unread = schema.get_fields().iter().filter(|field| !is_read(field, columns) && roots.contains(field.name()));
    let unread = unread.map(|field| field.name().to_owned()).collect();
    let projection = Type::group_type_builder(schema.name()).with_fields(known).build();
    let rows = projection.and_then(|projection| RowIter::from_file_into(Box::new(reader)).project(Some(projection)));
    Ok(Opened { rows: rows.map_err(|error| damaged(path, &error))?, expected, unread })
}

/// True for known columns, and for columns that may be flags, of which a warning is given.
fn is_read(field: &Type, columns: &Columns) -> bool {
    columns.reads(field.name()) || columns.warns_of(field.name()) && may_be_flags(field)
}

/// True if a column is of plain numbers, truth values or texts, or of lists of such.
fn may_be_flags(field: &Type) -> bool {
    use ConvertedType::{INT_8, INT_16, INT_32, INT_64, LIST, NONE, UINT_8, UINT_16, UINT_32, UINT_64, UTF8};
    use PhysicalType::{BOOLEAN, BYTE_ARRAY, DOUBLE, FLOAT, INT32, INT64};
    let info = field.get_basic_info();
    let Type::PrimitiveType { physical_type, .. } = field else {
        let mut of_list = field;
        while let Type::GroupType { fields, .. } = of_list
            && let [one] = &fields[..]
        {
            of_list = one;
        }
        return info.converted_type() == LIST && of_list.is_primitive() && may_be_flags(of_list);
    };
    match (physical_type, info.converted_type()) {
        (BOOLEAN | INT32 | INT64 | FLOAT | DOUBLE, NONE) => info.logical_type_ref().is_none(),
        (INT32 | INT64, INT_8 | INT_16 | INT_32 | INT_64 | UINT_8 | UINT_16 | UINT_32 | UINT_64) => true,
        (BYTE_ARRAY, UTF8) => true,
        _ => false,
    }
}

fn damaged(path: &Path, error: &ParquetError) -> Error {
    let error = error.to_string();
    let text = error.split_whitespace().collect::<Vec<_>>().join(" ");
    let cure = match text.contains("feature") || text.contains("codec") {
        true => "write it again with Snappy, gzip, LZ4, Zstandard or no compression",
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

/// The row, with its `columns`, or a struct in it, which may have `left` more values. Keys of structs that are null are
/// left out: a struct has every key of every row.
fn object(row: &Row, columns: Option<&Columns>, left: &mut usize) -> Result<Value, String> {
    let mut map = Map::new();
    let whole = columns.is_some();
    for (key, field) in row.get_column_iter() {
        if !whole && matches!(field, Field::Null) {
            continue;
        }
        if whole && is_of_other_meaning(key) && !is_number(field) {
            // Only its presence matters; it may be the bytes of an image.
            let there = match field {
                Field::Null => false,
                Field::ListInternal(list) => list.len() > 0,
                _ => true,
            };
            map.insert(key.clone(), if there { Value::from(THERE) } else { Value::Null });
            continue;
        }
        if let (Some(columns), Field::ListInternal(list)) = (columns, field)
            && columns.warns_of(key)
        {
            // Only its length matters.
            map.insert(key.clone(), if list.len() > 0 { Value::from(vec![THERE]) } else { Value::Null });
            continue;
        }
        if whole && is_time(field) {
            return Err(format!("`{}` is {field}; expected text, a number, a list or a struct", json::shorten(key)));
        }
        if map
            .insert(key.clone(), value(field, left).map_err(|why| format!("`{}`{why}", json::shorten(key)))?)
            .is_some()
        {
            return Err(format!("the column `{}` is there twice", json::shorten(key)));
        }
    }
    Ok(Value::Object(map))
}

/// True if it is a number, a truth value among them, and not a date.
fn is_number(field: &Field) -> bool {
    use Field::{Bool, Byte, Double, Float, Float16, Int, Long, Short, UByte, UInt, ULong, UShort};
    matches!(
        field,
        Bool(_)
            | Byte(_)
            | Short(_)
            | Int(_)
            | Long(_)
            | UByte(_)
            | UShort(_)
            | UInt(_)
            | ULong(_)
            | Float16(_)
            | Float(_)
            | Double(_)
    )
}

fn value(field: &Field, left: &mut usize) -> Result<Value, String> {
    *left = left.checked_sub(1).ok_or_else(|| format!(": {}", too_many_values()))?;
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
        Field::Group(row) => object(row, None, left).map_err(|why| format!(".{why}"))?,
        Field::ListInternal(list) => Value::Array(
            list.elements()
                .iter()
                .enumerate()
                .map(|(at, item)| value(item, left).map_err(|why| format!("[{at}]{why}")))
                .collect::<Result<_, _>>()?,
        ),
        Field::MapInternal(map) => {
            let mut object = Map::new();
            for (key, entry) in map.entries() {
                let Field::Str(key) = key else {
                    return Err(format!(" has the key {}; expected text", json::shorten(&key.to_string())));
                };
                object.insert(key.clone(), value(entry, left).map_err(|why| format!(".{}{why}", json::shorten(key)))?);
            }
            Value::Object(object)
        }
        // In a turn, where nothing reads it.
        other => Value::String(other.to_string()),
    })
}

/// True for a time or a decimal number, which a row may not have.
fn is_time(field: &Field) -> bool {
    matches!(
        field,
        Field::Decimal(_)
            | Field::Date(_)
            | Field::TimeMillis(_)
            | Field::TimeMicros(_)
            | Field::TimestampMillis(_)
            | Field::TimestampMicros(_)
    )
}
