//! Keys of config.json that a family does not read.

use serde_json::Value;

use super::Family;
use crate::error::Result;
use crate::files::json::Keys;

/// Words of `config_keys.txt` below the heading `heading`.
fn listed(heading: &str) -> impl Iterator<Item = &'static str> {
    let mut inside = false;
    let lines = include_str!("config_keys.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(move |line| {
        if !line.starts_with(' ') {
            inside = line == heading;
            return "".split_whitespace();
        }
        if inside { line.split_whitespace() } else { "".split_whitespace() }
    })
}

/// True if the value of a key means that its feature is absent or is the usual one: null, false, nothing, 0 or 1, full
/// attention, silu; of one layer or of all.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64().is_some_and(|x| x == 0.0 || x == 1.0),
        Value::String(text) => ["", "none", "full_attention", "silu"].contains(&text.as_str()),
        Value::Array(all) => {
            all.iter().all(|one| one == 1 || (is_neutral(one) && !one.is_number() && !one.is_boolean()))
        }
        Value::Object(map) => map.is_empty(),
    }
}

/// A sentence that names the keys that the family did not read and that are not neutral. Refuses those that would
/// change the model's arithmetic if they were read. Call it after the family has read its own keys.
pub(super) fn check(keys: &Keys, family: &Family) -> Result<Option<String>> {
    let is_in = |heading: &str, key: &str| listed(heading).any(|name| name == key);
    // A switch of another feature may be off; one of a feature that every family has must be on.
    let says_nothing = |key: &str, value: &Value| match is_in("on", key) {
        true => value.is_null() || *value == true,
        false => is_neutral(value) || is_in("neutral", key),
    };
    let mut unknown = Vec::new();
    for (key, _) in keys.never_asked().filter(|(key, value)| !says_nothing(key, value)) {
        if is_in("arithmetic", key) || is_in("on", key) {
            let expected = format!(
                "no such key, or the value by which it does nothing: a model of type {:?} is computed without it; remove \
                 it if this model was trained without it",
                family.model_type
            );
            return Err(keys.wrong(key, &expected));
        }
        unknown.push(format!("`{key}`"));
    }
    let named = || {
        let (source, model_type, unknown) = (&keys.source, family.model_type, unknown.join(", "));
        format!("{source}: not used, as a model of type {model_type:?} has no key of that name: {unknown}")
    };
    Ok((!unknown.is_empty()).then(named))
}

#[cfg(test)]
mod tests;
