//! Keys that nothing reads: listed, with a warning for those that look like a flag for what is learned, or like a
//! misspelled known key.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::json;
use super::keys::{ADAPTER, KNOWN_KEYS, TASK, THERE, is_context, is_empty, is_system, words};
use super::notes::{KeyOf, Note};
use super::row_kind::RowKind;
use super::weight;

/// Keys of other programs for what is not learned, each with the value that means "learned". None: both values occur
/// with both meanings.
const FLAGS: [(&str, Option<bool>); 19] = [
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
    ("loss_weights", Some(true)),
    ("weights", Some(true)),
];

/// Words of further such keys: words that mean "learned", words that mean "not", and words without a meaning.
const LEARN: [&str; 9] =
    ["train", "trained", "training", "trainable", "learn", "learned", "learnable", "supervised", "loss"];
const LEAVE_OUT: [&str; 8] = ["mask", "masked", "ignore", "ignored", "skip", "skipped", "exclude", "excluded"];
const NOT: [&str; 4] = ["not", "no", "dont", "without"];
const BESIDE: [&str; 24] = [
    "is",
    "be",
    "should",
    "to",
    "do",
    "does",
    "for",
    "from",
    "in",
    "on",
    "use",
    "used",
    "with",
    "compute",
    "calculate",
    "include",
    "included",
    "only",
    "last",
    "history",
    "this",
    "turn",
    "message",
    "answer",
];

/// The value under a key of such words that means "learned": `do_not_train` false, `useForTraining` true.
fn learned_by_words(words: &[String]) -> Option<bool> {
    let is_of =
        |list: &[&str], word: &String| list.iter().any(|name| name == word || word.len() > 4 && is_near(name, word));
    let known = |word: &String| is_of(&LEARN, word) || is_of(&LEAVE_OUT, word);
    let told = words.iter().filter(|word| !is_of(&BESIDE, word) && !is_of(&NOT, word));
    let (all, any) = told.fold((true, false), |(all, any), word| (all && known(word), any || known(word)));
    let leaves_out = words.iter().any(|word| is_of(&LEAVE_OUT, word) || is_of(&NOT, word));
    (all && any).then_some(!leaves_out)
}

/// The note on a key that nothing reads, where the keys `known` are read. A flag changes nothing where nothing is
/// learned anyway.
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
        KeyOf::Call => "a tool call",
    };
    let shown = json::shorten(key);
    let spelled = words(key).join("_");
    let small = key.to_lowercase();
    let meant = known.into_iter().find(|&name| key != name && (small == name || spelled == name));
    let meant = meant.or_else(|| misspelled(&spelled));
    if let Some(meant) = meant {
        if says_something(of, meant, value, is_learned) {
            return Note::Said(format!("{whose} has the key `{shown}`, which nothing reads; `{meant}` is read"));
        }
        // The known key decides that it means "learned", whatever its words mean.
        if weight::KEYS.contains(&meant) {
            return Note::UnusedKey(of, key.to_owned());
        }
    }
    let flag = FLAGS.iter().find(|(name, _)| spelled == *name);
    let by_words = || Some((learned_by_words(&words(key))?, truth(value)?));
    let by_name = flag.and_then(|(_, learned)| {
        let given = number(value)?;
        Some(learned.is_none_or(|learned| given.is_none_or(|given| given != f64::from(u8::from(learned)))))
    });
    let says_not = by_name.or_else(|| by_words().map(|(learned, given)| learned != given)).unwrap_or(false);
    if is_learned && says_not {
        return Note::Said(format!(
            "{whose} has the key `{shown}`, which nothing reads; `train: false` says that something is not learned, `weight` \
             how much it counts"
        ));
    }
    Note::UnusedKey(of, key.to_owned())
}

/// True if the name of an unread key may need a warning: it may be a flag for what is learned, a misspelled known key,
/// or a part of the prompt.
pub(super) fn may_be_meant(key: &str) -> bool {
    let (spelled, small) = (words(key).join("_"), key.to_lowercase());
    let known = || KNOWN_KEYS.iter().chain(&weight::KEYS).chain(&[TASK, ADAPTER]);
    let is_flag = FLAGS.iter().any(|(name, _)| spelled == *name) || learned_by_words(&words(key)).is_some();
    // Beside a text it may name the role of the turn.
    let is_flag = is_flag || misspelled(&spelled).is_some() || counts_a_prompt(key) || key == "role";
    is_flag || is_system(key) || is_context(key) || known().any(|name| small == *name || spelled == *name)
}

