//! Rows of other formats as conversations: ShareGPT, Alpaca, and prompts that are lists of turns.

use serde_json::{Map, Value};

use super::columns::holds_turns;
use super::json;
use super::keys::is_empty;
use super::messages::{CALLERS, Conversation, Message, add, listed, turns};
use super::notes::Note;
use super::row_kind::RowKind;
use super::rows::check_values;
use super::{tools, weight};

/// The content of a row before it is tokenized.
pub(super) enum Content {
    Conversation(Conversation),
    /// Plain text; everything after the prompt is supervised.
    Text {
        /// Text of the system before a prompt and its completion as turns.
        system: String,
        /// Earlier turns, which are not learned.
        history: Vec<Message>,
        prompt: String,
        completion: String,
        /// Tool definitions and variables of the template, which only turns can have.
        tools: Vec<Value>,
        variables: Map<String, Value>,
    },
}

/// Instruction and input of an Alpaca row as one user turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AlpacaStyle {
    /// With a blank line between them.
    Plain,
    /// Under the Alpaca prompt's heading for an input, with its other opening sentence.
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
    let none = Value::Null;
    let given = map.get("chat_template_kwargs").unwrap_or(&none);
    // Tables hold them as JSON text.
    let parsed = given.as_str().and_then(|text| json::parse(text.trim()).ok());
    parsed.iter().try_for_each(|parsed| check_values(parsed, kind))?;
    let variables = match parsed.as_ref().unwrap_or(given) {
        Value::Object(variables) => variables.clone(),
        said if is_empty(said) => Map::new(),
        _ => {
            let found = json::describe(given);
            return Err(format!("`chat_template_kwargs` is {found}; expected an object, or a JSON text of one"));
        }
    };
    let tools = tools::of_row(map)?;
    let messages = match kind {
        RowKind::Messages => with_system(map, turns(map, "messages", notes)?, notes)?,
        RowKind::ShareGpt => share_gpt(map, notes)?,
        RowKind::Alpaca => alpaca_turns(map, alpaca, notes)?,
        RowKind::PromptCompletion if is_of_turns(map) => {
            if !history(map, kind, notes)?.is_empty() {
                return Err(
                    "`history` has no place beside turns; write them into `prompt`, or leave the key out".into()
                );
            }
            let prompt = turns(map, "prompt", notes)?.into_iter().map(Message::unsupervised);
            with_system(map, prompt.chain(turns(map, "completion", notes)?).collect(), notes)?
        }
        RowKind::PromptCompletion => {
            let (prompt, completion) = (text(map, "prompt")?.to_owned(), text(map, "completion")?.to_owned());
            let system = optional(map, "system")?.to_owned();
            let (history, tools) = with_tools_of_turns(history(map, kind, notes)?, tools)?;
            not_asked_before(&history, &prompt)?;
            notes.extend(turns_as_text(&prompt));
            return Ok(Content::Text { system, history, prompt, completion, tools, variables });
        }
        RowKind::Text => {
            return Ok(Content::Text {
                system: String::new(),
                history: Vec::new(),
                prompt: String::new(),
                completion: text(map, "text")?.to_owned(),
                tools,
                variables,
            });
        }
        RowKind::Tokenized => return Err("a tokenized row has no text".into()),
    };
    let (messages, mut tools) = with_tools_of_turns(messages, tools)?;
    if kind == RowKind::ShareGpt {
        // LLaMA-Factory's rows define bare functions, which it writes as tools of that type.
        tools = tools::wrapped(tools);
    }
    Ok(Content::Conversation(Conversation { messages, tools, variables }))
}

/// True if prompt and completion are turns, not texts.
pub(super) fn is_of_turns(map: &Map<String, Value>) -> bool {
    ["prompt", "completion"].iter().any(|key| map.get(*key).is_some_and(Value::is_array))
}

/// The tools of a row, which a turn of its system may define instead.
fn with_tools_of_turns(
    mut messages: Vec<Message>,
    mut tools: Vec<Value>,
) -> Result<(Vec<Message>, Vec<Value>), String> {
    for message in &mut messages {
        let own = message.take_tools();
        if own.is_empty() || own == tools {
            continue;
        }
        if !tools.is_empty() {
            let role = &message.role;
            return Err(format!("a {role} turn has `tools` that differ from those of the row; keep one of the two"));
        }
        tools = own;
    }
    Ok((messages, tools))
}

/// Loss weight of the whole row.
pub(super) fn row_weight(map: &Map<String, Value>, kind: RowKind) -> Result<f32, String> {
    let mut whole = Map::new();
    for (key, value) in map.iter().filter(|(key, value)| weight::is_of_row(key, value)) {
        match (value, kind) {
            // A list with an entry for each token is read with the tokens.
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
pub(super) fn no_tools(tools: &[Value], kind: RowKind) -> Result<(), String> {
    let otherwise = match kind {
        RowKind::PromptCompletion => ", or have the chat template write it (`prompt_completion: chat`)",
        _ => "",
    };
    match tools.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "the row has tool definitions (`tools`), and it is plain text, in which they have no place; write the row as \
             `messages`{otherwise}"
        )),
    }
}

