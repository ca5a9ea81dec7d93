//! Data files, chat templates, loss masks and batches, with tokenizers and templates made by the tests.

#[path = "data/chat.rs"]
mod chat;
#[path = "data/files.rs"]
mod files;
#[path = "data/fixture.rs"]
mod fixture;
#[path = "data/formats.rs"]
mod formats;
#[path = "data/habits.rs"]
mod habits;
#[path = "data/keys.rs"]
mod keys;
#[path = "data/messages.rs"]
mod messages;
#[path = "data/parquet.rs"]
mod parquet;
#[path = "data/rows.rs"]
mod rows;
#[path = "data/schedule.rs"]
mod schedule;
#[path = "data/side_files.rs"]
mod side_files;
#[path = "data/stream.rs"]
mod stream;
#[path = "data/template.rs"]
mod template;
#[path = "data/tokenizer.rs"]
mod tokenizer;
#[path = "data/tools.rs"]
mod tools;
