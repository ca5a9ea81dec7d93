//! Text output as it grows, token by token.

use std::io::{ErrorKind, Write};

use super::tokenizer::ChatTokenizer;
use crate::error::{Context, Result};

/// Turns tokens into text of whole characters: a token may end within one, and what a token means may depend on the one
/// before it.
pub struct TextStream<'a, W: Write> {
    tokenizer: &'a ChatTokenizer,
    ids: Vec<u32>,
    /// Tokens from here on are decoded together; their text up to `shown` is written.
    context: usize,
    shown: usize,
    /// None: no reader is left.
    out: Option<W>,
}

impl<'a, W: Write> TextStream<'a, W> {
    pub fn new(tokenizer: &'a ChatTokenizer, out: Option<W>) -> Self {
        Self { tokenizer, ids: Vec::new(), context: 0, shown: 0, out }
    }

    pub fn push(&mut self, id: u32) -> Result<()> {
        if self.out.is_none() {
            return Ok(());
        }
        self.ids.push(id);
        let text = self.next(false)?;
        self.write(&text)
    }

    /// Writes the rest: half a character becomes U+FFFD.
    pub fn finish(&mut self) -> Result<()> {
        let text = self.next(true)?;
        self.write(&text)
    }

    /// The text that the tokens since the last one written add, once it ends with a whole character.
    fn next(&mut self, end: bool) -> Result<String> {
        let before = self.tokenizer.decode(&self.ids[self.context..self.shown], true)?;
        let now = self.tokenizer.decode(&self.ids[self.context..], true)?;
        let whole = end || !now.ends_with('\u{FFFD}');
        match now.strip_prefix(&before).filter(|new| whole && !new.is_empty()) {
            Some(new) => {
                (self.context, self.shown) = (self.shown, self.ids.len());
                Ok(new.to_owned())
            }
            None => Ok(String::new()),
        }
    }

    /// A reader that has seen enough, such as `head`, is no failure.
    pub fn write(&mut self, text: &str) -> Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => self.out = None,
            Err(error) => return Err(error).context(|| "the text cannot be written".to_owned()),
            Ok(()) => {}
        }
        Ok(())
    }
}
