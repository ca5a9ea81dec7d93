//! Parts of what an assistant says that are no text: what it thinks, and the tools that it calls.

use serde_json::{Map, Value};

use super::json;
use super::keys::is_empty;
use super::weight;

/// Keys under which a part has what it holds.
const HELD_UNDER: [&str; 6] = ["text", "content", "value", "reasoning", "thinking", "tool_call"];
/// Keys of turns for what is no text.
const THOUGHT: &str = "reasoning_content";
const CALLS: &str = "tool_calls";

/// Kinds of parts, in the order in which templates write them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Thought,
    Text,
    Call,
}

impl Kind {
    fn of(part: &Value) -> Self {
        match part.get("type").and_then(Value::as_str) {
            Some("reasoning" | "thinking") => Self::Thought,
            Some("tool_call" | "tool_use" | "function_call") => Self::Call,
            _ => Self::Text,
        }
    }
}

/// Puts thoughts and calls among the parts of a content under the keys that turns have for them. Refused: another order
/// than that of templates, a part that holds nothing or has a weight of its own, and such parts beside those keys.
pub(super) fn split(fields: &mut Map<String, Value>) -> Result<(), String> {
    let Some(Value::Array(parts)) = fields.get("content") else { return Ok(()) };
    if parts.iter().all(|part| Kind::of(part) == Kind::Text) {
        return Ok(());
    }
    let (mut thoughts, mut texts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    let mut last = Kind::Thought;
    for (at, part) in parts.iter().enumerate() {
        let kind = Kind::of(part);
        if kind < last {
            return Err(format!(
                ".content[{at}] stands behind a part of another type; expected what is thought, then text, then calls"
            ));
        }
        last = kind;
        let (Kind::Thought | Kind::Call, Value::Object(map)) = (kind, part) else {
            texts.push(part.clone());
            continue;
        };
        if weight::of(map).map_err(|why| format!(".content[{at}]{why}"))?.is_some() {
            return Err(format!(".content[{at}] has a weight of its own, which only text has; give it to the turn"));
        }
        let parsed = |text: &String| json::parse(text).ok().filter(|_| kind == Kind::Call);
        let held = HELD_UNDER.iter().filter_map(|key| Some((*key, map.get(*key).filter(|held| !held.is_null())?)));
        let mut said = held.clone().filter(|(_, held)| !is_empty(held));
        let first = said.next().or_else(|| held.clone().next());
        if let Some((one, first)) = first
            && let Some((other, _)) = said.find(|(_, held)| *held != first)
        {
            return Err(format!(".content[{at}] has `{one}` and `{other}`, which differ; keep one of the two"));
        }
        match first.map(|(_, held)| held) {
            // Anthropic's part is the call itself.
            None if kind == Kind::Call && map.contains_key("name") => {
                let mut call = map.clone();
                call.shift_remove("type");
                calls.push(Value::Object(call));
            }
            Some(Value::String(text)) if kind == Kind::Thought => thoughts.push(text.clone()),
            Some(call @ Value::Object(_)) if kind == Kind::Call => calls.push(call.clone()),
            Some(Value::String(text)) if parsed(text).is_some() => match parsed(text) {
                Some(Value::Array(several)) => calls.extend(several),
                one => calls.extend(one),
            },
            _ => {
                let found = json::describe(part);
                return Err(format!(".content[{at}] is {found}; expected what it holds under `value`"));
            }
        }
    }
    for (key, is_there) in [(THOUGHT, !thoughts.is_empty()), (CALLS, !calls.is_empty())] {
        if is_there && fields.get(key).is_some_and(|value| !is_empty(value)) {
            return Err(format!(" has `{key}` and parts that say the same; keep one of the two"));
        }
    }
    if !thoughts.is_empty() {
        fields.insert(THOUGHT.to_owned(), thoughts.join("\n").into());
    }
    if texts.is_empty() && !calls.is_empty() {
        fields.shift_remove("content");
    } else {
        fields.insert("content".to_owned(), Value::Array(texts));
    }
    if !calls.is_empty() {
        fields.insert(CALLS.to_owned(), Value::Array(calls));
    }
    Ok(())
}
