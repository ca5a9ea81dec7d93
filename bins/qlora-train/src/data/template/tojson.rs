//! The `tojson` filter as chat templates know it: Python's `json.dumps(x, ensure_ascii=False, indent, separators,
//! sort_keys)`. minijinja's own escapes `<`, `>`, `&` and `'` for HTML, which would change what a model reads.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::limits;
use super::python::python_float;

pub(super) fn tojson(state: &State, value: &Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    let indent = match indent.filter(|indent| !indent.is_none() && !indent.is_undefined()) {
        None => None,
        Some(indent) if indent.is_integer() => Some(" ".repeat(indent.as_usize().unwrap_or(0).min(64))),
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => return Err(invalid("tojson: indent must be a number or a string")),
        },
    };
    let (item, key) = match separators.as_deref() {
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("tojson: separators must be a pair of strings")),
    };
    let mut writer = Writer { state, out: String::new(), indent, item, key, ensure_ascii, sort_keys };
    writer.value(value, 0)?;
    limits::charge_text(state, &writer.out)?;
    Ok(Value::from(writer.out))
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl Writer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // Deeper values than a row can hold (128) only come from a template that nests without end.
        if depth > 256 {
            return Err(invalid("tojson: the value is nested too deeply"));
        }
        // A list may hold another one many times over: what counts is what is written.
        self.state.consume_fuel(1)?;
        if self.out.len() > limits::MAX_VALUE_BYTES {
            return Err(limits::too_large());
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let mut empty = true;
                for item in value.try_iter()?.checked() {
                    self.begin(empty, depth + 1);
                    empty = false;
                    self.value(&item?, depth + 1)?;
                }
                self.end(empty, depth, ']');
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>()?;
                if self.sort_keys {
                    keys.sort_by_key(|key| key.to_string());
                }
                self.out.push('{');
                let empty = keys.is_empty();
                for (at, key) in keys.iter().enumerate() {
                    self.begin(at == 0, depth + 1);
                    match key.as_str() {
                        Some(text) => self.string(text),
                        None => self.string(&key.to_string()),
                    }
                    self.out.push_str(&self.key);
                    self.value(&value.get_item(key)?, depth + 1)?;
                }
                self.end(empty, depth, '}');
            }
            kind => {
                return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {kind} is not a JSON value")));
            }
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) {
        if value.is_integer() {
            self.out.push_str(&value.to_string());
            return;
        }
        self.out.push_str(&match f64::try_from(value.clone()).unwrap_or(f64::NAN) {
            float if float.is_nan() => "NaN".to_owned(),
            float if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
            float => python_float(float),
        });
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && !(' '..='~').contains(&c)) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn begin(&mut self, first: bool, depth: usize) {
        if !first {
            self.out.push_str(&self.item);
        }
        self.line(depth);
    }

    fn end(&mut self, empty: bool, depth: usize, close: char) {
        if !empty {
            self.line(depth);
        }
        self.out.push(close);
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..depth {
                self.out.push_str(indent);
            }
        }
    }
}
