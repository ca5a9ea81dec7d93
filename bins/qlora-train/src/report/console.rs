//! Lines for people on standard error: one way for every part of the trainer, with three levels.
//!
//! [`status!`](crate::report::status) prints what a command does, [`detail!`](crate::report::detail) more of it for
//! `-v`, [`warning!`](crate::report::warning) what a user should look at. `-q` leaves warnings and errors. Lines have
//! no colors and no control characters, whatever the files hold that they quote.

use anstyle::Style;
use indicatif::MultiProgress;
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io::{IsTerminal, Write as _};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use crate::error::Error;

/// Level of output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verbosity {
    /// Warnings and errors only
    Quiet,
    #[default]
    Normal,
    /// Details too
    Verbose,
}

static VERBOSITY: AtomicU8 = AtomicU8::new(Verbosity::Normal as u8);
/// Rank of this process among those of its run
static RANK: AtomicUsize = AtomicUsize::new(0);
/// The progress bars on the terminal, which a line must not run into.
pub(super) static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// For the whole process, from now on.
pub fn set_verbosity(verbosity: Verbosity) {
    VERBOSITY.store(verbosity as u8, Ordering::Relaxed);
}

/// Makes this process one of several: rank 0 prints for all, the others print only the reason why they end.
pub(crate) fn set_rank(rank: usize) {
    RANK.store(rank, Ordering::Relaxed);
}

/// True if this process prints: it has no rank other than 0.
pub(crate) fn speaks() -> bool {
    RANK.load(Ordering::Relaxed) == 0
}

/// True if lines of this level are printed.
pub(crate) fn says(verbosity: Verbosity) -> bool {
    speaks() && VERBOSITY.load(Ordering::Relaxed) >= verbosity as u8
}

/// Prints a line at this `verbosity`. A line break in it belongs to a quoted text and is escaped, so that no file can
/// print a line of its own. Unlike `eprintln!` this survives a closed standard error: a run of hours must not end
/// because somebody left the pager.
pub(crate) fn print(verbosity: Verbosity, prefix: &str, text: fmt::Arguments) {
    if says(verbosity) {
        print_line(prefix, text);
    }
}

/// Prints several lines. A line that begins as a warning is one: `-q` keeps it, with the indented lines after it.
pub(crate) fn print_status(lines: impl IntoIterator<Item = String>) {
    let mut verbosity = Verbosity::Normal;
    for line in lines {
        if !line.starts_with("  ") {
            verbosity = if line.starts_with("warning: ") { Verbosity::Quiet } else { Verbosity::Normal };
        }
        print(verbosity, "", format_args!("{line}"));
    }
}

/// Prints lines of questions and answers, in which the characters of every language stay ([`printable_text`]).
pub(crate) fn print_answers(lines: impl IntoIterator<Item = String>) {
    if says(Verbosity::Normal) {
        lines.into_iter().for_each(|line| put_line(&printable_text(&in_part(&line))));
    }
}

fn print_line(prefix: &str, text: fmt::Arguments) {
    put_line(&printable(&in_part(&format!("{prefix}{text}"))));
}

fn put_line(line: &str) {
    BARS.suspend(|| {
        let _ = writeln!(std::io::stderr(), "{line}");
    });
}

/// Begins a section of a command's output: a heading after an empty line, bold on a terminal.
pub(crate) fn section(title: &str) {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    if !says(Verbosity::Normal) {
        return;
    }
    let gap = if BEGUN.swap(true, Ordering::Relaxed) { "\n" } else { "" };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let style = if std::io::stderr().is_terminal() && !no_color { Style::new().bold() } else { Style::new() };
    BARS.suspend(|| {
        let _ = writeln!(std::io::stderr(), "{gap}{style}{title}{style:#}");
    });
}

/// Maximum bytes of a printed line, and of the part at its end: names and values of files may be of any length.
const TOLD_BYTES: usize = 8000;
const TOLD_AT_END: usize = 1000;

/// A line shortened for printing: its beginning and its end, with a note on the omitted part between them.
pub(crate) fn in_part(line: &str) -> Cow<'_, str> {
    if line.len() <= TOLD_BYTES {
        return Cow::Borrowed(line);
    }
    let boundary = |from: usize| (from..line.len()).find(|&at| line.is_char_boundary(at)).unwrap_or(line.len());
    let (begin, end) = (boundary(TOLD_BYTES - TOLD_AT_END), boundary(line.len() - TOLD_AT_END));
    Cow::Owned(format!("{} … ({} bytes left out) … {}", &line[..begin], end - begin, &line[end..]))
}

