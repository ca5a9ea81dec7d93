//! Doors for the fuzz targets into what reads files of tokenized rows, and into templates without a tokenizer that is
//! opened anew.

use std::path::{Path, PathBuf};

use super::chat::ChatText;
use super::dataset::Dataset;
use super::options::DataOptions;
use super::row_list::Rows;
use super::tokenizer::ChatTokenizer;
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

/// Compiles a template and puts it in the place of the model's own. Refused: what opening a model with it refuses.
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
