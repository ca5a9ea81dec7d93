//! Doors for the fuzz targets into what reads files of tokenized rows.

use std::path::{Path, PathBuf};

use super::dataset::Dataset;
use super::options::DataOptions;
use super::row_list::Rows;
use super::{row_file, token_cache};
use crate::error::Result;

/// The key that a file has to have been made under.
pub const KEY: &str = "key";

/// A file whose sums are true: of rows, the table of their heads, and facts about all of them.
pub fn sealed_rows(rows: &[u8], heads: &[u8], facts: &[u8]) -> Vec<u8> {
    row_file::sealed(rows, heads, facts)
}

/// The rows that a cache would take from a file for these data files. None: it would make the file anew.
pub fn cached_rows(path: &Path, data: &[PathBuf], options: &DataOptions) -> Result<Option<Dataset<Rows>>> {
    token_cache::kept(path, data, KEY, options)
}
