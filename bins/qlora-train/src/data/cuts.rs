//! Places where a long text may be cut, so that its parts have the tokens of the whole.
//!
//! A tokenizer keeps some hundred bytes for each byte of a text until all of it has become tokens. Between words most
//! tokenizers start a new piece, whatever the context: the text is cut there, and only one part at a time is processed.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes of a text that are tokenized at once, where it may be cut.
const PART_BYTES: usize = 64 << 10;
/// Maximum number of bytes that are tokenized at once: of one text that cannot be cut, or by all threads together.
pub(super) const MAX_PART_BYTES: usize = 1 << 20;
/// Shorter texts are not counted.
const SMALL_BYTES: usize = 16 << 10;

/// Ranges of a text, in order, that are tokenized each for itself: one, where it may not be cut. Error: the bytes of a
/// part that is too long.
pub(super) fn parts(text: &str, may_cut: bool) -> Result<Vec<Range<usize>>, usize> {
    let mut parts = Vec::new();
    let mut begin = 0;
    while text.len() - begin > PART_BYTES {
        let longest = text.len().min(begin + MAX_PART_BYTES);
        let Some(end) = may_cut.then(|| place(text, begin, longest)).flatten() else { break };
        parts.push(begin..end);
        begin = end;
    }
    match text.len() - begin {
        rest if rest > MAX_PART_BYTES => Err(rest),
        _ => {
            parts.push(begin..text.len());
            Ok(parts)
        }
    }
}

/// The last place for a cut in a part of usual length that begins at `begin`, or the first one behind it.
fn place(text: &str, begin: usize, longest: usize) -> Option<usize> {
    let usual = longest.min(begin + PART_BYTES);
    let is_place = |at: usize| text.is_char_boundary(at) && is_place(text, at);
    (begin + 1..=usual).rev().find(|&at| is_place(at)).or_else(|| (usual + 1..longest).find(|&at| is_place(at)))
}

/// True if a word ends and another begins here, before a single blank or behind the end of a line that is not empty.
pub(super) fn is_place(text: &str, at: usize) -> bool {
    let word = |c: Option<char>| c.is_some_and(|c| !c.is_whitespace());
    match (text.as_bytes()[at - 1], text.as_bytes().get(at)) {
        // Some expressions keep a slash with the line before it.
        (b'\n', Some(next)) if *next != b'/' => {
            word(text[..at - 1].chars().next_back()) && word(text[at..].chars().next())
        }
        (_, Some(b' ')) => word(text[..at].chars().next_back()) && word(text[at + 1..].chars().next()),
        _ => false,
    }
}

/// Bytes of text that all threads tokenize at the moment.
static AT_WORK: Mutex<usize> = Mutex::new(0);
static LESS: Condvar = Condvar::new();

/// Runs `work` on a text of `bytes` bytes once the texts that are tokenized meanwhile are short enough.
pub(super) fn in_turn<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    /// Gives the bytes back, even if `work` panics.
    struct Held(usize);
    impl Drop for Held {
        fn drop(&mut self) {
            *AT_WORK.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
            LESS.notify_all();
        }
    }
    if bytes <= SMALL_BYTES {
        return work();
    }
    let bytes = bytes.min(MAX_PART_BYTES);
    let at_work = AT_WORK.lock().unwrap_or_else(PoisonError::into_inner);
    let mut at_work =
        LESS.wait_while(at_work, |at_work| *at_work + bytes > MAX_PART_BYTES).unwrap_or_else(PoisonError::into_inner);
    *at_work += bytes;
    drop(at_work);
    let _held = Held(bytes);
    work()
}

#[cfg(test)]
mod tests;
