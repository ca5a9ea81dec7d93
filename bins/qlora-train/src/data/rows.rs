//! The shapes a row can have, told by its keys, and the rows that are token ids already.

use serde_json::{Map, Value};

use super::json;

/// The shape of the rows of a file. All rows of one file have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// `messages`: a conversation of `role` / `content` turns, tokenised by the model's chat template.
    Messages,
    /// `input_ids`, optional `labels` with −100 for unsupervised: needs no tokenizer.
    Tokenised,
}

impl RowKind {
    pub fn name(self) -> &'static str {
        match self {
            RowKind::Messages => "messages",
            RowKind::Tokenised => "tokenised",
        }
    }
}

const SUPPORTED: &str =
    "supported are `messages` rows (role/content) and tokenised rows (`input_ids`, optional `labels`)";

/// Tells the shape of a row from its keys. The error says what was found and what is supported.
pub(super) fn detect(row: &Value) -> Result<RowKind, String> {
    let Value::Object(map) = row else {
        return Err(format!("expected a row (a JSON object), found {}; {SUPPORTED}", json::describe(row)));
    };
    let has = |key: &str| map.contains_key(key);
    let unsupported = |name: &str| Err(format!("{name} rows are not supported yet; {SUPPORTED}"));
    match (has("messages"), has("input_ids")) {
        (true, true) => Err("the row has both `messages` and `input_ids`; keep one of the two".into()),
        (true, false) => Ok(RowKind::Messages),
        (false, true) => Ok(RowKind::Tokenised),
        _ if has("conversations") => unsupported("ShareGPT (`conversations`)"),
        _ if has("prompt") && has("completion") => unsupported("`prompt` + `completion`"),
        _ if has("instruction") => unsupported("Alpaca (`instruction`, `input`, `output`)"),
        _ if has("text") => unsupported("`text`"),
        _ => Err(format!("unknown kind of row: found {}; {SUPPORTED}", json::describe(row))),
    }
}

/// Checks a tokenised row and returns its ids and labels (the ids themselves when there are no labels).
/// Labels are not shifted: `labels[t]` is `input_ids[t]` or −100. An `attention_mask` must be all ones, because rows
/// are trained on without padding.
pub(super) fn tokenised(map: &Map<String, Value>, vocab_size: usize) -> Result<(Vec<u32>, Vec<i32>), String> {
    let limit = vocab_size.min(i32::MAX as usize);
    let ids = integers(map, "input_ids", &|id| (0..limit as i64).contains(&id), || {
        format!("token ids are whole numbers from 0 to {} (the model's vocabulary)", limit.saturating_sub(1))
    })?;
    if let Some(mask) = map.get("attention_mask").filter(|mask| !mask.is_null()) {
        let Some(entries) = mask.as_array() else {
            return Err(format!("`attention_mask` must be an array of ones, found {}", json::describe(mask)));
        };
        if entries.len() != ids.len() {
            return Err(format!("`attention_mask` has {} entries, `input_ids` {}", entries.len(), ids.len()));
        }
        if let Some(at) = entries.iter().position(|entry| entry.as_i64() != Some(1)) {
            let found = json::describe(&entries[at]);
            return Err(format!("`attention_mask[{at}]` is {found}; expected all ones: remove the padding"));
        }
    }
    let labels = match map.get("labels") {
        None | Some(Value::Null) => ids.clone(),
        Some(_) => integers(map, "labels", &|label| label == -100 || (0..limit as i64).contains(&label), || {
            format!("labels are token ids from 0 to {} or -100 (unsupervised)", limit.saturating_sub(1))
        })?,
    };
    if labels.len() != ids.len() {
        return Err(format!(
            "`labels` has {} entries, `input_ids` {}; expected one label for each token",
            labels.len(),
            ids.len()
        ));
    }
    Ok((ids.into_iter().map(|id| id as u32).collect(), labels.into_iter().map(|label| label as i32).collect()))
}

fn integers(
    map: &Map<String, Value>,
    key: &str,
    valid: &dyn Fn(i64) -> bool,
    expected: impl Fn() -> String,
) -> Result<Vec<i64>, String> {
    let Some(entries) = map[key].as_array() else {
        return Err(format!("`{key}` must be an array, found {}", json::describe(&map[key])));
    };
    entries
        .iter()
        .enumerate()
        .map(|(at, entry)| {
            entry
                .as_i64()
                .filter(|&id| valid(id))
                .ok_or_else(|| format!("`{key}[{at}]` is {}; {}", json::describe(entry), expected()))
        })
        .collect()
}
