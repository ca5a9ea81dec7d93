//! Keys that nothing reads: listed, and warned of where they look like one that says what is learned, or like a known
//! key in other letters.

use serde_json::Value;

use super::keys::{is_empty, words};
use super::notes::{KeyOf, Note};
use super::weight;

/// Keys that other programs have for what is not learned, each with the value that says "learned". None: both values
/// are found with both meanings.
const FLAGS: [(&str, Option<bool>); 17] = [
    ("masked", Some(false)),
    ("is_masked", Some(false)),
    ("mask", None),
    ("learn", Some(true)),
    ("learned", Some(true)),
    ("learnable", Some(true)),
    ("supervised", Some(true)),
    ("is_supervised", Some(true)),
    ("trained", Some(true)),
    ("ignore", Some(false)),
    ("ignored", Some(false)),
    ("ignore_loss", Some(false)),
    ("no_loss", Some(false)),
    ("no_train", Some(false)),
    ("skip_loss", Some(false)),
    ("compute_loss", Some(true)),
    ("loss_scale", Some(true)),
];

/// What is said of a key that nothing reads, beside the keys that are `known` there. Where nothing is learned anyway, a
/// flag changes nothing.
pub(super) fn note<'k>(
    of: KeyOf,
    key: &str,
    value: &Value,
    is_learned: bool,
    known: impl IntoIterator<Item = &'k str>,
) -> Note {
    let whose = match of {
        KeyOf::Row => "the row",
        KeyOf::Turn => "a turn",
        KeyOf::Part => "a part of a turn",
    };
    let spelled = words(key).join("_");
    let small = key.to_lowercase();
    let meant = known.into_iter().find(|&name| key != name && (small == name || spelled == name));
    if let Some(meant) = meant.filter(|&name| says_something(of, name, value, is_learned)) {
        return Note::Said(format!("{whose} has the key `{key}`, which nothing reads; `{meant}` is read"));
    }
    let flag = FLAGS.iter().find(|(name, _)| spelled == *name);
    if let Some((_, learned)) = flag.filter(|_| is_learned)
        && let Some(given) = number(value)
        && learned.is_none_or(|learned| given.is_none_or(|given| given != f64::from(u8::from(learned))))
    {
        return Note::Said(format!(
            "{whose} has the key `{key}`, which nothing reads; `train: false` says that something is not learned, `weight` \
             how much it counts"
        ));
    }
    Note::UnusedKey(of, key.to_owned())
}

/// Whether a key that nothing reads may say what is learned, by its name.
pub(super) fn may_be_flag(key: &str) -> bool {
    let spelled = words(key).join("_");
    FLAGS.iter().any(|(name, _)| spelled == *name) || weight::KEYS.contains(&spelled.as_str())
}

/// Whether the value changes anything under the known key: a flag that says "learned" does not.
fn says_something(of: KeyOf, name: &str, value: &Value, is_learned: bool) -> bool {
    if !weight::KEYS.contains(&name) {
        return !is_empty(value) && !MEANINGLESS.contains(&name);
    }
    match number(value) {
        _ if !is_learned => false,
        // Texts and measured numbers of rows stand under the same names.
        None => of != KeyOf::Row && !value.is_null(),
        Some(_) if of == KeyOf::Row && !weight::is_of_row(name, value) => false,
        Some(given) => given != Some(1.0),
    }
}

/// Known keys that say nothing about what is learned.
const MEANINGLESS: [&str; 2] = ["id", "cache_control"];

/// The number that a flag has, Some(None) where it has one for each token. None: the value is no flag.
fn number(value: &Value) -> Option<Option<f64>> {
    match value {
        Value::Bool(set) => Some(Some(f64::from(u8::from(*set)))),
        Value::Number(number) => Some(number.as_f64()),
        Value::Array(items) if !items.is_empty() => Some(None),
        Value::String(text) => match text.trim().to_lowercase().as_str() {
            "true" => Some(Some(1.0)),
            "false" => Some(Some(0.0)),
            other => other.parse().ok().map(Some),
        },
        _ => None,
    }
}