/// True if a character could move the cursor, color the terminal or change the direction of writing.
fn is_harmful(c: char) -> bool {
    // No YAML holds the last two.
    let is_named = matches!(c, '\u{2028}' | '\u{2029}' | '\u{fffe}' | '\u{ffff}');
    c.is_control() || is_named || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// True for characters that cannot be seen, by which two names may look the same: those of Unicode's property
/// Default_Ignorable_Code_Point, and marks of annotations. Those that join letters, choose a letter's form and make one
/// picture of several are none of them.
fn is_invisible(c: char) -> bool {
    let is_mark =
        matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{feff}');
    let is_blank = matches!(c, '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{3164}' | '\u{ffa0}');
    let is_of_notation = matches!(c, '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}');
    // Between them are those that choose the form of a Japanese character.
    let is_tag = matches!(c, '\u{e0000}'..='\u{e00ff}' | '\u{e01f0}'..='\u{e0fff}');
    is_mark || is_blank || is_of_notation || is_tag || matches!(c, '\u{2060}'..='\u{206f}')
}

/// Text in which characters that could move the cursor, color the terminal or change the direction of writing are
/// escaped, line breaks included, and those that cannot be seen.
pub fn printable(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_harmful(c) || is_invisible(c), |c, to| write!(to, "{}", c.escape_default()))
}

/// [`printable`] for text in a language: characters that cannot be seen stay, as some are written with them.
pub fn printable_text(text: &str) -> Cow<'_, str> {
    escaped(text, is_harmful, |c, to| write!(to, "{}", c.escape_default()))
}

/// [`printable_text`] in several lines: line breaks and tabs stay too.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    let harmful = |c| is_harmful(c) && c != '\n' && c != '\t';
    escaped(text, harmful, |c, to| write!(to, "{}", c.escape_default()))
}

/// [`printable`] for a line of JSON, whose meaning stays the same.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    // They stand in strings only, which name a character beyond U+FFFF by two halves.
    let escape =
        |c: char, to: &mut String| c.encode_utf16(&mut [0; 2]).iter().try_for_each(|half| write!(to, "\\u{half:04x}"));
    escaped(json, |c| is_harmful(c) || is_invisible(c), escape)
}

fn escaped(
    text: &str,
    harmful: impl Fn(char) -> bool,
    escape: impl Fn(char, &mut String) -> fmt::Result,
) -> Cow<'_, str> {
    if !text.contains(&harmful) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if harmful(c) {
            let _ = escape(c, &mut escaped);
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Standard output for text as it grows, whole characters at a time.
pub struct PrintableOut(pub std::io::Stdout);

impl std::io::Write for PrintableOut {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(printable_lines(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Prints what the command does: a line on standard error.
macro_rules! status {
    ($($arg:tt)*) => {
        $crate::report::print($crate::report::Verbosity::Normal, "", format_args!($($arg)*))
    };
}

/// Says several lines.
macro_rules! status_lines {
    ($lines:expr) => {
        $crate::report::print_status($lines)
    };
}

/// Prints a detail that only `-v` shows.
macro_rules! detail {
    ($($arg:tt)*) => {
        $crate::report::print($crate::report::Verbosity::Verbose, "", format_args!($($arg)*))
    };
}

/// Prints a warning; the work continues.
macro_rules! warning {
    ($($arg:tt)*) => {
        $crate::report::print($crate::report::Verbosity::Quiet, "warning: ", format_args!($($arg)*))
    };
}

pub(crate) use {detail, status, status_lines, warning};

/// Prints text of several lines that may quote the command line.
pub(crate) fn print_text(text: &str) -> std::io::Result<()> {
    writeln!(std::io::stderr(), "{}", printable_lines(text))
}

/// Prints the error that ends the command.
pub(crate) fn print_error(error: &Error) {
    let rank = RANK.load(Ordering::Relaxed);
    let mut prefix = if rank == 0 { "error: ".to_owned() } else { format!("error: rank {rank}: ") };
    for line in error.lines() {
        print_line(&prefix, format_args!("{line}"));
        prefix.clear();
    }
}

#[cfg(test)]
mod tests;