/// True if a key is a name of at least five letters with two of them swapped, or with one behind the first missing.
fn is_near(name: &str, key: &str) -> bool {
    let sorted = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    let is_near = name.len() > 4 && name.len().abs_diff(key.len()) < 2 && strsim::osa_distance(name, key) == 1;
    let begins_alike = name.chars().next() == key.chars().next();
    is_near && (begins_alike && key.len() < name.len() || sorted(name) == sorted(key))
}

/// The key for what is learned that a key differs from in one letter, or in two that are swapped; a short one only in
/// letters that are swapped or missing.
fn misspelled(key: &str) -> Option<&'static str> {
    if FLAGS.iter().any(|(name, _)| key == *name) || weight::KEYS.contains(&key) {
        return None;
    }
    // For example, a height is no weight.
    let is_meant = |name: &str| name.len() > 5 && name.chars().next() == key.chars().next();
    let is_one_off = |name: &str| is_meant(name) && strsim::osa_distance(name, key) == 1;
    weight::KEYS.into_iter().find(|name| is_near(name, key) || is_one_off(name))
}

/// True if a key says how long the prompt among the tokens of a row is: `prompt_length`, `source_len`.
fn counts_a_prompt(key: &str) -> bool {
    let words = words(key);
    let has = |names: &[&str]| words.iter().any(|word| names.contains(&word.as_str()));
    has(&["prompt", "source", "src", "input", "context", "query", "question", "instruction"])
        && has(&["length", "len", "lengths", "lens", "end"])
}

/// A remark about an unread key of a tokenized row that seems to mark what is learned. None: it seems to mean something
/// else, or the row is not tokenized.
pub(super) fn of_tokens(kind: RowKind, key: &str, value: &Value, row: &Map<String, Value>) -> Option<Note> {
    let shown = json::shorten(key);
    let is_there = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
    let tokens = row.get("input_ids").and_then(Value::as_array).filter(|_| kind == RowKind::Tokenized)?;
    if counts_a_prompt(key) && !is_there("labels") && value.as_u64() != Some(tokens.len() as u64) {
        return Some(Note::Said(format!(
            "the row has the key `{shown}`, which nothing reads: every token is learned that `labels` or `loss_mask` does \
             not leave out"
        )));
    }
    let entries = value.as_array().filter(|entries| entries.len() == tokens.len())?;
    // Tokenizers mark their special tokens in this form.
    let is_mask = key != "special_tokens_mask" && entries.iter().all(|entry| truth(entry).is_some());
    is_mask.then(|| {
        Note::Said(format!(
            "the row has the key `{shown}`, an entry of 0 or 1 for each token, which nothing reads; `loss_mask`, \
             `completion_mask` and `assistant_masks` are read"
        ))
    })
}

/// The note on an unread text in a row that other formats would use in the prompt. None: it is no text, or `others`,
/// which are read, contain it. At most `left` texts of a row are searched for.
pub(super) fn lost<'v>(
    kind: RowKind,
    key: &str,
    value: &Value,
    others: impl IntoIterator<Item = &'v Value>,
    left: &mut usize,
) -> Option<Note> {
    let is_text = matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_)) && !is_empty(value);
    let known = ["system", "input", "instruction", "history"].contains(&key);
    if !is_text || kind == RowKind::Tokenized || !(known || is_system(key) || is_context(key)) {
        return None;
    }
    *left = left.checked_sub(1)?;
    if let Value::String(text) = value
        && others.into_iter().any(|other| holds(other, text.trim()))
    {
        return None;
    }
    let turns = matches!(kind, RowKind::Messages | RowKind::ShareGpt);
    let what_to_do = match kind {
        RowKind::Text => "write it into the text, or leave the key out".to_owned(),
        _ if is_system(key) => format!("`--system-column {}` makes it the system turn", quoted(key)),
        RowKind::PromptCompletion if key != "history" => format!(
            "`--prompt-column prompt --completion-column completion --input-column {}` puts it behind the prompt",
            quoted(key)
        ),
        RowKind::Alpaca if key != "history" => {
            format!("`--input-column {}` puts it behind the instruction", quoted(key))
        }
        _ if turns => "write it into the turns, or leave the key out".to_owned(),
        _ => "leave the key out".to_owned(),
    };
    Some(Note::Said(format!(
        "the row has the key `{}`, which nothing reads in a row of {}: what it says is not seen; {what_to_do}",
        json::shorten(key),
        kind.name()
    )))
}

