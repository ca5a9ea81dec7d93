//! The turns of a conversation: checked, and given the form that chat templates expect.

use std::ops::Range;

use minijinja::Value as Jinja;
use serde_json::{Map, Value};

use super::json;
use super::keys::{is_empty, media, of_other_meaning, words};
use super::notes::{KeyOf, Note};
use super::{tools, typed_parts, unused, weight};

const ROLES: &str = "system, developer, user, assistant or tool; `--roles user=NAME` says what another name stands for";
/// Keys for the assistant's reasoning before an answer; the first that is there wins.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Further keys for reasoning, which templates do not know.
const THOUGHTS: [&str; 11] = [
    "thought",
    "thoughts",
    "think",
    "thought_process",
    "thinking_content",
    "reasoning_text",
    "reasoning_details",
    "reasoning_summary",
    "chain_of_thought",
    "cot",
    "rationale",
];
/// Names of the calls of a turn: the one that templates know, OpenAI's older one, and others.
pub(super) const CALLS: [&str; 5] = ["tool_calls", "function_call", "function_calls", "tool_use", "tool_call"];
/// Roles of turns whose content is a call, or a list of them.
pub(super) const CALLERS: [&str; 4] = ["function_call", "tool_call", "tool_calls", "function-call"];
/// Marks around reasoning inside a content.
pub(super) const THINK: [&str; 2] = ["<think>", "</think>"];
/// Keys of a part that hold its text.
const TEXTS: [&str; 3] = ["text", "content", "value"];
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

/// End of a range that holds what follows a content.
pub(super) const BEHIND: usize = usize::MAX;

/// One turn of a conversation. Keys beside `role` and `content` (`name`, `tool_calls`, …) reach the template as
/// they are.
#[derive(Clone, Debug)]
pub struct Message {
    pub role: String,
    /// None only for an assistant turn that consists of `tool_calls`.
    pub content: Option<String>,
    /// False for turns that are context and not learned: those of other roles, and those whose keys say so.
    pub supervised: bool,
    /// Loss weight of the tokens of this turn, if it is supervised.
    pub weight: f32,
    /// Byte ranges of the content with weights of their own, which multiply the turn's. A range that ends at [`BEHIND`]
    /// stands for the text after the content: calls, and the end of the turn.
    details: Option<Vec<(Range<usize>, f32)>>,
    /// Tool definitions of a system turn, which replace those of its row.
    tools: Vec<Value>,
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
        let content = Some(content.into());
        Self { role: role.into(), content, supervised, weight: 1.0, details: None, tools: Vec::new(), fields }
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

    /// Takes out the tool definitions that stand in the turn.
    pub(super) fn take_tools(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.tools)
    }

    /// Loss weight of a token of the turn; 0: not supervised.
    fn share(&self) -> f32 {
        if self.supervised { self.weight } else { 0.0 }
    }

    /// Joins `other`, a turn that only calls tools, to this one if both are the assistant's; text and calls keep their
    /// weights. Returns `other` unchanged if it cannot be joined. Error: by its `flags` it has another weight than the
    /// calls that are there already.
    fn join_calls(&mut self, other: Message, flags: &str) -> Result<Option<Message>, String> {
        let is_plain = other.content.is_none() && other.reasoning().is_none();
        let (own, theirs) = (self.share(), other.share());
        let of_calls = self.details.iter().flatten().find(|(range, _)| range.end == BEHIND);
        let of_calls = of_calls.map(|(_, weight)| *weight * own);
        let calls = self.calls().len();
        let apart = calls > 0 && self.details.is_some() && of_calls.is_none();
        if !(is_plain && self.is_assistant()) || apart {
            return Ok(Some(other));
        }
        if calls == 0 && (own != theirs || self.details.is_some()) {
            let end = self.content.as_deref().map_or(0, str::len);
            let mut details = self.details.take().unwrap_or_else(|| vec![(0..end, 1.0)]);
            details.iter_mut().for_each(|(_, weight)| *weight *= own);
            details.push((end..BEHIND, theirs));
            (self.supervised, self.weight, self.details) = (true, 1.0, Some(details));
        } else if calls > 0 && of_calls.unwrap_or(own) != theirs {
            let before = of_calls.unwrap_or(own);
            return Err(format!(
                " is a call with {flags}, so that it weighs {theirs}, and the call before it weighs {before}: calls in a \
                 row are one turn, and count alike; give all of them the same flag"
            ));
        }
        match self.fields.get_mut(CALLS[0]) {
            Some(Value::Array(calls)) => calls.extend_from_slice(other.calls()),
            _ => drop(self.fields.insert(CALLS[0].to_owned(), other.calls().into())),
        }
        Ok(None)
    }

    pub(super) fn calls(&self) -> &[Value] {
        self.fields.get(CALLS[0]).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The assistant's reasoning, if the row has it separate from the content.
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
    listed(turns, key, notes)
}

