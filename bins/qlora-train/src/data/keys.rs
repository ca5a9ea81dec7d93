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
    /// By the words of a key, however they are put together: `image_path`, `imageURLs`, `KTO_TAG`.
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

/// Words that an answer goes by.
const ANSWER: [&str; 8] = ["response", "answer", "completion", "output", "text", "message", "messages", "reply"];

/// Words that say in which form something is there.
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

/// Value of a column of which only that it is there is read.
pub(super) const THERE: &str = "there";

/// Whether a key gives a row another meaning than "learn what the assistant says", whatever its value.
pub(super) fn is_of_other_meaning(key: &str) -> bool {
    Meaning::of(key).is_some()
}

/// Whether a key names one of two answers: `chosen`, `response_rejected`.
pub(super) fn compares(key: &str) -> bool {
    let words = words(key);
    // A `preferred_language` is none of two answers.
    let is_preferred = |word: &String| matches!(word.as_str(), "preferred" | "dispreferred");
    words.iter().any(|word| matches!(word.as_str(), "chosen" | "rejected"))
        || (words.iter().any(is_preferred)
            && words.iter().all(|word| is_preferred(word) || ANSWER.contains(&&word[..])))
}

/// Whether a key is `label`: of an answer it says whether it is good, of a text it is the class.
pub(super) fn is_label(key: &str) -> bool {
    words(key) == ["label"]
}

/// The words of a key with `_` between them.
fn joined(key: &str) -> String {
    words(key).join("_")
}

/// Whether a key names what a conversation begins with, as no format here calls it: `system_prompt`.
pub(super) fn is_system(key: &str) -> bool {
    SYSTEM.contains(&joined(key).as_str())
}

/// Whether a key names what a question is about, as no format here calls it: `context`.
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
// A `knowledge` is mostly what an answer takes to know, not a text.
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

/// The first key of a part of a content by which it refers to something that is no text, and what to do.
pub(super) fn media(part: &Map<String, Value>) -> Option<(&str, &'static str)> {
    let is_shown = |key: &str| Meaning::of(key) == Some(Meaning::Media);
    let mut said = part.iter().filter(|(key, value)| !is_empty(value) && is_shown(key));
    said.find_map(|(key, value)| Some((key.as_str(), other_meaning(key, value)?)))
}

fn other_meaning(key: &str, value: &Value) -> Option<&'static str> {
    // A score of an answer is only a number.
    let is_answer = matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_));
    let compared = (compares(key) && is_answer).then_some(Meaning::Preference);
    // Whether there is a picture, or how many, is none.
    let shown = Meaning::of(key).filter(|meaning| *meaning != Meaning::Media || is_answer);
    shown.or(compared).map(Meaning::what_to_do)
}

/// What a row of any format is of: evaluated apart from rows of other tasks.
pub(super) const TASK: &str = "task";

/// The adapter that a row of any format is evaluated with, where each row names its own.
pub(super) const ADAPTER: &str = "adapter";

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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_known_by_their_words() {
        use Meaning::{Media, Preference, Rating};
        let expected = [
            (Preference, vec!["chosen", "rejected", "Chosen", "REJECTED"]),
            (
                Rating,
                vec!["label", "Label", "kto_tag", "KTO_TAG", "ktoTag", "kto-label", "desirable", "is_undesirable"],
            ),
            (
                Media,
                vec!["image", "images", "image_path", "imageURL", "img_file", "pixel_values", "video", "audio-paths"],
            ),
        ];
        for (meaning, keys) in expected {
            for key in keys {
                assert_eq!(Meaning::of(key), Some(meaning), "{key}");
            }
        }
        // What is said of an image is text, and so is what has a label among other things.
        for key in ["labels", "image_caption", "image_id", "label_name", "reimagined", "file", "data", "choice", ""] {
            assert_eq!(Meaning::of(key), None, "{key}");
        }
        for key in ["response_chosen", "chosenResponse", "dispreferred_answer", "chosen"] {
            assert!(compares(key), "{key}");
        }
        for key in ["well_chosenness", "score", "preferred_language", "preferredName"] {
            assert!(!compares(key), "{key}");
        }
    }

    #[test]
    fn what_is_said_of_a_picture_is_none() {
        let refused = |row: Value| of_other_meaning(row.as_object().unwrap(), false).map(|(key, _)| key.to_owned());
        for row in
            [json!({"prompt": "a", "image": false}), json!({"text": "a", "videos": 3, "image_url": "http://a/b"})]
        {
            assert_eq!(refused(row), None);
        }
        assert_eq!(refused(json!({"prompt": "a", "image_url": "http://a/b"})).unwrap(), "image_url");
        assert_eq!(refused(json!({"text": "a", "image": "a.png"})).unwrap(), "image");
        let class = |row: Value| of_other_meaning(row.as_object().unwrap(), true).map(|(key, _)| key.to_owned());
        assert_eq!(class(json!({"text": "a", "label": 1})), None);
        assert_eq!(class(json!({"text": "a", "label": 1, "kto_tag": true})).unwrap(), "kto_tag");
    }
}
