//! The formats that a row can have, told by its keys, and the rows that are token ids already.

use serde_json::{Map, Value};

use super::json;

/// The format of a row. The rows of one file may differ in it; they are counted by format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKind {
    /// `messages`: a conversation of `role` / `content` turns, written by the model's chat template.
    Messages,
    /// `conversations`: the same with `from` / `value`.
    ShareGpt,
    /// `prompt` + `completion`: two texts, or two lists of turns.
    PromptCompletion,
    /// `instruction`, `output`, optional `input`, `system`, `history`: a conversation.
    Alpaca,
    /// `text`: supervised from its first token to its EOS.
    Text,
    /// `input_ids`, optional `labels` with −100 for unsupervised: needs no tokenizer.
    Tokenised,
}

impl RowKind {
    pub const ALL: [RowKind; 6] = [
        RowKind::Messages,
        RowKind::ShareGpt,
        RowKind::PromptCompletion,
        RowKind::Alpaca,
        RowKind::Text,
        RowKind::Tokenised,
    ];

    pub fn name(self) -> &'static str {
        match self {
            RowKind::Messages => "messages",
            RowKind::ShareGpt => "ShareGPT",
            RowKind::PromptCompletion => "prompt + completion",
            RowKind::Alpaca => "Alpaca",
            RowKind::Text => "text",
            RowKind::Tokenised => "tokenised",
        }
    }

    /// The keys that every row of this format has, and no row of another one.
    fn keys(self) -> &'static [&'static str] {
        match self {
            RowKind::Messages => &["messages"],
            RowKind::ShareGpt => &["conversations"],
            RowKind::PromptCompletion => &["prompt", "completion"],
            RowKind::Alpaca => &["instruction", "output"],
            RowKind::Text => &["text"],
            RowKind::Tokenised => &["input_ids"],
        }
    }
}

/// Every key that has a meaning in some format.
pub(super) const KNOWN_KEYS: [&str; 14] = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "instruction",
    "output",
    "input",
    "system",
    "history",
    "text",
    "input_ids",
    "labels",
    "attention_mask",
    "tools",
];

pub(super) const SUPPORTED: &str = "supported are `messages` (role/content), `conversations` (from/value), `prompt` + \
                                    `completion`, Alpaca (`instruction`, `input`, `output`), `text` and tokenised rows \
                                    (`input_ids`, optional `labels`)";

/// What a row of any format is of: evaluated apart from rows of other tasks.
pub(super) const TASK: &str = "task";

/// The task of a row, if it names one. Numbers count as what they are written as.
pub(super) fn task(map: &Map<String, Value>) -> Result<Option<String>, String> {
    match map.get(TASK) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(task)) if task.trim().is_empty() => Ok(None),
        Some(Value::String(task)) => Ok(Some(task.trim().to_owned())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(other) => {
            Err(format!("`{TASK}` is {}; expected a string, a name of the row's task", json::describe(other)))
        }
    }
}

/// Tells the format of a row from its keys. A key that is null counts as missing: tables that were put together from
/// several formats hold nulls in the other formats' columns. The error says what was found and what is supported.
pub(super) fn detect(row: &Value) -> Result<RowKind, String> {
    let Value::Object(map) = row else {
        return Err(format!("expected a row (a JSON object), found {}; {SUPPORTED}", json::describe(row)));
    };
    let has = |key: &&str| map.get(*key).is_some_and(|value| !value.is_null());
    let shown = |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" + ");
    let mut found = RowKind::ALL.into_iter().filter(|kind| kind.keys().iter().all(has));
    match (found.next(), found.next()) {
        (Some(kind), None) => Ok(kind),
        (Some(one), Some(two)) => Err(format!(
            "the row has both {} and {}, so its format is ambiguous; keep one of the two",
            shown(one.keys()),
            shown(two.keys())
        )),
        (None, _) => {
            let half = RowKind::ALL.into_iter().find(|kind| kind.keys().iter().any(has));
            if let Some((half, missing)) = half.and_then(|kind| Some((kind, kind.keys().iter().find(|key| !has(key))?)))
            {
                let state = if map.contains_key(*missing) { "null" } else { "missing" };
                return Err(format!(
                    "`{missing}` is {state}; expected {} in a {} row",
                    shown(half.keys()),
                    half.name()
                ));
            }
            if let Some(null) = KNOWN_KEYS.iter().find(|key| map.get(**key).is_some_and(Value::is_null)) {
                return Err(format!("unknown kind of row: `{null}` is null; {SUPPORTED}"));
            }
            Err(format!("unknown kind of row: found {}; {SUPPORTED}", json::describe(row)))
        }
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
