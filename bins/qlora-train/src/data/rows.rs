//! Detection of a row's format from its keys, and rows that are token ids already.

use serde_json::{Map, Value};

use super::columns::{Columns, holds_turns, is_turn};
use super::keys::{KNOWN_KEYS, ROWS_UNDER, is_empty, is_label, of_other_meaning};
use super::labeled::LabeledIds;
use super::notes::{KeyOf, Note};
use super::row_kind::{MASKS, RowKind};
use super::{json, unused, weight};

/// Refuses keys that give the row another meaning, and notes those that nothing reads. `task` is the key of its task.
pub(super) fn check_keys(
    map: &Map<String, Value>,
    kind: RowKind,
    columns: &Columns,
    task: &'static str,
    notes: &mut Vec<Note>,
) -> Result<(), String> {
    let has_class = kind == RowKind::Text && columns.name_text();
    if let Some((key, why)) = of_other_meaning(map, has_class) {
        return Err(not_learned_here(map, key, why));
    }
    if kind == RowKind::Text {
        check_no_turn(map)?;
    }
    let used = |key: &str| kind.keys().contains(&key) || kind.optional_keys().contains(&key) || key == task;
    let others = map.iter().filter(|(key, value)| !used(key) && !weight::is_of_row(key, value) && !is_empty(value));
    let known = || kind.keys().iter().chain(kind.optional_keys()).chain(&weight::KEYS).chain([&task]);
    let read = || map.iter().filter(|(key, _)| used(key)).map(|(_, value)| value);
    let mut left = MAX_LOOKED_FOR;
    notes.extend(others.map(|(key, value)| {
        let lost =
            unused::lost(kind, key, value, read(), &mut left).or_else(|| unused::of_tokens(kind, key, value, map));
        lost.unwrap_or_else(|| unused::note(KeyOf::Row, key, value, true, known().copied()))
    }));
    Ok(())
}

/// Refuses a row that is a whole table: all its values are columns.
pub(super) fn check_no_table(map: &Map<String, Value>, kind: RowKind) -> Result<(), String> {
    let (of_one, is_listed) = match kind {
        RowKind::Messages | RowKind::ShareGpt => ("a list of turns", true),
        RowKind::Tokenized => ("a list of token ids", true),
        _ => ("a string", false),
    };
    // One list of token ids in another is a batch of one row rather than a table.
    let is_batch = |value: &Value| kind == RowKind::Tokenized && value.as_array().is_some_and(|cells| cells.len() == 1);
    let is_text = |value: &Value| is_listed && value.get(0).is_some_and(Value::is_string);
    let is_cells = |value: &Value| is_column(value) && !is_text(value) && !is_batch(value);
    let mut cells = kind.keys().iter().filter_map(|key| Some((key, map.get(*key)?)));
    match cells.clone().next().filter(|_| cells.all(|(_, value)| is_cells(value))) {
        None => Ok(()),
        Some((key, value)) => {
            Err(format!("`{key}` is {}; expected {of_one} of one row; {BY_COLUMNS}", json::describe(value)))
        }
    }
}

/// True if a value looks like the cells of a column: a list of texts or of lists, or an object whose keys are numbers.
fn is_column(value: &Value) -> bool {
    match value {
        Value::Array(cells) => cells.first().is_some_and(|cell| cell.is_string() || cell.is_array()),
        Value::Object(cells) => !cells.is_empty() && cells.keys().all(|key| key.parse::<u64>().is_ok()),
        _ => false,
    }
}

const BY_COLUMNS: &str = "is it a whole table by columns, as pandas' `to_json()` and `to_dict(\"list\")` write it, give \
                          one object a row: `to_json(path, orient=\"records\", lines=True)`";

/// Maximum number of unread texts per row that are searched for in the read ones: each costs a search of the row.
const MAX_LOOKED_FOR: usize = 16;

/// The reason why a row with a key of another meaning is refused.
fn not_learned_here(map: &Map<String, Value>, key: &str, why: &str) -> String {
    let mut texts = map.iter().filter(|(name, value)| value.is_string() && *name != key).map(|(name, _)| name.as_str());
    let text = match (texts.next(), texts.next()) {
        _ if map.get("text").is_some_and(Value::is_string) => Some("text"),
        (Some(only), None) if !KNOWN_KEYS.contains(&only) => Some(only),
        _ => None,
    };
    match text.filter(|_| is_label(key)) {
        Some(text) => format!(
            "`{key}`: {why}; is it the class of a text that is learned whole, name the text's column (`--text-column {}`)",
            unused::quoted(text)
        ),
        None => format!("`{key}`: {why}"),
    }
}

