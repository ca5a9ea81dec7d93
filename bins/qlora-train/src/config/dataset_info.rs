//! LLaMA-Factory's `dataset`: comma-separated names that `dataset_info.json` of `dataset_dir` explains.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::role_names::RoleNames;
use super::suggest::shortened;
use super::yaml::{Entry, Value};
use crate::files::home::expand_home;
use crate::files::json::{MAX_CONFIG_BYTES, read_bounded};
use crate::files::regular::is_there;
use crate::hub::DataSetId;

/// LLaMA-Factory's default of `dataset_dir`.
pub const DEFAULT_DIR: &str = "data";

/// The file of a directory that explains its names. Errors: it is there and is no object.
fn read_info(dir: &Path) -> Result<Map<String, Json>, String> {
    let path = dir.join("dataset_info.json");
    if !is_there(&path).map_err(|error| error.to_string())? {
        return Ok(Map::new());
    }
    let text = read_bounded(&path, MAX_CONFIG_BYTES).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| format!("{} is no JSON object: {error}", path.display()))
}

/// A value of `dataset` as data sets with paths, and notes for the user. Errors: a name that neither a file nor
/// `dataset_info.json` has, or one of data that cannot be trained on.
pub fn data_sets(value: &Value, dir: &str) -> Result<(Value, Vec<String>), String> {
    let texts: Vec<&String> = match value {
        Value::Str(text) => vec![text],
        Value::List(items) if items.iter().all(|item| matches!(item, Value::Str(_))) => {
            items.iter().filter_map(|item| if let Value::Str(text) = item { Some(text) } else { None }).collect()
        }
        other => return Ok((other.clone(), Vec::new())),
    };
    let dir = expand_home(Path::new(dir));
    let info = read_info(&dir)?;
    let (mut sets, mut notes) = (Vec::new(), Vec::new());
    for text in texts {
        // A comma may be part of a file's name.
        let names: Vec<&str> = match expand_home(Path::new(text)).exists() {
            true => vec![text.as_str()],
            false => text.split(',').map(str::trim).filter(|name| !name.is_empty()).collect(),
        };
        for name in names {
            sets.push(match info.get(name).and_then(Json::as_object) {
                Some(entry) => {
                    let shown = shortened(name);
                    if let Some(rows) = num_samples(entry) {
                        let told = "LLaMA-Factory draws them, and repeats some where there are fewer";
                        notes.push(format!("`{shown}`: `num_samples: {rows}` are the first {rows} rows here; {told}"));
                    }
                    let history = entry.get("columns").and_then(|columns| columns.get("history"));
                    if history.and_then(Json::as_str).is_some_and(|name| !name.is_empty()) {
                        let told = "LLaMA-Factory learns the answers in `history` too; here nothing of it is learned";
                        notes.push(format!("`{shown}`: {told}"));
                    }
                    data_set(entry, &dir).map_err(|why| format!("`{shown}` {why}"))?
                }
                None if is_name(name) => {
                    let shown = shortened(name);
                    let file = dir.join("dataset_info.json");
                    return Err(format!(
                        "found `{shown}`, which is no file, and no name in {}: give the path of its rows, such as \
                         `dataset: data/{shown}.json`",
                        file.display()
                    ));
                }
                None => Value::text(name),
            });
        }
    }
    Ok((Value::List(sets), notes))
}

/// The count of rows that an entry asks for.
fn num_samples(info: &Map<String, Json>) -> Option<u64> {
    info.get("num_samples").and_then(Json::as_u64).filter(|rows| *rows > 0)
}

/// True if a text looks like a name, not like a path or an id of the hub.
fn is_name(text: &str) -> bool {
    let is_path = expand_home(Path::new(text)).exists() || Path::new(text).extension().is_some();
    !is_path && !text.contains(['/', '*', '?']) && !matches!(DataSetId::parse(text), Ok(Some(_)))
}

/// A key of `dataset_info.json`, the key of a data set here, and the column names that are found without it, for each
/// form of rows.
type Named = (&'static str, &'static str, &'static [&'static str]);

/// Columns that are read together
const INSTRUCTIONS: [Named; 3] = [
    ("prompt", "field_instruction", &["instruction"]),
    ("query", "field_input", &["input"]),
    ("response", "field_output", &["output"]),
];
const MESSAGES: [Named; 1] = [("messages", "field_messages", &["messages", "conversations"])];
const SYSTEM: [Named; 1] = [("system", "field_system", &["system"])];

/// Columns that can have one name.
const ONLY: [&str; 2] = ["history", "tools"];

/// Bytes of a file that is searched for the name of a column.
const MAX_SEARCHED: u64 = 64 << 20;

