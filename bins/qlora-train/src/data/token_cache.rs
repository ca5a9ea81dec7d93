//! A cache of tokenized rows: a run with the same data, tokenizer, template and settings reads them from a file.
//!
//! The setting `tokenized_cache` names a directory for such files; without it nothing is written. Every start reads all
//! bytes of the data and compares their SHA-256: sizes and times of files would be faster but can be wrong, and a run
//! is the same run only on the same bytes. The hash of a large file is kept beside the rows, under the hash of its
//! blocks, which all processors compute together. A cache file that is damaged, or of another tokenizer, gives a note
//! and is made anew. It also holds the remarks about the rows, so that a later start prints the same; rows that were
//! refused are in no file, so that they are refused again. If there is no room for the file the run is refused: the
//! rows might not fit in memory either.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::dataset::{Dataset, OpenTokenizer, load_into, load_once};
use super::options::DataOptions;
use super::report::DatasetReport;
use super::row_file::{Bounds, RowFile, RowWriter, Unusable};
use super::row_head::RowHead;
use super::row_list::{Rows, Sink};
use super::token_key::{rows_key, tokenizer_key};
use crate::bail_usage;
use crate::error::{Error, Result};
use crate::files::atomic::AtomicFiles;
use crate::files::hash::{block_hash, file_and_block_hash, file_hash, hex};
use crate::files::json::read_bounded;
use crate::files::units::format_bytes;
use crate::report::{count, detail};

/// Size of a data file in bytes from which its hash is kept: a smaller one is hashed in a moment.
const LARGE: u64 = 64 << 20;
/// Characters of a key in the name of a file.
const NAME: usize = 32;
/// Limit far above the size of a key and a hash.
const MAX_NOTE_BYTES: u64 = 4 << 10;

/// A directory for tokenized rows.
#[derive(Clone, Debug)]
pub struct TokenCache {
    pub dir: PathBuf,
    /// Directory or id that the tokenizer is opened from, if any
    pub of: String,
    /// Time that chat templates get
    pub clock: Option<Timestamp>,
}

/// Rows, and a message about the file that they are in.
#[derive(Clone, Debug)]
pub struct TokenizedRows {
    pub dataset: Dataset<Rows>,
    pub said: Vec<String>,
}

/// Facts about the rows in a file.
#[derive(Serialize, Deserialize)]
struct Made {
    /// [`rows_key`]
    key: String,
    /// [`tokenizer_key`]; none where no row needed a tokenizer.
    tokenizer: Option<String>,
    report: DatasetReport,
}

/// A file of rows as it was found.
enum Found {
    Rows(Box<Dataset<Rows>>),
    Nothing,
    /// It is not used, for this reason.
    Unusable(String),
}

/// [`load_once`] with rows that are kept in `cache`, and read from there if an earlier run kept them. `known` are rows
/// that count as seen already, for `deduplicate`. Failed: there is no room for the rows.
pub fn load_tokenized(
    paths: &[PathBuf],
    open: &OpenTokenizer,
    options: &DataOptions,
    known: Option<&Rows>,
    cache: Option<&TokenCache>,
) -> Result<TokenizedRows> {
    let knowing = || -> Result<DataOptions> {
        let options = options.clone();
        Ok(match known {
            None => options,
            Some(rows) => DataOptions { known_rows: Arc::new(rows.identities()?), ..options },
        })
    };
    // Known rows that are not in a file have no key.
    let is_keyed = options.known_rows.is_empty() && known.is_none_or(|known| known.digest().is_some());
    let pipe = paths.iter().find(|path| !path.is_file());
    let (Some(cache), None) = (cache.filter(|_| is_keyed), pipe) else {
        let Dataset { hashes, rows, report } = load_once(paths, open, &knowing()?)?;
        let why = pipe.map_or("other rows that it depends on are in no file".to_owned(), |pipe| {
            format!("{} is no plain file and is read once", pipe.display())
        });
        let said = cache.map(|_| format!("`tokenized_cache`: nothing is kept: {why}"));
        let dataset = Dataset { hashes, rows: rows.into(), report };
        return Ok(TokenizedRows { dataset, said: said.into_iter().collect() });
    };
    let hashed = Hashed::of(paths, &cache.dir, LARGE)?;
    let hashes = &hashed.hashes;
    let key = rows_key(paths, hashes, options, &cache.of, known.and_then(Rows::digest));
    let name = format!("{}.rows", &key[..NAME]);
    let files = Files { paths, hashes, key: &key, path: cache.dir.join(&name) };
    let shown = files.path.display();
    let mut said = Vec::new();
    let of_now = || tokenizer_key(open()?, cache.clock).map(Some);
    match files.find(&of_now, options)? {
        Found::Rows(dataset) => {
            hashed.keep(&cache.dir);
            said.push(format!("{shown}: tokenized rows of an earlier start"));
            return Ok(TokenizedRows { dataset: *dataset, said });
        }
        Found::Nothing => {}
        Found::Unusable(why) => said.push(format!("warning: {shown}: {why}; it is made anew")),
    }
    let writer = Sink::File(Box::new(RowWriter::create(&cache.dir, &name)?));
    let (Dataset { hashes: read, rows, report }, tokenizer) = load_into(writer, paths, None, Some(open), &knowing()?)?;
    if let Some((path, _)) = paths.iter().zip(read.iter().zip(hashes)).find(|(_, (read, hash))| read != hash) {
        bail_usage!("{}: was written to while it was read; begin again when it is whole", path.display());
    }
    let tokenizer = tokenizer.map(|tokenizer| tokenizer_key(tokenizer, cache.clock)).transpose()?;
    if let Sink::File(writer) = rows {
        writer.finish(Made { key: key.clone(), tokenizer: tokenizer.clone(), report })?;
    }
    // Another run may have put its file there in the meantime.
    match files.find(&|| Ok(tokenizer.clone()), options)? {
        Found::Rows(dataset) => {
            hashed.keep(&cache.dir);
            let bytes = dataset.rows.place().map_or(0, |(_, bytes)| bytes);
            said.push(format!("{shown}: tokenized rows for the next start, {}", format_bytes(bytes)));
            Ok(TokenizedRows { dataset: *dataset, said })
        }
        Found::Nothing => Err(Error::Failed(format!("{shown}: was removed as soon as it was written; begin again"))),
        Found::Unusable(why) => Err(Error::Failed(format!(
            "{shown}: {why}, although it was just written: another run writes it too, or the disk does not keep what \
             it is given; choose another `tokenized_cache`, or leave it out"
        ))),
    }
}

