//! Columns by other names: their keys in a row are renamed before the row's form is told.

use serde_json::{Map, Value};

use super::keys::{KNOWN_KEYS, OTHER_MEANING, TASK};
use super::weight;

/// Key of a row, and the name by which it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, &'static str)>);

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
    /// `prompt` and `completion` are those of an Alpaca row where there is a column of inputs.
    pub fn new(
        prompt: Option<&str>,
        completion: Option<&str>,
        input: Option<&str>,
        system: Option<&str>,
        messages: Option<&str>,
        text: Option<&str>,
    ) -> Self {
        let alpaca = input.is_some() || prompt == Some("instruction") || completion == Some("output");
        let named = [
            (prompt, if alpaca { "instruction" } else { "prompt" }),
            (completion, if alpaca { "output" } else { "completion" }),
            (input, "input"),
            (system, "system"),
            (messages.filter(|name| *name != "conversations"), "messages"),
            (text, "text"),
        ];
        Self(named.into_iter().filter_map(|(theirs, ours)| Some((theirs?.to_owned(), ours))).collect())
    }

    /// Whether a column of a table is read.
    pub(super) fn reads(&self, name: &str) -> bool {
        KNOWN_KEYS.contains(&name)
            || OTHER_MEANING.contains(&name)
            || weight::KEYS.contains(&name)
            || name == TASK
            || self.0.iter().any(|(column, _)| column == name)
    }

    /// Whether a column makes a row of some format.
    pub(super) fn makes_rows(&self, name: &str) -> bool {
        self.reads(name) && name != TASK && !weight::KEYS.contains(&name)
    }

    /// The settings that would read such a row, in words.
    pub(super) fn guess(map: &Map<String, Value>) -> String {
        let text = |key: &str| map.get(key).is_some_and(Value::is_string);
        let pair = PAIRS.into_iter().find(|(prompt, completion)| text(prompt) && text(completion));
        pair.map_or_else(String::new, guessed)
    }

    /// Like [`guess`](Self::guess), from the names of a table's columns.
    pub(super) fn guess_names(names: &[&str]) -> String {
        let pair = PAIRS.into_iter().find(|(prompt, completion)| names.contains(prompt) && names.contains(completion));
        pair.map_or_else(String::new, guessed)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The row with its columns under the known names. The error names a column that the row lacks.
    pub(super) fn renamed(&self, mut row: Value) -> Result<Value, String> {
        if let Value::Object(map) = &mut row {
            for (theirs, ours) in self.0.iter().filter(|(theirs, ours)| theirs != ours) {
                let Some(value) = map.remove(theirs) else {
                    if matches!(*ours, "input" | "system") {
                        continue;
                    }
                    let found = map.keys().take(12).map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                    return Err(format!("the column `{theirs}` is missing; found {found}"));
                };
                // Turns of `from` and `value` are ShareGPT's.
                let share_gpt = *ours == "messages" && value.pointer("/0/from").is_some();
                map.insert(if share_gpt { "conversations" } else { ours }.to_owned(), value);
            }
        }
        Ok(row)
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_renamed_and_a_missing_one_is_named() {
        let columns = Columns::new(Some("question"), Some("answer"), None, None, None, None);
        let row = json!({"question": "2+2?", "answer": "4", "id": 7});
        assert_eq!(columns.renamed(row).unwrap(), json!({"prompt": "2+2?", "completion": "4", "id": 7}));
        let error = columns.renamed(json!({"question": "2+2?", "reply": "4"})).unwrap_err();
        assert!(error.contains("`answer` is missing") && error.contains("`reply`"), "{error}");
        let alpaca = Columns::new(Some("task"), Some("out"), Some("about"), None, None, None);
        let row = alpaca.renamed(json!({"task": "a", "out": "b"})).unwrap();
        assert_eq!(row, json!({"instruction": "a", "output": "b"}));
        let turns = Columns::new(None, None, None, None, Some("talk"), None);
        let row = turns.renamed(json!({"talk": [{"from": "human", "value": "x"}]})).unwrap();
        assert!(row.get("conversations").is_some());
        assert!(turns.renamed(json!({"talk": [{"role": "user", "content": "x"}]})).unwrap().get("messages").is_some());
    }
}
