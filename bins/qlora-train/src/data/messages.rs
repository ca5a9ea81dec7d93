//! The turns of a conversation: checked, and given the form that chat templates expect.

use std::ops::Range;

use minijinja::Value as Jinja;
use serde_json::{Map, Value};

use super::json;
use super::keys::{is_empty, of_other_meaning};
use super::notes::{KeyOf, Note};
use super::{tools, unused, weight};

const ROLES: &str = "system, developer, user, assistant or tool";
/// Names of what an assistant thinks before it answers, the first that is there wins.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Keys of turns that are read here or that templates know.
const TURN_KEYS: [&str; 10] = [
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "id",
    "reasoning_content",
    "thinking",
    "reasoning",
];
/// Keys of the parts of a content.
const PART_KEYS: [&str; 5] = ["type", "text", "content", "value", "cache_control"];

/// One turn of a conversation. Keys beside `role` and `content` (`name`, `tool_calls`, …) reach the template as
/// they are.
#[derive(Clone, Debug)]
pub struct Message {
    pub role: String,
    /// None only for an assistant turn that consists of `tool_calls`.
    pub content: Option<String>,
    /// False for what is context and not to be learned: turns of others, and those whose keys say so.
    pub supervised: bool,
    /// How much a token of this turn counts, where it is supervised.
    pub weight: f32,
    /// Byte ranges of the content with weights of their own, which multiply the turn's.
    details: Option<Vec<(Range<usize>, f32)>>,
    fields: Map<String, Value>,
}

/// The turns of a row with what stands beside them.
#[derive(Clone, Debug, Default)]
pub struct Conversation {
    pub messages: Vec<Message>,
    /// Tool definitions; empty: none.
    pub tools: Vec<Value>,
    /// Further variables of the template (`chat_template_kwargs`).
    pub variables: Map<String, Value>,
}

impl Conversation {
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

impl Message {
    pub fn new(role: &str, content: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), role.into());
        fields.insert("content".into(), content.into());
        let supervised = role == "assistant";
        Self { role: role.into(), content: Some(content.into()), supervised, weight: 1.0, details: None, fields }
    }

    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// This turn with other content.
    pub(super) fn with_content(&self, content: &str) -> Self {
        let mut message = self.clone();
        message.content = Some(content.into());
        message.fields.insert("content".into(), content.into());
        message
    }

    /// This turn under another role.
    pub(super) fn with_role(&self, role: &str) -> Self {
        let mut message = self.clone();
        message.role = role.into();
        message.fields.insert("role".into(), role.into());
        message
    }

    /// This turn as context that is not learned.
    pub(super) fn unsupervised(mut self) -> Self {
        self.supervised = false;
        self
    }

    /// Byte ranges of the content with their weights, where its parts differ.
    pub(super) fn details(&self) -> Option<&[(Range<usize>, f32)]> {
        self.details.as_deref()
    }

    pub(super) fn calls(&self) -> &[Value] {
        self.fields.get("tool_calls").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// What the assistant thought, where the row has it apart from the content.
    pub(super) fn reasoning(&self) -> Option<&str> {
        self.fields.get(REASONING[0]).and_then(Value::as_str)
    }

    pub(super) fn to_jinja(&self) -> Jinja {
        Jinja::from_pairs(self.fields.iter().map(|(key, value)| (key.clone(), to_jinja(value))))
    }
}

/// Checks the turns under `key`: a non-empty array of objects with a known `role` and a `content` that is a string
/// or a list of `{"type": "text", "text": …}` parts, which are joined.
pub(super) fn turns(row: &Map<String, Value>, key: &str, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let turns = match row.get(key) {
        Some(Value::Array(turns)) if !turns.is_empty() => turns,
        other => {
            let found = other.map_or_else(|| "nothing".to_owned(), json::describe);
            return Err(format!("`{key}` must be a non-empty array of {{\"role\", \"content\"}}, found {found}"));
        }
    };
    let message = |(at, turn)| message(turn, notes).map_err(|why| format!("`{key}[{at}]`{why}"));
    turns.iter().enumerate().map(message).collect()
}

