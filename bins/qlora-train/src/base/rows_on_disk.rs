//! A matrix in 16 or 32 bits that stays in its file.

use super::{Checkpoint, StoredTensor};
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::files::safetensors::TensorFile;
use crate::files::tensor::{HostTensor, TensorData};
use safetensors::tensor::TensorInfo;
use std::ops::Range;
use std::sync::Arc;

/// The embedding or the output layer, of which rows are read whenever they are needed, by any thread.
pub struct RowsOnDisk {
    name: String,
    files: Arc<Vec<TensorFile>>,
    file: usize,
    info: TensorInfo,
    columns: usize,
}

impl Checkpoint {
    /// A matrix that stays in its file, to be read again and again. A tensor that is stored in NF4 is refused.
    pub fn rows_on_disk(&self, name: &str) -> Result<RowsOnDisk> {
        match self.find(name)? {
            StoredTensor::Dense(file, info) => Ok(RowsOnDisk {
                name: name.to_owned(),
                files: self.files.clone(),
                file: *file,
                columns: info.shape.last().copied().unwrap_or(1),
                info: info.clone(),
            }),
            StoredTensor::Nf4(entry) => bail_usage!(
                "{}: tensor `{name}`: found NF4, expected BF16, F16 or F32: only such a matrix is read row by row",
                self.files[entry.parts[""].0].path().display()
            ),
        }
    }
}

impl RowsOnDisk {
    /// Columns of a row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Some rows as stored, in the memory of `reused`, whatever it held. Failed: the file cannot be read, or was
    /// changed since the checkpoint was opened.
    pub fn read(&self, rows: Range<usize>, reused: Option<TensorData>) -> Result<HostTensor> {
        let (file, shape) = (&self.files[self.file], vec![rows.len(), self.columns]);
        let range = rows.start * self.columns..rows.end * self.columns;
        let read = file.check_unchanged().and_then(|()| file.read_range_into(reused, &self.name, &self.info, range));
        match read {
            Ok(data) => Ok(HostTensor { shape, data }),
            Err(cause) => Err(Error::Failed(format!(
                "{cause}. The weights of the run stay in this file (`lm_head: disk`, tensor `{}`): put it back as it was \
                 and give the same command again; what was saved is whole",
                self.name
            ))),
        }
    }

    /// Tells the system that the pages of these rows need not stay in its cache of files.
    pub fn forget_pages(&self, rows: Range<usize>) {
        let file = &self.files[self.file];
        if let Ok(part) = file.part(&self.name, &self.info, rows.start * self.columns..rows.end * self.columns) {
            file.forget_pages(&part);
        }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.info.shape.first().copied().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests;
