//! Writer of GGUF version 3: it writes everything before the data at once. The data follows, tensor by tensor, each
//! padded to the alignment.

use super::ensure;
use super::ggml::GgmlType;
use crate::error::{Error, Result};

const VERSION: u32 = 3;
const ALIGNMENT: usize = 32;
/// Longest name of a tensor in ggml.
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
    /// Bytes of the data, without padding.
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
mod tests;
