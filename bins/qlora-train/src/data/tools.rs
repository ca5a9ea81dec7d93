//! Tool definitions and tool calls, in the forms that data sets have them.

use serde_json::{Map, Value, json};

use super::json as words;
use super::keys::is_empty;
use super::notes::{KeyOf, Note};
use super::template::python_float;
use super::unused;

/// Keys for the arguments of a call: OpenAI's, LangChain's, Llama's, Anthropic's, and ReAct's.
const ARGUMENTS: [&str; 5] = ["arguments", "args", "parameters", "input", "action_input"];
/// Keys of a call that are read here or that templates know.
const CALL_KEYS: [&str; 6] = ["type", "function", "id", "index", "call_id", "tool_call_id"];
/// Keys of the function that is called.
const FUNCTION_KEYS: [&str; 2] = ["name", ARGUMENTS[0]];

/// The tools of a row: a list of objects, or a JSON text of one; `""`, `"[]"`, null and an empty list are none. The
/// bare `functions` of OpenAI's older rows stand for tools of that type.
pub(super) fn of_row(row: &Map<String, Value>) -> Result<Vec<Value>, String> {
    let none = Value::Null;
    let of = |key: &str| tools(key, row.get(key).unwrap_or(&none));
    let tools: Vec<Value> = of("tools")?.into_iter().map(of_schema).collect();
    let functions = of("functions")?;
    match (tools.is_empty(), functions.is_empty()) {
        (false, false) => Err("found both `tools` and `functions`; keep one of them".to_owned()),
        (true, _) => {
            Ok(functions.into_iter().map(|function| json!({"type": "function", "function": function})).collect())
        }
        (false, true) => Ok(tools),
    }
}

/// Anthropic's definition of a tool as one of a function; any other as it is.
fn of_schema(tool: Value) -> Value {
    let has = |key: &str| tool.get(key).is_some();
    let is_theirs = has("name") && has("input_schema") && !has("function") && !has("parameters");
    match tool {
        Value::Object(map) if is_theirs => {
            let kept = map.into_iter().filter(|(key, _)| !["type", "cache_control"].contains(&key.as_str()));
            let renamed = kept.map(|(key, value)| (key.replace("input_schema", "parameters"), value));
            let function: Map<String, Value> = renamed.collect();
            json!({"type": "function", "function": function})
        }
        other => other,
    }
}

fn tools(key: &str, value: &Value) -> Result<Vec<Value>, String> {
    const EXPECTED: &str = "a list of tool definitions (objects), or a JSON text of one";
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        Value::String(text) => match words::parse(text.trim()) {
            Ok(Value::String(_)) | Err(_) => Err(format!("`{key}` is {}; expected {EXPECTED}", words::describe(value))),
            Ok(parsed) => tools(key, &parsed),
        },
        Value::Object(map) if map.is_empty() => Ok(Vec::new()),
        Value::Object(_) => Ok(vec![value.clone()]),
        Value::Array(items) => {
            let mut tools = Vec::with_capacity(items.len());
            for (at, item) in items.iter().enumerate() {
                let parsed = item.as_str().map(words::parse);
                check_numbers(item).map_err(|why| format!("`{key}[{at}]`{why}"))?;
                match (item, parsed) {
                    (Value::Object(_), _) => tools.push(item.clone()),
                    (_, Some(Ok(tool @ Value::Object(_)))) => tools.push(tool),
                    _ => return Err(format!("`{key}[{at}]` is {}; expected an object", words::describe(item))),
                }
            }
            Ok(tools)
        }
        other => Err(format!("`{key}` is {}; expected {EXPECTED}", words::describe(other))),
    }
}

/// The name of a tool definition, bare or under `function`.
pub(super) fn name(tool: &Value) -> Option<&str> {
    tool.get("function").unwrap_or(tool).get("name").and_then(Value::as_str)
}

/// True if a definition is a bare function, which templates that read `tool.function` do not know.
pub(super) fn is_bare(tool: &Value) -> bool {
    tool.get("function").is_none() && tool.get("type").and_then(Value::as_str) != Some("function")
}

