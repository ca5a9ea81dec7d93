//! Settings for single modules: PEFT's patterns of names, and numbers of layers.

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::types::{Reject, SettingValue, is_off, is_unset};
use super::yaml::{Entry, Value};

/// Names of modules, or regular expressions for their paths, each with a value; the first that matches counts. As a
/// flag `q_proj=8`, once for each, or the JSON of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern<T>(pub IndexMap<String, T>);

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Self(IndexMap::new())
    }
}

impl<T: SettingValue> Pattern<T> {
    fn insert(&mut self, key: &str, value: &Value) -> Result<(), Reject> {
        if key.trim().is_empty() {
            return Err(Reject::Wrong);
        }
        let because = |what: String| Reject::Because(format!("`{}`: {what}", key.escape_debug()));
        let value = T::read(value).map_err(|_| because(format!("found {value}, expected a number")))?;
        match self.0.insert(key.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(because("is given twice: keep one of them".to_owned())),
        }
    }

    fn insert_all(&mut self, entries: &[Entry]) -> Result<(), Reject> {
        entries.iter().try_for_each(|entry| self.insert(&entry.key, &entry.value))
    }

    /// `q_proj=8`, or `{"q_proj": 8}`.
    fn insert_text(&mut self, text: &str) -> Result<(), Reject> {
        if text.trim_start().starts_with('{') {
            let json: Json = serde_json::from_str(text).map_err(|_| Reject::Wrong)?;
            let Value::Map(entries) = Value::from(&json) else { return Err(Reject::Wrong) };
            return self.insert_all(&entries);
        }
        // A regular expression may hold the sign itself.
        let Some((key, value)) = text.rsplit_once('=') else {
            let found = Value::text(text);
            return Err(Reject::Because(format!(
                "found {found}, expected names of modules with values, such as q_proj=8"
            )));
        };
        self.insert(key.trim(), &Value::text(value))
    }
}

impl<T: SettingValue> SettingValue for Pattern<T> {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let mut pattern = Self::default();
        match value {
            value if is_unset(value) || *value == Value::Bool(false) => {}
            Value::Map(entries) => pattern.insert_all(entries)?,
            Value::Str(text) => pattern.insert_text(text)?,
            Value::List(items) => {
                for item in items {
                    let Value::Str(text) = item else { return Err(Reject::Wrong) };
                    pattern.insert_text(text)?;
                }
            }
            _ => return Err(Reject::Wrong),
        }
        Ok(pattern)
    }
    fn json(&self) -> Json {
        Json::Object(self.0.iter().map(|(key, value)| (key.clone(), value.json())).collect())
    }
}

/// Ends of the paths of modules: a list, or one text with commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleNames(pub Vec<String>);

impl SettingValue for ModuleNames {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let names = match value {
            value if is_off(value) => Vec::new(),
            Value::List(items) => items.iter().map(String::read).collect::<Result<_, _>>()?,
            one => vec![String::read(one)?],
        };
        let parts = names.iter().flat_map(|name| name.split(',')).map(|name| name.trim().to_owned());
        Ok(Self(parts.filter(|name| !name.is_empty()).collect()))
    }
    fn json(&self) -> Json {
        Json::from(self.0.clone())
    }
}

/// Tokens whose rows of embedding or output layer are trained: PEFT's list, of the embedding, or its object of a list
/// for each module. As a flag ids with commas between them, `embed_tokens=5,6` for each module, or the JSON of either.
/// Ids are in order and each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenIndices {
    /// Ids without a module, which are the embedding's
    unnamed: Vec<u32>,
    named: IndexMap<String, Vec<u32>>,
}

impl TokenIndices {
    /// Every list with the name of its module, none for the embedding's.
    pub fn of_modules(&self) -> impl Iterator<Item = (Option<&str>, &[u32])> {
        let unnamed = (!self.unnamed.is_empty()).then_some((None, &self.unnamed[..]));
        unnamed.into_iter().chain(self.named.iter().map(|(name, tokens)| (Some(name.as_str()), &tokens[..])))
    }

