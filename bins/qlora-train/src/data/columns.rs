//! Columns by other names: their keys in a row are renamed before the row's form is told.

use serde_json::Value;

/// Key of a row, and the name by which it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, &'static str)>);

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
