//! Content parts that are no text: reasoning, tool calls and tool results.

use serde_json::{Map, Value, json};

use super::json as words;
use super::keys::{is_empty, media};
use super::notes::{KeyOf, Note};
use super::unused::note;
use super::weight;

/// Keys for the value of a part.
const HELD_UNDER: [&str; 6] = ["text", "content", "value", "reasoning", "thinking", "tool_call"];
/// Keys of turns for reasoning and calls.
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

/// The type of a part that is a tool result, and its keys.
const RESULT: &str = "tool_result";
const RESULT_KEYS: [&str; 5] = ["type", "tool_use_id", "content", "is_error", "cache_control"];

/// A turn that was cut out of another one.
pub(super) struct Piece {
    pub turn: Value,
    /// Place of its first part in the content that it was cut out of.
    first: usize,
    /// Number of those parts that are its own. None: it is one part, which has a content itself.
    parts: Option<usize>,
}

impl Piece {
    /// A reason to refuse it, with the place in the whole content.
    pub fn placed(&self, why: String) -> String {
        let first = self.first;
        let Some(parts) = self.parts else { return why.replacen(".content", &format!(".content[{first}].content"), 1) };
        let moved = (0..parts)
            .find_map(|at| Some(format!(".content[{}]{}", first + at, why.strip_prefix(&format!(".content[{at}]"))?)));
        moved.unwrap_or(why)
    }
}

/// Splits a turn with tool results among its parts (Anthropic's form) into turns, in order: a tool turn for each
/// result, and one of the same role for the parts between. None: it has no result. Refused: a result in a turn of the
/// assistant or the system, and one that has no text.
pub(super) fn results(turn: &Value, notes: &mut Vec<Note>) -> Result<Option<Vec<Piece>>, String> {
    let Some(Value::Array(parts)) = turn.get("content") else { return Ok(None) };
    let is_result = |part: &Value| part.get("type").and_then(Value::as_str) == Some(RESULT);
    let (Some(at), Value::Object(whole)) = (parts.iter().position(is_result), turn) else { return Ok(None) };
    // A turn without a role is refused as any other.
    let Some(role) = whole.get("role").and_then(Value::as_str) else { return Ok(None) };
    if !["user", "tool"].contains(&role) {
        return Err(format!(
            ".content[{at}] is a {RESULT}, and the role is {}: what a tool returned stands in the turn of the user that \
             follows the call, or in one of the role tool; move it there",
            words::shorten(role)
        ));
    }
    let mut pieces: Vec<Piece> = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        if let (true, Value::Object(part)) = (is_result(part), part) {
            let turn = result(part, notes).map_err(|why| format!(".content[{at}]{why}"))?;
            pieces.push(Piece { turn: Value::Object(turn), first: at, parts: None });
            continue;
        }
        match pieces.last_mut().and_then(|last| Some((last.parts.as_mut()?, last.turn.get_mut("content")?))) {
            Some((count, Value::Array(own))) => {
                *count += 1;
                own.push(part.clone());
            }
            _ => {
                let turn = json!({"role": role, "content": [part]});
                pieces.push(Piece { turn, first: at, parts: Some(1) });
            }
        }
    }
    // The other keys of the turn belong to its text.
    let said = pieces.iter().position(|piece| piece.parts.is_some());
    let of_speaker = |key: &str| said.is_none() && ["name", "id", "tool_call_id"].contains(&key);
    if let Value::Object(first) = &mut pieces[said.unwrap_or(0)].turn {
        for (key, value) in whole.iter().filter(|(key, _)| !of_speaker(key)) {
            first.entry(key.as_str()).or_insert_with(|| value.clone());
        }
    }
    Ok(Some(pieces))
}

/// The tool turn for a part that is a result.
fn result(part: &Map<String, Value>, notes: &mut Vec<Note>) -> Result<Map<String, Value>, String> {
    if let Some((key, why)) = media(part) {
        return Err(format!(".{key}: {why}"));
    }
    let content = part.get("content").filter(|content| !content.is_null());
    let is_known = |key: &str| RESULT_KEYS.contains(&key) || weight::KEYS.contains(&key);
    let others = || part.iter().filter(|(key, value)| !is_known(key) && !value.is_null());
    let says = |value: &Value| !is_empty(value) && (value.is_string() || value.is_array() || value.is_object());
    if content.is_none() && others().any(|(_, value)| says(value)) {
        return Err(format!(" has no `content`; found the keys {}", words::keys(part)));
    }
    let mut turn = Map::from_iter([("role".to_owned(), Value::from("tool"))]);
    match part.get("tool_use_id") {
        None | Some(Value::Null) => {}
        Some(id @ Value::String(_)) => drop(turn.insert("tool_call_id".to_owned(), id.clone())),
        Some(other) => return Err(format!(".tool_use_id is {}; expected a string", words::describe(other))),
    }
    turn.insert("content".to_owned(), content.cloned().unwrap_or_else(|| "".into()));
    let flags = part.iter().filter(|(key, _)| weight::KEYS.contains(&key.as_str()));
    turn.extend(flags.map(|(key, value)| (key.clone(), value.clone())));
    if part.get("is_error") == Some(&Value::Bool(true)) {
        let sentence =
            "the result of a tool has `is_error: true`, which chat templates do not write: its text alone says so";
        notes.push(Note::Said(sentence.to_owned()));
    }
    let known = || RESULT_KEYS.iter().chain(&weight::KEYS).copied();
    notes.extend(others().map(|(key, value)| note(KeyOf::Part, key, value, false, known())));
    Ok(turn)
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
                ".content[{at}] stands behind a part of another type; expected what is thought, then text, then calls: make \
                 what follows a turn of its own, behind the results of the calls"
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
        let parsed = |text: &String| words::parse(text).ok().filter(|_| kind == Kind::Call);
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
                let found = words::describe(part);
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