    fn insert(&mut self, name: &str, value: &Value) -> Result<(), Reject> {
        let mut tokens = Vec::new();
        add_tokens(value, &mut tokens)?;
        if name.trim().is_empty() || self.named.insert(name.trim().to_owned(), sorted(tokens)).is_some() {
            return Err(Reject::Wrong);
        }
        Ok(())
    }

    fn insert_text(&mut self, text: &str) -> Result<(), Reject> {
        if text.trim_start().starts_with(['{', '[']) {
            let json: Json = serde_json::from_str(text).map_err(|_| Reject::Wrong)?;
            return self.add(&Value::from(&json));
        }
        match text.rsplit_once('=') {
            Some((name, tokens)) => self.insert(name, &Value::text(tokens)),
            None => add_tokens(&Value::text(text), &mut self.unnamed),
        }
    }

    fn add(&mut self, value: &Value) -> Result<(), Reject> {
        match value {
            // Token 0 is one.
            value if is_unset(value) || *value == Value::Bool(false) => Ok(()),
            Value::Map(entries) => entries.iter().try_for_each(|entry| self.insert(&entry.key, &entry.value)),
            Value::Str(text) => self.insert_text(text),
            Value::List(items) => items.iter().try_for_each(|item| match item {
                Value::Str(text) => self.insert_text(text),
                token => add_tokens(token, &mut self.unnamed),
            }),
            token => add_tokens(token, &mut self.unnamed),
        }
    }
}

fn sorted(mut tokens: Vec<u32>) -> Vec<u32> {
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// Adds the ids of a list, of a text with commas between them, or one.
fn add_tokens(value: &Value, tokens: &mut Vec<u32>) -> Result<(), Reject> {
    let wrong = || Reject::Because(format!("found {value}, expected ids of tokens, such as 128011,128012"));
    let one = |value: &Value| usize::read(value).ok().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong);
    match value {
        Value::List(items) => items.iter().try_for_each(|item| one(item).map(|id| tokens.push(id))),
        Value::Str(text) => text.split(',').try_for_each(|id| one(&Value::text(id.trim())).map(|id| tokens.push(id))),
        id => one(id).map(|id| tokens.push(id)),
    }
}

impl SettingValue for TokenIndices {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let mut indices = Self::default();
        indices.add(value)?;
        let Self { unnamed, named } = indices;
        if !unnamed.is_empty() && !named.is_empty() {
            return Err(Reject::Because(
                "found ids with and without the name of a module; expected a list, or names for all".to_owned(),
            ));
        }
        Ok(Self { unnamed: sorted(unnamed), named })
    }
    fn json(&self) -> Json {
        let list = |tokens: &Vec<u32>| Json::from(tokens.clone());
        match self.named.is_empty() {
            true => list(&self.unnamed),
            false => Json::Object(self.named.iter().map(|(name, tokens)| (name.clone(), list(tokens))).collect()),
        }
    }
}

/// Numbers of layers, from 0, in order and each once; none: every layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerNumbers(pub Vec<usize>);

impl SettingValue for LayerNumbers {
    const LIST: bool = true;
    fn read(value: &Value) -> Result<Self, Reject> {
        let mut layers = match value {
            // Layer 0 is one.
            Value::Bool(false) => Vec::new(),
            value if is_unset(value) => Vec::new(),
            Value::List(items) if items.iter().all(|item| is_off(item) && !is_number(item)) => Vec::new(),
            Value::List(items) => items.iter().map(numbers).collect::<Result<Vec<_>, _>>()?.concat(),
            one => numbers(one)?,
        };
        layers.sort_unstable();
        layers.dedup();
        Ok(Self(layers))
    }
    fn json(&self) -> Json {
        Json::from(self.0.clone())
    }
}

fn is_number(value: &Value) -> bool {
    usize::read(value).is_ok()
}

/// One number, or several between commas.
fn numbers(value: &Value) -> Result<Vec<usize>, Reject> {
    match value {
        Value::Str(text) => {
            let number = |part: &str| usize::read(&Value::text(part.trim()));
            let wrong = |_| Reject::Because(format!("found {value}, expected the numbers of layers, such as 0,1,2"));
            text.split(',').map(number).collect::<Result<_, _>>().map_err(wrong)
        }
        one => usize::read(one).map(|layer| vec![layer]),
    }
}
