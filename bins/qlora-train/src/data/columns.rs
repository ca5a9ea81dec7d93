//! Columns by other names: their keys in a row are renamed before the row's form is told.

use serde_json::{Map, Value};

use super::keys::{ADAPTER, KNOWN_KEYS, TASK, compares, is_of_other_meaning};
use super::row_kind::RowKind;
use super::unused::may_be_flag;
use super::weight;

/// Key of a row, and the name by which it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    renamed: Vec<(String, &'static str)>,
    /// The formats that these columns make.
    meant: Vec<RowKind>,
}

/// Words of columns that ask, the likeliest first.
const ASKS: [&str; 17] = [
    "question",
    "query",
    "prompt",
    "instruction",
    "input",
    "inputs",
    "problem",
    "source",
    "src",
    "user",
    "human",
    "request",
    "ask",
    "q",
    "context",
    "goal",
    "title",
];
/// Words of columns that answer.
const ANSWERS: [&str; 17] = [
    "answer",
    "answers",
    "response",
    "completion",
    "output",
    "outputs",
    "solution",
    "target",
    "targets",
    "tgt",
    "assistant",
    "bot",
    "reply",
    "gold",
    "result",
    "summary",
    "a",
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
        let pair = if alpaca { RowKind::Alpaca } else { RowKind::PromptCompletion };
        let meant = [
            (prompt.is_some() || completion.is_some(), &[pair][..]),
            (messages.is_some(), &[RowKind::Messages, RowKind::ShareGpt]),
            (text.is_some(), &[RowKind::Text]),
        ];
        Self {
            renamed: named.into_iter().filter_map(|(theirs, ours)| Some((theirs?.to_owned(), ours))).collect(),
            meant: meant.into_iter().filter(|(is, _)| *is).flat_map(|(_, kinds)| kinds).copied().collect(),
        }
    }

    /// These columns, of rows that are meant in this format where they could have several.
    pub fn meaning(mut self, kind: RowKind) -> Self {
        self.meant.push(kind);
        self
    }

    /// The formats that are meant where a row has several.
    pub(super) fn meant(&self) -> &[RowKind] {
        &self.meant
    }

    /// Whether a column of a table is read.
    pub(super) fn reads(&self, name: &str) -> bool {
        KNOWN_KEYS.contains(&name)
            || is_of_other_meaning(name)
            || compares(name)
            || weight::KEYS.contains(&name)
            || [TASK, ADAPTER].contains(&name)
            || self.renamed.iter().any(|(column, _)| column == name)
    }

    /// Whether a column is read where it holds numbers or truth values, to be warned of: nothing follows it.
    pub(super) fn warns_of(&self, name: &str) -> bool {
        !self.reads(name) && may_be_flag(name)
    }

    /// Whether a column makes a row of some format.
    pub(super) fn makes_rows(&self, name: &str) -> bool {
        let is_beside = [TASK, ADAPTER].contains(&name) || weight::KEYS.contains(&name);
        self.reads(name) && !is_beside && (!compares(name) || is_of_other_meaning(name))
    }

    /// The settings that would read such a row, in words.
    pub(super) fn guess(map: &Map<String, Value>) -> String {
        let of = |is: fn(&Value) -> bool| map.iter().filter(move |(_, value)| is(value)).map(|(key, _)| key.as_str());
        let texts: Vec<&str> = of(Value::is_string).collect();
        let guess = Self::guess_names(&texts);
        if !guess.is_empty() {
            return guess;
        }
        if let Some(turns) = of(holds_turns).next() {
            return did_you_mean(&flag("messages", turns));
        }
        match texts[..] {
            [text] if !KNOWN_KEYS.contains(&text) => did_you_mean(&flag("text", text)),
            _ => String::new(),
        }
    }

    /// Like [`guess`](Self::guess), from the names of a table's columns.
    pub(super) fn guess_names(names: &[&str]) -> String {
        let Some(prompt) = named_by(names, &ASKS) else { return String::new() };
        let rest: Vec<&str> = names.iter().copied().filter(|name| *name != prompt).collect();
        let Some(completion) = named_by(&rest, &ANSWERS) else { return String::new() };
        let flags = [("prompt", prompt), ("completion", completion)];
        let flags = flags.into_iter().filter(|(of, column)| of != column).map(|(of, column)| flag(of, column));
        did_you_mean(&flags.collect::<Vec<_>>().join(" "))
    }

    pub fn is_empty(&self) -> bool {
        self.renamed.is_empty()
    }

    /// The row with its columns under the known names. The error names a column that the row lacks.
    pub(super) fn renamed(&self, mut row: Value) -> Result<Value, String> {
        if let Value::Object(map) = &mut row {
            // `messages` by its own name: the turns may be ShareGPT's all the same.
            for (theirs, ours) in self.renamed.iter().filter(|(theirs, ours)| theirs != ours || *ours == "messages") {
                let Some(value) = map.remove(theirs) else {
                    if matches!(*ours, "input" | "system") || theirs == ours {
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

/// The column that is one of these words, else the first that has one among its own: `model_answer`, `answerText`.
fn named_by<'a>(names: &[&'a str], words: &[&str]) -> Option<&'a str> {
    let is = |name: &str, word: &str| name.eq_ignore_ascii_case(word);
    let exact = words.iter().find_map(|word| names.iter().find(|name| is(name, word)));
    // A letter says something only where it is the whole name.
    let long = || words.iter().filter(|word| word.len() > 1);
    let within = || long().find_map(|word| names.iter().find(|name| words_of(name).any(|own| is(own, word))));
    exact.or_else(within).copied()
}

/// The words of a name: between marks, and before capitals.
fn words_of(name: &str) -> impl Iterator<Item = &str> {
    let begins =
        |at: usize| at == 0 || name[at..].starts_with(char::is_uppercase) && !name[..at].ends_with(char::is_uppercase);
    let starts: Vec<usize> = name.char_indices().map(|(at, _)| at).filter(|&at| begins(at)).collect();
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([name.len()]).collect();
    let parts = starts.into_iter().zip(ends).map(|(start, end)| &name[start..end]);
    parts.flat_map(|part| part.split(|c: char| !c.is_alphanumeric())).filter(|word| !word.is_empty())
}

/// Whether a value is a list of turns, of either form.
fn holds_turns(value: &Value) -> bool {
    let keys = [["role", "content"], ["from", "value"]];
    value.get(0).is_some_and(|turn| keys.iter().any(|keys| keys.iter().all(|key| turn.get(key).is_some())))
}

fn flag(of: &str, column: &str) -> String {
    let plain = column.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
    let quote = if plain { "" } else { "'" };
    format!("--{of}-column {quote}{column}{quote}")
}

fn did_you_mean(flags: &str) -> String {
    format!("; did you mean `{flags}`?")
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

    #[test]
    fn columns_are_guessed_by_their_words() {
        let text =
            |names: [&str; 2]| Columns::guess(json!({names[0]: "x", "id": 3, names[1]: "y"}).as_object().unwrap());
        for (names, flags) in [
            (["question", "answer"], "--prompt-column question --completion-column answer"),
            (["Question", "Answer"], "--prompt-column Question --completion-column Answer"),
            (["inputs", "targets"], "--prompt-column inputs --completion-column targets"),
            (["q", "a"], "--prompt-column q --completion-column a"),
            (["model_answer", "user_question"], "--prompt-column user_question --completion-column model_answer"),
            (["userPrompt", "botReply"], "--prompt-column userPrompt --completion-column botReply"),
            (["context", "answer"], "--prompt-column context --completion-column answer"),
            (["context", "question"], ""),
            (["prompt", "response"], "--completion-column response"),
            (["the question", "answer"], "--prompt-column 'the question' --completion-column answer"),
            (["input", "output"], "--prompt-column input --completion-column output"),
            (["aardvark", "quiz"], ""),
        ] {
            let expected = if flags.is_empty() { String::new() } else { format!("; did you mean `{flags}`?") };
            assert_eq!(text(names), expected, "{names:?}");
        }
        for turn in [json!({"role": "user", "content": "a"}), json!({"from": "human", "value": "a"})] {
            let row = json!({"topic": "x", "dialogue": [turn]});
            assert_eq!(Columns::guess(row.as_object().unwrap()), "; did you mean `--messages-column dialogue`?");
        }
        let row = json!({"id": 3, "body": "x"});
        assert_eq!(Columns::guess(row.as_object().unwrap()), "; did you mean `--text-column body`?");
        assert_eq!(Columns::guess(json!({"text": "x"}).as_object().unwrap()), "");
        assert_eq!(Columns::guess_names(&["question", "answer", "id"]), text(["question", "answer"]));
    }
}
