//! Small JSON files read with care: bounded size, and errors that name the file, the key, what was found and what
//! was expected.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::regular;
use crate::bail_usage;
use crate::error::{Context, Error, Result};

/// Limit far above any real config.json or adapter_config.json.
pub(crate) const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Reads a regular file (symlinks are followed, pipes and devices are not opened) of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    match regular::read_at_most(path, limit)? {
        Some(bytes) => Ok(bytes),
        None => bail_usage!(
            "{}: found more than {limit} bytes, expected a file of at most that size; is it another file?",
            path.display()
        ),
    }
}

/// Reads a file that holds one JSON object.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = read_bounded(path, MAX_CONFIG_BYTES)?;
    match serde_json::from_slice(&bytes).usage_context(|| format!("{}: not valid JSON", path.display()))? {
        Value::Object(map) => Ok(map),
        other => bail_usage!("{}: found {}, expected a JSON object", path.display(), shown(&other)),
    }
}

/// A JSON value as an error message shows it: at most 60 characters.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(59).chain(['…']).collect() }
}

/// The shortest decimal that reads back as the same f32: 1e-5, not 9.999999747378752e-6.
pub(crate) fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// The keys of one JSON object, read with their types. A key that is null counts as absent, as it does for
/// transformers and PEFT; where null means something else, look into `map`.
pub(crate) struct Keys<'a> {
    /// Name of this object in errors: a path, or a path and the key that holds it.
    pub source: String,
    pub map: &'a Map<String, Value>,
    /// Keys that were asked for, whether they were there or not
    asked: RefCell<HashSet<String>>,
}

impl<'a> Keys<'a> {
    pub fn new(path: &Path, map: &'a Map<String, Value>) -> Self {
        Self::of(path.display().to_string(), map)
    }

    /// Keys of an object that errors call `source`.
    pub fn of(source: String, map: &'a Map<String, Value>) -> Self {
        Self { source, map, asked: RefCell::default() }
    }

    /// Marks a key as asked for although its value is not used.
    pub fn known(&self, key: &str) {
        self.get(key);
    }

    /// Keys that are there and that nothing has asked for yet, in the file's order.
    pub fn never_asked(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let asked = self.asked.borrow().clone();
        self.map.iter().map(|(key, value)| (key.as_str(), value)).filter(move |(key, _)| !asked.contains(*key))
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.map.get(key).map_or("nothing".to_owned(), shown);
        Error::Refused(format!("{}: key `{key}`: found {found}, expected {expected}", self.source))
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    /// A whole number ≥ 0.
    pub fn whole(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| value.as_f64().filter(|x| x.is_finite()))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub fn object(&self, key: &str) -> Result<Option<Keys<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Keys::of(format!("{}: `{key}`", self.source), map)))
    }
}

/// A JSON object in file order in which a repeated key is an error: serde's maps silently keep one of the two.
pub(crate) struct UniqueMap<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut keys = UniqueKeys::default();
                let mut entries = Vec::new();
                while let Some(key) = keys.next(&mut map)? {
                    let value = map.next_value().map_err(|cause| at_key(&key, cause))?;
                    entries.push((key, value));
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// The keys of a map being read, each allowed once.
#[derive(Default)]
pub(crate) struct UniqueKeys(HashSet<String>);

impl UniqueKeys {
    pub fn next<'de, A: MapAccess<'de>>(&mut self, map: &mut A) -> std::result::Result<Option<String>, A::Error> {
        let Some(key) = map.next_key::<String>()? else { return Ok(None) };
        if !self.0.insert(key.clone()) {
            return Err(de::Error::custom(format!("`{key}` appears twice")));
        }
        Ok(Some(key))
    }
}

/// Names the key whose value could not be read.
pub(crate) fn at_key<E: de::Error>(key: &str, cause: E) -> E {
    E::custom(format!("`{key}`: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_long_value_is_shortened_to_sixty_characters() {
        let whole = shown(&json!("a".repeat(58)));
        assert_eq!(whole, format!("\"{}\"", "a".repeat(58)));
        assert_eq!(shown(&json!("a".repeat(59))), format!("\"{}…", "a".repeat(58)));
    }
}
