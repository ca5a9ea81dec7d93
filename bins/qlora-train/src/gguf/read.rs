//! Reader of GGUF version 3, the single-file model format of llama.cpp.
//!
//! A file is: magic `GGUF`, version, number of tensors, number of metadata entries; the entries (key, type, value); one
//! record per tensor (name, dimensions innermost first, ggml type, offset); padding to the alignment; the tensor data.
//! All integers are little-endian. Every length found in the file is checked against the bytes that are really there
//! before anything is allocated or sliced, so a damaged file is an error and never a panic.

use super::ensure;
use super::ggml::GgmlType;
use crate::bail_usage;
use crate::error::{Context, Error, Result};
use std::collections::BTreeMap;

const VERSION: u32 = 3;
const DEFAULT_ALIGNMENT: u64 = 32;
/// ggml's own limit on the dimensions of a tensor.
const MAX_DIMENSIONS: u32 = 4;
/// Arrays of arrays exist in the format; no known file nests them deeper.
const MAX_ARRAY_DEPTH: u32 = 4;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float32(f32),
    Float64(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
}

/// One tensor: `shape` is outermost first (rows, columns), `data` are its bytes as stored.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    pub shape: Vec<usize>,
    pub kind: GgmlType,
    pub data: &'a [u8],
}

#[derive(Debug)]
pub struct Gguf<'a> {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Tensor<'a>>,
}

impl<'a> Gguf<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader { bytes, position: 0 };
        ensure!(reader.take(4)? == b"GGUF", "not a GGUF file: it does not begin with `GGUF`");
        let version = reader.u32()?;
        ensure!(version == VERSION, "GGUF version {version} (expected {VERSION}, little-endian)");
        let tensor_count = reader.u64()?;
        let entry_count = reader.u64()?;

        let mut metadata = BTreeMap::new();
        for index in 0..entry_count {
            let key = reader.string().usage_context(|| format!("metadata entry {index} of {entry_count}"))?;
            let value = reader
                .u32()
                .and_then(|kind| reader.value(kind, 0))
                .usage_context(|| format!("value of {}", shown(&key)))?;
            ensure!(metadata.insert(key.clone(), value).is_none(), "the metadata key {} appears twice", shown(&key));
        }

        let mut records = Vec::new();
        for index in 0..tensor_count {
            let record = reader.tensor_record().usage_context(|| format!("tensor record {index} of {tensor_count}"))?;
            records.push(record);
        }

        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(value)) if value.is_power_of_two() => *value,
            Some(other) => bail_usage!("general.alignment is {} (expected a power of two)", other.summary()),
        };
        let data_start = (reader.position as u64).checked_next_multiple_of(alignment);
        let data_start = data_start.ok_or_else(|| Error::Refused("general.alignment overflows".to_owned()))?;
        let mut tensors = BTreeMap::new();
        for record in records {
            let TensorRecord { name, shape, kind, offset } = record;
            let data = tensor_bytes(bytes, data_start, alignment, &shape, kind, offset)
                .usage_context(|| format!("tensor {}", shown(&name)))?;
            let tensor = Tensor { shape, kind, data };
            ensure!(tensors.insert(name.clone(), tensor).is_none(), "the tensor {} appears twice", shown(&name));
        }
        Ok(Self { metadata, tensors })
    }

    fn get(&self, key: &str) -> Result<&Value> {
        self.metadata.get(key).ok_or_else(|| Error::Refused(format!("the metadata key {key} is missing")))
    }

    pub fn string(&self, key: &str) -> Result<&str> {
        match self.get(key)? {
            Value::String(text) => Ok(text),
            other => bail_usage!("{key} is {} (expected a string)", other.summary()),
        }
    }

    pub fn integer(&self, key: &str) -> Result<u64> {
        match self.get(key)? {
            Value::Unsigned(value) => Ok(*value),
            Value::Signed(value) if *value >= 0 => Ok(*value as u64),
            other => bail_usage!("{key} is {} (expected an integer that is not negative)", other.summary()),
        }
    }

    /// A number as the shortest decimal that means the stored value: an f32 of 1e-5 is 1e-5, not 9.99999974e-6.
    pub fn number(&self, key: &str) -> Result<f64> {
        let value = match self.get(key)? {
            Value::Float32(value) => value.to_string().parse::<f64>().usage_context(|| key.to_owned())?,
            Value::Float64(value) => *value,
            other => bail_usage!("{key} is {} (expected a floating-point number)", other.summary()),
        };
        ensure!(value.is_finite() && value > 0.0, "{key} is {value} (expected a positive number)");
        Ok(value)
    }

    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        let Value::Array(values) = self.get(key)? else { bail_usage!("{key} is not an array") };
        let as_text = |value: &'_ Value| match value {
            Value::String(_) => Ok(()),
            other => bail_usage!("{key} holds {} (expected strings only)", other.summary()),
        };
        values.iter().try_for_each(as_text)?;
        Ok(values
            .iter()
            .filter_map(|value| if let Value::String(text) = value { Some(text.as_str()) } else { None })
            .collect())
    }

    pub fn integers(&self, key: &str) -> Result<Vec<i64>> {
        let Value::Array(values) = self.get(key)? else { bail_usage!("{key} is not an array") };
        values
            .iter()
            .map(|value| match value {
                Value::Unsigned(value) => i64::try_from(*value).usage_context(|| format!("{key} holds {value}")),
                Value::Signed(value) => Ok(*value),
                other => bail_usage!("{key} holds {} (expected integers only)", other.summary()),
            })
            .collect()
    }
}

