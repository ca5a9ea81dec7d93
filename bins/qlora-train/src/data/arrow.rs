//! Rows of an Arrow file (Feather) or stream, as the `datasets` library keeps its tables, of its known columns only.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, Schema};
use serde_json::{Map, Number, Value};

use super::columns::Columns;
use super::guard::guarded;
use super::reader::EachOf;
use super::rows::SUPPORTED;
use crate::error::{Context, Error, Result};
use crate::refuse;

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>;

/// Calls `each(number, row)` for every row, counted from 1, in order. Refused: a damaged file, or one without a column
/// that a row could be made of.
pub(super) fn read_rows(path: &Path, columns: &Columns, each: EachOf) -> Result<()> {
    let (schema, mut batches) = call(path, || open(path))??;
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    if !names.iter().any(|name| columns.makes_rows(name)) {
        let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
        refuse!(
            "{}: unknown kind of rows: found the columns {}; {SUPPORTED}{}",
            path.display(),
            shown.join(", "),
            Columns::guess_names(&names)
        );
    }
    let mut number = 0;
    while let Some(batch) = call(path, || batches.next())? {
        let batch = batch.map_err(|error| damaged(path, &error))?;
        for at in 0..batch.num_rows() {
            number += 1;
            let row = call(path, || row(&schema, &batch, at, columns))?;
            each(number, row)?;
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<(Schema, Batches)> {
    let name = path.display();
    let mut file = File::open(path).or_refuse(|| format!("{name}: cannot open the data file"))?;
    let mut head = [0; 6];
    let is_file = file.read_exact(&mut head).is_ok() && &head == b"ARROW1";
    let file = BufReader::new(File::open(path).or_refuse(|| format!("{name}: cannot open the data file"))?);
    Ok(match is_file {
        true => {
            let reader = FileReader::try_new(file, None).map_err(|error| damaged(path, &error))?;
            (reader.schema().as_ref().clone(), Box::new(reader))
        }
        false => {
            let reader = StreamReader::try_new(file, None).map_err(|error| damaged(path, &error))?;
            (reader.schema().as_ref().clone(), Box::new(reader))
        }
    })
}

fn call<T>(path: &Path, work: impl FnOnce() -> T) -> Result<T> {
    let refused = || Error::Refused(format!("{}: cannot read as Arrow: the file is damaged, get it again", path.display()));
    guarded(work).ok_or_else(refused)
}

fn damaged(path: &Path, error: &ArrowError) -> Error {
    let text = error.to_string();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Error::Refused(format!("{}: cannot read as Arrow ({text}): the file is cut off or damaged, get it again", path.display()))
}

fn row(schema: &Schema, batch: &RecordBatch, at: usize, columns: &Columns) -> Result<Value, String> {
    let mut map = Map::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if columns.reads(field.name()) {
            let value = value(column.as_ref(), at).map_err(|why| format!("`{}`{why}", field.name()))?;
            map.insert(field.name().clone(), value);
        }
    }
    Ok(Value::Object(map))
}

/// One entry of a column. Keys of structs that are null are left out: a struct has every key of every row.
fn value(array: &dyn Array, at: usize) -> Result<Value, String> {
    if array.is_null(at) {
        return Ok(Value::Null);
    }
    let float = |x: f64| Number::from_f64(x).map_or(Value::Null, Value::Number);
    let items = |items: &dyn Array| -> Result<Value, String> {
        let items = (0..items.len()).map(|at| value(items, at).map_err(|why| format!("[{at}]{why}")));
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
                let value = value(column.as_ref(), at).map_err(|why| format!(".{}{why}", field.name()))?;
                if !value.is_null() {
                    map.insert(field.name().clone(), value);
                }
            }
            Value::Object(map)
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = dictionary.normalized_keys()[at];
            value(dictionary.values().as_ref(), key)?
        }
        // Times and the like, which only matter where nothing reads them.
        other => Value::String(format!("a value of the type {other}")),
    })
}