/// A remark about a completion that is a list of calls as text, which the template would write in its own form.
pub(super) fn calls_as_text(tools: &[Value], completion: &str) -> Option<Note> {
    if tools.is_empty() {
        return None;
    }
    let Ok(Value::Array(calls)) = json::parse(completion) else { return None };
    let is_call = |value: &Value| value.get("name").is_some_and(Value::is_string);
    (!calls.is_empty() && calls.iter().all(is_call)).then(|| {
        Note::Said(
            "the completion is a list of calls, and it is learned as the text that it is; as `tool_calls` of a turn \
             (`messages`) the chat template writes calls in the model's own form"
                .to_owned(),
        )
    })
}

/// A remark about a prompt that is a list of turns as text, as tables hold them.
fn turns_as_text(prompt: &str) -> Option<Note> {
    let begins = prompt.trim_start().strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with('{'));
    let turns = begins.then(|| json::parse(prompt.trim()).ok()).flatten()?;
    holds_turns(&turns).then(|| {
        Note::Said(
            "the prompt is a list of turns as a text of JSON, and it is read as the text that it is; write prompt and \
             completion as lists, or all turns as `messages`"
                .to_owned(),
        )
    })
}

/// Puts the row's `system`, a text or a list of its parts (Anthropic's form), before the turns.
fn with_system(map: &Map<String, Value>, turns: Vec<Message>, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let Some(parts) = map.get("system").filter(|system| system.get(0).is_some()) else {
        return after_system(optional(map, "system")?, turns);
    };
    let turn = Map::from_iter([("role".to_owned(), "system".into()), ("content".to_owned(), parts.clone())]);
    let system = listed(&[Value::Object(turn)], "system", notes);
    let system = system.map_err(|why| why.replacen("[0]`.content", "`", 1))?;
    after_system(system[0].content.as_deref().unwrap_or_default(), turns)
}

/// Puts a system text before turns, which may begin with the same text. Refused: they begin with another.
pub(super) fn after_system(system: &str, turns: Vec<Message>) -> Result<Vec<Message>, String> {
    if system.is_empty() {
        return Ok(turns);
    }
    if let Some(turn) = first_of_system(&turns) {
        if turn.content.as_deref().is_some_and(|content| content.trim() == system.trim()) {
            return Ok(turns);
        }
        return Err("the row has `system` and a system turn; keep one of the two".into());
    }
    Ok([Message::new("system", system)].into_iter().chain(turns).collect())
}

fn first_of_system(turns: &[Message]) -> Option<&Message> {
    turns.first().filter(|turn| matches!(turn.role.as_str(), "system" | "developer"))
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a str, String> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("`{key}` is {}; expected a string", json::describe(other))),
        None => Err(format!("`{key}` is missing; expected a string")),
    }
}

/// [`text`], or an empty string where the key is missing or null.
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
        return with_system(map, turns(map, "conversations", notes)?, notes);
    }
    let mut conversation = Vec::with_capacity(items.len() + 1);
    let system = optional(map, "system")?;
    let first = items.first().filter(|turn| turn.get("from").and_then(Value::as_str) == Some("system"));
    let said = first.and_then(|turn| turn.get("value")).and_then(Value::as_str);
    if !system.is_empty() && said.is_none_or(|said| said.trim() != system.trim()) {
        if first.is_some() {
            return Err("the row has `system` and a system turn in `conversations`; keep one of the two".into());
        }
        conversation.push(Message::new("system", system));
    }
    if items.is_empty() {
        return Err("`conversations` is an empty array; expected turns of {\"from\", \"value\"}".into());
    }
    conversation.extend(share_gpt_turns(items, "conversations", notes)?);
    Ok(conversation)
}

/// The turns of a list under `key`.
fn share_gpt_turns(items: &[Value], key: &str, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let mut conversation: Vec<Message> = Vec::with_capacity(items.len());
    for (at, turn) in items.iter().enumerate() {
        share_gpt_turn(turn, &mut conversation, notes).map_err(|why| format!("`{key}[{at}]`{why}"))?;
    }
    Ok(conversation)
}

/// The role of a turn that calls tools.
const CALL: &str = CALLERS[0];