/// Bare functions as tools of that type; other definitions stay as they are.
pub(super) fn wrapped(tools: Vec<Value>) -> Vec<Value> {
    let wrap = |tool| if is_bare(&tool) { json!({"type": "function", "function": tool}) } else { tool };
    tools.into_iter().map(wrap).collect()
}

/// Checks `tool_calls` and gives each the form that templates are written for: `{"type": "function", "function":
/// {"name", "arguments"}}` with arguments as an object, which OpenAI's own rows hold as a JSON text.
pub(super) fn calls(value: &Value, notes: &mut Vec<Note>) -> Result<Vec<Value>, String> {
    let parsed;
    let items = match value {
        Value::Array(items) => &items[..],
        Value::Object(_) => std::slice::from_ref(value),
        Value::String(text) => match words::parse(text) {
            Ok(value @ (Value::Array(_) | Value::Object(_))) => {
                parsed = value;
                return calls(&parsed, notes);
            }
            _ => return Err(format!(" is {}; expected a list of calls", words::describe(value))),
        },
        other => return Err(format!(" is {}; expected a list of calls", words::describe(other))),
    };
    items.iter().enumerate().map(|(at, item)| call(item, notes).map_err(|why| format!("[{at}]{why}"))).collect()
}

fn call(item: &Value, notes: &mut Vec<Note>) -> Result<Value, String> {
    let expected = "expected {\"function\": {\"name\": …, \"arguments\": …}}";
    let Value::Object(map) = item else { return Err(format!(" is {}; {expected}", words::describe(item))) };
    let mut map = map.clone();
    map.retain(|_, value| !value.is_null());
    let mut function = match map.get("function") {
        None => Map::new(),
        Some(Value::Object(function)) => function.clone(),
        Some(name @ Value::String(_)) => Map::from_iter([("name".to_owned(), name.clone())]),
        Some(other) => return Err(format!(".function is {}; {expected}", words::describe(other))),
    };
    function.retain(|_, value| !value.is_null());
    // The bare form has name and arguments beside the id. Its type may be any ("tool_call", "tool_use").
    if map.get("function").is_none_or(|function| !function.is_object()) && map.contains_key("type") {
        map.insert("type".to_owned(), "function".into());
    }
    for key in [FUNCTION_KEYS[0]].into_iter().chain(ARGUMENTS) {
        let Some(value) = map.shift_remove(key) else { continue };
        match function.get(key) {
            Some(other) if *other != value => return Err(format!(" has two `{key}` that differ; keep one of the two")),
            Some(_) => {}
            None => drop(function.insert(key.to_owned(), value)),
        }
    }
    if !map.contains_key("type") {
        map.shift_insert(0, "type".to_owned(), "function".into());
    }
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(format!(" has no name of a function; {expected}"));
    }
    let arguments = arguments(&function)?;
    ARGUMENTS[1..].iter().for_each(|key| drop(function.shift_remove(*key)));
    function.insert(ARGUMENTS[0].to_owned(), arguments);
    let mut tell = |map: &Map<String, Value>, known: &[&'static str]| {
        let others = map.iter().filter(|(key, value)| !known.contains(&key.as_str()) && !is_empty(value));
        let known = || known.iter().chain(&FUNCTION_KEYS).copied();
        notes.extend(others.map(|(key, value)| unused::note(KeyOf::Call, key, value, true, known())));
    };
    tell(&map, &CALL_KEYS);
    tell(&function, &FUNCTION_KEYS);
    map.insert("function".to_owned(), Value::Object(function));
    Ok(Value::Object(map))
}

/// The arguments of a call under whichever key, an empty object where it has none. Refused: two that differ.
fn arguments(function: &Map<String, Value>) -> Result<Value, String> {
    let mut found: Option<(&str, Value)> = None;
    for (key, value) in ARGUMENTS.into_iter().filter_map(|key| Some((key, function.get(key)?))) {
        let value = match value {
            Value::String(text) if text.trim().is_empty() => json!({}),
            Value::String(text) => match words::parse(text) {
                Ok(object @ Value::Object(_)) => object,
                // Not JSON: the template gets the text as it is.
                _ => Value::String(text.clone()),
            },
            other => other.clone(),
        };
        match &found {
            Some((other, before)) if *before != value => {
                return Err(format!(" has `{other}` and `{key}`, which differ; keep one of the two"));
            }
            Some(_) => {}
            None => found = Some((key, value)),
        }
    }
    let arguments = found.map_or_else(|| json!({}), |(_, arguments)| arguments);
    check_numbers(&arguments)?;
    Ok(arguments)
}

