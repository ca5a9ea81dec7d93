//! Axolotl's `datasets: [{path, type, …}]`: where the rows are, and what the keys beside say about columns and
//! template.

use std::path::PathBuf;

use super::compat::Implied;
use super::types::{Reject, SettingValue, is_off, is_unset};
use super::yaml::{Entry, Value};

/// Keys that hold a path.
const PATHS: [&str; 3] = ["path", "data_files", "file"];
/// Values of `path` that say how to read `data_files`.
const READERS: [&str; 5] = ["json", "jsonl", "parquet", "csv", "text"];

/// Keys of a data set that are accepted with these values, or where they are off.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("ds_type", &["json", "jsonl", "parquet", "csv", "arrow", "text"]),
    ("split", &["train"]),
    ("field_tools", &["tools"]),
    ("field_thinking", &["reasoning_content", "thinking", "reasoning"]),
    ("template_thinking_key", &["reasoning_content", "thinking", "reasoning"]),
    ("message_field_role", &["role", "from"]),
    ("message_field_content", &["content", "value"]),
    ("message_field_training", &["train", "training", "trainable", "weight", "loss_weight", "loss_mask"]),
    ("message_field_training_detail", &["train_detail"]),
    ("roles_to_train", &["assistant", "gpt"]),
    ("train_on_eos", &["turn"]),
    ("train_on_eot", &["turn"]),
    ("conversation", &["chatml"]),
    ("name", &["default", "main"]),
    ("revision", &["main"]),
];
/// Keys of a data set that change nothing.
const NO_EFFECT: [&str; 4] = ["trust_remote_code", "preprocess_shards", "temperature", "description"];

/// Keys of a data set, or of its `type`, and the setting that they speak of.
const COLUMNS: &[(&str, &str)] = &[
    ("field_messages", "messages_column"),
    ("field_conversations", "messages_column"),
    ("field", "text_column"),
    ("field_instruction", "prompt_column"),
    ("field_output", "completion_column"),
    ("field_input", "input_column"),
    ("field_system", "system_column"),
    ("field_human", "prompt_column"),
    ("field_model", "completion_column"),
];

/// Files of rows, or Axolotl's `datasets: [{path, type}]`.
impl SettingValue for Vec<PathBuf> {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        match value {
            Value::List(items) => items.iter().map(|item| data_set(item).map(|(path, _)| path)).collect(),
            value if is_unset(value) => Ok(Vec::new()),
            one => Ok(vec![data_set(one)?.0]),
        }
    }
    fn json(&self) -> serde_json::Value {
        self.iter().map(PathBuf::json).collect()
    }
}

/// The other settings that the data sets speak of.
pub fn data_implies(value: &Value) -> Result<Vec<Implied>, Reject> {
    let items = match value {
        Value::List(items) => items.iter().collect(),
        one => vec![one],
    };
    let mut all = Vec::new();
    for item in items.into_iter().filter(|item| matches!(item, Value::Map(_))) {
        all.extend(data_set(item)?.1);
    }
    Ok(all)
}

fn data_set(value: &Value) -> Result<(PathBuf, Vec<Implied>), Reject> {
    let Value::Map(entries) = value else { return Ok((PathBuf::read(value)?, Vec::new())) };
    let mut implied = Vec::new();
    let mut path: Option<PathBuf> = None;
    let files = entries.iter().find(|entry| entry.key == "data_files" && !is_unset(&entry.value));
    for entry in entries {
        let (key, value) = (entry.key.as_str(), &entry.value);
        let reader = matches!(value, Value::Str(text) if READERS.contains(&text.as_str()));
        match key {
            "path" if files.is_some() && reader => {}
            _ if PATHS.contains(&key) => {
                if is_unset(value) {
                    continue;
                }
                let one = match value {
                    Value::List(items) if items.len() == 1 => &items[0],
                    value => value,
                };
                if path.replace(PathBuf::read(one)?).is_some() {
                    return Err(Reject::Because("found two paths in one data set, expected one `path` in each".into()));
                }
            }
            "type" => implied.extend(row_type(value)?),
            "message_property_mappings" => property_mappings(value)?,
            _ => implied.extend(other(entry)?),
        }
    }
    let missing = || Reject::Because("found a data set without `path`, expected the `path` of a file".into());
    Ok((path.ok_or_else(missing)?, implied))
}