fn share_gpt_turn(turn: &Value, conversation: &mut Vec<Message>, notes: &mut Vec<Note>) -> Result<(), String> {
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
            caller if CALLERS.contains(&caller) => CALL,
            other => {
                let other = json::shorten(other);
                return Err(format!(
                    ".from is {other:?}; expected system, human, gpt, function_call, tool or observation; `--roles \
                     user=NAME` says what another name stands for"
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
    // The rules of `messages` apply from here on, those of `weight` included.
    let mut fields = Map::new();
    fields.insert("role".into(), role.into());
    for (key, value) in map.iter().filter(|(key, _)| !matches!(key.as_str(), "from" | "role" | "content")) {
        fields.insert(if key == "value" { "content".into() } else { key.clone() }, value.clone());
    }
    let turn = Value::Object(fields);
    add(conversation, &turn, role == CALL, notes).map_err(|why| why.replacen(".content", ".value", 1))
}

/// Refuses a turn with different texts under the keys of both forms: it is unclear which one to learn.
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
fn alpaca_turns(map: &Map<String, Value>, style: AlpacaStyle, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let (instruction, output) = (text(map, "instruction")?, text(map, "output")?);
    let (input, mut system) = (optional(map, "input")?, optional(map, "system")?);
    let history = history(map, RowKind::Alpaca, notes)?;
    let user = match style {
        _ if input.trim().is_empty() => instruction.to_owned(),
        AlpacaStyle::Plain => format!("{instruction}\n\n{input}"),
        AlpacaStyle::Headings => {
            if system.is_empty() && first_of_system(&history).is_none() {
                system = WITH_INPUT;
            }
            format!("{instruction}\n\n### Input:\n{input}")
        }
    };
    not_asked_before(&history, &user)?;
    let mut conversation = after_system(system, history)?;
    conversation.extend([Message::new("user", &user), Message::new("assistant", output)]);
    Ok(conversation)
}

/// Keys under which an earlier question and its answer stand.
const ASKED: [&str; 7] = ["prompt", "query", "instruction", "question", "input", "user", "human"];
const ANSWERED: [&str; 7] = ["completion", "response", "output", "answer", "assistant", "gpt", "bot"];

/// The turns of `history`, or of a JSON text of it: a list of pairs of a question and its answer, or of turns; none of
/// them is learned. In a row with a prompt the key may mean something else: a value that is no list gives a warning
/// there.
fn history(map: &Map<String, Value>, kind: RowKind, notes: &mut Vec<Note>) -> Result<Vec<Message>, String> {
    let Some(value) = map.get("history") else { return Ok(Vec::new()) };
    let parsed = value.as_str().and_then(|text| json::parse(text.trim()).ok());
    parsed.iter().try_for_each(|parsed| check_values(parsed, kind))?;
    let said = parsed.as_ref().unwrap_or(value);
    let items = match said {
        said if is_empty(said) => return Ok(Vec::new()),
        Value::Array(items) => items,
        other => {
            let found = json::describe(value);
            let why = format!("`history` is {found}; expected an array of pairs, or of turns, or a JSON text of one");
            if kind != RowKind::PromptCompletion || other.is_object() {
                return Err(format!("{why}, or leave the key out"));
            }
            notes
                .push(Note::Said(format!("the row has a `history` that is not read: {why}; what it says is not seen")));
            return Ok(Vec::new());
        }
    };
    let all_have = |key: &str| items.iter().all(|item| item.get(key).is_some());
    let otherwise = |why: String| format!("{why}; leave the key out if it says something else");
    let turns = if all_have("role") {
        listed(items, "history", notes).map_err(otherwise)?
    } else if all_have("from") {
        share_gpt_turns(items, "history", notes).map_err(otherwise)?
    } else {
        let mut turns = Vec::with_capacity(2 * items.len());
        for (at, item) in items.iter().enumerate() {
            let Some([question, answer]) = pair(item) else {
                let found = json::describe(item);
                return Err(otherwise(format!(
                    "`history[{at}]` is {found}; expected a pair of strings, instruction and output: a list of the two, or \
                     an object of two keys (`prompt` and `completion`, `query` and `response`, `instruction` and \
                     `output`); or turns of `role` and `content`"
                )));
            };
            turns.extend([Message::new("user", question), Message::new("assistant", answer)]);
        }
        turns
    };
    Ok(turns.into_iter().map(Message::unsupervised).collect())
}

/// Refuses earlier turns that end with the question of the row, which would be asked twice.
fn not_asked_before(history: &[Message], question: &str) -> Result<(), String> {
    let last = history.last().filter(|last| last.role == "user").and_then(|last| last.content.as_deref());
    match last.is_some_and(|last| last.trim() == question.trim()) {
        true => Err("`history` ends with the question of the row, which would be asked twice; leave it out".into()),
        false => Ok(()),
    }
}

/// An earlier question and its answer. None: it is no pair of texts, or it says more.
fn pair(item: &Value) -> Option<[&str; 2]> {
    let map = match item {
        Value::Array(two) => match &two[..] {
            [Value::String(question), Value::String(answer)] => return Some([question.as_str(), answer.as_str()]),
            _ => return None,
        },
        other => other.as_object()?,
    };
    // Numbers and truth values are only metadata.
    let tells = |value: &Value| is_empty(value) || value.is_number() || value.is_boolean();
    let mut said: Vec<(&String, &Value)> = map.iter().filter(|(_, value)| !tells(value)).collect();
    said.sort_by_key(|(key, _)| ANSWERED.contains(&key.as_str()));
    match said[..] {
        [(asked, question), (answered, answer)]
            if ASKED.contains(&asked.as_str()) && ANSWERED.contains(&answered.as_str()) =>
        {
            Some([question.as_str()?, answer.as_str()?])
        }
        _ => None,
    }
}
