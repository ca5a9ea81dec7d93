//! Entry points for the fuzz targets to the reader of tokenized rows, and to templates without opening a tokenizer
//! anew.

use std::path::{Path, PathBuf};

use super::chat::ChatText;
use super::dataset::Dataset;
use super::options::DataOptions;
use super::row_list::Rows;
use super::tokenizer::ChatTokenizer;
use super::{row_file, token_cache};
use crate::error::Result;

/// The key that a file must have.
pub const KEY: &str = "key";

/// A file with correct hashes: rows, the table of their heads, and facts about all of them.
pub fn sealed_rows(rows: &[u8], heads: &[u8], facts: &[u8]) -> Vec<u8> {
    row_file::sealed(rows, heads, facts)
}

/// The rows that a cache takes from a file for these data files. None: it makes a new file.
pub fn cached_rows(path: &Path, data: &[PathBuf], options: &DataOptions) -> Result<Option<Dataset<Rows>>> {
    token_cache::kept(path, data, KEY, options)
}

/// Compiles a template and replaces the model's own by it. Refused: as opening a model with it.
pub fn set_template(tokenizer: &mut ChatTokenizer, source: &str) -> Result<()> {
    tokenizer.set_template(source)
}

/// Gives a tokenizer the template of another one, as it was compiled, with the habits that were found in it.
pub fn take_template(tokenizer: &mut ChatTokenizer, other: &ChatTokenizer) {
    tokenizer.take_template(other);
}

/// Token ids and labels of a conversation that was rendered. The error is a reason in words.
pub fn labeled(tokenizer: &ChatTokenizer, chat: &ChatText) -> Result<(Vec<u32>, Vec<i32>), String> {
    let (input_ids, labels, _) = tokenizer.labeled(&chat.text, &chat.supervised, &chat.weights, &chat.excluded)?;
    Ok((input_ids, labels))
}
