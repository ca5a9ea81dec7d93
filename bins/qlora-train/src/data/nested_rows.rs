//! Rows that one JSON object holds: `{"data": [{…}, {…}]}`.

use serde_json::Value;
use serde_json::value::RawValue;

use super::columns::{Columns, holds_turns};
use super::json;
use super::json_stream::{Between, JsonStream};
use super::keys::ROWS_UNDER;
use crate::files::json::UniqueMap;

/// Maximum number of keys that a note names
const TOLD_KEYS: usize = 20;

/// Role of a JSON object among rows.
pub(super) enum Nested<'t> {
    /// A row by itself
    Row,
    /// One that holds the rows as a list
    Rows {
        key: String,
        /// Text of the list, a part of the object's
        rows: &'t str,
        /// The other keys, in backticks
        others: String,
    },
    /// One that holds several lists of rows; what to do, in words.
    Several(String),
}

/// True if an object begins with a list under a key for lists of rows.
pub(super) fn begins_with_list(text: &[u8]) -> bool {
    let behind = |text: &[u8], mark: u8| text.trim_ascii_start().strip_prefix(&[mark]).map(<[u8]>::to_vec);
    // The key is among the first bytes.
    let head = &text[..text.len().min(1 << 10)];
    let Some(key) = behind(head, b'{').and_then(|rest| behind(&rest, b'"')) else { return false };
    let Some(end) = key.iter().position(|&byte| byte == b'"') else { return false };
    let is_list = behind(&key[end + 1..], b':').and_then(|rest| behind(&rest, b'[')).is_some();
    is_list && ROWS_UNDER.iter().any(|name| name.as_bytes() == &key[..end])
}

/// Rows within an object. One that has a key of a row, by its own name or by that of a column, is a row.
pub(super) fn nested_rows<'t>(object: &'t str, columns: &Columns) -> Nested<'t> {
    let Ok(entries) = serde_json::from_str::<UniqueMap<&'t RawValue>>(object) else { return Nested::Row };
    let entries = entries.0;
    if entries.iter().any(|(key, _)| columns.makes_rows(key)) {
        return Nested::Row;
    }
    let named = entries.iter().filter(|(key, _)| ROWS_UNDER.contains(&key.as_str()));
    let lists: Vec<(&str, &'t str, usize)> =
        named.filter_map(|(key, value)| Some((key.as_str(), value.get(), objects_of(value.get())?))).collect();
    match lists[..] {
        [] => Nested::Row,
        [(key, rows, _)] => {
            let others = entries.iter().map(|(key, _)| key.as_str()).filter(|other| *other != key);
            let others: Vec<String> = others.map(|key| format!("`{}`", json::shorten(key))).collect();
            let mut told = others[..others.len().min(TOLD_KEYS)].join(", ");
            if others.len() > TOLD_KEYS {
                told += &format!(" and {} more", others.len() - TOLD_KEYS);
            }
            Nested::Rows { key: key.to_owned(), rows, others: told }
        }
        _ => {
            let found: Vec<String> =
                lists.iter().map(|(key, _, count)| format!("`{}` ({count})", json::shorten(key))).collect();
            Nested::Several(format!(
                "the object holds several lists of rows: {}; make each a file of its own, and name those to train on by \
                 `data`, those to validate on by `val_data`",
                found.join(", ")
            ))
        }
    }
}

/// Number of objects in a list. None: it is empty, holds something else, or is a conversation.
fn objects_of(list: &str) -> Option<usize> {
    let mut stream = JsonStream::new(list.strip_prefix('[')?.as_bytes(), 1);
    let mut count = 0;
    while stream.peek().ok()?? == b'{' {
        let object = stream.value(Between::Commas, usize::MAX).ok()?;
        if count == 0 {
            // The limits of a row apply.
            let first = json::parse(std::str::from_utf8(&object.bytes).ok()?).ok()?;
            if holds_turns(&Value::Array(vec![first])) {
                return None;
            }
        }
        count += 1;
        match stream.peek().ok()?? {
            b',' => stream.take(1),
            _ => return Some(count),
        }
    }
    None
}

#[cfg(test)]
mod tests;
