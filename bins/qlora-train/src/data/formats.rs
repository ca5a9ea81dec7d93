//! Rows of other formats as conversations: ShareGPT, Alpaca, and prompts that are lists of turns.

use serde_json::{Map, Value};

use super::json;
use super::keys::is_empty;
use super::messages::{Conversation, Message, message, turns};
use super::notes::Note;
use super::row_kind::RowKind;
use super::{tools, weight};

/// What a row says before it is tokenized.
pub(super) enum Content {
    Conversation(Conversation),
    /// Text as it stands, of which what follows the prompt is supervised.
    Text {
        /// What stands before a prompt and its completion as turns.
        system: String,
        prompt: String,
        completion: String,
    },
}

/// Instruction and input of an Alpaca row as one user turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AlpacaStyle {
    /// With a blank line between them.
    Plain,
    /// Under the heading that the Alpaca prompt has for an input, with its other opening sentence.
    Headings,
}

const WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further \
                          context. Write a response that appropriately completes the request.";

/// The content of a row that is text. The error is a reason in words.
pub(super) fn content(
    map: &Map<String, Value>,
    kind: RowKind,
    alpaca: AlpacaStyle,
    notes: &mut Vec<Note>,
) -> Result<Content, String> {
    let messages = match kind {
        RowKind::Messages => with_system(map, turns(map, "messages", notes)?)?,
        RowKind::ShareGpt => share_gpt(map, notes)?,
        RowKind::Alpaca => alpaca_turns(map, alpaca)?,
        RowKind::PromptCompletion if map["prompt"].is_array() || map["completion"].is_array() => {
            let prompt = turns(map, "prompt", notes)?.into_iter().map(Message::unsupervised);
            with_system(map, prompt.chain(turns(map, "completion", notes)?).collect())?
        }
        RowKind::PromptCompletion => {
            no_tools(map)?;
            let (prompt, completion) = (text(map, "prompt")?.to_owned(), text(map, "completion")?.to_owned());
            return Ok(Content::Text { system: optional(map, "system")?.to_owned(), prompt, completion });
        }
        RowKind::Text => {
            no_tools(map)?;
            return Ok(Content::Text {
                system: String::new(),
                prompt: String::new(),
                completion: text(map, "text")?.to_owned(),
            });
        }
        RowKind::Tokenized => return Err("a tokenized row has no text".into()),
    };
    let variables = match map.get("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(variables)) => variables.clone(),
        Some(other) => {
            return Err(format!("`chat_template_kwargs` is {}; expected an object", json::describe(other)));
        }
    };
    Ok(Content::Conversation(Conversation { messages, tools: tools::of_row(map)?, variables }))
}

/// How much of the loss the whole row has.
pub(super) fn row_weight(map: &Map<String, Value>, kind: RowKind) -> Result<f32, String> {
    let mut whole = Map::new();
    for (key, value) in map.iter().filter(|(key, value)| weight::is_of_row(key, value)) {
        match (value, kind) {
            // With an entry for each token it is read with the tokens.
            (Value::Array(_), RowKind::Tokenized) if weight::GRADED.contains(&key.as_str()) => continue,
            _ => whole.insert(key.clone(), value.clone()),
        };
    }
    let named = |why: String| match why.strip_prefix('.').and_then(|why| why.split_once(' ')) {
        Some((key, why)) => format!("`{key}` of the row {why}"),
        None => format!("the row{why}"),
    };
    Ok(weight::of(&whole).map_err(named)?.unwrap_or(1.0))
}

/// Refuses tool definitions beside plain text, in which they have no place.
fn no_tools(map: &Map<String, Value>) -> Result<(), String> {
    match tools::of_row(map)?.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "`tools` is {}, and the row is plain text, in which tool definitions have no place; write the row as \
             `messages`",
            json::describe(&map["tools"])
        )),
    }
}

