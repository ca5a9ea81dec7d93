//! A file of tokenized rows, written once and read row by row: rows ([`row_bytes`](super::row_bytes)), a table of their
//! heads, facts about all of them as JSON, and an end of [`END_BYTES`] with sizes and hashes.
//!
//! It appears whole or not at all. Every byte is checked when it is opened, and once more when a row is read. Rows are
//! read by position instead of through a mapping: a file that is cut while it is in use is an error and no signal. No
//! memory of the process holds them; the system keeps what it has room for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::row::Row;
use super::row_bytes::{decode, encode, hash, is_row};
use super::row_head::{RowHead, take};
use crate::error::{Context, Error, Result};
use crate::files::dir::{Dir, unique};
use crate::files::failpoint;
use crate::files::hash::hex;
use crate::files::regular;

const MAGIC: [u8; 8] = *b"qlorarow";
/// The magic, three sizes, the SHA-256 of table and facts, and the hash of all these.
const END_BYTES: usize = 8 + 3 * 8 + 32 + 8;
/// The name of writes for failpoints.
const PLACE: &str = "tokenized-rows";
/// Bytes of rows that are checked at once: they stay in the processor's cache.
const CHECKED_BYTES: u64 = 256 << 10;
/// Heads that are read at once.
const HEADS_AT_ONCE: u64 = 1 << 14;
/// Far above the facts of rows, unless each of millions names a task of its own.
const MAX_FACTS_BYTES: usize = 256 << 20;

/// Facts about all rows of a file.
#[derive(Serialize, Deserialize)]
struct Facts<F> {
    tasks: Vec<String>,
    /// Different token ids, in order.
    ids: Vec<u32>,
    /// Facts of the writer of the file.
    more: F,
}

/// Limits of what a file of rows may hold, by the settings of its reader.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Tokens of a row
    pub max_length: usize,
    /// Bound of the token ids.
    pub vocab_size: usize,
    /// Bytes of memory for the heads of the rows
    pub memory: u64,
}

/// The reason why a file of rows is not used.
#[derive(Debug, PartialEq)]
pub(super) enum Unusable {
    Because(String),
    /// Memory has no room for the heads of this many rows.
    TooMany(u64),
}

impl From<String> for Unusable {
    fn from(why: String) -> Self {
        Self::Because(why)
    }
}

/// A file that has no name yet.
struct Nameless {
    dir: Dir,
    file: File,
    /// Its name until it is whole, on a file system that has no nameless files.
    temporary: Option<String>,
}

impl Nameless {
    fn create(dir: Dir, name: &str) -> io::Result<Self> {
        if let Ok(file) = dir.create_nameless() {
            return Ok(Self { dir, file, temporary: None });
        }
        let temporary = Self::temporary(name);
        let file = dir.create_file(&temporary)?;
        Ok(Self { dir, file, temporary: Some(temporary) })
    }

    fn temporary(name: &str) -> String {
        format!(".{name}.{}.partial", unique())
    }

    /// Gives the file its name, replacing a file of that name.
    fn put(mut self, name: &str) -> io::Result<()> {
        let temporary = match self.temporary.clone() {
            Some(temporary) => temporary,
            None => {
                let temporary = Self::temporary(name);
                self.dir.link(&self.file, &temporary)?;
                self.temporary.insert(temporary).clone()
            }
        };
        failpoint::point("rename", PLACE)?;
        self.dir.rename(&temporary, &self.dir, name)?;
        self.temporary = None;
        Ok(())
    }
}

impl Write for Nameless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        failpoint::write(&self.file, PLACE, bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Nameless {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The failure that led here is the one to report.
            let _ = self.dir.remove_file(temporary);
        }
    }
}

/// Writes a file of rows.
pub(super) struct RowWriter {
    path: PathBuf,
    name: String,
    out: BufWriter<Nameless>,
    heads: Vec<RowHead>,
    tasks: Vec<String>,
    numbers: HashMap<Arc<str>, u32>,
    /// True if a row has the token of this id.
    has: Vec<bool>,
    bytes: Vec<u8>,
}