/// The beginning of a text of the file, quoted, as messages show it.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

impl Value {
    pub(super) fn summary(&self) -> String {
        match self {
            Value::Array(values) => format!("an array of {} values", values.len()),
            Value::String(text) => format!("the string {}", shown(text)),
            other => format!("{other:?}"),
        }
    }
}

struct TensorRecord {
    name: String,
    shape: Vec<usize>,
    kind: GgmlType,
    offset: u64,
}

fn tensor_bytes<'a>(
    bytes: &'a [u8],
    data_start: u64,
    alignment: u64,
    shape: &[usize],
    kind: GgmlType,
    offset: u64,
) -> Result<&'a [u8]> {
    ensure!(offset.is_multiple_of(alignment), "its offset {offset} is no multiple of the alignment {alignment}");
    let length = kind.byte_length(shape)?;
    let start = data_start.checked_add(offset).ok_or_else(|| Error::Refused("its offset overflows".to_owned()))?;
    let end = start.checked_add(length as u64).ok_or_else(|| Error::Refused("its size overflows".to_owned()))?;
    let size = bytes.len() as u64;
    ensure!(end <= size, "its data ends at byte {end}, but the file has {size} bytes: it is truncated or damaged");
    // Both ends are at most the length of a slice in memory, so they fit a usize.
    Ok(&bytes[start as usize..end as usize])
}

struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let remaining = self.remaining();
        ensure!(
            length <= remaining,
            "{length} bytes expected at byte {}, but only {remaining} are left: the file is truncated or damaged",
            self.position
        );
        let taken = &self.bytes[self.position..self.position + length];
        self.position += length;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<String> {
        let position = self.position;
        let length = self.u64()?;
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        Ok(std::str::from_utf8(bytes).usage_context(|| format!("the string at byte {position}"))?.to_owned())
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float32(f32::from_le_bytes(self.array()?)),
            7 => match self.array()? {
                [0] => Value::Bool(false),
                [1] => Value::Bool(true),
                [other] => bail_usage!("a boolean is {other} (expected 0 or 1)"),
            },
            8 => Value::String(self.string()?),
            9 => {
                ensure!(depth < MAX_ARRAY_DEPTH, "arrays nested deeper than {MAX_ARRAY_DEPTH}");
                let element = self.u32()?;
                let count = self.u64()?;
                // An element takes at least one byte, so a count beyond the file is refused before it allocates.
                ensure!(count <= self.remaining() as u64, "an array of {count} values does not fit the file");
                let values = (0..count).map(|_| self.value(element, depth + 1)).collect::<Result<Vec<_>>>()?;
                Value::Array(values)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float64(f64::from_le_bytes(self.array()?)),
            other => bail_usage!("unknown metadata type {other} (expected 0 to 12)"),
        })
    }

    fn tensor_record(&mut self) -> Result<TensorRecord> {
        let name = self.string()?;
        let dimensions = self.u32()?;
        ensure!(
            (1..=MAX_DIMENSIONS).contains(&dimensions),
            "tensor {name} has {dimensions} dimensions (expected 1 to {MAX_DIMENSIONS})"
        );
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let length = self.u64()?;
            shape.push(usize::try_from(length).usage_context(|| format!("tensor {name} has a dimension of {length}"))?);
        }
        shape.reverse();
        let code = self.u32()?;
        let kind = GgmlType::from_code(code).usage_context(|| format!("tensor {}", shown(&name)))?;
        let offset = self.u64()?;
        Ok(TensorRecord { name, shape, kind, offset })
    }
}
