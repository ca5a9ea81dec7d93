//! Claims of a Parquet file's headers, checked before the library believes them.
//!
//! A list of no bytes may claim two billion elements, which the library counts through one by one; a page may claim to
//! become gigabytes, or to hold more values than its column. Headers are structs of Thrift's compact protocol: here
//! they are walked through, in the time of their bytes, and the few numbers that matter are kept. The library reads a
//! field that it knows as what it expects, whatever type the file says, and would come upon other lists than are found
//! here: fields have the types of the format.

mod format;

use format::{FOOTER, Fields, PAGE, Type, kind};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;

/// Structs within structs; those of the format have fewer.
const MAX_DEPTH: usize = 24;
/// The magic at the end, and the length of the footer before it.
const END_BYTES: u64 = 8;

/// Claims of a column's pages, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Claims {
    /// Bytes that they become
    pub bytes: u64,
    pub values: u64,
}

/// The error is the reason why a header is invalid.
type Result<T> = std::result::Result<T, String>;

/// Walks through the footer. Error: the reason why it is invalid.
pub(super) fn check_footer(file: &mut (impl Read + Seek)) -> Result<()> {
    let cannot = |error: std::io::Error| error.to_string();
    let end = file.seek(SeekFrom::End(0)).map_err(cannot)?;
    let mut tail = [0; END_BYTES as usize];
    let Some(start) = end.checked_sub(END_BYTES) else { return Err("it has no footer".into()) };
    file.seek(SeekFrom::Start(start)).map_err(cannot)?;
    file.read_exact(&mut tail).map_err(cannot)?;
    // The library says what else it is, such as encrypted.
    if !tail.ends_with(b"PAR1") {
        return Ok(());
    }
    let length = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    let Some(start) = start.checked_sub(length) else { return Err("its footer is longer than the file".into()) };
    file.seek(SeekFrom::Start(start)).map_err(cannot)?;
    Walker { reader: BufReader::new(file.take(length)) }.structure(FOOTER, &mut Vec::new(), &mut |_, _| ())
}

/// Claims of the pages in this range of the file. Error: the reason why a page's header is invalid.
pub(super) fn of_pages(file: &mut (impl Read + Seek), range: Range<u64>) -> Result<Claims> {
    file.seek(SeekFrom::Start(range.start)).map_err(|error| error.to_string())?;
    let mut walker = Walker { reader: BufReader::new(file.take(range.end.saturating_sub(range.start))) };
    let mut all = Claims::default();
    while !walker.reader.fill_buf().map_err(|error| error.to_string())?.is_empty() {
        let (mut becomes, mut follows, mut values) = (0, 0, 0);
        walker.structure(PAGE, &mut Vec::new(), &mut |path, number| match path {
            [2] => becomes = number,
            [3] => follows = number,
            // The values of a data page in either version; a dictionary's are of no row.
            [5 | 8, 1] => values = number,
            _ => {}
        })?;
        let count = |number: i64| u64::try_from(number).map_err(|_| "a page of less than nothing".to_owned());
        all.bytes = all.bytes.saturating_add(count(becomes)?);
        all.values = all.values.saturating_add(count(values)?);
        let body = count(follows)?;
        let skipped = std::io::copy(&mut (&mut walker.reader).take(body), &mut std::io::sink());
        if skipped.map_err(|error| error.to_string())? < body {
            return Err("a page that ends behind its column".into());
        }
    }
    Ok(all)
}

/// Refuses a value of another type than the format has for its field.
fn check_type(known: Option<Type>, found: u8, path: &[i16]) -> Result<()> {
    match known {
        Some(known) if !known.is(found) => Err(format!("a header whose field {path:?} has the type {found}")),
        _ => Ok(()),
    }
}

struct Walker<R> {
    reader: R,
}

impl<R: BufRead> Walker<R> {
    fn byte(&mut self) -> Result<u8> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).map_err(|_| "a header that is cut off".to_owned())?;
        Ok(byte[0])
    }

    /// A number of seven bits a byte.
    fn varint(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number without an end".into())
    }

    /// A number whose last bit is its sign.
    fn zigzag(&mut self) -> Result<i64> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        let skipped = std::io::copy(&mut (&mut self.reader).take(bytes), &mut std::io::sink());
        match skipped {
            Ok(skipped) if skipped == bytes => Ok(()),
            _ => Err("a header that is cut off".into()),
        }
    }

    /// Calls `number` with the path of fields and the value of each whole number in a struct.
    fn structure(&mut self, fields: Fields, path: &mut Vec<i16>, number: &mut dyn FnMut(&[i16], i64)) -> Result<()> {
        if path.len() >= MAX_DEPTH {
            return Err("a header that is nested too deeply".into());
        }
        let mut field = 0i16;
        loop {
            let head = self.byte()?;
            if head == kind::STOP {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.zigzag()? as i16,
                step => field.wrapping_add(i16::from(step)),
            };
            path.push(field);
            let known = fields.iter().find(|(known, _)| *known == field).map(|(_, known)| *known);
            match head & 0x0F {
                kind @ (kind::TRUE | kind::FALSE) => check_type(known, kind, path)?,
                kind => self.value(kind, known, path, number)?,
            }
            path.pop();
        }
    }

    /// A value that has bytes of its own, of a type that the format may know.
    fn value(
        &mut self,
        kind: u8,
        known: Option<Type>,
        path: &mut Vec<i16>,
        number: &mut dyn FnMut(&[i16], i64),
    ) -> Result<()> {
        check_type(known, kind, path)?;
        match kind {
            kind::BYTE => self.skip(1),
            kind::I16 | kind::I32 | kind::I64 => {
                let value = self.zigzag()?;
                number(path, value);
                Ok(())
            }
            kind::DOUBLE => self.skip(8),
            kind::BINARY => {
                let bytes = self.varint()?;
                self.skip(bytes)
            }
            kind::LIST | kind::SET => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                if path.len() >= MAX_DEPTH {
                    return Err("a header that is nested too deeply".into());
                }
                path.push(-1);
                // Each element has a byte at least, so that this ends with the bytes.
                let element = known.and_then(Type::element);
                (0..count).try_for_each(|_| self.value(head & 0x0F, element, path, number))?;
                path.pop();
                Ok(())
            }
            kind::STRUCT => self.structure(known.map_or(&[], Type::fields), path, number),
            // Lists of truth values and maps are no part of any header, and readers differ in their bytes.
            _ => Err(format!("a header with a value of the type {kind}")),
        }
    }
}

#[cfg(test)]
mod tests;
