//! Limits on what a file becomes: a few compressed bytes may decode to any number of rows.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use serde_json::Value;

/// Bytes that any file may become: a few seconds of a tokenizer's work.
const FLOOR: u64 = 32 << 20;
/// Bytes beyond that, for each byte of the file. Rows of text or token ids shrink to a tenth or a hundredth.
const FACTOR: u64 = 200;
/// Least memory of a number or a list, once it is read.
const VALUE_BYTES: u64 = 16;
/// Values that a row may have: as many as it may have tokens with their labels and masks. Each takes some seventy bytes
/// while the row is read.
pub(super) const MAX_VALUES: usize = 1 << 22;

/// A row of too many values, in words.
pub(super) fn too_many_values() -> String {
    format!("more than the {MAX_VALUES} values that a row may have")
}

/// Memory that reading a file may still take.
#[derive(Clone)]
pub(super) struct Budget {
    left: u64,
    most: u64,
}

impl Budget {
    /// Budget of a file of which nothing is read yet.
    pub fn new() -> Self {
        Self { left: FLOOR, most: FLOOR }
    }

    /// Counts bytes of the file.
    pub fn allow(&mut self, bytes: u64) {
        let more = bytes.saturating_mul(FACTOR);
        self.left = self.left.saturating_add(more);
        self.most = self.most.saturating_add(more);
    }

    /// Counts a row, or one that cannot be read: a few bytes may decode to any number of those.
    pub fn spend_row(&mut self, row: &Result<Value, String>) -> Result<(), String> {
        self.spend(row.as_ref().map_or(VALUE_BYTES, size))
    }

    /// Counts bytes of memory that are taken, or about to be.
    pub fn spend(&mut self, bytes: u64) -> Result<(), String> {
        match self.left.checked_sub(bytes) {
            Some(left) => self.left = left,
            None => {
                return Err(format!(
                    "becomes more than {} MiB of rows, {FACTOR} times its size: give the rows in a form that is compressed less",
                    self.most >> 20
                ));
            }
        }
        Ok(())
    }
}

/// Approximate memory of a row.
pub(super) fn size(value: &Value) -> u64 {
    VALUE_BYTES
        + match value {
            Value::String(text) => text.len() as u64,
            Value::Array(items) => items.iter().map(size).sum(),
            Value::Object(map) => map.iter().map(|(key, value)| key.len() as u64 + size(value)).sum(),
            _ => 0,
        }
}

/// Counts the bytes that are taken from a reader.
pub(super) struct Counted<R> {
    inner: R,
    count: Rc<Cell<u64>>,
}

impl<R> Counted<R> {
    /// The reader, and its count.
    pub fn new(inner: R) -> (Self, Rc<Cell<u64>>) {
        let count = Rc::new(Cell::new(0));
        (Self { inner, count: count.clone() }, count)
    }
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(to)?;
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.count.set(self.count.get() + count as u64);
        self.inner.consume(count);
    }
}

/// Text that is decompressed on the way, within the budget of what it is made of.
pub(super) struct Expanded<R> {
    inner: R,
    input: Rc<Cell<u64>>,
    counted: u64,
    budget: Budget,
}

impl<R: Read> Expanded<R> {
    /// `input`: the count of the compressed bytes.
    pub fn new(inner: R, input: Rc<Cell<u64>>) -> Self {
        Self { inner, input, counted: 0, budget: Budget::new() }
    }
}

impl<R: Read> Read for Expanded<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(to)?;
        let input = self.input.get();
        self.budget.allow(input - self.counted);
        self.counted = input;
        self.budget.spend(count as u64).map_err(io::Error::other)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_a_file_is_bounded_by_its_size() {
        let mut budget = Budget::new();
        assert!(budget.spend(FLOOR).is_ok() && budget.spend(1).is_err());
        budget.allow(1);
        assert!(budget.spend(FACTOR).is_ok());
        assert!(budget.spend(1).unwrap_err().contains("32 MiB"));
        let row = serde_json::json!({"ab": ["x", 1, null]});
        assert_eq!(size(&row), 16 + 2 + 16 + 17 + 16 + 16);
    }

    #[test]
    fn a_reader_that_expands_too_far_fails() {
        let (counted, input) = Counted::new(&b"0123456789"[..]);
        let mut small = Expanded::new(counted, input);
        assert_eq!(small.read_to_end(&mut Vec::new()).unwrap(), 10);
        let (_, nothing) = Counted::new(io::empty());
        let mut bomb = Expanded::new(io::repeat(b'a'), nothing);
        let made = io::copy(&mut bomb, &mut io::sink()).unwrap_err();
        assert!(made.to_string().contains("200 times its size"), "{made}");
    }
}
