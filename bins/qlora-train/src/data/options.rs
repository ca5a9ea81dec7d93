//! Settings of the data.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::columns::Columns;
use super::keys::{ADAPTER, TASK};
use crate::config::{BadRow, PromptCompletion, TooLong};
use crate::hub::Slice;

/// SHA-256 over the tokens, labels and weights of a row.
pub type RowIdentity = [u8; 32];

#[derive(Clone, Debug)]
pub struct DataOptions {
    /// Maximum number of tokens in a row.
    pub max_length: usize,
    pub too_long: TooLong,
    /// Token ids of the model: 0..vocab_size.
    pub vocab_size: usize,
    /// Tokens that end a text, by the model's own config; the tokenizer's EOS counts too. Tokenized rows that mask it
    /// are refused.
    pub eos_token_ids: Vec<u32>,
    /// Treatment of rows that cannot be trained on.
    pub on_bad_row: BadRow,
    /// Columns under other names.
    pub columns: Columns,
    /// Maximum number of rows from each file; the first ones are taken.
    pub max_samples: Option<usize>,
    /// Limit of each file instead, 0 for all rows; empty: no file has its own.
    pub max_samples_of_each: Vec<usize>,
    /// Range of rows to use from each file; empty: all.
    pub rows_of_each: Vec<Slice>,
    /// Repeated rows are left out.
    pub deduplicate: bool,
    /// Rows that count as seen already, for `deduplicate`.
    pub known_rows: Arc<HashSet<RowIdentity>>,
    /// Form of a prompt and its completion: plain text, or turns of the chat template.
    pub prompt_completion: PromptCompletion,
    /// A row's task is the adapter that it names under `adapter`, instead of the value under `task`.
    pub by_adapter: bool,
    /// Bytes that the rows may take.
    pub memory: u64,
}

impl DataOptions {
    /// The key that names a row's task.
    pub(super) fn task_key(&self) -> &'static str {
        if self.by_adapter { ADAPTER } else { TASK }
    }

    /// Range of rows to use from a file, counted from 0.
    pub(super) fn rows_of(&self, file: usize) -> Range<u64> {
        self.rows_of_each.get(file).and_then(Slice::rows).unwrap_or(0..u64::MAX)
    }

    /// Maximum number of rows from a file.
    pub(super) fn most_of(&self, file: usize) -> usize {
        match self.max_samples_of_each.get(file) {
            None | Some(0) => self.max_samples.unwrap_or(usize::MAX),
            Some(&most) => most,
        }
    }
}

/// Without a model: no token id is valid.
impl Default for DataOptions {
    fn default() -> Self {
        Self {
            max_length: 2048,
            too_long: TooLong::Drop,
            vocab_size: 0,
            eos_token_ids: Vec::new(),
            on_bad_row: BadRow::Error,
            columns: Columns::default(),
            max_samples: None,
            max_samples_of_each: Vec::new(),
            rows_of_each: Vec::new(),
            deduplicate: false,
            known_rows: Arc::default(),
            prompt_completion: PromptCompletion::Auto,
            by_adapter: false,
            memory: u64::MAX,
        }
    }
}