/// SHA-256s (hex) of data files.
struct Hashed {
    hashes: Vec<String>,
    /// Hashes of the blocks of large files, each with the hash of the whole file, that are not kept yet
    to_keep: Vec<(String, String)>,
}

impl Hashed {
    /// Hashes files; those of at least `large` bytes with the help of the hashes that an earlier run kept in `dir`.
    fn of(paths: &[PathBuf], dir: &Path, large: u64) -> Result<Self> {
        let is_kept = dir.is_dir();
        let of = |path: &PathBuf| -> Result<(String, Option<String>)> {
            if path.metadata().map_or(0, |found| found.len()) < large {
                return Ok((file_hash(path)?, None));
            }
            if is_kept && let Some(hash) = recall(dir, &hash_by(&block_hash(path)?)) {
                return Ok((hash, None));
            }
            file_and_block_hash(path).map(|(hash, blocks)| (hash, Some(blocks)))
        };
        let all = paths.par_iter().map(of).collect::<Result<Vec<_>>>()?;
        let to_keep = all.iter().filter_map(|(hash, blocks)| Some((blocks.clone()?, hash.clone()))).collect();
        Ok(Self { hashes: all.into_iter().map(|(hash, _)| hash).collect(), to_keep })
    }

    /// Keeps the hashes that the next run would compute again.
    fn keep(&self, dir: &Path) {
        for (blocks, hash) in &self.to_keep {
            if let Err(error) = remember(dir, &hash_by(blocks), hash) {
                detail!("the next start computes the hash of a data file again: {error}");
            }
        }
    }
}

/// Key of a file's SHA-256 by that of its blocks.
fn hash_by(blocks: &str) -> String {
    format!("SHA-256 of the file of blocks {blocks}")
}

/// Data files and the file of their rows.
struct Files<'a> {
    paths: &'a [PathBuf],
    hashes: &'a [String],
    key: &'a str,
    path: PathBuf,
}