impl RowWriter {
    /// Makes the directory if need be.
    pub fn create(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let cannot = || format!("`tokenized_cache`: {}: no file can be made in such a directory", dir.display());
        let file = Dir::create(dir).and_then(|dir| Nameless::create(dir, name)).usage_context(cannot)?;
        Ok(Self {
            path,
            name: name.to_owned(),
            out: BufWriter::with_capacity(1 << 20, file),
            heads: Vec::new(),
            tasks: Vec::new(),
            numbers: HashMap::new(),
            has: Vec::new(),
            bytes: Vec::new(),
        })
    }

    pub fn len(&self) -> usize {
        self.heads.len()
    }

    /// Adds a row behind the others. Failed: there is no room for it.
    pub fn push(&mut self, row: &Row) -> Result<()> {
        self.add(row).failure_context(|| cannot_write(&self.path))
    }

    fn add(&mut self, row: &Row) -> io::Result<()> {
        let form = encode(row, &mut self.bytes);
        let number = |of: usize| u32::try_from(of).map_err(io::Error::other);
        let task = match &row.task {
            None => RowHead::NO_TASK,
            Some(task) => match self.numbers.get(task) {
                Some(&number) => number,
                None => {
                    let new = number(self.tasks.len())?;
                    self.numbers.insert(task.clone(), new);
                    self.tasks.push(task.to_string());
                    new
                }
            },
        };
        for &id in &row.input_ids {
            let id = id as usize;
            if id >= self.has.len() {
                self.has.resize(id + 1, false);
            }
            self.has[id] = true;
        }
        self.heads.push(RowHead {
            begin: self.heads.last().map_or(0, |head| head.begin + head.size()),
            hash: hash(form, &self.bytes),
            line: row.line as u64,
            tokens: number(row.len())?,
            supervised: number(row.supervised())?,
            file: number(row.file)?,
            task,
            form,
        });
        self.out.write_all(&self.bytes)
    }

    /// Writes the parts after the rows, and gives the file its name. Failed: there is no room for it.
    pub fn finish(self, more: impl Serialize) -> Result<()> {
        let path = self.path.clone();
        self.end(more).failure_context(|| cannot_write(&path))
    }

    fn end(self, more: impl Serialize) -> io::Result<()> {
        let Self { name, mut out, heads, tasks, has, mut bytes, .. } = self;
        let mut hash = Sha256::new();
        for heads in heads.chunks(1 << 14) {
            bytes.clear();
            heads.iter().for_each(|head| head.write(&mut bytes));
            hash.update(&bytes);
            out.write_all(&bytes)?;
        }
        let ids = has.iter().zip(0..).filter(|(has, _)| **has).map(|(_, id)| id).collect();
        let different = tasks.len();
        let facts = serde_json::to_vec(&Facts { tasks, ids, more })?;
        if facts.len() > MAX_FACTS_BYTES {
            return Err(io::Error::other(format!(
                "the rows name {different} tasks, which is more than it has room for"
            )));
        }
        hash.update(&facts);
        out.write_all(&facts)?;
        let rows = heads.last().map_or(0, |head| head.begin + head.size());
        let end = End { rows, heads: heads.len() as u64, facts: facts.len() as u64, hash: hash.finalize().into() };
        out.write_all(&end.to_bytes())?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.put(&name)
    }
}

fn cannot_write(path: &Path) -> String {
    format!("{}: cannot be written (make room, or leave `tokenized_cache` out)", path.display())
}

/// The last bytes of a file.
#[derive(Debug, PartialEq)]
struct End {
    /// Bytes of all rows.
    rows: u64,
    /// Number of heads.
    heads: u64,
    /// Bytes of the facts.
    facts: u64,
    /// SHA-256 over heads and facts.
    hash: [u8; 32],
}

