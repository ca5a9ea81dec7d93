//! Columns under other names: those that the settings name, and guesses for those that people usually have.

use serde_json::{Map, Value};

use super::json;
use super::rows::{KNOWN_KEYS, OTHER_MEANING, TASK};
use super::weight;

/// The columns that hold prompt and completion, where the settings name them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    pub prompt: Option<String>,
    pub completion: Option<String>,
}

/// Names that data sets have for a prompt and its completion.
const PAIRS: [(&str, &str); 18] = [
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("prompt", "response"),
    ("prompt", "answer"),
    ("prompt", "output"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("input", "response"),
    ("problem", "solution"),
    ("source", "target"),
    ("context", "response"),
    ("user", "assistant"),
];

impl Columns {
    /// Whether a column of a table is read.
    pub(super) fn reads(&self, name: &str) -> bool {
        KNOWN_KEYS.contains(&name)
            || OTHER_MEANING.contains(&name)
            || weight::KEYS.contains(&name)
            || name == TASK
            || [&self.prompt, &self.completion].into_iter().flatten().any(|column| column == name)
    }

    /// Whether a column makes a row of some format.
    pub(super) fn makes_rows(&self, name: &str) -> bool {
        self.reads(name) && name != TASK && !weight::KEYS.contains(&name)
    }

    /// The row with its columns under the names that are known here.
    pub(super) fn renamed(&self, row: Value) -> Result<Value, String> {
        if self.prompt.is_none() && self.completion.is_none() {
            return Ok(row);
        }
        let Value::Object(mut map) = row else { return Ok(row) };
        // A chat row in between keeps its format.
        if ["messages", "conversations"].iter().any(|key| map.get(*key).is_some_and(Value::is_array)) {
            return Ok(Value::Object(map));
        }
        for (column, name) in [(&self.prompt, "prompt"), (&self.completion, "completion")] {
            let Some(column) = column.as_ref().filter(|column| *column != name) else { continue };
            let Some(value) = map.shift_remove(column) else {
                let keys = json::keys(&map);
                return Err(format!(
                    "the row has no `{column}`, the column of {name}s by `{name}_column`; found the keys {keys}"
                ));
            };
            map.insert(name.to_owned(), value);
        }
        // What would make the row one of another format is no part of it.
        for key in ["instruction", "input", "output", "text", "history"] {
            map.shift_remove(key);
        }
        Ok(Value::Object(map))
    }

    /// The settings that would read such a row, in words.
    pub(super) fn guess(map: &Map<String, Value>) -> String {
        let text = |key: &str| map.get(key).is_some_and(Value::is_string);
        let pair = PAIRS.into_iter().find(|(prompt, completion)| text(prompt) && text(completion));
        pair.map_or_else(String::new, |pair| guessed(pair))
    }

    /// As [`guess`](Self::guess), from the names of a table's columns.
    pub(super) fn guess_names(names: &[&str]) -> String {
        let pair = PAIRS.into_iter().find(|(prompt, completion)| names.contains(prompt) && names.contains(completion));
        pair.map_or_else(String::new, |pair| guessed(pair))
    }
}

fn guessed((prompt, completion): (&str, &str)) -> String {
    let flag = |of: &str, column: &str| match of == column {
        true => String::new(),
        false => format!(" --{of}-column {column}"),
    };
    let flags = flag("prompt", prompt) + &flag("completion", completion);
    format!("; did you mean `{}`?", flags.trim())
}
