//! A base in 16 bits that is quantized once: a later start reads the weights in NF4 that an earlier one kept.
//!
//! The setting `quantized_cache` names a directory; without it nothing is written. An entry of it is a checkpoint as
//! `quantize` writes it, in a directory that is named by the fingerprint of the original and the options. Only weights
//! are read from it: tokenizer, config.json and name are those of the original, whose fingerprint its adapters record.
//!
//! The entry of a model is found without reading all of its weights, by the size, inode and times of change of each
//! file and a few values of each tensor, for which a note keeps the fingerprint. Files in another state are read and
//! hashed, and so are those that were changed within two seconds before an earlier start looked at them: another change
//! may have got their time.
//!
//! An entry appears whole or not at all, and one process at a time makes one. An entry that cannot be opened is
//! reported and made again; one whose weights are other bytes is refused once they are read.

use super::disk::{check_writable, free_bytes, is_one_file_system};
use super::interruption::Interruption;
use super::model_spec::of_settings;
use super::plan::TensorStorage;
use crate::arch::Arch;
use crate::backend::Quantization;
use crate::bail_usage;
use crate::base::{Checkpoint, Partial, QuantizeOptions, quantize_into, quantized_bytes, side_bytes};
use crate::config::Settings;
use crate::data::{recall, remember};
use crate::error::{Context, Error, Result};
use crate::files::dir::Dir;
use crate::files::tensor::StoredType;
use crate::files::units::format_bytes;
use crate::report::{Bars, detail, status, warning};
use qlora_kernels::nf4::Nf4Options;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Characters of a fingerprint in the name of an entry.
const NAME: usize = 32;
/// Name under which an entry is made.
const UNFINISHED: &str = "unfinished";
/// Bytes of tensors in one file, as `quantize` has them by default.
const SHARD_BYTES: u64 = 5_000_000_000;
/// Bytes of config.json and an index, and of a tensor's place in a header, at most.
const OVERHEAD: u64 = 64 << 10;
const TENSOR_OVERHEAD: u64 = 2 << 10;
/// Time between two looks at a process that makes an entry.
const LOOK: Duration = Duration::from_millis(100);

/// A directory of checkpoints in NF4, and how weights are quantized for it.
#[derive(Clone, Debug)]
pub struct QuantizedCache {
    dir: PathBuf,
    nf4: Nf4Options,
    /// Fingerprint of the base that is looked for, once it is known
    fingerprint: Option<String>,
}

/// An entry as it was found.
enum Found {
    Kept(Box<Checkpoint>),
    Absent,
    /// It is not used, for this reason.
    Damaged(String),
}

/// A cache as a plan finds it.
#[derive(Clone, Debug)]
pub struct Outlook {
    pub dir: PathBuf,
    /// Bytes of the tensors in NF4
    pub bytes: u64,
    /// Bytes of the tensors of the original
    pub original_bytes: u64,
    /// The entry is there; none: only reading all weights can tell.
    pub is_there: Option<bool>,
    /// Bytes that making it takes
    pub needed: u64,
    /// Bytes that are free on the file system
    pub free: Option<u64>,
}

impl Outlook {
    /// True if the run would be refused for want of room.
    pub fn lacks_room(&self) -> bool {
        self.is_there == Some(false) && self.free.is_some_and(|free| free < self.needed)
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let (dir, bytes, original) = (self.dir.display(), format_bytes(self.bytes), format_bytes(self.original_bytes));
        let free = self.free.map_or(String::new(), |free| format!(", {} are free", format_bytes(free)));
        match self.is_there {
            Some(true) => {
                format!("quantized_cache: {dir}: has the base in NF4, {bytes} that are read instead of {original}")
            }
            Some(false) if self.lacks_room() => format!(
                "quantized_cache: {dir}: the base in NF4 has no room there: {} are needed{free}",
                format_bytes(self.needed)
            ),
            Some(false) => {
                format!("quantized_cache: {dir}: the run first writes the base in NF4 there, {bytes} on disk{free}")
            }
            None => format!(
                "quantized_cache: {dir}: whether it has the base in NF4 ({bytes} on disk{free}) is told when the run reads \
                 all {original} of it once"
            ),
        }
    }
}

