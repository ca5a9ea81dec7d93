//! Limits in addition to minijinja's fuel, for text that is made in one step before any fuel is charged.

use std::fmt::{self, Write};

use std::borrow::Cow;

use super::python::python_float;
use minijinja::value::{StringInput, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, escape_formatter};

/// Maximum bytes of a list or map as text. Lists may nest the same list many times at no cost, so that a few
/// instructions make a value whose text would fill any memory.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 20;
/// Bytes of a list or map as text for which one unit of fuel pays. Minijinja's own price for bytes is that of copying.
const BYTES_OF_FUEL: usize = 16;
/// Bytes of a text that is looked through, for which one unit of fuel pays, as in minijinja.
const READ_BYTES_OF_FUEL: usize = 64;
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
    out.write_str(&as_text(state, value)?).map_err(|_| too_large())
}

/// Charges for the text that a list or map became.
pub(super) fn charge_text(state: &State, text: &str) -> Result<(), Error> {
    state.consume_fuel((text.len() / BYTES_OF_FUEL) as u64)
}

/// The filter `string`.
pub(super) fn string(state: &State, value: Value) -> Result<Value, Error> {
    if value.kind() == ValueKind::String { Ok(value) } else { Ok(Value::from(as_text(state, &value)?)) }
}

/// A value as Python writes it. Refused: a list or map with a number that minijinja writes differently.
fn as_text(state: &State, value: &Value) -> Result<String, Error> {
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
    charge_text(state, &text.0)?;
    Ok(text.0)
}

/// A finite number that is no integer.
fn float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    f64::try_from(value.clone()).ok().filter(|float| is_float && float.is_finite())
}

/// True if a list or map holds a number that Python writes with an exponent. It looks at no more than `left` values,
/// because lists may nest the same list many times.
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

/// Python's string methods, with a limit on the padding of `'{:>9}'.format(x)`.
pub(super) fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if method == "format"
        && let Some(text) = value.as_str()
        && pads_too_far(text)
    {
        return Err(Error::new(ErrorKind::InvalidOperation, "str.format: a width or precision above 9999"));
    }
    // A text with a method is paid for by minijinja.
    let list = (value.kind() == ValueKind::Seq).then_some(value);
    let fuel = list.into_iter().chain(args).fold(0, |fuel: u64, value| fuel.saturating_add(look_cost(value)));
    state.consume_fuel(fuel)?;
    if let ("strip" | "lstrip" | "rstrip", Some(text), [characters]) = (method, value.as_str(), args) {
        state.consume_fuel(strip_cost(text, characters.as_str().unwrap_or_default()))?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Fuel for looking through a text or the items of a list.
fn look_cost(value: &Value) -> u64 {
    match (value.as_str(), value.kind()) {
        (Some(text), _) => (text.len() / READ_BYTES_OF_FUEL) as u64,
        (None, ValueKind::Seq | ValueKind::Iterable) => value.len().unwrap_or(0) as u64 / 2,
        _ => 0,
    }
}

/// The filter `trim`.
pub(super) fn trim(state: &State, text: StringInput<'_>, characters: Option<Cow<'_, str>>) -> Result<Value, Error> {
    state.consume_fuel(strip_cost(text.as_str(), characters.as_deref().unwrap_or_default()))?;
    Ok(minijinja::filters::trim(text, characters))
}

/// Fuel for looking for the characters of a text among others, one by one.
fn strip_cost(text: &str, among: &str) -> u64 {
    (text.len() as u64 / READ_BYTES_OF_FUEL as u64).saturating_mul(among.len() as u64)
}

/// True if the format has a number of more than four digits: minijinja takes widths from the text only, not from
/// arguments.
fn pads_too_far(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).any(|run| run.trim_start_matches('0').len() > 4)
}