/// Puts the row's `system` before the turns.
fn with_system(map: &Map<String, Value>, turns: Vec<Message>) -> Result<Vec<Message>, String> {
    let system = optional(map, "system")?;
    if system.is_empty() {
        return Ok(turns);
    }
    if turns.first().is_some_and(|turn| matches!(turn.role.as_str(), "system" | "developer")) {
        return Err("the row has `system` and a system turn; keep one of the two".into());
    }
    Ok([Message::new("system", system)].into_iter().chain(turns).collect())
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` is {}; expected a string", json::describe(other))),
        None => Err(format!("`{key}` is missing; expected a string")),
    }
}

/// Like [`text`], and an empty string where the key is missing or null.
fn optional<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(""),
        Some(_) => text(map, key),
    }
}

fn share_gpt(map: &Map<String, Value>, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let Some(Value::Array(items)) = map.get("conversations") else {
        let found = map.get("conversations").map_or_else(|| "nothing".into(), json::describe);
        return Err(format!("`conversations` must be a non-empty array of {{\"from\", \"value\"}}, found {found}"));
    };
    // Some data sets keep `role` and `content` under this key.
    if items.first().is_some_and(|turn| turn.get("role").is_some() && turn.get("from").is_none()) {
        return with_system(map, turns(map, "conversations", notes)?);
    }
    let mut conversation = Vec::with_capacity(items.len() + 1);
    let system = optional(map, "system")?;
    if !system.is_empty() {
        if items.first().and_then(|turn| turn.get("from")).and_then(Value::as_str) == Some("system") {
            return Err("the row has `system` and a system turn in `conversations`; keep one of the two".into());
        }
        conversation.push(Message::new("system", system));
    }
    if items.is_empty() {
        return Err("`conversations` is an empty array; expected turns of {\"from\", \"value\"}".into());
    }
    for (at, turn) in items.iter().enumerate() {
        conversation.push(share_gpt_turn(turn, notes).map_err(|why| format!("`conversations[{at}]`{why}"))?);
    }
    Ok(conversation)
}

/// The `from` of a turn that calls tools.
const CALL: &str = "function_call";

fn share_gpt_turn(turn: &Value, notes: &mut Vec<Note>) -> Result<Message, String> {
    let Value::Object(map) = turn else {
        return Err(format!(" must be an object with `from` and `value`, found {}", json::describe(turn)));
    };
    let role = match map.get("from") {
        Some(Value::String(from)) => match from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "model" | "bot" => "assistant",
            "system" => "system",
            "developer" => "developer",
            "tool" | "observation" | "function" | "function_response" | "tool_response" | "ipython" => "tool",
            CALL | "tool_call" | "tool_calls" | "function-call" => CALL,
            other => {
                let other = json::shorten(other);
                return Err(format!(
                    ".from is {other:?}; expected system, human, gpt, function_call, tool or observation"
                ));
            }
        },
        Some(other) => return Err(format!(".from is {}; expected a string", json::describe(other))),
        None => return Err(format!(" has no `from`; found the keys {}", json::keys(map))),
    };
    if !map.contains_key("value") {
        return Err(format!(" has no `value`; found the keys {}", json::keys(map)));
    }
    if let Some(Value::Null) = map.get("value") {
        return Err(".value is null; expected a string".into());
    }
    check_other_form(map, if role == CALL { "assistant" } else { role })?;
    // The rules of `messages` hold from here on, those of `weight` included.
    let mut fields = Map::new();
    let (role, text) = if role == CALL { ("assistant", "tool_calls") } else { (role, "content") };
    fields.insert("role".into(), role.into());
    for (key, value) in map.iter().filter(|(key, _)| !matches!(key.as_str(), "from" | "role" | "content")) {
        fields.insert(if key == "value" { text.into() } else { key.clone() }, value.clone());
    }
    if text == "tool_calls" && is_empty(&map["value"]) {
        return Err(".value is empty; expected the call, a JSON text of {\"name\", \"arguments\"}".into());
    }
    message(&Value::Object(fields), notes).map_err(|why| why.replacen(&format!(".{text}"), ".value", 1))
}

/// Refuses a turn that says something else under the keys of the other form, of which one would be learned by chance.
fn check_other_form(map: &Map<String, Value>, role: &str) -> Result<(), String> {
    if let (Some(Value::String(content)), Some(Value::String(value))) = (map.get("content"), map.get("value"))
        && content != value
    {
        return Err(" has `content` and `value`, which differ; keep one of the two".into());
    }
    let other = match map.get("role").and_then(Value::as_str) {
        Some("function" | "ipython") => "tool",
        Some(known @ ("system" | "developer" | "user" | "assistant" | "tool")) => known,
        _ => return Ok(()),
    };
    match other == role {
        true => Ok(()),
        false => Err(format!(" has `role` ({other}) and `from`, which differ; keep one of the two")),
    }
}

/// `history` is a list of [instruction, output] pairs that came before; only `output` is supervised.
fn alpaca_turns(map: &Map<String, Value>, style: AlpacaStyle) -> Result<Vec<Message>, String> {
    let (instruction, output) = (text(map, "instruction")?, text(map, "output")?);
    let (input, mut system) = (optional(map, "input")?, optional(map, "system")?);
    let user = match style {
        _ if input.trim().is_empty() => instruction.to_owned(),
        AlpacaStyle::Plain => format!("{instruction}\n\n{input}"),
        AlpacaStyle::Headings => {
            if system.is_empty() {
                system = WITH_INPUT;
            }
            format!("{instruction}\n\n### Input:\n{input}")
        }
    };
    let mut conversation = Vec::new();
    if !system.is_empty() {
        conversation.push(Message::new("system", system));
    }
    let history = match map.get("history") {
        None | Some(Value::Null) => &[][..],
        Some(Value::Array(pairs)) => &pairs[..],
        Some(other) => return Err(format!("`history` is {}; expected an array of pairs", json::describe(other))),
    };
    for (at, pair) in history.iter().enumerate() {
        match pair.as_array().map(Vec::as_slice) {
            Some([Value::String(question), Value::String(answer)]) => {
                conversation.push(Message::new("user", question));
                conversation.push(Message::new("assistant", answer).unsupervised());
            }
            _ => {
                let found = json::describe(pair);
                return Err(format!("`history[{at}]` is {found}; expected a pair of strings, instruction and output"));
            }
        }
    }
    conversation.extend([Message::new("user", &user), Message::new("assistant", output)]);
    Ok(conversation)
}
