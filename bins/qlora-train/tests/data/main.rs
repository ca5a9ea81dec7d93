//! Data files, chat templates, loss masks and batches, with tokenizers and templates made by the tests.

mod arrow;
mod beside;
mod builtin;
mod calls;
mod chat;
mod files;
mod formats;
mod habits;
mod hostile_tokenizers;
mod keys;
mod messages;
mod parquet;
mod rows;
mod schedule;
mod side_files;
mod stream;
mod template;
mod token_cache;
mod tokenizer;
mod tools;
mod weights;
