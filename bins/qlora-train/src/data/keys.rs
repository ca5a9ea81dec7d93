//! Keys of a row that have a meaning, whatever its format.

use serde_json::Value;

/// Every key that has a meaning in some format.
pub(super) const KNOWN_KEYS: [&str; 20] = [
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

/// Why a row with such a key is refused, and what to do.
pub(super) fn other_meaning(key: &str) -> &'static str {
    match key {
        "chosen" | "rejected" => {
            "the row compares two answers (preference data), which is not trained on here; keep the chosen answer as a \
             turn of the assistant and remove both keys"
        }
        "label" | "kto_tag" => {
            "the row says whether its answer is good or bad (KTO data), which is not trained on here; keep the rows with \
             good answers and remove the key"
        }
        _ => {
            "the row refers to images, videos or sounds, and only text is trained on here; leave such rows out, or remove \
             the key and what the text says of it"
        }
    }
}

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
