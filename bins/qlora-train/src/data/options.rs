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
    /// Tokens of a row at most.
    pub max_length: usize,
    pub too_long: TooLong,
    /// Token ids of the model: 0..vocab_size.
    pub vocab_size: usize,
    /// What ends a text, by the model's own config; the tokenizer's EOS counts too. Tokenized rows that mask it are
    /// refused.
    pub eos_token_ids: Vec<u32>,
    /// Fate of a row that cannot be trained on.
    pub on_bad_row: BadRow,
    /// Columns under other names.
    pub columns: Columns,
    /// Rows taken of each file at most, the first of them.
    pub max_samples: Option<usize>,
    /// In its place for each of the files, 0 for all; empty: none has a number of its own.
    pub max_samples_of_each: Vec<usize>,
    /// Rows that are meant of each of the files, by their numbers; empty: all.
    pub rows_of_each: Vec<Slice>,
    /// Whether rows that were there before are left out.
    pub deduplicate: bool,
    /// Rows that count as having been there, for `deduplicate`.
    pub known_rows: Arc<HashSet<RowIdentity>>,
    /// Whether a prompt and its completion are turns of the chat template.
    pub prompt_completion: PromptCompletion,
    /// Whether a row's task is the adapter that it names under `adapter`, in place of what it has under `task`.
    pub by_adapter: bool,
    /// Bytes that the rows may take.
    pub memory: u64,
}

impl DataOptions {
    /// The key that names a row's task.
    pub(super) fn task_key(&self) -> &'static str {
        if self.by_adapter { ADAPTER } else { TASK }
    }

    /// Numbers of the rows that are meant of a file, counted from 0.
    pub(super) fn rows_of(&self, file: usize) -> Range<u64> {
        self.rows_of_each.get(file).and_then(Slice::rows).unwrap_or(0..u64::MAX)
    }

    /// Rows taken of a file at most.
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