/// A value of a call that its rendering must hold: the function's name, or a text, number or truth value among its
/// arguments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Leaf {
    /// The ways in which a template may write it.
    forms: Vec<String>,
    /// Inside a longer word or number it would be another value.
    is_word: bool,
}

impl Leaf {
    /// The leaves of calls, each with its count.
    pub fn of(calls: &[Value]) -> Vec<(Self, usize)> {
        let mut all = Vec::new();
        for function in calls.iter().filter_map(|call| call.get("function")) {
            ["name", "arguments"].iter().filter_map(|key| function.get(key)).for_each(|value| collect(value, &mut all));
        }
        all.sort();
        let mut counted: Vec<(Self, usize)> = Vec::new();
        for leaf in all {
            match counted.last_mut().filter(|(last, _)| *last == leaf) {
                Some((_, count)) => *count += 1,
                None => counted.push((leaf, 1)),
            }
        }
        counted
    }

    pub fn shown(&self) -> &str {
        &self.forms[0]
    }

    /// The end of the first place in a text that holds it.
    pub fn end_of_first(&self, text: &str) -> Option<usize> {
        self.forms.iter().filter_map(|form| text.find(form.as_str()).map(|at| at + form.len())).min()
    }

    /// Number of times that a text holds it.
    pub fn occurrences(&self, text: &str) -> usize {
        let is_one = |&(at, form): &(usize, &str)| {
            let joins = |c: char| c.is_alphanumeric() || c == '_';
            let before = text[..at].chars().next_back();
            let mut behind = text[at + form.len()..].chars();
            let ends = match behind.next() {
                Some('.') => !behind.next().is_some_and(|c| c.is_ascii_digit()),
                next => !next.is_some_and(joins),
            };
            !self.is_word || ends && !before.is_some_and(|c| joins(c) || c == '.')
        };
        self.forms.iter().map(|form| text.match_indices(form.as_str()).filter(is_one).count()).sum()
    }
}

fn collect(value: &Value, out: &mut Vec<Leaf>) {
    let mut word = |forms: &[String]| out.push(Leaf { forms: distinct(forms), is_word: true });
    match value {
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => {
            let escaped = serde_json::to_string(text).unwrap_or_default();
            let forms = distinct(&[text.clone(), escaped.trim_matches('"').to_owned()]);
            out.push(Leaf { forms, is_word: false });
        }
        Value::Bool(true) => word(&["true".into(), "True".into()]),
        Value::Bool(false) => word(&["false".into(), "False".into()]),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => word(&[python_float(float), number.to_string(), float.to_string()]),
            None => word(&[number.to_string()]),
        },
        Value::Array(items) => items.iter().for_each(|item| collect(item, out)),
        Value::Object(map) => map.values().for_each(|value| collect(value, out)),
        Value::Null => {}
    }
}

/// A value as Python's JSON writes it: with a blank behind each comma and colon.
pub(super) fn spaced(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entry = |(key, value): (&String, &Value)| format!("{}: {}", Value::from(key.as_str()), spaced(value));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
        Value::Number(number) if number.is_f64() => number.as_f64().map_or_else(|| number.to_string(), python_float),
        other => other.to_string(),
    }
}

fn distinct(forms: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(forms.len());
    for form in forms {
        if !kept.contains(form) {
            kept.push(form.clone());
        }
    }
    kept
}

/// Refuses numbers that 64 bits do not hold: read as floats they would be written as other numbers.
fn check_numbers(value: &Value) -> Result<(), String> {
    match value {
        Value::Number(number)
            if number.as_f64().is_some_and(|float| number.is_f64() && float.abs() >= 2f64.powi(64)) =>
        {
            Err(format!(" has the number {number}, which 64 bits do not hold exactly; write it as a text"))
        }
        Value::Array(items) => items.iter().try_for_each(check_numbers),
        Value::Object(map) => map.values().try_for_each(check_numbers),
        _ => Ok(()),
    }
}
