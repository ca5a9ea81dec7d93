//! Keys of a row that have a meaning, whatever its format.

use serde_json::{Map, Value};

/// Every key that has a meaning in some format.
pub(super) const KNOWN_KEYS: [&str; 22] = [
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
    "assistant_mask",
];

/// Keys under which one JSON object holds all rows, or those of one part.
pub(super) const ROWS_UNDER: [&str; 14] = [
    "train",
    "data",
    "rows",
    "examples",
    "instances",
    "items",
    "records",
    "samples",
    "validation",
    "valid",
    "val",
    "dev",
    "eval",
    "test",
];

/// Meaning of a row that is not "learn what the assistant says".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Two answers that are compared
    Preference,
    /// An answer that is good or bad
    Rating,
    /// Something that is no text
    Media,
}

impl Meaning {
    /// The meaning of a key by its words, however they are joined: `image_path`, `imageURLs`, `KTO_TAG`.
    fn of(key: &str) -> Option<Self> {
        let words = words(key);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["chosen" | "rejected"] => Some(Self::Preference),
            ["label"] => Some(Self::Rating),
            _ if words.iter().any(|word| matches!(*word, "kto" | "desirable" | "undesirable")) => Some(Self::Rating),
            _ if words.iter().any(|word| MEDIA.contains(word))
                && words.iter().all(|word| MEDIA.contains(word) || MEDIA_FORMS.contains(word)) =>
            {
                Some(Self::Media)
            }
            _ => None,
        }
    }

    fn what_to_do(self) -> &'static str {
        match self {
            Self::Preference => {
                "the row compares two answers (preference data), which is not trained on here; keep the chosen answer as a \
                 turn of the assistant and remove both keys"
            }
            Self::Rating => {
                "the row says whether its answer is good or bad (KTO data), which is not trained on here; keep the rows \
                 with good answers and remove the key"
            }
            Self::Media => {
                "the row refers to images, videos or sounds, and only text is trained on here; leave such rows out, or \
                 remove the key and what the text says of it"
            }
        }
    }
}

const MEDIA: [&str; 13] = [
    "image", "images", "img", "imgs", "picture", "pictures", "photo", "photos", "pixel", "video", "videos", "audio",
    "audios",
];

/// Words for an answer.
const ANSWER: [&str; 8] = ["response", "answer", "completion", "output", "text", "message", "messages", "reply"];

/// Words for the form in which a medium is given.
const MEDIA_FORMS: [&str; 14] = [
    "path",
    "paths",
    "url",
    "urls",
    "file",
    "files",
    "filename",
    "filenames",
    "bytes",
    "base64",
    "data",
    "list",
    "input",
    "values",
];

/// The words of a key in small letters: they end at a sign, and before a capital letter that follows a small one.
pub(super) fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_small = false;
    for letter in key.chars() {
        if !letter.is_alphanumeric() || (was_small && letter.is_uppercase()) {
            words.push(String::new());
        }
        was_small = letter.is_lowercase();
        if letter.is_alphanumeric() {
            words.last_mut().expect("there is one").extend(letter.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Value of a column of which only the presence is read.
pub(super) const THERE: &str = "there";

/// True if a key gives a row another meaning than "learn what the assistant says", whatever its value.
pub(super) fn is_of_other_meaning(key: &str) -> bool {
    Meaning::of(key).is_some()
}

/// True if a key names one of two answers: `chosen`, `response_rejected`.
pub(super) fn compares(key: &str) -> bool {
    let words = words(key);
    // A `preferred_language` is not one of two answers.
    let is_preferred = |word: &String| matches!(word.as_str(), "preferred" | "dispreferred");
    words.iter().any(|word| matches!(word.as_str(), "chosen" | "rejected"))
        || (words.iter().any(is_preferred)
            && words.iter().all(|word| is_preferred(word) || ANSWER.contains(&&word[..])))
}

/// True if a key is `label`: for an answer it is the rating, for a text the class.
pub(super) fn is_label(key: &str) -> bool {
    words(key) == ["label"]
}

/// The words of a key with `_` between them.
fn joined(key: &str) -> String {
    words(key).join("_")
}

/// True if a key is another name for a system message, which no format here uses: `system_prompt`.
pub(super) fn is_system(key: &str) -> bool {
    SYSTEM.contains(&joined(key).as_str())
}

/// True if a key is another name for the context of a question, which no format here uses: `context`.
pub(super) fn is_context(key: &str) -> bool {
    CONTEXT.contains(&joined(key).as_str())
}

const SYSTEM: [&str; 9] = [
    "system_prompt",
    "system_message",
    "system_instruction",
    "system_instructions",
    "system_content",
    "system_text",
    "system_msg",
    "sys_prompt",
    "sys",
];
// A `knowledge` is mostly a category of knowledge, not a text.
const CONTEXT: [&str; 4] = ["context", "contexts", "passage", "background"];

/// The first key of a row that gives it another meaning than "learn what the assistant says", and what to do. In a text
/// with a class (`has_class`), a `label` is that class.
pub(super) fn of_other_meaning(row: &Map<String, Value>, has_class: bool) -> Option<(&str, &'static str)> {
    let said = row.iter().filter(|(key, value)| !(is_empty(value) || has_class && is_label(key)));
    said.map(|(key, value)| (key.as_str(), value)).find_map(|(key, value)| {
        // The address of a page's picture is no part of the page's text.
        let is_beside = Meaning::of(key) == Some(Meaning::Media) && words(key).len() > 1 && row.contains_key("text");
        Some((key, other_meaning(key, value).filter(|_| !is_beside)?))
    })
}

/// The first key in a content part that refers to something other than text, with advice.
pub(super) fn media(part: &Map<String, Value>) -> Option<(&str, &'static str)> {
    let is_shown = |key: &str| Meaning::of(key) == Some(Meaning::Media);
    let mut said = part.iter().filter(|(key, value)| !is_empty(value) && is_shown(key));
    said.find_map(|(key, value)| Some((key.as_str(), other_meaning(key, value)?)))
}

fn other_meaning(key: &str, value: &Value) -> Option<&'static str> {
    // A score of an answer is only a number.
    let is_answer = matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_));
    let compared = (compares(key) && is_answer).then_some(Meaning::Preference);
    // A flag for a picture, or a count of pictures, is no picture.
    let shown = Meaning::of(key).filter(|meaning| *meaning != Meaning::Media || is_answer);
    shown.or(compared).map(Meaning::what_to_do)
}

/// Key for the task of a row of any format: rows of different tasks are evaluated separately.
pub(super) const TASK: &str = "task";

/// Key for the adapter that a row of any format is evaluated with, if rows name their own.
pub(super) const ADAPTER: &str = "adapter";

/// True if a value is null or empty.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty() || text.trim() == "[]",
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
