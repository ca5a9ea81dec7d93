//! Tool definitions and tool calls, in the forms that data sets have them.

use serde_json::{Map, Value, json};

use super::json as words;

/// The tools of a row: a list of objects, or a JSON text of one; `""`, `"[]"`, null and an empty list are none. The
/// bare `functions` of OpenAI's older rows stand for tools of that type.
pub(super) fn of_row(row: &Map<String, Value>) -> Result<Vec<Value>, String> {
    let none = Value::Null;
    let of = |key: &str| tools(key, row.get(key).unwrap_or(&none));
    let (tools, functions) = (of("tools")?, of("functions")?);
    match (tools.is_empty(), functions.is_empty()) {
        (false, false) => Err("found both `tools` and `functions`; keep one of them".to_owned()),
        (true, _) => {
            Ok(functions.into_iter().map(|function| json!({"type": "function", "function": function})).collect())
        }
        (false, true) => Ok(tools),
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

/// Checks `tool_calls` and gives each the form that templates are written for: `{"type": "function", "function":
/// {"name", "arguments"}}` with arguments as an object, which OpenAI's own rows hold as a JSON text.
pub(super) fn calls(value: &Value) -> Result<Vec<Value>, String> {
    let parsed;
    let items = match value {
        Value::Array(items) => &items[..],
        Value::Object(_) => std::slice::from_ref(value),
        Value::String(text) => match words::parse(text) {
            Ok(value @ (Value::Array(_) | Value::Object(_))) => {
                parsed = value;
                return calls(&parsed);
            }
            _ => return Err(format!(" is {}; expected a list of calls", words::describe(value))),
        },
        other => return Err(format!(" is {}; expected a list of calls", words::describe(other))),
    };
    items.iter().enumerate().map(|(at, item)| call(item).map_err(|why| format!("[{at}]{why}"))).collect()
}

fn call(item: &Value) -> Result<Value, String> {
    let expected = "expected {\"function\": {\"name\": …, \"arguments\": …}}";
    let Value::Object(map) = item else { return Err(format!(" is {}; {expected}", words::describe(item))) };
    let mut map = map.clone();
    map.retain(|_, value| !value.is_null());
    if map.get("function").is_none_or(|function| !function.is_object()) {
        // The bare form: name and arguments beside the id.
        let mut function = Map::new();
        for key in ["name", "arguments", "parameters"] {
            if let Some(value) = map.shift_remove(key) {
                function.insert(if key == "parameters" { "arguments" } else { key }.to_owned(), value);
            }
        }
        map.insert("function".to_owned(), Value::Object(function));
    }
    if !map.contains_key("type") {
        map.shift_insert(0, "type".to_owned(), "function".into());
    }
    let Some(Value::Object(function)) = map.get_mut("function") else { unreachable!("an object was put there") };
    if !function.get("name").is_some_and(Value::is_string) {
        return Err(format!(" has no name of a function; {expected}"));
    }
    let arguments = match function.get("arguments") {
        None | Some(Value::Null) => json!({}),
        Some(Value::String(text)) if text.trim().is_empty() => json!({}),
        Some(Value::String(text)) => match words::parse(text) {
            Ok(object @ Value::Object(_)) => object,
            // Not JSON: the template gets the text as it is.
            _ => Value::String(text.clone()),
        },
        Some(other) => other.clone(),
    };
    function.insert("arguments".to_owned(), arguments);
    Ok(Value::Object(map))
}

/// The texts that a rendered call must hold: the function's name, and every text among its arguments.
pub(super) fn texts(call: &Value) -> Vec<&str> {
    fn leaves<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::String(text) => out.push(text),
            Value::Array(items) => items.iter().for_each(|item| leaves(item, out)),
            Value::Object(map) => map.values().for_each(|value| leaves(value, out)),
            _ => {}
        }
    }
    let mut out = Vec::new();
    if let Some(function) = call.get("function") {
        out.extend(function.get("name").and_then(Value::as_str));
        if let Some(arguments) = function.get("arguments") {
            leaves(arguments, &mut out);
        }
    }
    out
}
