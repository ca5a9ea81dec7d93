//! Keys of a row that have a meaning, whatever its format.

use serde_json::{Map, Value};

/// Every key that has a meaning in some format.
pub(super) const KNOWN_KEYS: [&str; 21] = [
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
    "functions",
    "chat_template_kwargs",
    "position_ids",
    "token_type_ids",
    "loss_mask",
    "completion_mask",
    "assistant_masks",
];

/// Keys that give a row another meaning than "learn what the assistant says".
pub(super) const OTHER_MEANING: [&str; 10] =
    ["chosen", "rejected", "label", "kto_tag", "images", "videos", "audios", "image", "video", "audio"];

/// Whether a key names one of two answers: `chosen`, `response_rejected`.
pub(super) fn compares(key: &str) -> bool {
    key.split('_').any(|word| matches!(word, "chosen" | "rejected"))
}

/// The first key of a row that gives it another meaning than "learn what the assistant says", and what to do.
pub(super) fn of_other_meaning(row: &Map<String, Value>) -> Option<(&str, &'static str)> {
    let said = row.iter().filter(|(_, value)| !is_empty(value));
    said.map(|(key, value)| (key.as_str(), value)).find_map(|(key, value)| Some((key, other_meaning(key, value)?)))
}

fn other_meaning(key: &str, value: &Value) -> Option<&'static str> {
    // A score of an answer is only a number.
    let is_answer = matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_));
    match key {
        "chosen" | "rejected" => Some(PREFERENCE),
        _ if compares(key) && is_answer => Some(PREFERENCE),
        "label" | "kto_tag" => Some(
            "the row says whether its answer is good or bad (KTO data), which is not trained on here; keep the rows with \
             good answers and remove the key",
        ),
        "images" | "videos" | "audios" | "image" | "video" | "audio" => Some(
            "the row refers to images, videos or sounds, and only text is trained on here; leave such rows out, or remove \
             the key and what the text says of it",
        ),
        _ => None,
    }
}

const PREFERENCE: &str = "the row compares two answers (preference data), which is not trained on here; keep the chosen answer \
                          as a turn of the assistant and remove both keys";

/// What a row of any format is of: evaluated apart from rows of other tasks.
pub(super) const TASK: &str = "task";

/// Whether a value says nothing: null, or empty.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty() || text.trim() == "[]",
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