impl QuantizedCache {
    /// The cache that the settings ask for. None: they ask for none, or there is nothing to keep, which is told.
    pub fn of(settings: &Settings, checkpoint: &Checkpoint) -> Option<Self> {
        let cache = Self::of_settings(settings)?;
        if checkpoint.quantization().is_some() {
            status!("`quantized_cache`: nothing is kept: the base is in NF4 already");
            return None;
        }
        Some(cache)
    }

    /// The cache that the settings ask for, for a base of which only the shape is known.
    pub fn of_settings(settings: &Settings) -> Option<Self> {
        let dir = settings.quantized_cache.clone()?;
        let Quantization::Nf4 { block_size, double_quant } = of_settings(settings) else {
            status!("`quantized_cache`: nothing is kept: the base is held as it is stored (quantization: none)");
            return None;
        };
        Some(Self { dir, nf4: Nf4Options { block_size, double_quant }, fingerprint: None })
    }

    /// Storage in an entry of a tensor that is stored as `own` in the original.
    pub fn stored(&self, arch: &Arch, name: &str, own: TensorStorage) -> TensorStorage {
        let Nf4Options { block_size, double_quant } = self.nf4;
        match name.strip_suffix(".weight").is_some_and(|module| arch.find(module).is_some()) {
            true => TensorStorage {
                dtype: StoredType::F32,
                resident_as: Some(Quantization::Nf4 { block_size, double_quant }),
            },
            false => TensorStorage { resident_as: Some(Quantization::None), ..own },
        }
    }

    /// The weights of `checkpoint` that are kept; none: there are none that can be used. All weights are read where
    /// nothing else tells whether they are those of an entry. Refused: something else in the place of the entry.
    pub fn find(&mut self, checkpoint: &Checkpoint) -> Result<Option<Checkpoint>> {
        let found = self.look(checkpoint)?;
        let path = self.fingerprint.as_deref().map(|fingerprint| self.path(fingerprint)).unwrap_or_default();
        match found {
            Found::Kept(kept) => {
                let bytes = format_bytes(kept.stored_bytes());
                status!("{}: the base in NF4 as an earlier start kept it, {bytes}", path.display());
                Ok(Some(*kept))
            }
            Found::Absent => Ok(None),
            Found::Damaged(why) => {
                warning!("{}: {why}; it is made anew", path.display());
                Ok(None)
            }
        }
    }

    fn look(&mut self, checkpoint: &Checkpoint) -> Result<Found> {
        if self.fingerprint.is_none() {
            self.fingerprint = self.fingerprint_of(checkpoint)?;
        }
        self.fingerprint.as_ref().map_or(Ok(Found::Absent), |fingerprint| self.entry(fingerprint))
    }

    /// The fingerprint of a model, by the note on its files or by reading them; none where there is no entry that could
    /// be the model's.
    fn fingerprint_of(&self, checkpoint: &Checkpoint) -> Result<Option<String>> {
        let (key, is_settled) = self.key(checkpoint)?;
        let noted = self.noted(&key);
        if noted.is_some() || !self.has_any() {
            return Ok(noted);
        }
        status!(
            "{}: all weights of {} are read to tell whether they are those that an earlier start kept",
            self.dir.display(),
            checkpoint.dir().display()
        );
        let fingerprint = checkpoint.fingerprint()?;
        self.note(checkpoint, &key, is_settled, &fingerprint)?;
        Ok(Some(fingerprint))
    }

    /// Refuses a directory that cannot be written or has no room for the weights of `checkpoint`.
    pub fn check_place(&self, checkpoint: &Checkpoint) -> Result<()> {
        check_writable(&self.dir, "quantized_cache")?;
        free_bytes(&self.dir).map_or(Ok(()), |free| self.check_room(free, self.needed(checkpoint)?))
    }

    fn check_room(&self, free: u64, needed: u64) -> Result<()> {
        if free >= needed {
            return Ok(());
        }
        bail_usage!(
            "{}: {} are free on its file system, expected {} for the base in NF4 (quantized_cache): make room, choose \
             another directory, or leave it out",
            self.dir.display(),
            format_bytes(free),
            format_bytes(needed)
        )
    }