/// The turns of a list that stands under `key`.
pub(super) fn listed(turns: &[Value], key: &str, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let mut messages: Vec<Message> = Vec::with_capacity(turns.len());
    for (at, turn) in turns.iter().enumerate() {
        let added = add(&mut messages, turn, is_caller(turn), notes);
        added.map_err(|why| format!("`{key}[{at}]`{why}"))?;
    }
    Ok(messages)
}

/// Adds a turn. Consecutive turns whose roles mark them as calls, or a text and its call, are joined into one turn,
/// whose end is learned once, after the last call.
pub(super) fn add(
    messages: &mut Vec<Message>,
    turn: &Value,
    is_call: bool,
    notes: &mut Vec<Note>,
) -> Result<(), String> {
    let Some(pieces) = typed_parts::results(turn, notes)? else {
        let message = message(turn, notes)?;
        let apart = match messages.last_mut() {
            Some(last) if is_call => last.join_calls(message, &flags(turn))?,
            _ => Some(message),
        };
        messages.extend(apart);
        return Ok(());
    };
    for piece in pieces {
        messages.push(message(&piece.turn, notes).map_err(|why| piece.placed(why))?);
    }
    Ok(())
}

/// The flags of a turn that choose what is learned, in words.
fn flags(turn: &Value) -> String {
    let there = weight::KEYS.iter().filter_map(|key| Some((key, turn.get(*key).filter(|value| !value.is_null())?)));
    let there: Vec<String> = there.map(|(key, value)| format!("`{key}: {value}`")).collect();
    if there.is_empty() { "no flag".to_owned() } else { there.join(", ") }
}

fn is_caller(turn: &Value) -> bool {
    turn.get("role").and_then(Value::as_str).is_some_and(|role| CALLERS.contains(&role))
}