impl End {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        [self.rows, self.heads, self.facts].iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend(self.hash);
        bytes.extend(hash(Default::default(), &bytes).to_le_bytes());
        bytes
    }

    fn of(bytes: &[u8; END_BYTES]) -> Option<Self> {
        let (body, mut sum) = bytes.split_at(END_BYTES - 8);
        if hash(Default::default(), body) != u64::from_le_bytes(take(&mut sum)?) {
            return None;
        }
        let mut body = body.strip_prefix(&MAGIC)?;
        let mut size = || Some(u64::from_le_bytes(take(&mut body)?));
        let (rows, heads, facts) = (size()?, size()?, size()?);
        Some(Self { rows, heads, facts, hash: take(&mut body)? })
    }

    /// Bytes of heads and facts, in a file with `before` bytes before the end.
    fn table(&self, before: u64) -> Option<(usize, usize)> {
        let heads = self.heads.checked_mul(RowHead::BYTES as u64)?;
        let all = self.rows.checked_add(heads)?.checked_add(self.facts)?;
        (all == before).then_some((usize::try_from(heads).ok()?, usize::try_from(self.facts).ok()?))
    }
}

/// A file of these parts with correct hashes, whatever the parts hold, for tests of the reader.
pub(super) fn sealed(rows: &[u8], heads: &[u8], facts: &[u8]) -> Vec<u8> {
    let (mut of_rows, mut table) = (Vec::new(), heads.to_vec());
    if RowHead::read(heads, &mut of_rows).is_some() {
        table.clear();
        for head in &mut of_rows {
            let row = rows.get(head.begin as usize..).and_then(|rest| rest.get(..head.size() as usize));
            head.hash = row.map_or(head.hash, |row| hash(head.form, row));
            head.write(&mut table);
        }
    }
    table.extend(facts);
    let (all, of_heads) = (rows.len() as u64, (heads.len() / RowHead::BYTES) as u64);
    let hash = Sha256::digest(&table).into();
    let end = End { rows: all, heads: of_heads, facts: facts.len() as u64, hash };
    [rows, &table, &end.to_bytes()].concat()
}

/// An opened file of rows whose table and facts are undamaged.
#[derive(Debug)]
pub(super) struct RowFile {
    file: File,
    path: PathBuf,
    tasks: Vec<Arc<str>>,
    ids: Vec<u32>,
    digest: String,
    bytes: u64,
}