    /// Quantizes `checkpoint` and keeps the result, unless another process has done so meanwhile; that is waited
    /// for.
    pub fn make(&mut self, checkpoint: &Checkpoint) -> Result<Checkpoint> {
        let interruption = Interruption::watch("stopping after the current tensor; nothing is kept")?;
        let go_on = || interruption.signal().map_or(Ok(()), |signal| Err(Error::Interrupted(signal)));
        let made = self.make_while(checkpoint, &go_on);
        let ended = interruption.end();
        match made {
            Err(Error::Interrupted(signal)) => Err(Error::Interrupted(signal)),
            made => {
                let made = made.context(|| "`quantized_cache`".to_owned())?;
                ended.map(|()| made)
            }
        }
    }

    fn make_while(&mut self, checkpoint: &Checkpoint, go_on: &dyn Fn() -> Result<()>) -> Result<Checkpoint> {
        let partial = self.begin(go_on)?;
        // Another process may have made it since this one looked.
        if let Found::Kept(kept) = self.look(checkpoint)? {
            return Ok(*kept);
        }
        self.check_place(checkpoint)?;
        let (key, is_settled) = self.key(checkpoint)?;
        let options = QuantizeOptions { nf4: self.nf4, skip_modules: Vec::new(), max_shard_bytes: SHARD_BYTES };
        let mut bar = Bars::new("quantizing", checkpoint.arch().tensors().len() as u64);
        let made = quantize_into(checkpoint, &partial, &options, &mut |done| {
            bar.set(done as u64, String::new());
            go_on()
        })?;
        bar.finish();
        let fingerprint = made.original.fingerprint;
        let path = self.path(&fingerprint);
        let shown = path.display();
        match self.entry(&fingerprint)? {
            // The model was kept under another path, or before its files were touched.
            Found::Kept(_) => drop(partial),
            Found::Absent => partial.commit(&path)?,
            Found::Damaged(_) => {
                let remove = || Dir::open(&self.dir)?.remove_all(self.name(&fingerprint), &mut || ());
                remove().context(|| format!("{shown}: is damaged and cannot be removed"))?;
                partial.commit(&path)?;
            }
        }
        self.note(checkpoint, &key, is_settled, &fingerprint)?;
        match self.entry(&fingerprint)? {
            Found::Kept(kept) => {
                status!("{shown}: the base in NF4 for the next start, {}", format_bytes(kept.stored_bytes()));
                Ok(*kept)
            }
            Found::Absent => Err(Error::Failed(format!("{shown}: was removed as soon as it was written; begin again"))),
            Found::Damaged(why) => Err(Error::Failed(format!(
                "{shown}: {why}, although it was just written: the disk does not keep what it is given; choose another \
                 directory, or leave it out"
            ))),
        }
    }

    /// A directory in which this process alone makes an entry. Files of a process that was killed are removed.
    fn begin(&self, go_on: &dyn Fn() -> Result<()>) -> Result<Partial> {
        let mut is_told = false;
        loop {
            if let Some(partial) = Partial::unless_busy(&self.dir.join(UNFINISHED))? {
                return Ok(partial);
            }
            if !is_told {
                status!("{}: another process writes a model in NF4; this one waits for it", self.dir.display());
                is_told = true;
            }
            go_on()?;
            std::thread::sleep(LOOK);
        }
    }

    /// The cache as a run of `checkpoint` will find it. Nothing is written, and few values are read.
    pub fn outlook(&self, checkpoint: &Checkpoint) -> Result<Outlook> {
        let (key, _) = self.key(checkpoint)?;
        let is_there = match self.noted(&key) {
            Some(fingerprint) => Some(matches!(self.entry(&fingerprint)?, Found::Kept(_))),
            None if self.has_any() => None,
            None => Some(false),
        };
        let of = self.outlook_of(checkpoint.arch(), &stored_type(checkpoint));
        Ok(Outlook { is_there, original_bytes: checkpoint.stored_bytes(), needed: self.needed(checkpoint)?, ..of })
    }

    /// The cache as a run of a base of this shape will find it where nothing is kept yet.
    pub fn outlook_of(&self, arch: &Arch, stored: &dyn Fn(&str) -> StoredType) -> Outlook {
        let bytes = quantized_bytes(arch, &self.nf4, stored);
        let original =
            |(name, shape): (String, Vec<usize>)| shape.iter().product::<usize>() as u64 * stored(&name).size() as u64;
        Outlook {
            dir: self.dir.clone(),
            bytes,
            original_bytes: arch.tensors().into_iter().map(original).sum(),
            is_there: Some(false),
            needed: bytes + overhead(arch),
            free: free_bytes(&self.dir),
        }
    }

