//! Places where a long text may be cut, so that its parts have the tokens of the whole.
//!
//! A tokenizer keeps some hundred bytes for each byte of a text until all of it has become tokens. Between words most
//! tokenizers begin a piece anew, whatever stands around: there a text is cut, and only the part at hand is in work.

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes of a text that are tokenized at once, where it may be cut.
const PART_BYTES: usize = 64 << 10;
/// Bytes that are tokenized at once at most: by one text that cannot be cut, or by all threads together.
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

/// Whether a word ends and another begins here, before a single blank or behind the end of a line that is not empty.
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

/// Runs `work` on a text of so many bytes when all that is tokenized meanwhile is short enough.
pub(super) fn in_turn<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    /// Gives the bytes back, though `work` panics.
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
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_words_and_behind_lines() {
        let places =
            |text: &str| (1..text.len()).filter(|&at| text.is_char_boundary(at) && is_place(text, at)).collect();
        let none: Vec<usize> = Vec::new();
        let found: Vec<usize> = places("ab cd\nef");
        assert_eq!(found, [2, 6]);
        let found: Vec<usize> = places("。\n第 1");
        assert_eq!(found, [4, 7]);
        for text in ["a  b", "a\n\nb", "a \nb", "a\u{3000}\nb", "a \tb", "a\n/b", "\nb", " b", "a ", "a\n", "ab"] {
            let found: Vec<usize> = places(text);
            assert_eq!(found, none, "{text:?}");
        }
    }

    #[test]
    fn parts_are_of_usual_length_and_make_the_whole() {
        let text = "some words of text\n".repeat(20_000);
        let found = parts(&text, true).unwrap();
        assert!(found.iter().all(|part| part.len() <= PART_BYTES) && found.len() == text.len().div_ceil(PART_BYTES));
        assert_eq!(found.iter().map(|part| &text[part.clone()]).collect::<String>(), text);
        assert_eq!(parts(&text, false).unwrap(), vec![0..text.len(); 1]);
        // A run without a place is one part, and refused where it is too long.
        let run = format!("a b{}x y{}", "1".repeat(PART_BYTES * 2), " z".repeat(PART_BYTES));
        let found = parts(&run, true).unwrap();
        assert_eq!(found[0], 0..1);
        assert!(found[1].len() > 2 * PART_BYTES && found.len() > 3, "{found:?}");
        assert_eq!(parts(&"1".repeat(MAX_PART_BYTES + 1), true), Err(MAX_PART_BYTES + 1));
        assert_eq!(parts(&text.repeat(4), false), Err(text.len() * 4));
        assert_eq!(parts("", true).unwrap(), vec![0..0; 1]);
    }

    #[test]
    fn long_texts_wait_for_each_other() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NOW: AtomicUsize = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        in_turn(MAX_PART_BYTES * 2 / 3, || {
                            assert_eq!(NOW.fetch_add(1, Ordering::SeqCst), 0);
                            std::thread::yield_now();
                            NOW.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert!(std::panic::catch_unwind(|| in_turn(MAX_PART_BYTES, || panic!("broken"))).is_err());
        assert_eq!(in_turn(usize::MAX, || 7), 7);
    }
}
