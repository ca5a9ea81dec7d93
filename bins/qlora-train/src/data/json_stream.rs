//! JSON values out of a stream, each as its own text: an array of any size takes the memory of its largest row.
//!
//! Only the beginnings and ends of values are found here, by brackets and quotes; the parser reads them.

use std::io::{self, BufRead};

/// Separator of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// A comma, as in an array
    Commas,
    /// Blanks, or nothing
    Blanks,
}

/// Text of one value, and the line it begins on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub line: usize,
    pub bytes: Vec<u8>,
    /// The stream ended within it.
    pub cut: bool,
    /// It is longer than was asked for; the rest of it is not read.
    pub too_long: bool,
}

/// Reader of values that counts lines.
pub(super) struct JsonStream<R> {
    reader: R,
    line: usize,
}

impl<R: BufRead> JsonStream<R> {
    /// `line`: the line that the reader is on.
    pub fn new(reader: R, line: usize) -> Self {
        Self { reader, line }
    }

    pub fn line(&self) -> usize {
        self.line
    }

    /// The next byte that is no blank, which is not taken. None: the stream ends.
    pub fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            let chunk = fill(&mut self.reader)?;
            if chunk.is_empty() {
                return Ok(None);
            }
            let blanks = chunk.iter().position(|byte| !is_blank(*byte)).unwrap_or(chunk.len());
            let next = chunk.get(blanks).copied();
            self.take(blanks);
            if next.is_some() {
                return Ok(next);
            }
        }
    }

    /// Consumes `bytes` bytes, which were seen.
    pub fn take(&mut self, bytes: usize) {
        // The filled buffer is still there.
        let seen = self.reader.fill_buf().map_or(0, |chunk| count_lines(&chunk[..bytes.min(chunk.len())]));
        self.line += seen;
        self.reader.consume(bytes);
    }

    /// The value that begins here, of at most `most` bytes, up to what ends it: a comma, a bracket that closes what is
    /// around it, or its own end.
    pub fn value(&mut self, between: Between, most: usize) -> io::Result<Text> {
        let mut text = Text { line: self.line, bytes: Vec::new(), cut: false, too_long: false };
        let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
        loop {
            let chunk = fill(&mut self.reader)?;
            if chunk.is_empty() {
                text.cut = depth > 0 || in_string || between == Between::Commas;
                return Ok(text);
            }
            let mut end = None;
            for (at, &byte) in chunk.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                    continue;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => match (depth, between) {
                        (0, Between::Commas) => end = Some(at),
                        // One too many: the parser will say so.
                        (0 | 1, Between::Blanks) => end = Some(at + 1),
                        _ => depth -= 1,
                    },
                    b',' if depth == 0 && between == Between::Commas => end = Some(at),
                    _ if depth == 0 && between == Between::Blanks && is_blank(byte) => end = Some(at),
                    _ => {}
                }
                if end.is_some() {
                    break;
                }
            }
            let count = end.unwrap_or(chunk.len());
            text.bytes.extend_from_slice(&chunk[..count]);
            self.line += count_lines(&chunk[..count]);
            self.reader.consume(count);
            text.too_long = text.bytes.len() > most;
            if end.is_some() || text.too_long {
                return Ok(text);
            }
        }
    }
}

/// Bytes that are there, tried again when a signal comes.
fn fill<R: BufRead>(reader: &mut R) -> io::Result<&[u8]> {
    loop {
        match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    reader.fill_buf()
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests;