/// Roles of those who speak in a conversation.
const SPEAKERS: [&str; 8] = ["prompter", "assistant", "user", "human", "gpt", "system", "bot", "chatbot"];

/// Refuses a text that is one turn of a conversation, as in rows of a chat tree: alone it answers nothing.
fn check_no_turn(map: &Map<String, Value>) -> Result<(), String> {
    let speaks = |role: &&str| SPEAKERS.contains(&role.trim().to_lowercase().as_str());
    let of_tree = ["message_id", "parent_id"].iter().all(|key| map.contains_key(*key));
    let found = match map.get("role").and_then(Value::as_str).filter(speaks) {
        Some(role) => format!("`role` ({})", json::shorten(role)),
        None if of_tree => "`message_id` and `parent_id`".to_owned(),
        None => return Ok(()),
    };
    let what_to_do = match of_tree {
        true => format!("the file lists the messages of chat trees, as OpenAssistant's `.messages.jsonl` does; {WAYS}"),
        false => "make conversations (`messages`) of the turns".to_owned(),
    };
    Err(format!(
        "the row has {found}, so its text is one turn of a conversation, which would be learned as plain text: {what_to_do}; \
         or leave these keys out to learn each text by itself"
    ))
}

/// Advice for turning a tree of messages into rows.
const WAYS: &str = "write each way from a first message to a last reply, along `parent_id` or `replies`, as one row of \
                    `messages`: `text` is the content of a turn, and the role `prompter` is the user; of several replies \
                    that of `rank` 0 is the preferred one";

pub(super) const SUPPORTED: &str = "supported are `messages` (role/content), `conversations` (from/value), `prompt` + \
                                    `completion`, Alpaca (`instruction`, `input`, `output`), `text` and tokenized rows \
                                    (`input_ids`, optional `labels`)";

const OF_TURNS: &str =
    "a row is a whole conversation, the list of its turns in one object a line: {\"messages\": [...]}";

/// Values of a row that is text: a turn takes two kilobytes while it is rendered, however short it is.
pub(super) const MAX_TEXT_VALUES: usize = 1 << 19;

/// Refuses a row of text in so many pieces that they fill the memory.
pub(super) fn check_values(row: &Value, kind: RowKind) -> Result<(), String> {
    fn count(value: &Value) -> usize {
        match value {
            Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
            Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
            _ => 1,
        }
    }
    if kind == RowKind::Tokenized {
        return Ok(());
    }
    match count(row) {
        values if values > MAX_TEXT_VALUES => Err(format!(
            "the row has {values} values (turns with their keys, parts, tools), more than the {MAX_TEXT_VALUES} that a row of \
             text may have; split it"
        )),
        _ => Ok(()),
    }
}

/// True if a weight applies to the whole row.
fn of_row(key: &str, value: &Value) -> bool {
    weight::KEYS.contains(&key) && !value.is_array()
}

/// Bytes of the name of a task.
const MAX_TASK_BYTES: usize = 1000;

/// The task of a row, if it names one under `key`. A number counts as its text.
pub(super) fn task(map: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(task)) if task.trim().is_empty() => Ok(None),
        Some(Value::String(task)) if task.len() > MAX_TASK_BYTES => {
            Err(format!("`{key}` is a text of {} bytes; expected a name of at most {MAX_TASK_BYTES}", task.len()))
        }
        Some(Value::String(task)) => Ok(Some(task.trim().to_owned())),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(Some(value.to_string())),
        Some(other) => {
            Err(format!("`{key}` is {}; expected a string, a name of the row's {key}", json::describe(other)))
        }
    }
}