/// A value under a known key that a named column replaces.
pub(super) struct Replaced {
    pub column: String,
    pub key: &'static str,
    pub value: Value,
}

/// A remark about a value under a known key that a named column replaces. None: it is empty, or the column has the same
/// text.
pub(super) fn replaced(of: &Replaced, kind: RowKind, row: &Value) -> Option<Note> {
    let setting = match of.key {
        "prompt" | "instruction" => "prompt",
        "completion" | "output" => "completion",
        "messages" | "conversations" => "messages",
        other => other,
    };
    let mut read = kind.keys().iter().chain(kind.optional_keys()).filter_map(|key| row.get(*key));
    let is_read = match &of.value {
        value if is_empty(value) => true,
        Value::String(text) => read.any(|value| holds(value, text.trim())),
        value => {
            let (mut lost, mut own) = (HashSet::new(), HashSet::new());
            texts(value, &mut lost);
            read.for_each(|value| texts(value, &mut own));
            lost.is_subset(&own)
        }
    };
    if is_read {
        return None;
    }
    Some(Note::Said(format!(
        "the row has the key `{}`, which nothing reads, because `--{setting}-column {}` names another column for it: what \
         it says is not seen; leave the key or the setting out",
        of.key,
        quoted(&of.column)
    )))
}

/// The texts of a value, without the roles of turns.
fn texts<'v>(value: &'v Value, out: &mut HashSet<&'v str>) {
    match value {
        Value::String(text) => out.extend(Some(text.trim()).filter(|text| !text.is_empty())),
        Value::Array(items) => items.iter().for_each(|item| texts(item, out)),
        Value::Object(map) => {
            let said = map.iter().filter(|(key, _)| !["role", "from"].contains(&key.as_str()));
            said.for_each(|(_, value)| texts(value, out));
        }
        _ => {}
    }
}

/// A key as an argument of a command.
pub(super) fn quoted(key: &str) -> String {
    let key = json::shorten(key);
    let is_plain = key.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
    if is_plain { key } else { format!("'{key}'") }
}

/// Bytes from which a text does not occur inside a word of another text by chance.
const COPY_BYTES: usize = 16;

/// True if a text holds another one; a short one has to be whole words of it.
fn holds_text(own: &str, text: &str) -> bool {
    if text.len() >= COPY_BYTES {
        return own.contains(text);
    }
    let is_outside = |letter: Option<char>| letter.is_none_or(|letter| !letter.is_alphanumeric());
    own.match_indices(text)
        .any(|(at, _)| is_outside(own[..at].chars().next_back()) && is_outside(own[at + text.len()..].chars().next()))
}

/// True if a value has a text, or holds it in a longer one.
fn holds(value: &Value, text: &str) -> bool {
    match value {
        Value::String(own) => own.trim() == text || holds_text(own, text),
        Value::Array(items) => items.iter().any(|item| holds(item, text)),
        Value::Object(map) => map.values().any(|item| holds(item, text)),
        _ => false,
    }
}

/// Adds the columns of a table that are not read to its first row, so that they are listed.
pub(super) fn list_columns(row: &mut Map<String, Value>, unread: impl IntoIterator<Item = String>) {
    for name in unread {
        row.entry(name).or_insert_with(|| Value::from(THERE));
    }
}

/// True if the value changes anything under the known key; a flag that means "learned" does not.
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

/// Known keys that do not affect what is learned.
const MEANINGLESS: [&str; 2] = ["id", "cache_control"];

/// The truth value that a flag has. None: a measured number, or no flag at all.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(set) => Some(*set),
        Value::Number(number) => number.as_u64().filter(|number| *number < 2).map(|number| number == 1),
        Value::String(text) => text.trim().to_lowercase().parse().ok(),
        _ => None,
    }
}

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
