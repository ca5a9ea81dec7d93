//! A settings file as a tree that remembers lines. Everything hostile is refused here: size, encoding, nesting,
//! alias bombs, duplicate keys. What the keys mean is decided in `layers`.

use std::fmt;
use std::io::Read;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::bail_usage;
use crate::error::{Context, Error, Result};

/// A settings file is a page of text; a longer one is another file, given by mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Sections hold keys, keys hold lists of small maps: four levels in practice.
const MAX_DEPTH: usize = 16;

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    /// Also every value that comes from the command line.
    Str(String),
    List(Vec<Value>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: String,
    /// 1-based; 0 if unknown
    pub line: u64,
    pub value: Value,
}

impl Value {
    pub fn text(text: impl Into<String>) -> Self {
        Value::Str(text.into())
    }
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Value::Null,
            Json::Bool(b) => Value::Bool(*b),
            Json::Number(n) => match n.as_i128() {
                Some(i) => Value::Int(i),
                None => Value::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(s) => Value::Str(s.clone()),
            Json::Array(items) => Value::List(items.iter().map(Value::from).collect()),
            Json::Object(map) => Value::Map(
                map.iter().map(|(key, value)| Entry { key: key.clone(), line: 0, value: value.into() }).collect(),
            ),
        }
    }
}

/// The form that error messages show: short, and as it was written as far as that is known.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Value::Null => f.write_str("`null`"),
            Value::Bool(b) => write!(f, "`{b}`"),
            Value::Int(i) => write!(f, "`{i}`"),
            Value::Float(x) => write!(f, "`{x:?}`"),
            Value::Str(s) if s.chars().count() > 60 => {
                write!(f, "`{}…`", s.chars().take(60).collect::<String>().escape_debug())
            }
            Value::Str(s) => write!(f, "`{}`", s.escape_debug()),
            Value::List(items) if items.is_empty() => f.write_str("an empty list"),
            Value::List(items) => write!(f, "a list of {} beginning with {}", items.len(), items[0]),
            Value::Map(entries) => match entries.first() {
                None => f.write_str("an empty section"),
                Some(entry) => write!(f, "a section with the key `{}`", entry.key.escape_debug()),
            },
        }
    }
}

/// A settings file: its top-level entries (an empty file has none), and its text for messages.
#[derive(Debug, Default)]
pub struct Document {
    pub name: String,
    pub text: String,
    pub entries: Vec<Entry>,
}

/// Line `line` of `text` with `key` marked, to stand below a message, as lines; none where there is no such line.
pub fn snippet(text: &str, line: u64, key: &str) -> Vec<String> {
    let Some(shown) = line.checked_sub(1).and_then(|at| text.lines().nth(at as usize)) else { return Vec::new() };
    // A line of a megabyte helps nobody.
    if shown.trim().is_empty() || shown.len() > 400 {
        return Vec::new();
    }
    let at = shown.find(key).unwrap_or(shown.len() - shown.trim_start().len());
    let len = if shown[at..].starts_with(key) { key.len() } else { shown[at..].trim_end().len() };
    let title = Level::ERROR.primary_title("");
    let snippet =
        Snippet::source(shown).line_start(line as usize).annotation(AnnotationKind::Primary.span(at..at + len));
    let rendered = Renderer::plain().render(&[title.element(snippet)]);
    // Its first line is the title, which the message already is.
    rendered.lines().skip(1).map(|line| line.trim_end().to_owned()).collect()
}

/// Reads a settings file.
///
/// Refuses a file that cannot be read, is longer than 1 MiB, is not UTF-8, is not YAML, holds more than one document,
/// repeats a key, or is not a mapping at the top.
pub fn read_file(path: &Path) -> Result<Document> {
    let name = path.display();
    let what = || format!("{name}: the settings file cannot be read");
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).usage_context(what)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).usage_context(what)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        bail_usage!(
            "{name}: found more than {MAX_FILE_BYTES} bytes, expected a settings file (YAML), which is far shorter"
        );
    }
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        Err(e) => {
            let line = 1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count();
            bail_usage!("{name} line {line}: found bytes that are not UTF-8, expected YAML text in UTF-8");
        }
    };
    parse(text, &name.to_string())
}

/// [`read_file`] on text already in memory; `name` is what messages call it.
pub fn parse(text: &str, name: &str) -> Result<Document> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_documents: 1,
            max_events: 100_000,
            max_nodes: 50_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000, },
        // `no` and `off` stay text here; each setting decides whether it reads them as false.
        strict_booleans: true,
        // A revision such as 0012345 or 1_000 keeps its spelling.
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    let document = |entries| Document { name: name.to_owned(), text: text.to_owned(), entries };
    match serde_saphyr::from_str_with_options::<Option<Value>>(text, options) {
        Ok(None | Some(Value::Null)) => Ok(document(Vec::new())),
        Ok(Some(Value::Map(entries))) => Ok(document(entries)),
        Ok(Some(other)) => bail_usage!("{name}: found {other} at the top, expected settings as `name: value` lines"),
        Err(e) => {
            let line = e.location().map(|l| format!(" line {}", l.line())).unwrap_or_default();
            let cause = e.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter);
            let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
            let message =
                format!("{name}{line}: found text that is not a valid settings file ({cause}), expected YAML");
            let shown = e.location().map_or_else(Vec::new, |l| snippet(text, l.line(), ""));
            Err(Error::RefusedLines([vec![message], shown].concat()))
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value, a list or a section")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Int(v.into()))
    }
    fn visit_i128<E>(self, v: i128) -> Result<Value, E> {
        Ok(Value::Int(v))
    }
    fn visit_u128<E>(self, v: u128) -> Result<Value, E> {
        Ok(i128::try_from(v).map_or(Value::Float(v as f64), Value::Int))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(Value::Float(v))
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::text(v))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            entries.push(Entry { key: key.value, line, value: map.next_value()? });
        }
        Ok(Value::Map(entries))
    }
}
