//! Text written token by token: only whole characters, and in the end all of it.

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

use proptest::prelude::*;
use qlora_train::data::{ChatTokenizer, TextStream};

use trainer_lab::fixture::{CHATML, SPECIAL, chat_tokenizer};

/// Every write by itself.
#[derive(Clone, Default)]
struct Pieces(Rc<RefCell<Vec<Vec<u8>>>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().push(bytes.to_vec());
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text that had been written after each token, and at the end.
fn streamed(tokenizer: &ChatTokenizer, ids: &[u32]) -> Vec<String> {
    let pieces = Pieces::default();
    let mut stream = TextStream::new(tokenizer, Some(pieces.clone()));
    let so_far = || pieces.0.borrow().iter().map(|piece| String::from_utf8(piece.clone()).unwrap()).collect();
    let mut states: Vec<String> = Vec::new();
    for &id in ids {
        stream.push(id).unwrap();
        states.push(so_far());
    }
    stream.finish().unwrap();
    states.push(so_far());
    states
}

#[test]
fn a_character_of_several_tokens_appears_when_it_is_whole() {
    let tokenizer = chat_tokenizer(CHATML);
    let text = "é🦀";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids.len(), 6, "one token a byte");
    assert_eq!(streamed(&tokenizer, &ids), ["", "é", "é", "é", "é", "é🦀", "é🦀"]);
    // Half a character at the end is written as U+FFFD, and only then.
    assert_eq!(streamed(&tokenizer, &ids[..4]), ["", "é", "é", "é", "é\u{FFFD}"]);
    // Bytes that no character begins with become visible with the next whole one.
    assert_eq!(
        streamed(&tokenizer, &[0xC3, u32::from(b'a'), 0xC3]),
        ["", "\u{FFFD}a", "\u{FFFD}a", "\u{FFFD}a\u{FFFD}"]
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure_and_a_full_disk_is() {
    struct Broken(io::ErrorKind);
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let tokenizer = chat_tokenizer(CHATML);
    let push = |kind| TextStream::new(&tokenizer, Some(Broken(kind))).push(u32::from(b'a'));
    assert!(push(io::ErrorKind::BrokenPipe).is_ok());
    assert_eq!(push(io::ErrorKind::StorageFull).unwrap_err().exit_status(), 1);
}

proptest! {
    #[test]
    fn what_is_written_of_a_text_is_a_part_of_it_up_to_a_whole_character(text in "(\\PC|\n|[éß🦀日本़ी]){0,24}") {
        let tokenizer = chat_tokenizer(CHATML);
        let ids = tokenizer.encode(&text).unwrap();
        let expected = tokenizer.decode(&ids, true).unwrap();
        let states = streamed(&tokenizer, &ids);
        for state in &states {
            prop_assert!(expected.starts_with(state.as_str()), "{state:?} of {expected:?}");
            prop_assert!(!state.contains('\u{FFFD}') || expected.contains('\u{FFFD}'), "{state:?} of {expected:?}");
        }
        prop_assert_eq!(states.last(), Some(&expected));
    }

    /// Nothing that was written is taken back, and everything is written, whatever the model says, valid UTF-8 or not.
    #[test]
    fn any_tokens_are_written_as_they_are_decoded_together(
        ids in prop::collection::vec(0..(259 + SPECIAL.len() as u32), 0..40),
    ) {
        let tokenizer = chat_tokenizer(CHATML);
        let expected = tokenizer.decode(&ids, true).unwrap();
        let states = streamed(&tokenizer, &ids);
        prop_assert!(states.iter().all(|state| expected.starts_with(state.as_str())), "{states:?} of {expected:?}");
        prop_assert_eq!(states.last(), Some(&expected));
    }
}
