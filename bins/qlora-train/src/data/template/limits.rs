//! Limits beside minijinja's fuel: text that is made at once, before anything is charged for it.

use std::fmt::{self, Write};

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
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain) {
        return escape_formatter(out, state, value);
    }
    let mut text = Bounded(String::new());
    write!(text, "{value}").map_err(|_| too_large())?;
    out.write_str(&text.0).map_err(|_| too_large())
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