fn message(turn: &Value, notes: &mut Vec<Note>) -> Result<Message, String> {
    let Value::Object(map) = turn else {
        return Err(format!(" must be an object with `role` and `content`, found {}", json::describe(turn)));
    };
    let mut fields = map.clone();
    // Tables hold nulls where another row has a value, and templates ask whether a key is there.
    fields.retain(|_, value| !value.is_null());
    let is_call = is_caller(turn);
    let role = match fields.get("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" | "user" | "assistant" | "tool" => role.clone(),
            "function" | "ipython" | "observation" | "function_response" | "tool_response" => "tool".to_owned(),
            _ if is_call => "assistant".to_owned(),
            _ => return Err(format!(".role is {}; expected {ROLES}", json::describe(&fields["role"]))),
        },
        Some(other) => return Err(format!(".role is {}; expected {ROLES}", json::describe(other))),
        None if map.contains_key("from") => {
            return Err(
                " has `from` and no `role`: that is a ShareGPT turn, which stands under `conversations`, and under \
                 `messages` is read with `--messages-column messages`; expected `role` and `content`"
                    .into(),
            );
        }
        None => {
            let found = json::keys(map);
            return Err(format!(
                " has no `role`; found the keys {found}; `role_key` and `content_key` name other ones"
            ));
        }
    };
    fields.insert("role".into(), role.clone().into());
    if let Some((key, why)) = of_other_meaning(&fields, false) {
        return Err(format!(".{key}: {why}"));
    }
    if let (Some(Value::String(content)), Some(Value::String(value))) = (fields.get("content"), fields.get("value"))
        && content != value
    {
        return Err(" has `content` and `value`, which differ; keep one of the two".into());
    }
    let tools = defined_tools(&mut fields, &role)?;
    match role.as_str() {
        _ if is_call => called(&mut fields)?,
        "assistant" => typed_parts::split(&mut fields)?,
        "tool" => returned(&mut fields),
        _ => {}
    }
    let named = |why: String| if is_call { why.replacen(".tool_calls", ".content", 1) } else { why };
    tool_calls(&mut fields, &role, notes).map_err(named)?;
    let (content, mut details) = match fields.get("content") {
        Some(Value::String(text)) => (Some(text.clone()), None),
        Some(Value::Array(parts)) => {
            let (text, mut details) = join_parts(parts, role == "assistant", notes)?;
            // The flag of the last text is not that of the calls behind it.
            if let Some(details) = details.as_mut().filter(|_| fields.contains_key(CALLS[0]))
                && details.iter().rfind(|(range, _)| !range.is_empty()).is_none_or(|(_, weight)| *weight != 1.0)
            {
                details.push((text.len()..BEHIND, 1.0));
            }
            (Some(text), details)
        }
        None if role == "assistant" && fields.contains_key("tool_calls") => (None, None),
        Some(other) => {
            return Err(format!(
                ".content is {}; expected a string or a list of {{\"type\": \"text\", \"text\": …}}",
                json::describe(other)
            ));
        }
        None if fields.get("refusal").is_some_and(|said| !is_empty(said)) => {
            return Err(
                " has no `content`, and a `refusal`, which is not learned: write what it says as `content`, or leave the row \
                 out"
                .into(),
            );
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
        notes.push(Note::Said(format!("a {role} turn is marked to be learned, but only assistant turns are learned")));
    }
    let others = fields.iter().filter(|(key, _)| !TURN_KEYS.contains(&key.as_str()));
    let known = || TURN_KEYS.iter().chain(&weight::KEYS).chain([&weight::DETAIL]).copied();
    notes.extend(others.map(|(key, value)| {
        let thought = unread_thought(key, value, &fields).filter(|_| role == "assistant");
        thought.unwrap_or_else(|| unused::note(KeyOf::Turn, key, value, role == "assistant", known()))
    }));
    let weight = weight.unwrap_or(1.0);
    let details = details.filter(|_| supervised);
    Ok(Message { role, content, supervised, weight, details, tools, fields })
}

/// Takes the tool definitions out of a turn of the system. Those of other turns are refused: no template writes them.
fn defined_tools(fields: &mut Map<String, Value>, role: &str) -> Result<Vec<Value>, String> {
    let is_system = matches!(role, "system" | "developer");
    let tools = match tools::of_row(fields) {
        Ok(tools) => tools,
        // It may be the names of the tools that a turn used, for example.
        Err(_) if !is_system => return Ok(Vec::new()),
        Err(why) => return Err(format!(": {why}")),
    };
    if !tools.is_empty() && !is_system {
        return Err(format!(
            " has `tools`, and the role is {role}: tools are defined by the row, or by a turn of the system; move them there"
        ));
    }
    ["tools", "functions"].iter().for_each(|key| drop(fields.shift_remove(*key)));
    Ok(tools)
}