    /// Bytes of disk that an entry takes at most.
    fn needed(&self, checkpoint: &Checkpoint) -> Result<u64> {
        let arch = checkpoint.arch();
        let weights = quantized_bytes(arch, &self.nf4, &stored_type(checkpoint));
        Ok(weights + side_bytes(checkpoint)? + overhead(arch))
    }

    /// Bytes that making an entry takes of the file system of `output`.
    pub fn needed_beside(&self, output: &Path, checkpoint: &Checkpoint) -> Result<u64> {
        if is_one_file_system(&self.dir, output) { self.needed(checkpoint) } else { Ok(0) }
    }

    /// The key of the note on the files of a model.
    fn key(&self, checkpoint: &Checkpoint) -> Result<(String, bool)> {
        let (key, is_settled) = checkpoint.files_key(SystemTime::now())?;
        Ok((format!("fingerprint of the weights in files {key}"), is_settled))
    }

    /// The fingerprint that an earlier start noted for a key.
    fn noted(&self, key: &str) -> Option<String> {
        let is_fingerprint = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        recall(&self.dir, key).filter(is_fingerprint)
    }

    /// Keeps the fingerprint of files that had this key before they were read, if they still have it.
    fn note(&self, checkpoint: &Checkpoint, key: &str, is_settled: bool, fingerprint: &str) -> Result<()> {
        if is_settled
            && self.key(checkpoint)?.0 == key
            && let Err(error) = remember(&self.dir, key, fingerprint)
        {
            detail!("the next start reads all weights of the base again: {error}");
        }
        Ok(())
    }

    /// Name of an entry.
    fn name(&self, fingerprint: &str) -> String {
        format!("{}{}", fingerprint.get(..NAME).unwrap_or(fingerprint), self.ending())
    }

    fn path(&self, fingerprint: &str) -> PathBuf {
        self.dir.join(self.name(fingerprint))
    }

    /// The end of the names of entries that were quantized with these options.
    fn ending(&self) -> String {
        format!("-nf4-{}{}", self.nf4.block_size, if self.nf4.double_quant { "-double" } else { "" })
    }

    /// True if a model was kept that was quantized with these options.
    fn has_any(&self) -> bool {
        let names = Dir::open(&self.dir).and_then(|dir| dir.names()).unwrap_or_default();
        let ending = self.ending();
        names.iter().any(|name| {
            let fingerprint = name.to_str().and_then(|name| name.strip_suffix(&ending));
            fingerprint.is_some_and(|text| text.len() == NAME && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
        })
    }

    /// Refused: something that is no directory in its place.
    fn entry(&self, fingerprint: &str) -> Result<Found> {
        let path = self.path(fingerprint);
        match path.symlink_metadata() {
            Ok(found) if found.is_dir() => {}
            Ok(_) => bail_usage!(
                "{}: found something that is not a directory, where `quantized_cache` keeps a model: move it away, or \
                 choose another directory",
                path.display()
            ),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Absent),
            error => {
                error.usage_context(|| format!("{}: cannot be read (quantized_cache)", path.display()))?;
            }
        }
        let kept = match Checkpoint::open(&path) {
            Ok(kept) => kept,
            Err(error) => return Ok(Found::Damaged(format!("cannot be used ({})", error.lines().join("; ")))),
        };
        let is_of_original = kept.original().is_some_and(|original| original.fingerprint == fingerprint);
        let is_quantized_so = kept.quantization() == Some(self.nf4) && kept.skipped_modules().is_empty();
        Ok(match is_of_original && is_quantized_so {
            true => Found::Kept(Box::new(kept)),
            false => Found::Damaged("holds another model than its name says".to_owned()),
        })
    }
}

fn stored_type(checkpoint: &Checkpoint) -> impl Fn(&str) -> StoredType {
    |name| checkpoint.stored_type(name).expect("an opened checkpoint has every tensor")
}

/// Bytes of an entry beside its tensors and the files that are copied, at most.
fn overhead(arch: &Arch) -> u64 {
    OVERHEAD + TENSOR_OVERHEAD * arch.tensors().len() as u64
}

#[cfg(test)]
mod tests;
