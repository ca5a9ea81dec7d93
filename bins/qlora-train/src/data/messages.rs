//! Checks the turns of a conversation and turns them into what chat templates expect.

use minijinja::Value as Jinja;
use serde_json::{Map, Value};

use super::json;

const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

/// One turn of a conversation. Keys beside `role` and `content` (`name`, `tool_calls`, …) reach the template as
/// they are.
#[derive(Clone, Debug)]
pub struct Message {
    pub role: String,
    /// None only for an assistant turn that consists of `tool_calls`.
    pub content: Option<String>,
    /// False for an assistant turn marked `"weight": 0`: it is context, not something to learn.
    pub supervised: bool,
    fields: Map<String, Value>,
}

impl Message {
    pub fn new(role: &str, content: &str) -> Self {
        let mut fields = Map::new();
        fields.insert("role".into(), role.into());
        fields.insert("content".into(), content.into());
        Self { role: role.into(), content: Some(content.into()), supervised: role == "assistant", fields }
    }

    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }

    /// The same turn with other content.
    pub(super) fn with_content(&self, content: &str) -> Self {
        let mut message = self.clone();
        message.content = Some(content.into());
        message.fields.insert("content".into(), content.into());
        message
    }

    /// The same turn as context that is not learnt.
    pub(super) fn unsupervised(mut self) -> Self {
        self.supervised = false;
        self
    }

    pub(super) fn to_jinja(&self) -> Jinja {
        Jinja::from_pairs(self.fields.iter().map(|(key, value)| (key.clone(), to_jinja(value))))
    }
}

/// Refuses tool definitions.
pub(super) fn no_tools(row: &Map<String, Value>) -> Result<(), String> {
    match row.get("tools").filter(|tools| !is_empty(tools)) {
        None => Ok(()),
        Some(tools) => Err(format!(
            "`tools` is {}; tool definitions are not supported yet, and leaving them out would train on another text",
            json::describe(tools)
        )),
    }
}

/// Checks the turns under `key`: a non-empty array of objects with a known `role` and a `content` that is a string
/// or a list of `{"type": "text", "text": …}` parts, which are joined.
pub(super) fn turns(row: &Map<String, Value>, key: &str) -> Result<Vec<Message>, String> {
    let turns = match &row[key] {
        Value::Array(turns) if !turns.is_empty() => turns,
        other => {
            return Err(format!(
                "`{key}` must be a non-empty array of {{\"role\", \"content\"}}, found {}",
                json::describe(other)
            ));
        }
    };
    turns.iter().enumerate().map(|(at, turn)| message(turn).map_err(|why| format!("`{key}[{at}]`{why}"))).collect()
}

pub(super) fn message(turn: &Value) -> Result<Message, String> {
    let Value::Object(map) = turn else {
        return Err(format!(" must be an object with `role` and `content`, found {}", json::describe(turn)));
    };
    let role = match map.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
        Some(other) => {
            return Err(format!(".role is {}; expected system, user, assistant or tool", json::describe(other)));
        }
        None if map.contains_key("from") => {
            return Err(
                " has `from` and no `role`: that is a ShareGPT turn, which stands under `conversations`; expected \
                        `role` and `content`"
                    .into(),
            );
        }
        None => return Err(format!(" has no `role`; found the keys {}", json::keys(map))),
    };
    let mut fields = map.clone();
    // Tables hold nulls where another row has a value, and templates ask whether a key is there.
    fields.retain(|_, value| !value.is_null());
    let has_tool_calls = map.get("tool_calls").is_some_and(|calls| !is_empty(calls));
    let content = match map.get("content") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => Some(join_parts(parts)?),
        None | Some(Value::Null) if role == "assistant" && has_tool_calls => None,
        Some(other) => {
            return Err(format!(
                ".content is {}; expected a string or a list of {{\"type\": \"text\", \"text\": …}}",
                json::describe(other)
            ));
        }
        None => return Err(format!(" has no `content`; found the keys {}", json::keys(map))),
    };
    fields.insert("content".into(), content.clone().map_or(Value::Null, Value::String));
    let supervised = match fields.shift_remove("weight") {
        None | Some(Value::Null) => role == "assistant",
        Some(weight) if weight.as_f64() == Some(1.0) => role == "assistant",
        Some(weight) if weight.as_f64() == Some(0.0) => false,
        Some(other) => {
            return Err(format!(".weight is {}; expected 0 (not trained on) or 1", json::describe(&other)));
        }
    };
    Ok(Message { role, content, supervised, fields })
}

fn join_parts(parts: &[Value]) -> Result<String, String> {
    let mut text = String::new();
    for (at, part) in parts.iter().enumerate() {
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(piece)) => text.push_str(piece),
            (Some(kind), _) if kind != "text" => {
                return Err(format!(".content[{at}] has the type {:?}; only text is supported", json::shorten(kind)));
            }
            _ => {
                let found = json::describe(part);
                return Err(format!(".content[{at}] is {found}; expected {{\"type\": \"text\", \"text\": …}}"));
            }
        }
    }
    Ok(text)
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
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