fn not_supported(key: &str, value: &Value, expected: &str) -> Reject {
    let found = value.to_string();
    let (key, found) = (key.escape_debug(), found.trim_matches('`'));
    Reject::Because(format!("`{key}: {found}` of a data set is not supported yet, expected {expected}"))
}

/// The form of the rows is found from the rows themselves; the type still says which template writes them.
fn row_type(value: &Value) -> Result<Vec<Implied>, Reject> {
    if is_unset(value) {
        return Ok(Vec::new());
    }
    if let Value::Map(entries) = value {
        let mut implied = Vec::new();
        for entry in entries {
            match (entry.key.as_str(), &entry.value) {
                ("format" | "no_input_format", Value::Str(text))
                    if ["", "{instruction}", "{instruction} {input}", "{instruction}\n{input}"]
                        .contains(&text.trim()) => {}
                ("format" | "no_input_format" | "system_format" | "system_prompt", value) if is_off(value) => {}
                ("system_format", Value::Str(text)) if text.trim() == "{system}" => {}
                ("format" | "no_input_format" | "system_format" | "system_prompt", value) => {
                    let expected = format!("no `{}`: the chat template writes the prompt", entry.key);
                    return Err(not_supported(&entry.key, value, &expected));
                }
                _ => implied.extend(other(entry)?),
            }
        }
        return Ok(implied);
    }
    let text = String::read(value)?;
    match text.trim() {
        alpaca if alpaca.split(['.', ':', '_']).next() == Some("alpaca") => Ok(vec![Implied {
            note: "`type: alpaca`: rows are written by the alpaca template, as Axolotl writes them; `chat_template` \
                   chooses another",
            ..Implied::weak("chat_template", Value::text("alpaca"))
        }]),
        "chat_template" | "completion" | "sharegpt" | "text" => Ok(Vec::new()),
        _ => Err(not_supported(
            "type",
            value,
            "`chat_template`, `alpaca`, `completion` or no `type`: the form of the rows is found from the rows themselves",
        )),
    }
}

fn property_mappings(value: &Value) -> Result<(), Reject> {
    let Value::Map(entries) = value else {
        return if is_unset(value) { Ok(()) } else { Err(Reject::Wrong) };
    };
    for Entry { key, value, .. } in entries {
        let known = match (key.as_str(), value) {
            ("role", Value::Str(name)) => name == "role" || name == "from",
            ("content", Value::Str(name)) => name == "content" || name == "value",
            (key, Value::Str(name)) => key == name,
            _ => is_off(value),
        };
        if !known {
            let expected = "turns of `role` and `content`, or of `from` and `value`";
            return Err(not_supported(&format!("message_property_mappings.{key}"), value, expected));
        }
    }
    Ok(())
}

fn other(entry: &Entry) -> Result<Option<Implied>, Reject> {
    let (key, value) = (entry.key.as_str(), &entry.value);
    if NO_EFFECT.contains(&key) || is_unset(value) {
        return Ok(None);
    }
    if let Some((_, setting)) = COLUMNS.iter().find(|(name, _)| *name == key) {
        return Ok(Some(Implied::new(setting, value.clone())));
    }
    if key == "chat_template" || key == "chat_template_jinja" {
        return Ok(Some(Implied::new("chat_template", value.clone())));
    }
    if let Some((_, accepted)) = NEUTRAL.iter().find(|(name, _)| *name == key) {
        let listed = |value: &Value| matches!(value, Value::Str(text) if accepted.contains(&text.as_str()));
        let all = match value {
            Value::List(items) => items.iter().all(listed),
            value => listed(value) || is_off(value),
        };
        return match all {
            true => Ok(None),
            false => Err(not_supported(key, value, &format!("`{}` or no `{key}`", accepted.join("` or `")))),
        };
    }
    const OFF: [&str; 11] = [
        "shards",
        "shards_idx",
        "roles",
        "drop_system_message",
        "split_thinking",
        "logprobs_field",
        "input_transform",
        "input_format",
        "split_thinking_key",
        "skip",
        "max_steps",
    ];
    if OFF.contains(&key) {
        return if is_off(value) { Ok(None) } else { Err(not_supported(key, value, &format!("no `{key}`"))) };
    }
    let key = key.escape_debug();
    Err(Reject::Because(format!("found the unknown key `{key}` in a data set, expected `path`")))
}