pub(super) fn message(turn: &Value, notes: &mut Vec<Note>) -> Result<Message, String> {
    let Value::Object(map) = turn else {
        return Err(format!(" must be an object with `role` and `content`, found {}", json::describe(turn)));
    };
    let mut fields = map.clone();
    // Tables hold nulls where another row has a value, and templates ask whether a key is there.
    fields.retain(|_, value| !value.is_null());
    let role = match fields.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" | "user" | "assistant" | "tool" => role.clone(),
            "function" | "ipython" => "tool".to_owned(),
            _ => return Err(format!(".role is {}; expected {ROLES}", json::describe(&fields["role"]))),
        },
        Some(other) => return Err(format!(".role is {}; expected {ROLES}", json::describe(other))),
        None if map.contains_key("from") => {
            return Err(
                " has `from` and no `role`: that is a ShareGPT turn, which stands under `conversations`; expected \
                        `role` and `content`"
                    .into(),
            );
        }
        None => return Err(format!(" has no `role`; found the keys {}", json::keys(map))),
    };
    fields.insert("role".into(), role.clone().into());
    if let Some((key, why)) = of_other_meaning(&fields) {
        return Err(format!(".{key}: {why}"));
    }
    if let (Some(Value::String(content)), Some(Value::String(value))) = (fields.get("content"), fields.get("value"))
        && content != value
    {
        return Err(" has `content` and `value`, which differ; keep one of the two".into());
    }
    tool_calls(&mut fields, &role)?;
    let (content, mut details) = match fields.get("content") {
        Some(Value::String(text)) => (Some(text.clone()), None),
        Some(Value::Array(parts)) => {
            let (text, details) = join_parts(parts, role == "assistant", notes)?;
            (Some(text), details)
        }
        None if role == "assistant" && fields.contains_key("tool_calls") => (None, None),
        Some(other) => {
            return Err(format!(
                ".content is {}; expected a string or a list of {{\"type\": \"text\", \"text\": …}}",
                json::describe(other)
            ));
        }
        None if map.contains_key("content") => {
            return Err(".content is null; expected a string or a list of {\"type\": \"text\", \"text\": …}".into());
        }
        None => return Err(format!(" has no `content`; found the keys {}", json::keys(map))),
    };
    if let Some(text) = &content {
        fields.insert("content".into(), text.clone().into());
    }
    if role == "assistant" {
        reasoning(&mut fields)?;
    }
    let weight = weight::of(&fields)?;
    if let Some(detail) = fields.shift_remove(weight::DETAIL) {
        if details.is_some() {
            return Err(format!(": {} and parts with keys of their own; keep one of the two", weight::DETAIL));
        }
        details = Some(weight::details(&detail, content.as_deref().unwrap_or_default())?);
    }
    weight::KEYS.iter().for_each(|key| drop(fields.shift_remove(*key)));
    let supervised = role == "assistant" && weight != Some(0.0);
    if role != "assistant" && (weight.is_some_and(|weight| weight > 0.0) || details.is_some()) {
        notes.push(Note::Said(format!("a {role} turn is marked to be learned: only what the assistant says is")));
    }
    let others = fields.iter().filter(|(key, _)| !TURN_KEYS.contains(&key.as_str()));
    let known = || TURN_KEYS.iter().chain(&weight::KEYS).chain([&weight::DETAIL]).copied();
    notes.extend(others.map(|(key, value)| unused::note(KeyOf::Turn, key, value, role == "assistant", known())));
    let weight = weight.unwrap_or(1.0);
    Ok(Message { role, content, supervised, weight, details: details.filter(|_| supervised), fields })
}

