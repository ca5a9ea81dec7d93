//! LLaMA-Factory's `dataset`: names that `dataset_info.json` of `dataset_dir` explains, with commas between them.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::role_names::RoleNames;
use super::yaml::{Entry, Value};
use crate::files::home::expand_home;
use crate::hub::DataSetId;

/// LLaMA-Factory's default of `dataset_dir`.
pub const DEFAULT_DIR: &str = "data";

/// The file of a directory that explains its names. Errors: it is there and is no object.
fn read_info(dir: &Path) -> Result<Map<String, Json>, String> {
    let path = dir.join("dataset_info.json");
    let Ok(text) = std::fs::read(&path) else { return Ok(Map::new()) };
    serde_json::from_slice(&text).map_err(|error| format!("{} is no JSON object: {error}", path.display()))
}

/// A value of `dataset` as data sets with paths, and what should be told. Errors: a name that neither a file nor
/// `dataset_info.json` has, or one that stands for what is not trained on.
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
                    let shown = name.escape_debug();
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
                    let shown = name.escape_debug();
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

/// Whether a text is rather a name than a path or an id of the hub.
fn is_name(text: &str) -> bool {
    let is_path = expand_home(Path::new(text)).exists() || Path::new(text).extension().is_some();
    !is_path && !text.contains(['/', '*', '?']) && !matches!(DataSetId::parse(text), Ok(Some(_)))
}

/// A key of `dataset_info.json`, the one of a data set here, and the names that are found without one, by form.
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

/// Whether rows may have a column: false only where their file, JSON that is read whole, nowhere has the name.
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