impl Files<'_> {
    /// Looks for the file. `own` gives the key of this run's tokenizer, and is called if the rows needed one. Refused:
    /// that tokenizer cannot be opened; memory has no room for the heads of the rows.
    fn find(&self, own: &dyn Fn() -> Result<Option<String>>, options: &DataOptions) -> Result<Found> {
        let unusable = |why: &str| Ok(Found::Unusable(why.to_owned()));
        let DataOptions { max_length, vocab_size, memory, .. } = *options;
        let (file, heads, made) = match RowFile::open::<Made>(&self.path, Bounds { max_length, vocab_size, memory }) {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(Found::Nothing),
            Err(Unusable::Because(why)) => return Ok(Found::Unusable(why)),
            Err(Unusable::TooMany(rows)) => bail_usage!(
                "{}: the index of {} takes more than the {} of memory that may be used: give fewer (max_samples), \
                 or raise host_memory if more is free",
                self.path.display(),
                count(rows, "row"),
                format_bytes(memory)
            ),
        };
        let Made { key, tokenizer, mut report } = made;
        if key != self.key || report.files.len() != self.paths.len() {
            return unusable("holds other rows than its name says");
        }
        if heads.iter().any(|head| head.file as usize >= self.paths.len()) {
            return unusable("holds rows of a file that is none of its own");
        }
        let sum = |of: fn(&RowHead) -> u32| heads.iter().map(|head| of(head) as usize).sum::<usize>();
        if !report.is_of(heads.len(), sum(|head| head.tokens), sum(|head| head.supervised)) {
            return unusable("holds a report that is not of its rows");
        }
        // Opening a tokenizer takes as long as reading the rows.
        let (mut checked, mut of_now) = (Ok(()), None);
        rayon::in_place_scope(|scope| {
            scope.spawn(|_| checked = file.check(&heads, vocab_size));
            of_now = tokenizer.is_some().then(own);
        });
        if let Err(why) = checked {
            return Ok(Found::Unusable(why));
        }
        if let Some(of_now) = of_now
            && of_now? != tokenizer
        {
            return unusable("is of another tokenizer, chat template or date");
        }
        report.files.iter_mut().zip(self.paths).for_each(|(file, path)| file.path.clone_from(path));
        let (hashes, rows) = (self.hashes.to_vec(), Rows::in_file(file, heads));
        Ok(Found::Rows(Box::new(Dataset { hashes, rows, report })))
    }
}

/// Rows of a file that a cache has for data files under a key, where no tokenizer was needed. None: it is not used.
pub(super) fn kept(path: &Path, paths: &[PathBuf], key: &str, options: &DataOptions) -> Result<Option<Dataset<Rows>>> {
    let hashes = vec![String::new(); paths.len()];
    let files = Files { paths, hashes: &hashes, key, path: path.to_owned() };
    match files.find(&|| Ok(None), options)? {
        Found::Rows(dataset) => Ok(Some(*dataset)),
        Found::Nothing | Found::Unusable(_) => Ok(None),
    }
}

/// A hash that is kept in a cache under a key.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    hash: String,
    /// SHA-256 (hex) of the two.
    sum: String,
}

impl Kept {
    fn new(key: &str, hash: &str) -> Self {
        Self { key: key.to_owned(), hash: hash.to_owned(), sum: hex(Sha256::digest(format!("{key}\n{hash}"))) }
    }

    fn name(key: &str) -> String {
        format!("{}.json", &hex(Sha256::digest(key))[..NAME])
    }
}

/// The hash that [`remember`] kept under a key; none if there is none, or it is damaged.
pub fn recall(dir: &Path, key: &str) -> Option<String> {
    let bytes = read_bounded(&dir.join(Kept::name(key)), MAX_NOTE_BYTES).ok()?;
    let kept: Kept = serde_json::from_slice(&bytes).ok()?;
    let whole = Kept::new(key, &kept.hash);
    (whole.key == kept.key && whole.sum == kept.sum).then_some(kept.hash)
}

/// Keeps a hash that takes long to compute.
pub fn remember(dir: &Path, key: &str, hash: &str) -> Result<()> {
    let mut files = AtomicFiles::new(dir)?;
    files.add(&Kept::name(key), |to| Ok(serde_json::to_writer(to, &Kept::new(key, hash))?))?;
    files.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_large_file_is_taken_by_its_blocks_and_no_byte_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (small, large, kept) = (dir.path().join("small"), dir.path().join("large"), dir.path().join("kept"));
        std::fs::write(&small, [1_u8; 9]).unwrap();
        std::fs::write(&large, [2_u8; 10]).unwrap();
        let paths = [small, large.clone()];
        let hashed = || Hashed::of(&paths, &kept, 10).unwrap();
        let expected = |large: &[u8]| [[1; 9].to_vec(), large.to_vec()].map(|bytes| hex(Sha256::digest(bytes)));
        for bytes in [[2_u8; 10], [3; 10]] {
            std::fs::write(&large, bytes).unwrap();
            let first = hashed();
            assert_eq!((&first.hashes[..], first.to_keep.len()), (&expected(&bytes)[..], 1));
            first.keep(&kept);
            let second = hashed();
            assert_eq!((&second.hashes[..], second.to_keep.len()), (&expected(&bytes)[..], 0));
        }
        // The hash that is kept under the blocks is used; a damaged one counts as missing.
        remember(&kept, &hash_by(&block_hash(&large).unwrap()), "kept").unwrap();
        assert_eq!(hashed().hashes[1], "kept");
        for entry in std::fs::read_dir(&kept).unwrap() {
            std::fs::write(entry.unwrap().path(), "{").unwrap();
        }
        assert_eq!(hashed().hashes, expected(&[3; 10]));
        hashed().keep(&kept);
        assert!(hashed().to_keep.is_empty());
    }
}
