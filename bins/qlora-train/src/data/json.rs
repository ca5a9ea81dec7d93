//! JSON values that refuse a key given twice: `serde_json` would silently keep the last one, and a row that says
//! two things must not be trained on as if it said one.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::budget::{MAX_VALUES, too_many_values};

/// Parses one JSON text. Errors: broken JSON, a duplicate key, nesting deeper than 128, more values than a row may
/// have.
///
/// NaN and Infinity, which are no JSON but which Python writes, become null.
pub(super) fn parse(text: &str) -> serde_json::Result<Value> {
    let strict = |text: &str| {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let value = Strict { left: &Cell::new(MAX_VALUES) }.deserialize(&mut deserializer)?;
        deserializer.end().map(|()| value)
    };
    strict(text).or_else(|error| match without_nan(text) {
        Some(text) => strict(&text),
        None => Err(error),
    })
}

/// The text with null for NaN, Infinity and -Infinity outside of strings.
/// None: it has none.
pub(super) fn without_nan(text: &str) -> Option<String> {
    let mut out = text.as_bytes().to_vec();
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < out.len() {
        match out[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'N' | b'I' | b'-' => {
                if let Some(name) =
                    ["-Infinity", "Infinity", "NaN"].iter().find(|name| out[at..].starts_with(name.as_bytes()))
                {
                    let end = at + name.len();
                    match *name {
                        "NaN" => {
                            out.splice(at..end, *b"null");
                        }
                        _ => {
                            out[at..end].fill(b' ');
                            out[at..at + 4].copy_from_slice(b"null");
                        }
                    }
                    found = true;
                    at += 3;
                }
            }
            _ => {}
        }
        at += 1;
    }
    found.then(|| String::from_utf8(out).expect("only ASCII was replaced"))
}

#[derive(Clone, Copy)]
struct Strict<'l> {
    /// Values that may still come.
    left: &'l Cell<usize>,
}

impl Strict<'_> {
    fn count<E: de::Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1).ok_or_else(|| E::custom(too_many_values()))?;
        self.left.set(left);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self)? {
            self.count()?;
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self)?;
            // With its key.
            (0..2).try_for_each(|_| self.count())?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format_args!("the key `{}` is given twice", shorten(&key))));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The type of a value, in words for an error message: `a string`, `null`, `a number (2.5)`.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => format!("{b}"),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string {:?}", shorten(s)),
        Value::Array(items) if items.is_empty() => "an empty array".into(),
        Value::Array(items) => format!("an array of {} items", items.len()),
        Value::Object(map) if map.is_empty() => "an empty object".into(),
        Value::Object(map) => format!("an object with the keys {}", keys(map)),
    }
}

/// The keys of an object in backticks, at most eight of them.
pub(super) fn keys(map: &Map<String, Value>) -> String {
    let mut names: Vec<String> = map.keys().take(8).map(|key| format!("`{}`", shorten(key))).collect();
    if map.len() > names.len() {
        names.push("…".into());
    }
    names.join(", ")
}

/// At most 60 characters.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