/// Tells the format of a row from its keys. A key that is null counts as missing: tables that were put together from
/// several formats hold nulls in the other formats' columns. If several formats fit, the one in `meant` is taken. The
/// error says what was found and what is supported.
pub(super) fn detect(row: &Value, meant: &[RowKind]) -> Result<RowKind, String> {
    let Value::Object(map) = row else {
        let whole = if holds_turns(row) { OF_TURNS } else { SUPPORTED };
        return Err(format!("expected a row (a JSON object), found {}; {whole}", json::describe(row)));
    };
    let has = |key: &&str| map.get(*key).is_some_and(|value| !value.is_null());
    let shown = |keys: &[&str]| keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(" + ");
    let is = |kind: &RowKind| kind.keys().iter().all(has);
    if let Some(kind) = meant.iter().copied().find(is) {
        return Ok(kind);
    }
    let mut found = RowKind::ALL.into_iter().filter(is);
    match (found.next(), found.next()) {
        (Some(kind), None) => Ok(kind),
        (Some(one), Some(two)) => Err(format!(
            "the row has both {} and {}, so its format is ambiguous; keep one of the two, or name the columns that are meant \
             ({} or {})",
            shown(one.keys()),
            shown(two.keys()),
            one.flags(),
            two.flags()
        )),
        (None, _) => {
            if let Some((key, why)) = of_other_meaning(map, false) {
                return Err(not_learned_here(map, key, why));
            }
            if map.get("prompt").is_some_and(|first| first.get("replies").is_some()) {
                return Err(format!(
                    "the row is a whole tree of messages with `replies`, as in OpenAssistant's `.trees.jsonl`, and no \
                     conversation; {WAYS}"
                ));
            }
            let half = RowKind::ALL.into_iter().find(|kind| kind.keys().iter().any(has));
            if let Some((half, missing)) = half.and_then(|kind| Some((kind, kind.keys().iter().find(|key| !has(key))?)))
            {
                let state = if map.contains_key(*missing) { "null" } else { "missing" };
                return Err(format!(
                    "`{missing}` is {state}; expected {} in {} {} row{}",
                    shown(half.keys()),
                    if half.name().starts_with('A') { "an" } else { "a" },
                    half.name(),
                    Columns::guess(map)
                ));
            }
            if let Some(null) = KNOWN_KEYS.iter().find(|key| map.get(**key).is_some_and(Value::is_null)) {
                return Err(format!("unknown kind of row: `{null}` is null; {SUPPORTED}"));
            }
            if is_turn(row) {
                return Err(format!(
                    "unknown kind of row: found the turn of a conversation ({}); {OF_TURNS}",
                    json::keys(map)
                ));
            }
            let is_split = ["columns", "index", "data"].iter().all(|key| map.get(*key).is_some_and(Value::is_array));
            if is_split || map.len() > 1 && map.values().all(is_column) {
                return Err(format!("unknown kind of row: found {}; {BY_COLUMNS}", json::describe(row)));
            }
            let is_no_row = |key: &&&str| map.get(**key).and_then(Value::as_array).is_some_and(Vec::is_empty);
            if let Some(list) = ROWS_UNDER.iter().find(is_no_row) {
                return Err(format!("the list under `{list}` is empty; expected the rows in it; {SUPPORTED}"));
            }
            Err(format!("unknown kind of row: found {}; {SUPPORTED}{}", json::describe(row), Columns::guess(map)))
        }
    }
}

/// Checks a tokenized row and returns its ids and labels (the ids themselves when there are no labels). Labels and
/// weights (none: 1 each) are not shifted: `labels[t]` is `input_ids[t]` or −100. An `attention_mask` must be all ones,
/// because rows are trained on without padding.
pub(super) fn tokenized(map: &Map<String, Value>, vocab_size: usize) -> Result<LabeledIds, String> {
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
    if map.get("position_ids").is_some_and(|value| !value.is_null()) {
        let positions = integers(map, "position_ids", &|_| true, String::new)?;
        if !positions.iter().copied().eq(0..ids.len() as i64) {
            return Err("`position_ids` must count from 0 to the end of the row; give packed rows one by one".into());
        }
    }
    let mut labels = match map.get("labels") {
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
    let mut weights = vec![1.0; ids.len()];
    for (key, mask) in MASKS.into_iter().filter_map(|key| Some((key, map.get(key)?))) {
        if mask.is_null() || of_row(key, mask) {
            continue;
        }
        let mask = weight::of_tokens(key, mask, ids.len())?;
        weights.iter_mut().zip(mask).for_each(|(weight, entry)| *weight *= entry);
    }
    labels.iter_mut().zip(&weights).filter(|(_, weight)| **weight == 0.0).for_each(|(label, _)| *label = -100);
    let ids = ids.into_iter().map(|id| id as u32).collect();
    Ok((ids, labels.into_iter().map(|label| label as i32).collect(), weights))
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
