//! Columns under other names: their keys in a row are renamed before the row's format is detected.

use serde_json::{Map, Value};

use super::json;
use super::keys::{ADAPTER, KNOWN_KEYS, ROWS_UNDER, TASK, compares, is_context, is_of_other_meaning, is_system};
use super::row_kind::RowKind;
use super::turn_keys::TurnKeys;
use super::unused::{Replaced, may_be_meant};
use super::weight;

/// Key of a row, and the name by which it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    renamed: Vec<(String, &'static str)>,
    /// The formats that these columns make.
    meant: Vec<RowKind>,
    /// The formats that every row must have one of; empty: each row determines its format.
    only: Vec<RowKind>,
    /// The keys of turns, where they are named.
    turns: Option<TurnKeys>,
    /// Names of roles in turns, and the roles.
    roles: Vec<(String, &'static str)>,
}

/// Words in names of prompt columns, the likeliest first.
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
/// Words in names of answer columns.
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

/// Words in keys of turns for the role, and for the content.
const SPEAKS: [&str; 6] = ["role", "speaker", "from", "author", "sender", "who"];
const SAYS: [&str; 8] = ["content", "text", "value", "message", "utterance", "body", "said", "parts"];

/// Keys of lists of turns.
const LISTS: [&str; 2] = ["messages", "conversations"];

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
            (messages, if messages == Some("conversations") { "conversations" } else { "messages" }),
            (text, "text"),
        ];
        let pair = if alpaca { RowKind::Alpaca } else { RowKind::PromptCompletion };
        let meant = [
            (prompt.is_some() || completion.is_some(), &[pair][..]),
            (messages.is_some(), &[RowKind::Messages, RowKind::ShareGpt]),
            (text.is_some(), &[RowKind::Text]),
        ];
        let meant: Vec<RowKind> =
            meant.into_iter().filter(|(is, _)| *is).flat_map(|(_, kinds)| kinds).copied().collect();
        // Files of TRL name this column, which is theirs without a name, beside rows of turns and of prompts.
        let only = if text == Some("text") { Vec::new() } else { meant.clone() };
        Self {
            renamed: named.into_iter().filter_map(|(theirs, ours)| Some((theirs?.to_owned(), ours))).collect(),
            meant,
            only,
            turns: None,
            roles: Vec::new(),
        }
    }

    /// These columns, for rows whose turns have role and content only under these keys.
    pub fn turn_keys(mut self, role: Option<&str>, content: Option<&str>) -> Self {
        self.turns = TurnKeys::new(role, content);
        if self.turns.is_some() {
            self.meant.extend([RowKind::Messages, RowKind::ShareGpt]);
        }
        self
    }

    /// These columns, for rows whose turns use these names for roles in addition to the known ones.
    pub fn roles(mut self, names: &[(String, &'static str)]) -> Self {
        self.roles = names.to_vec();
        self
    }

    /// These columns, with the format that is chosen where a row could have several.
    pub fn meaning(mut self, kind: RowKind) -> Self {
        self.meant.push(kind);
        self
    }

    /// The formats to choose from where a row has several.
    pub(super) fn meant(&self) -> &[RowKind] {
        &self.meant
    }

    /// True if a column of a table is read.
    pub(super) fn reads(&self, name: &str) -> bool {
        KNOWN_KEYS.contains(&name)
            || is_of_other_meaning(name)
            || compares(name)
            || weight::KEYS.contains(&name)
            || [TASK, ADAPTER].contains(&name)
            || self.renamed.iter().any(|(column, _)| column == name)
    }

    /// True if a column is read only to warn of it, where it holds numbers, truth values or texts.
    pub(super) fn warns_of(&self, name: &str) -> bool {
        !self.reads(name) && may_be_meant(name)
    }

    /// True if a column makes a row of some format.
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
        for (list, items) in map.iter().filter(|(_, value)| value.get(0).is_some_and(Value::is_object)) {
            let keys: Vec<&str> = items[0].as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            if let (Some(role), Some(content)) = (named_by(&keys, &SPEAKS), named_by(&keys, &SAYS)) {
                let column = if list == "messages" { String::new() } else { flag("messages", list) + " " };
                return did_you_mean(&format!(
                    "{column}{} {}",
                    option("role-key", role),
                    option("content-key", content)
                ));
            }
            let is_row = |kind: &RowKind| *kind != RowKind::Text && kind.keys().iter().all(|key| keys.contains(key));
            if ROWS_UNDER.contains(&list.as_str()) || RowKind::ALL.iter().any(is_row) {
                return format!(
                    "; if its rows are those under `{list}`, give that list alone",
                    list = json::shorten(list)
                );
            }
        }
        match texts[..] {
            [text] if !KNOWN_KEYS.contains(&text) && !words_of(text).any(tells_of) => did_you_mean(&flag("text", text)),
            _ => String::new(),
        }
    }

    /// [`guess`](Self::guess) from the names of a table's columns.
    pub(super) fn guess_names<'n>(names: &[&'n str]) -> String {
        let without = |names: &[&'n str], other: &str| -> Vec<&'n str> {
            names.iter().copied().filter(|name| *name != other).collect()
        };
        let system = names.iter().copied().find(|name| *name == "system" || is_system(name));
        let names = without(names, system.unwrap_or_default());
        let Some(prompt) = named_by(&names, &ASKS) else { return String::new() };
        let names = without(&names, prompt);
        let Some(completion) = named_by(&names, &ANSWERS) else { return String::new() };
        let names = without(&names, completion);
        let input = names.iter().copied().find(|name| *name == "input" || is_context(name));
        // With an input, and by these names, a row is Alpaca's.
        let alpaca = input.is_some() || prompt == "instruction" || completion == "output";
        let own = if alpaca { ["instruction", "output"] } else { ["prompt", "completion"] };
        if [prompt, completion] == own
            && input.is_none_or(|input| input == "input")
            && system.is_none_or(|own| own == "system")
        {
            return String::new();
        }
        let pair = [("prompt", prompt), ("completion", completion)];
        // A column with the default name of a flag needs no flag, unless another column takes that name.
        let pair = pair.into_iter().filter(|(of, column)| alpaca || of != column);
        let beside = [("system", system.filter(|name| *name != "system")), ("input", input)];
        let beside = beside.into_iter().filter_map(|(of, column)| Some((of, column?)));
        let flags: Vec<String> = pair.chain(beside).map(|(of, column)| flag(of, column)).collect();
        did_you_mean(&flags.join(" "))
    }

    /// True if the column of whole texts is named.
    pub(super) fn name_text(&self) -> bool {
        self.renamed.iter().any(|(_, ours)| *ours == "text")
    }

    pub fn is_empty(&self) -> bool {
        self.renamed.is_empty() && self.turns.is_none() && self.roles.is_empty()
    }

    /// The row with its columns, and the keys of its turns, under the known names. The error names a column or key that
    /// the row lacks, whatever else it has. Values that the known names held before go to `replaced`.
    pub(super) fn renamed(&self, mut row: Value, replaced: &mut Vec<Replaced>) -> Result<Value, String> {
        if let Value::Object(map) = &mut row {
            // A column may have the known name of another one.
            let mut taken = Vec::new();
            for (theirs, ours) in &self.renamed {
                if let Some((_, other)) =
                    self.renamed.iter().find(|(column, other)| column == theirs && other != ours && *theirs != "text")
                {
                    return Err(format!(
                        "the column `{theirs}` is named twice, for the {ours} and for the {other}; name another one for one of \
                         them, or leave it out"
                    ));
                }
                let is_there = |key: &str| map.get(key).is_some_and(|value| !value.is_null());
                if !is_there(theirs) {
                    let may_lack = match *ours {
                        // Not every row has them. A value under the known name was not meant.
                        "input" | "system" => theirs == ours || !is_there(ours),
                        "text" => theirs == ours,
                        _ => false,
                    };
                    if !may_lack {
                        let state = if map.contains_key(theirs) { "null" } else { "missing" };
                        let found = map
                            .keys()
                            .take(12)
                            .map(|key| format!("`{}`", json::shorten(key)))
                            .collect::<Vec<_>>()
                            .join(", ");
                        let found = if found.is_empty() { "no other key" } else { &found };
                        return Err(format!("the column `{theirs}` is {state}; found {found}"));
                    }
                }
                // `messages` by its own name: the turns may still be ShareGPT's.
                if theirs == ours && *ours != "messages" {
                    continue;
                }
                let Some(value) = map.remove(theirs) else { continue };
                if *ours == "text" && holds_turns(&value) {
                    return Err(format!(
                        "the column `{theirs}`, which is named for texts (`text_column`, `dataset_text_field`), holds turns; \
                         `{}` reads them: name it so, and leave the other name out",
                        flag("messages", theirs)
                    ));
                }
                let value = if *ours == "messages" { list_of(value) } else { value };
                // Turns of `from` and `value` are ShareGPT's.
                let share_gpt = *ours == "messages" && value.pointer("/0/from").is_some();
                taken.push((theirs, if share_gpt { "conversations" } else { *ours }, value));
            }
            let list = taken.iter().map(|(_, key, _)| *key).find(|key| LISTS.contains(key));
            for (column, key, value) in taken {
                if let Some(value) = map.insert(key.to_owned(), value) {
                    replaced.push(Replaced { column: column.clone(), key, value });
                }
            }
            // Turns by the other name would be taken for those that are named.
            if let Some((column, ours)) = self.renamed.iter().find(|(_, ours)| LISTS.contains(ours)) {
                let key = LISTS[usize::from(list.unwrap_or(*ours) == LISTS[0])];
                replaced.extend(map.remove(key).map(|value| Replaced { column: column.clone(), key, value }));
            }
            // Tables hold turns as texts of JSON, whose roles may have other names.
            let history = (!self.roles.is_empty() || self.turns.is_some()).then_some("history");
            for list in LISTS.into_iter().chain(history) {
                if let Some(Value::String(text)) = map.get(list)
                    && text.trim_start().starts_with('[')
                    && let Ok(turns @ Value::Array(_)) = json::parse(text)
                {
                    map.insert(list.to_owned(), turns);
                }
            }
            // Roles come before keys: they show which form a list has.
            for list in LISTS.into_iter().chain(["prompt", "completion", "history"]) {
                let Some(Value::Array(turns)) = map.get_mut(list).filter(|_| !self.roles.is_empty()) else { continue };
                turns.iter_mut().filter_map(Value::as_object_mut).for_each(|turn| self.rename_role(turn));
            }
            if let Some(turns) = &self.turns {
                if LISTS.iter().all(|list| map.get(*list).is_some_and(|turns| !turns.is_null())) {
                    return Err("the row has both `messages` and `conversations`; name the one that is meant \
                                (`--messages-column`)"
                        .to_owned());
                }
                turns.rename(map)?;
            }
        }
        Ok(row)
    }

    /// A reason that begins with a known name, with the name of the column that replaces it.
    pub(super) fn in_their_words(&self, why: String) -> String {
        let renamed = self.renamed.iter().filter(|(theirs, ours)| theirs != ours);
        let mut said = renamed.filter_map(|(theirs, ours)| Some((theirs, why.strip_prefix(&format!("`{ours}` is "))?)));
        let named = said.next().map(|(theirs, rest)| format!("`{theirs}` is {rest}"));
        named.unwrap_or(why)
    }

    /// Gives a turn the known name of its role.
    fn rename_role(&self, turn: &mut Map<String, Value>) {
        for key in ["role", "from"].into_iter().chain(self.turns.as_ref().map(TurnKeys::role)) {
            if let Some(Value::String(name)) = turn.get_mut(key)
                && let Some((_, role)) = self.roles.iter().find(|(given, _)| *given == *name)
            {
                *name = (*role).to_owned();
            }
        }
    }

    /// Refuses a row of another format than the columns make that are named.
    pub(super) fn check(&self, kind: RowKind) -> Result<(), String> {
        if self.only.is_empty() || self.only.contains(&kind) {
            return Ok(());
        }
        let meant: Vec<&str> = self.only.iter().map(|kind| kind.name()).collect();
        Err(format!(
            "found a row of {}, expected one of {}, which the columns make that are named: leave their names out, or give \
             such rows in a run of their own",
            kind.name(),
            meant.join(" or ")
        ))
    }
}

