//! Limits beside minijinja's fuel: text that is made at once, before anything is charged for it.

use std::fmt::{self, Write};

use super::python::python_float;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};

/// Bytes of a list or map written out at most. A list may hold another one many times over at no cost, and so on, so
/// that a few instructions make a value that no memory holds as text.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 20;
/// Text that refuses to grow beyond its limit, which ends whatever is writing it.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_VALUE_BYTES {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

pub(super) fn too_large() -> Error {
    Error::new(ErrorKind::OutOfFuel, format!("a value of more than {} MiB as text", MAX_VALUE_BYTES >> 20))
}

/// `{{ value }}`.
pub(super) fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let is_long = matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain);
    if !is_long && float(value).is_none() {
        return escape_formatter(out, state, value);
    }
    out.write_str(&as_text(value)?).map_err(|_| too_large())
}

/// The filter `string`.
pub(super) fn string(value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String { Ok(value) } else { Ok(Value::from(as_text(&value)?)) }
}

/// A value as Python writes it. Refused: a list or map with a number that minijinja writes otherwise.
fn as_text(value: &Value) -> Result<String, Error> {
    if let Some(float) = float(value) {
        return Ok(python_float(float));
    }
    if holds_far_float(value, &mut 100_000) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a list or map with a number as large or small as 1e16 or 1e-5 is written out; use `tojson`",
        ));
    }
    let mut text = Bounded(String::new());
    write!(text, "{value}").map_err(|_| too_large())?;
    Ok(text.0)
}

/// A finite number that is no integer.
fn float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    f64::try_from(value.clone()).ok().filter(|float| is_float && float.is_finite())
}

/// Whether a list or map holds a number that Python writes with an exponent, among so many values: a list may hold
/// another one many times over, and so on.
fn holds_far_float(value: &Value, left: &mut usize) -> bool {
    *left = left.saturating_sub(1);
    match value.kind() {
        ValueKind::Number => float(value).is_some_and(|float| python_float(float).contains('e')),
        ValueKind::Seq | ValueKind::Map => {
            let Ok(mut items) = value.try_iter() else { return false };
            items.any(|item| {
                let item =
                    if value.kind() == ValueKind::Map { value.get_item(&item).unwrap_or_default() } else { item };
                *left > 0 && holds_far_float(&item, left)
            })
        }
        _ => false,
    }
}

/// Python's methods, with a limit on what `'{:>9}'.format(x)` may pad to.
pub(super) fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == "format"
        && let Some(text) = value.as_str()
        && pads_too_far(text)
    {
        return Err(Error::new(ErrorKind::InvalidOperation, "str.format: a width or precision above 9999"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Whether the format has a number of more than four digits: minijinja takes widths from the text only, not from
/// arguments.
fn pads_too_far(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|run| run.trim_start_matches('0').len() > 4)
}