impl RowFile {
    /// The rows' file, their heads, and the facts that its writer gave. None: there is no such file. Error: the reason
    /// why it is not used. Whatever the file claims, no more memory is taken than `bounds` allow. The rows themselves
    /// are left to [`check`](Self::check).
    pub fn open<F: DeserializeOwned>(path: &Path, bounds: Bounds) -> Result<Option<(Self, Vec<RowHead>, F)>, Unusable> {
        let cannot = |error: io::Error| format!("cannot be read ({error})");
        let damaged = || "is cut off or damaged".to_owned();
        let file = match regular::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cannot(error).into()),
        };
        let bytes = file.metadata().map_err(cannot)?.len();
        let before = bytes.checked_sub(END_BYTES as u64).ok_or_else(damaged)?;
        let mut end = [0; END_BYTES];
        file.read_exact_at(&mut end, before).map_err(cannot)?;
        let end = End::of(&end).ok_or_else(damaged)?;
        let (heads_bytes, facts_bytes) = end.table(before).ok_or_else(damaged)?;
        if end.heads.saturating_mul(size_of::<RowHead>() as u64) > bounds.memory {
            return Err(Unusable::TooMany(end.heads));
        }
        if facts_bytes > MAX_FACTS_BYTES {
            return Err(damaged().into());
        }
        let mut hash = Sha256::new();
        let mut heads = Vec::with_capacity(heads_bytes / RowHead::BYTES);
        let (mut at, facts_at, mut rows) = (end.rows, end.rows + heads_bytes as u64, 0);
        let mut table = Vec::new();
        while at < facts_at {
            table.resize((facts_at - at).min(HEADS_AT_ONCE * RowHead::BYTES as u64) as usize, 0);
            file.read_exact_at(&mut table, at).map_err(cannot)?;
            hash.update(&table);
            rows = RowHead::read(&table, &mut heads).ok_or_else(damaged)?;
            at += table.len() as u64;
        }
        let mut facts = vec![0; facts_bytes];
        file.read_exact_at(&mut facts, facts_at).map_err(cannot)?;
        hash.update(&facts);
        let hash: [u8; 32] = hash.finalize().into();
        let is_fit = |head: &RowHead| head.tokens as usize <= bounds.max_length;
        if hash != end.hash || rows != end.rows || !heads.iter().all(is_fit) {
            return Err(damaged().into());
        }
        let facts: Facts<F> = serde_json::from_slice(&facts).map_err(|error| format!("cannot be read ({error})"))?;
        let is_of = |head: &RowHead| head.task == RowHead::NO_TASK || (head.task as usize) < facts.tasks.len();
        if !heads.iter().all(is_of) || !facts.ids.iter().all(|&id| (id as usize) < bounds.vocab_size) {
            return Err(damaged().into());
        }
        let tasks = facts.tasks.into_iter().map(Arc::from).collect();
        let found = Self { file, path: path.to_owned(), tasks, ids: facts.ids, digest: hex(hash), bytes };
        Ok(Some((found, heads, facts.more)))
    }

    /// Checks every row against the hash of its bytes and the rules for rows. Error: the reason why the file is not
    /// used.
    pub fn check(&self, heads: &[RowHead], vocab_size: usize) -> Result<(), String> {
        let mut parts: Vec<Range<usize>> = Vec::new();
        let mut begin = 0;
        for (at, head) in heads.iter().enumerate() {
            if head.begin + head.size() - heads[begin].begin >= CHECKED_BYTES || at + 1 == heads.len() {
                parts.push(begin..at + 1);
                begin = at + 1;
            }
        }
        parts.into_par_iter().try_for_each_init(Vec::new, |bytes: &mut Vec<u8>, part| {
            let heads = &heads[part];
            let (Some(first), Some(last)) = (heads.first(), heads.last()) else { return Ok(()) };
            bytes.resize((last.begin + last.size() - first.begin) as usize, 0);
            self.file.read_exact_at(bytes, first.begin).map_err(|error| format!("cannot be read ({error})"))?;
            let mut rest = &bytes[..];
            for head in heads {
                let (row, behind) = rest.split_at(head.size() as usize);
                let is_row = is_row(head.form, head.tokens, head.supervised, row, vocab_size);
                if hash(head.form, row) != head.hash || !is_row {
                    return Err("is damaged".to_owned());
                }
                rest = behind;
            }
            Ok(())
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Different token ids of all its rows.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// SHA-256 (hex) over everything in the file but the rows themselves, whose hashes it covers.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    pub fn task(&self, head: &RowHead) -> Option<&Arc<str>> {
        self.tasks.get(usize::try_from(head.task).ok()?)
    }

    /// Reads a row. Failed: the file is not what it was when it was opened.
    pub fn read(&self, head: &RowHead) -> Result<Row> {
        let mut bytes = vec![0; head.size() as usize];
        let read = self.file.read_exact_at(&mut bytes, head.begin);
        if read.is_err() || hash(head.form, &bytes) != head.hash {
            let why = read.err().map_or_else(String::new, |error| format!(" ({error})"));
            return Err(Error::Failed(format!(
                "{}: changed while the rows in it were in use{why}; begin again, or go on from the newest checkpoint \
                 (`resume_from_checkpoint`): the file is then made anew",
                self.path.display()
            )));
        }
        let (input_ids, labels, weights) = decode(head.form, head.tokens, &bytes);
        let (file, line) = (head.file as usize, head.line as usize);
        Ok(Row { input_ids, labels, weights, file, line, task: self.task(head).cloned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_file_is_read_as_it_was_written_and_damage_of_any_bit_is_found() {
        let end = End { rows: 70, heads: 2, facts: 11, hash: [7; 32] };
        let bytes: [u8; END_BYTES] = end.to_bytes().try_into().unwrap();
        assert_eq!(End::of(&bytes), Some(End { rows: 70, heads: 2, facts: 11, hash: [7; 32] }));
        for bit in 0..8 * END_BYTES {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(End::of(&damaged), None, "bit {bit}");
        }
        assert_eq!(end.table(70 + 66 + 11), Some((66, 11)));
        assert_eq!(end.table(70 + 66 + 12), None);
        assert_eq!(End { heads: u64::MAX / 16, ..end }.table(0), None);
    }
}
