//! Writer of GGUF version 3: everything before the data at once. The data follows, tensor by tensor, each padded to the
//! alignment.

use super::ensure;
use super::ggml::GgmlType;
use crate::error::{Error, Result};

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;
/// Names of tensors that ggml has room for.
const MAX_NAME_BYTES: usize = 63;

/// A metadata value in the width that it is written in.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Bools(Vec<bool>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// Metadata by its keys, in the order of the file.
pub type Entries = Vec<(String, Entry)>;

/// A tensor of a file that is to be written. `shape` is outermost first.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    pub shape: Vec<usize>,
    pub kind: GgmlType,
}

impl TensorInfo {
    /// Bytes of the data, without what it is padded by.
    pub fn bytes(&self) -> Result<usize> {
        self.kind.byte_length(&self.shape)
    }
}

/// Everything of a file but the tensors' data.
#[derive(Clone, Debug, Default)]
pub struct Header {
    pub entries: Entries,
    pub tensors: Vec<TensorInfo>,
}

/// Zeros behind data of this length.
pub fn padding(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT) - length
}

impl Header {
    /// The bytes up to the data, padding included. Refused: a tensor whose rows are no whole blocks of its type, or
    /// whose name is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = b"GGUF".to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (key, entry) in &self.entries {
            text(&mut out, key);
            entry.write(&mut out);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            ensure!(tensor.name.len() <= MAX_NAME_BYTES, "the name {} is longer than {MAX_NAME_BYTES}", tensor.name);
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&length| out.extend((length as u64).to_le_bytes()));
            out.extend(tensor.kind.code().to_le_bytes());
            out.extend(offset.to_le_bytes());
            let bytes = tensor.bytes()?;
            offset = offset.checked_add((bytes + padding(bytes)) as u64).ok_or_else(too_large)?;
        }
        out.resize(out.len() + padding(out.len()), 0);
        Ok(out)
    }

    /// Bytes of the data of all tensors, padded.
    pub fn data_bytes(&self) -> Result<u64> {
        self.tensors.iter().try_fold(0u64, |sum, tensor| {
            let bytes = tensor.bytes()?;
            sum.checked_add((bytes + padding(bytes)) as u64).ok_or_else(too_large)
        })
    }
}

fn too_large() -> Error {
    Error::Refused("the tensors have more bytes than a file can".to_owned())
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Entry {
    fn write(&self, out: &mut Vec<u8>) {
        let array = |out: &mut Vec<u8>, kind: u32, length: usize| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((length as u64).to_le_bytes());
        };
        let kind = |out: &mut Vec<u8>, kind: u32| out.extend(kind.to_le_bytes());
        match self {
            Self::U32(value) => {
                kind(out, 4);
                out.extend(value.to_le_bytes());
            }
            Self::F32(value) => {
                kind(out, 6);
                out.extend(value.to_le_bytes());
            }
            Self::Bool(value) => {
                kind(out, 7);
                out.push(u8::from(*value));
            }
            Self::Text(value) => {
                kind(out, 8);
                text(out, value);
            }
            Self::Texts(values) => {
                array(out, 8, values.len());
                values.iter().for_each(|value| text(out, value));
            }
            Self::Bools(values) => {
                array(out, 7, values.len());
                out.extend(values.iter().map(|value| u8::from(*value)));
            }
            Self::I32s(values) => {
                array(out, 5, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
            Self::F32s(values) => {
                array(out, 6, values.len());
                values.iter().for_each(|value| out.extend(value.to_le_bytes()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Gguf, Value, encode};
    use super::*;

    #[test]
    fn what_is_written_is_what_the_reader_reads() {
        let info =
            |name: &str, shape: &[usize], kind| TensorInfo { name: name.to_owned(), shape: shape.to_vec(), kind };
        let tensors = vec![info("one", &[3], GgmlType::F32), info("two", &[2, 32], GgmlType::Q8_0)];
        let texts = ["", "a", "ä b"].map(str::to_owned).to_vec();
        let entries = [
            ("u", Entry::U32(7)),
            ("f", Entry::F32(0.5)),
            ("b", Entry::Bool(true)),
            ("t", Entry::Text("text".to_owned())),
            ("ts", Entry::Texts(texts)),
            ("i", Entry::I32s(vec![-1, 3])),
            ("fs", Entry::F32s(vec![-1.0, 0.25])),
        ];
        let header = Header { entries: entries.map(|(key, entry)| (key.to_owned(), entry)).to_vec(), tensors };
        let mut bytes = header.to_bytes().unwrap();
        let before = bytes.len();
        let data = [vec![1.0, -2.0, 3.0], (0..64).map(|i| i as f32 - 20.0).collect()];
        for (tensor, values) in header.tensors.iter().zip(&data) {
            let start = bytes.len();
            encode(tensor.kind, values, &mut bytes);
            assert_eq!(bytes.len() - start, tensor.bytes().unwrap());
            bytes.resize(bytes.len() + padding(bytes.len() - start), 0);
        }
        assert_eq!((bytes.len() - before) as u64, header.data_bytes().unwrap());
        let read = Gguf::parse(&bytes).unwrap();
        assert_eq!((read.integer("u").unwrap(), read.number("f").unwrap()), (7, 0.5));
        assert_eq!((&read.metadata["b"], read.string("t").unwrap()), (&Value::Bool(true), "text"));
        assert_eq!((read.strings("ts").unwrap(), read.integers("i").unwrap()), (vec!["", "a", "ä b"], vec![-1, 3]));
        assert_eq!(read.metadata["fs"], Value::Array(vec![Value::Float32(-1.0), Value::Float32(0.25)]));
        let (one, two) = (&read.tensors["one"], &read.tensors["two"]);
        assert_eq!((one.kind.to_f32(one.data), &one.shape), (data[0].clone(), &vec![3]));
        assert_eq!((two.kind, two.shape.as_slice()), (GgmlType::Q8_0, &[2, 32][..]));
        assert_eq!(two.kind.to_f32(two.data)[63], f32::from(half::f16::from_f32(43.0 / 127.0)) * 127.0);
    }

    #[test]
    fn rows_that_are_no_whole_blocks_and_long_names_are_refused() {
        let of = |name: String, shape: Vec<usize>, kind| {
            let header = Header { entries: Vec::new(), tensors: vec![TensorInfo { name, shape, kind }] };
            header.to_bytes().map(drop).unwrap_err().to_string()
        };
        assert!(of("x".to_owned(), vec![4, 33], GgmlType::Q8_0).contains("rows of 33 values"));
        assert!(of("x".repeat(64), vec![4], GgmlType::F32).contains("longer than 63"));
    }
}