/// True if rows may have a column: false only where their file, JSON that is read whole, nowhere has the name.
fn may_have(file: &Path, column: &str) -> bool {
    let is_plain = column.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let is_json = file.extension().is_some_and(|end| end == "json" || end == "jsonl");
    let is_short = std::fs::metadata(file).is_ok_and(|file| file.is_file() && file.len() <= MAX_SEARCHED);
    if !(is_plain && is_json && is_short) {
        return true;
    }
    let Ok(text) = std::fs::read(file) else { return true };
    let key = format!("\"{column}\"");
    text.windows(key.len()).any(|part| part == key.as_bytes())
}

/// Columns of other tasks, which are not trained.
const OTHER_TASKS: [&str; 6] = ["images", "videos", "audios", "chosen", "rejected", "kto_tag"];

/// Keys of turns
const TURN_KEYS: [Named; 2] = [
    ("role_tag", "message_field_role", &["from", "role"]),
    ("content_tag", "message_field_content", &["value", "content"]),
];

/// Names of roles.
const ROLES: &[(&str, &str)] = &[
    ("user_tag", "user"),
    ("assistant_tag", "assistant"),
    ("system_tag", "system"),
    ("observation_tag", "tool"),
    ("function_tag", "function_call"),
];

/// One data set of `dataset_info.json`, with the keys that data sets have here.
fn data_set(info: &Map<String, Json>, dir: &Path) -> Result<Value, String> {
    // An empty name is none.
    let text = |of: &Map<String, Json>, key: &str| {
        of.get(key).and_then(Json::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let mut entries: Vec<Entry> = Vec::new();
    let mut say = |key: &str, value: Value| entries.push(Entry { key: key.to_owned(), line: 0, value });
    if info.get("ranking").is_some_and(|ranking| *ranking == Json::Bool(true)) {
        return Err("holds preferences (`ranking`), which are not trained on".to_owned());
    }
    // LLaMA-Factory looks at them in this order.
    if let Some(id) = text(info, "hf_hub_url") {
        say("path", Value::text(id));
        text(info, "subset").into_iter().for_each(|subset| say("name", Value::text(subset)));
        // Rows to validate on are not taken from the hub there.
        say("split", Value::text(text(info, "split").unwrap_or_else(|| "train".to_owned())));
    } else if let Some(file) = text(info, "file_name") {
        say("path", Value::text(dir.join(file).display().to_string()));
    } else {
        return Err(
            "has neither `file_name` nor `hf_hub_url` in dataset_info.json: give the path of its rows".to_owned()
        );
    }
    if let Some(rows) = num_samples(info) {
        say("max_samples", Value::Int(rows.into()));
    }
    let none = Map::new();
    let columns = info.get("columns").and_then(Json::as_object).unwrap_or(&none);
    let tags = info.get("tags").and_then(Json::as_object).unwrap_or(&none);
    if let Some(column) = OTHER_TASKS.iter().find(|column| text(columns, column).is_some()) {
        return Err(format!("has a column of {column} in dataset_info.json, which are not trained on"));
    }
    let groups =
        [(columns, &INSTRUCTIONS[..]), (columns, &MESSAGES[..]), (columns, &SYSTEM[..]), (tags, &TURN_KEYS[..])];
    for (of, group) in groups {
        let named: Vec<(&Named, String)> = group.iter().filter_map(|row| Some((row, text(of, row.0)?))).collect();
        let is_found = |form: usize| named.iter().all(|((.., found), name)| found.get(form) == Some(&name.as_str()));
        // A single column of a group would make another form of rows.
        if !(0..2).any(is_found) {
            named.into_iter().for_each(|((_, ours, _), name)| say(ours, Value::text(name)));
        }
    }
    let file = text(info, "file_name").filter(|_| text(info, "hf_hub_url").is_none()).map(|file| dir.join(file));
    for key in ONLY {
        let Some(column) = text(columns, key).filter(|column| column != key) else { continue };
        if file.as_deref().is_none_or(|file| may_have(file, &column)) {
            let column = shortened(&column);
            return Err(format!(
                "has the column `{column}` for `{key}` in dataset_info.json, which is read by the name `{key}` alone: \
                 call it `{key}` in the rows and in dataset_info.json"
            ));
        }
    }
    let mut roles = Vec::new();
    for (key, role) in ROLES {
        let Some(name) = text(tags, key) else { continue };
        let shown = shortened(&name);
        roles.push(Entry { key: (*role).to_owned(), line: 0, value: Value::text(name) });
        RoleNames::of(&Value::Map(roles.clone()))
            .map_err(|expected| format!("has the `{key}` `{shown}` in dataset_info.json, expected {expected}"))?;
    }
    if !roles.is_empty() {
        entries.push(Entry { key: "roles".to_owned(), line: 0, value: Value::Map(roles) });
    }
    Ok(Value::Map(entries))
}

#[cfg(test)]
mod tests;