/// Columns of what is not trained on.
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
        // One name of a group alone would be of another form than the rest.
        if !(0..2).any(is_found) {
            named.into_iter().for_each(|((_, ours, _), name)| say(ours, Value::text(name)));
        }
    }
    let file = text(info, "file_name").filter(|_| text(info, "hf_hub_url").is_none()).map(|file| dir.join(file));
    for key in ONLY {
        let Some(column) = text(columns, key).filter(|column| column != key) else { continue };
        if file.as_deref().is_none_or(|file| may_have(file, &column)) {
            let column = column.escape_debug();
            return Err(format!(
                "has the column `{column}` for `{key}` in dataset_info.json, which is read by the name `{key}` alone: \
                 call it `{key}` in the rows and in dataset_info.json"
            ));
        }
    }
    let mut roles = Vec::new();
    for (key, role) in ROLES {
        let Some(name) = text(tags, key) else { continue };
        let shown = name.escape_debug().to_string();
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
mod tests {
    use super::*;

    fn sets(value: &str, dir: &Path) -> Result<Vec<String>, String> {
        let Value::List(sets) = data_sets(&Value::text(value), dir.to_str().unwrap())?.0 else { panic!("{value}") };
        let shown = |entry: &Entry| format!("{}={}", entry.key, entry.value.to_string().trim_matches('`'));
        let set = |set: &Value| match set {
            Value::Map(entries) => entries.iter().map(shown).collect::<Vec<_>>().join(" "),
            one => one.to_string().trim_matches('`').to_owned(),
        };
        Ok(sets.iter().map(set).collect())
    }

    #[test]
    fn names_of_dataset_info_are_its_files_and_columns() {
        let dir = tempfile::tempdir().unwrap();
        let at = |file: &str| dir.path().join(file).display().to_string();
        let info = r#"{
            "plain": {"file_name": "a.json"},
            "named": {"file_name": "b.json", "formatting": "sharegpt", "num_samples": 9,
                      "columns": {"messages": "talk", "system": "system", "tools": "tools"},
                      "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "human", "assistant_tag": "gpt"}},
            "asked": {"file_name": "c.json", "columns": {"prompt": "question", "response": "answer"}},
            "half": {"file_name": "h.json", "columns": {"prompt": "instruction", "query": "input",
                     "response": "answer", "messages": "messages"}},
            "turns": {"file_name": "i.json", "tags": {"role_tag": "from", "content_tag": "content"}},
            "roles_by_name": {"file_name": "j.json", "tags": {"role_tag": "role", "content_tag": "content"}},
            "hub": {"hf_hub_url": "org/rows", "subset": "main", "split": "test", "file_name": "x.json"},
            "whole": {"hf_hub_url": "org/rows", "num_samples": 0},
            "empty": {"file_name": "g.json", "columns": {"query": "", "history": "", "images": ""},
                      "tags": {"user_tag": ""}},
            "pairs": {"file_name": "d.json", "ranking": true},
            "seen": {"file_name": "e.json", "columns": {"images": "images"}},
            "roles": {"file_name": "f.json", "tags": {"user_tag": "guest"}},
            "swapped": {"file_name": "f.json", "tags": {"user_tag": "gpt"}},
            "alike": {"file_name": "f.json", "tags": {"user_tag": "guest", "assistant_tag": "guest"}},
            "tools": {"file_name": "k.json", "columns": {"tools": "utilities", "history": "before"}},
            "past": {"file_name": "k.json", "columns": {"tools": "tools", "history": "earlier"}},
            "called": {"file_name": "a.json", "columns": {"tools": "utilities"}},
            "lacks": {"file_name": "k.json", "columns": {"tools": "devices", "history": "before"}},
            "long": {"file_name": "k.json", "columns": {"history": "history"}},
            "nowhere": {"script_url": "x"}
        }"#;
        std::fs::write(dir.path().join("dataset_info.json"), info).unwrap();
        std::fs::write(dir.path().join("k.json"), r#"[{"utilities": "[]", "earlier": []}]"#).unwrap();
        assert_eq!(sets("plain", dir.path()).unwrap(), [format!("path={}", at("a.json"))]);
        // No row has these columns.
        assert_eq!(sets("lacks", dir.path()).unwrap(), [format!("path={}", at("k.json"))]);
        let roles = "roles=a section with the key `user";
        let told = |name: &str| data_sets(&Value::text(name), dir.path().to_str().unwrap()).unwrap().1;
        assert!(told("plain").is_empty() && told("empty").is_empty());
        assert!(told("long")[0].contains("`long`: LLaMA-Factory learns the answers in `history`"));
        let named =
            format!("max_samples=9 field_messages=talk message_field_role=who message_field_content=said {roles}");
        let asked = "field_instruction=question field_output=answer";
        assert_eq!(
            sets("named, asked,hub", dir.path()).unwrap(),
            [
                format!("path={} {named}", at("b.json")),
                format!("path={} {asked}", at("c.json")),
                "path=org/rows name=main split=test".to_owned()
            ]
        );
        assert_eq!(
            sets("half,turns,roles_by_name", dir.path()).unwrap(),
            [
                format!("path={} field_instruction=instruction field_input=input field_output=answer", at("h.json")),
                format!("path={} message_field_role=from message_field_content=content", at("i.json")),
                format!("path={}", at("j.json"))
            ]
        );
        assert_eq!(sets("roles", dir.path()).unwrap(), [format!("path={} {roles}", at("f.json"))]);
        assert_eq!(
            sets("whole,empty", dir.path()).unwrap(),
            ["path=org/rows split=train".to_owned(), format!("path={}", at("g.json"))]
        );
        assert_eq!(sets("rows/a.jsonl,org/other", dir.path()).unwrap(), ["rows/a.jsonl", "org/other"]);
        for (name, words) in [
            ("pairs", "preferences"),
            ("seen", "a column of images"),
            ("swapped", "has the `user_tag` `gpt` in dataset_info.json, expected another name for `user` than `gpt`"),
            ("alike", "has the `assistant_tag` `guest` in dataset_info.json, expected `guest` as a name of one role"),
            ("tools", "has the column `utilities` for `tools` in dataset_info.json"),
            ("past", "has the column `earlier` for `history` in dataset_info.json"),
            // The file is not there, so nothing is known of its rows.
            ("called", "call it `tools` in the rows and in dataset_info.json"),
            ("nowhere", "neither `file_name` nor"),
            ("plain,mine", "found `mine`, which is no file, and no name in"),
        ] {
            let error = sets(name, dir.path()).unwrap_err();
            assert!(error.contains(words), "{name}: {error}");
        }
        std::fs::write(dir.path().join("dataset_info.json"), "[]").unwrap();
        assert!(sets("plain", dir.path()).unwrap_err().contains("is no JSON object"));
    }
}
