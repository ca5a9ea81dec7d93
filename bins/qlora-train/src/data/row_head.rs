//! Facts about a row in a file that are known without reading the row.

use super::row_bytes::RowForm;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowHead {
    /// Offset of its bytes in the file of rows.
    pub begin: u64,
    /// Hash of its bytes.
    pub hash: u64,
    /// Its line or number in the data file.
    pub line: u64,
    pub tokens: u32,
    pub supervised: u32,
    /// Index of the data file.
    pub file: u32,
    /// Number of its task; [`RowHead::NO_TASK`]: it names none.
    pub task: u32,
    pub form: RowForm,
}

impl RowHead {
    pub const NO_TASK: u32 = u32::MAX;
    /// Bytes of a head in a file: all but the beginning, which follows from the rows before.
    pub const BYTES: usize = 33;

    /// Bytes of the row.
    pub fn size(&self) -> u64 {
        self.form.size(self.tokens)
    }

    pub fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.hash.to_le_bytes());
        bytes.extend(self.line.to_le_bytes());
        [self.tokens, self.supervised, self.file, self.task].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.push(self.form.to_byte());
    }

    /// Adds the heads of rows that follow each other, behind those that `heads` holds. Returns the end of the last one.
    /// None: these are no heads.
    pub fn read(bytes: &[u8], heads: &mut Vec<Self>) -> Option<u64> {
        let mut begin = match heads.last() {
            Some(head) => head.begin.checked_add(head.size())?,
            None => 0,
        };
        for mut bytes in bytes.chunks(Self::BYTES) {
            let (hash, line) = (u64::from_le_bytes(take(&mut bytes)?), u64::from_le_bytes(take(&mut bytes)?));
            let mut number = || Some(u32::from_le_bytes(take(&mut bytes)?));
            let (tokens, supervised, file, task) = (number()?, number()?, number()?, number()?);
            let form = RowForm::from_byte(u8::from_le_bytes(take(&mut bytes)?))?;
            let head = Self { begin, hash, line, tokens, supervised, file, task, form };
            begin = begin.checked_add(head.size())?;
            heads.push(head);
        }
        Some(begin)
    }
}

/// Splits off the first N bytes. None: there are fewer.
pub(super) fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written_and_begin_where_the_ones_before_end() {
        let head = |begin, tokens, form| RowHead {
            begin,
            hash: u64::MAX - begin,
            line: 1 << 40,
            tokens,
            supervised: tokens / 2,
            file: 3,
            task: RowHead::NO_TASK,
            form: RowForm::from_byte(form).unwrap(),
        };
        // 9 ids and 9 bits; 9 ids and 9 labels; 9 ids, 9 labels and 9 weights.
        let heads = [head(0, 9, 0), head(38, 9, 1), head(110, 9, 3), head(218, 0, 0)];
        let mut bytes = Vec::new();
        heads.iter().for_each(|head| head.write(&mut bytes));
        assert_eq!(bytes.len(), heads.len() * RowHead::BYTES);
        for cut in 0..=heads.len() {
            let (one, other) = bytes.split_at(cut * RowHead::BYTES);
            let mut read = Vec::new();
            RowHead::read(one, &mut read).unwrap();
            assert_eq!((RowHead::read(other, &mut read), &read[..]), (Some(218), &heads[..]));
        }
        assert_eq!(RowHead::read(&bytes[1..], &mut Vec::new()), None);
        *bytes.last_mut().unwrap() = 4;
        assert_eq!(RowHead::read(&bytes, &mut Vec::new()), None);
        let mut last = vec![RowHead { begin: u64::MAX - 1, ..heads[0] }];
        assert_eq!(RowHead::read(&bytes[..RowHead::BYTES], &mut last), None);
    }
}
