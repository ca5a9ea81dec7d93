//! Data files → tokenized rows with their loss mask → the micro-batches of a run.
//!
//! A row is a conversation (whose assistant turns are supervised), a prompt with its completion, a text, or token ids
//! with labels. Its keys determine its format; the rows of one file may differ in it. Any row may name a `task`. Every
//! row of every file is checked before anything is trained on: a wrong one is refused with its file and line. Rows that
//! are too long or hold nothing to learn are handled as chosen and counted in [`DatasetReport`].

mod arrow;
mod batch;
mod budget;
mod chat;
mod checks;
mod columns;
mod csv;
mod cut_turns;
mod cuts;
mod dataset;
mod each;
mod files;
mod formats;
#[doc(hidden)]
pub mod fuzzing;
mod growth;
mod guard;
mod habits;
mod histogram;
mod holds;
mod json;
mod json_stream;
mod keys;
mod labeled;
mod messages;
mod mix;
mod nested_rows;
mod notes;
mod options;
mod pack;
mod parquet;
mod parquet_claims;
mod patterns;
mod ranges;
mod reader;
mod report;
mod row;
mod row_bytes;
mod row_file;
mod row_head;
mod row_kind;
mod row_list;
mod rows;
mod sampler;
mod side_files;
mod spans;
mod split;
mod stream;
mod template;
mod token_cache;
mod token_key;
mod tokenizer;
mod tools;
mod turn_keys;
mod typed_parts;
mod unused;
mod weight;

pub use batch::MicroBatch;
pub use chat::{ChatText, ChatTokens};
pub use checks::{Checks, SpecialTokens};
pub use columns::Columns;
pub use dataset::{Dataset, OpenTokenizer, describe, load, load_once};
pub use files::DataFiles;
pub use histogram::Histogram;
pub use messages::{Conversation, Message};
pub use mix::{Mix, MixOptions};
pub use notes::{KeyOf, Note, Notes};
pub use options::{DataOptions, RowIdentity};
pub use pack::{pack, pack_in_order};
pub use ranges::{asked_rows, cut};
pub use reader::Unit;
pub use report::{DatasetReport, FileReport, MAX_TASKS, RowPlace};
pub use row::{Row, identities};
pub use row_kind::RowKind;
pub use row_list::Rows;
pub use sampler::{Longest, Packing, Schedule, ScheduleOptions, Step, Steps, order};
pub use stream::TextStream;
pub use template::{Builtin, ChatTemplate, begin_heap_peak, heap_peak, return_large_pieces, trim_heap};
pub use token_cache::{TokenCache, TokenizedRows, load_tokenized, recall, remember};
pub use tokenizer::{AddedToken, ChatTokenizer};

/// The label of a token that is only context.
pub const UNSUPERVISED: i32 = -100;