/// Checks the calls of a turn, and makes those of the older form (`function_call`) such.
fn tool_calls(fields: &mut Map<String, Value>, role: &str) -> Result<(), String> {
    let older = fields.shift_remove("function_call").filter(|call| !is_empty(call));
    let calls = fields.shift_remove("tool_calls").filter(|calls| !is_empty(calls));
    let (key, calls) = match (calls, older) {
        (None, None) => return Ok(()),
        (Some(_), Some(_)) => return Err(" has `tool_calls` and `function_call`; keep one of the two".into()),
        (Some(calls), None) => ("tool_calls", calls),
        (None, Some(call)) => ("function_call", call),
    };
    if role != "assistant" {
        return Err(format!(".{key}: only the assistant calls tools, the role is {role}"));
    }
    let calls = tools::calls(&calls).map_err(|why| format!(".{key}{why}"))?;
    if !calls.is_empty() {
        fields.insert("tool_calls".into(), Value::Array(calls));
    }
    Ok(())
}

/// Gives what the assistant thought the names that templates know, as transformers does.
fn reasoning(fields: &mut Map<String, Value>) -> Result<(), String> {
    let mut thought: Option<(&str, String)> = None;
    for key in REASONING {
        match fields.get(key) {
            None => {}
            Some(Value::String(text)) => match &thought {
                Some((other, before)) if before != text => {
                    return Err(format!(" has `{other}` and `{key}`, which differ; keep one of the two"));
                }
                _ => thought = Some((key, text.clone())),
            },
            Some(other) => return Err(format!(".{key} is {}; expected a string", json::describe(other))),
        }
    }
    if let Some((_, thought)) = thought {
        if !fields.contains_key(REASONING[1]) {
            fields.shift_insert(0, REASONING[1].into(), thought.clone().into());
        }
        fields.insert(REASONING[0].into(), thought.into());
    }
    Ok(())
}

type Details = Option<Vec<(Range<usize>, f32)>>;

/// The texts of the parts, joined, and which ranges of them are learned where a part says so.
fn join_parts(parts: &[Value], of_assistant: bool, notes: &mut Vec<Note>) -> Result<(String, Details), String> {
    let (mut text, mut details, mut marked) = (String::new(), Vec::new(), false);
    for (at, part) in parts.iter().enumerate() {
        let expected = || {
            let found = json::describe(part);
            format!(".content[{at}] is {found}; expected {{\"type\": \"text\", \"text\": …}}")
        };
        let Value::Object(map) = part else { return Err(expected()) };
        match map.get("type") {
            None | Some(Value::Null) => {}
            Some(Value::String(kind)) if kind == "text" => {}
            Some(Value::String(kind)) => {
                return Err(format!(".content[{at}] has the type {:?}; only text is supported", json::shorten(kind)));
            }
            Some(_) => return Err(expected()),
        }
        let piece = ["text", "content", "value"].iter().find_map(|key| map.get(*key).and_then(Value::as_str));
        let piece = piece.ok_or_else(expected)?;
        let weight = weight::of(map).map_err(|why| format!(".content[{at}]{why}"))?;
        marked |= weight.is_some();
        let range = text.len()..text.len() + piece.len();
        text.push_str(piece);
        details.push((range, weight.unwrap_or(1.0)));
        let used = |key: &str| PART_KEYS.contains(&key) || weight::KEYS.contains(&key);
        let others = map.iter().filter(|(key, value)| !used(key) && !value.is_null());
        let known = || PART_KEYS.iter().chain(&weight::KEYS).copied();
        notes.extend(others.map(|(key, value)| unused::note(KeyOf::Part, key, value, of_assistant, known())));
    }
    Ok((text, marked.then_some(details)))
}

pub(super) fn to_jinja(value: &Value) -> Jinja {
    match value {
        Value::Null => Jinja::from(()),
        Value::Bool(b) => Jinja::from(*b),
        Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(int), _) => Jinja::from(int),
            (None, Some(int)) => Jinja::from(int),
            _ => Jinja::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Jinja::from(text.as_str()),
        Value::Array(items) => items.iter().map(to_jinja).collect(),
        Value::Object(map) => Jinja::from_pairs(map.iter().map(|(key, value)| (key.clone(), to_jinja(value)))),
    }
}