/// The list that a text of JSON is, as tables hold turns; any other value as it is.
fn list_of(value: Value) -> Value {
    let text = value.as_str().filter(|text| text.trim_start().starts_with('['));
    let list = text.and_then(|text| json::parse(text).ok()).filter(Value::is_array);
    list.unwrap_or(value)
}

/// The column whose name is one of these words, or the first whose name contains one: `model_answer`, `answerText`.
fn named_by<'a>(names: &[&'a str], words: &[&str]) -> Option<&'a str> {
    let is = |name: &str, word: &str| name.eq_ignore_ascii_case(word);
    let exact = words.iter().find_map(|word| names.iter().find(|name| is(name, word)));
    // A single letter counts only as a whole name.
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

/// True if a value is a list of turns, of either form.
pub(super) fn holds_turns(value: &Value) -> bool {
    value.get(0).is_some_and(is_turn)
}

/// True if a value is a turn, of either form.
pub(super) fn is_turn(value: &Value) -> bool {
    let keys = [["role", "content"], ["from", "value"]];
    keys.iter().any(|keys| keys.iter().all(|key| value.get(key).is_some()))
}

/// True if a word in a column's name marks it as metadata of the row, not as text to learn.
fn tells_of(word: &str) -> bool {
    const TELLING: [&str; 13] = [
        "id", "uuid", "hash", "url", "version", "type", "source", "category", "language", "lang", "split", "license",
        "title",
    ];
    TELLING.iter().any(|telling| word.eq_ignore_ascii_case(telling))
}

fn flag(of: &str, column: &str) -> String {
    option(&format!("{of}-column"), column)
}

fn option(name: &str, column: &str) -> String {
    let plain = column.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c));
    let quote = if plain { "" } else { "'" };
    format!("--{name} {quote}{column}{quote}")
}

/// The question, unless nobody would read it: a file may have names of any length.
fn did_you_mean(flags: &str) -> String {
    if flags.len() > 400 { String::new() } else { format!("; did you mean `{flags}`?") }
}

#[cfg(test)]
mod tests;
