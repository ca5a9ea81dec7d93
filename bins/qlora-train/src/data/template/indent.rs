//! The filter `indent` as Jinja has it. minijinja's own leaves out a line end at the end of the text.

use minijinja::value::{Kwargs, Value};
use minijinja::{Error, ErrorKind};

const MAX_WIDTH: usize = 1000;

/// Puts blanks (or a text) before every line but the first. `first`: before that one too; `blank`: before empty lines
/// too.
pub(super) fn indent(
    text: String,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<String, Error> {
    let width = if width.is_some() { width } else { options.get::<Option<Value>>("width")? };
    let first = if first.is_some() { first } else { options.get::<Option<bool>>("first")? }.unwrap_or(false);
    let blank = if blank.is_some() { blank } else { options.get::<Option<bool>>("blank")? }.unwrap_or(false);
    options.assert_all_used()?;
    let before = match width {
        None => " ".repeat(4),
        Some(width) => match (width.as_str(), width.as_usize()) {
            (Some(text), _) if text.len() <= MAX_WIDTH => text.to_owned(),
            (None, Some(width)) if width <= MAX_WIDTH => " ".repeat(width),
            _ => {
                let sentence = format!("indent: expected a width of at most {MAX_WIDTH}, or a text");
                return Err(Error::new(ErrorKind::InvalidOperation, sentence));
            }
        },
    };
    let mut out = String::with_capacity(text.len());
    for (at, line) in lines(&text).into_iter().enumerate() {
        out.push_str(if at > 0 { "\n" } else { "" });
        let indented = if at == 0 { first } else { blank || !line.is_empty() };
        out.push_str(if indented { &before } else { "" });
        out.push_str(line);
    }
    Ok(out)
}

/// The lines of a text; a text that ends with a line end has one more, empty line. An empty text is one line.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) =
        rest.find(['\n', '\r', '\u{B}', '\u{C}', '\u{1C}', '\u{1D}', '\u{1E}', '\u{85}', '\u{2028}', '\u{2029}'])
    {
        lines.push(&rest[..at]);
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        rest = &rest[at + end..];
    }
    lines.push(rest);
    lines
}