/// Converts the content of a turn that is a call to the assistant's calls, and a thought before the call to its
/// reasoning.
fn called(fields: &mut Map<String, Value>) -> Result<(), String> {
    let content = fields.shift_remove("content").unwrap_or_default();
    if is_empty(&content) {
        return Err(".content is empty; expected the call, a JSON text of {\"name\", \"arguments\"}".into());
    }
    if let Some(key) = CALLS.iter().find(|key| fields.get(**key).is_some_and(|calls| !is_empty(calls))) {
        return Err(format!(" has `{key}` beside its content, which is a call; keep one of the two"));
    }
    let opened = content.as_str().and_then(|text| text.trim_start().strip_prefix(THINK[0])?.split_once(THINK[1]));
    let call = match opened.map(|(thought, call)| (thought.trim().to_owned(), call.trim().to_owned())) {
        None => content,
        Some((thought, call)) => {
            if let Some(key) = REASONING.iter().find(|key| fields.get(**key).is_some_and(|said| !is_empty(said))) {
                return Err(format!(" has `{key}`, and what is thought before the call as well; keep one of the two"));
            }
            if !thought.is_empty() {
                fields.insert(REASONING[0].to_owned(), thought.into());
            }
            call.into()
        }
    };
    fields.insert(CALLS[0].to_owned(), call);
    Ok(())
}

/// Converts a tool result that is an object, and no content part, to its text in Python's JSON.
fn returned(fields: &mut Map<String, Value>) {
    if let Some(result @ Value::Object(map)) = fields.get("content")
        && !map.contains_key("type")
    {
        let text = tools::spaced(result);
        fields.insert("content".to_owned(), text.into());
    }
}

/// Checks the calls of a turn, and gives those under another name the one that templates know.
fn tool_calls(fields: &mut Map<String, Value>, role: &str, notes: &mut Vec<Note>) -> Result<(), String> {
    let mut found: Option<(&str, Value)> = None;
    for (at, key) in CALLS.into_iter().enumerate() {
        // Turns of other roles may name the call that they answer, and a flag is no call.
        let is_read = |value: &Value| {
            at < 2 || role == "assistant" && (value.is_object() || value.is_array() || value.is_string())
        };
        if !fields.get(key).is_some_and(is_read) {
            continue;
        }
        let Some(calls) = fields.shift_remove(key).filter(|calls| !is_empty(calls)) else { continue };
        if let Some((other, _)) = found {
            return Err(format!(" has `{other}` and `{key}`; keep one of the two"));
        }
        found = Some((key, calls));
    }
    let Some((key, calls)) = found else { return Ok(()) };
    if role != "assistant" {
        return Err(format!(".{key}: only the assistant calls tools, the role is {role}"));
    }
    let calls = tools::calls(&calls, notes).map_err(|why| format!(".{key}{why}"))?;
    if !calls.is_empty() {
        fields.insert(CALLS[0].into(), Value::Array(calls));
    }
    Ok(())
}

/// A remark about a key that looks like the assistant's reasoning, and that no template writes.
fn unread_thought(key: &str, value: &Value, fields: &Map<String, Value>) -> Option<Note> {
    let spelled = words(key).join("_");
    // The details of a reasoning repeat it.
    let again = spelled == "reasoning_details" && fields.contains_key(REASONING[0]);
    let holds = !is_empty(value) && matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_));
    (THOUGHTS.contains(&spelled.as_str()) && holds && !again).then(|| {
        Note::Said(format!(
            "a turn of the assistant has the key `{key}`, which is left out: what it thinks is read from `reasoning_content`, \
             `thinking` or `reasoning`"
        ))
    })
}

/// Puts the assistant's reasoning under the keys that templates know, as transformers does.
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

/// The joined texts of the parts, and their learned ranges where a part has a flag.
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
            // OpenAI's types name the author of the text.
            Some(Value::String(kind)) if ["text", "input_text", "output_text"].contains(&kind.as_str()) => {}
            Some(Value::String(kind)) => {
                return Err(format!(".content[{at}] has the type {:?}; only text is supported", json::shorten(kind)));
            }
            Some(_) => return Err(expected()),
        }
        if let Some((key, why)) = media(map) {
            return Err(format!(".content[{at}].{key}: {why}"));
        }
        let texts = TEXTS.iter().filter_map(|key| Some((*key, map.get(*key)?.as_str()?)));
        let (first, piece) = texts.clone().next().ok_or_else(expected)?;
        if let Some((other, _)) = texts.into_iter().find(|(_, text)| !text.is_empty() && *text != piece) {
            return Err(format!(".content[{at}] has `{first}` and `{other}`, which differ; keep one of the two"));
        }
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
