//! A checkpoint in 16 bits, written from another one whose tensors are changed on the way; one tensor is in memory at a
//! time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::dense_config;
use super::layout::{Layout, NewTensor, write_json};
use super::write::{Partial, copy_side_file, copy_side_files};
use crate::bail_usage;
use crate::base::open::text_object;
use crate::base::{BaseFingerprint, Checkpoint, Fingerprint};
use crate::error::Result;
use crate::files::failpoint;
use crate::files::tensor::{HostTensor, StoredType};
use serde_json::Value;

/// A change to the tensors of a checkpoint between reading and writing.
pub trait Rewrite {
    /// The new values of a tensor, in the type `stored`. `tensor` is as stored, or dequantized to f32 where it is
    /// stored in NF4.
    fn tensor(&mut self, name: &str, tensor: HostTensor, stored: StoredType) -> Result<HostTensor>;

    /// Called when all tensors were read, before the directory is put in place. An error ends the work, and nothing is
    /// left.
    fn check_base(&mut self, fingerprint: &BaseFingerprint) -> Result<()>;

    /// Name and content of a file that says what the checkpoint is made of, after [`check_base`](Self::check_base).
    fn record(&self) -> Result<Option<(&'static str, Value)>>;
}

/// Result of [`write_dense`].
#[derive(Clone, Copy, Debug)]
pub struct Written {
    pub files: usize,
    /// Bytes of the tensors.
    pub bytes: u64,
}

impl Checkpoint {
    /// The type that [`write_dense`] gives a tensor: its own as it is stored, or the embedding's for a weight in NF4.
    pub fn dense_type(&self, name: &str) -> StoredType {
        let name = if self.is_nf4(name) { self.arch().names.embedding } else { name };
        self.stored_type(name).expect("an opened checkpoint has every tensor")
    }

    /// Bytes of the tensors that [`write_dense`] writes.
    pub fn dense_bytes(&self) -> u64 {
        let tensors = self.arch().tensors().into_iter();
        tensors.map(|(name, shape)| shape.iter().product::<usize>() as u64 * self.dense_type(&name).size() as u64).sum()
    }
}

/// Writes `checkpoint` to `output` with its tensors changed by `rewrite`, and with everything else of its directory; a
/// file of `side_files` takes the place of one of its name.
///
/// The directory appears whole or not at all. Refused: an output that is there and not empty, weights that are not
/// finite, before or after. `progress` gets the number of tensors done; an error of it ends the work, and nothing is
/// left.
pub fn write_dense(
    checkpoint: &Checkpoint,
    output: &Path,
    max_shard_bytes: u64,
    side_files: &[PathBuf],
    rewrite: &mut dyn Rewrite,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Written> {
    let tensors = checkpoint.arch().tensors();
    let stored = |(name, shape): &(String, Vec<usize>)| {
        vec![NewTensor { name: name.clone(), dtype: checkpoint.dense_type(name).dtype(), shape: shape.clone() }]
    };
    let layout = Layout::new(tensors.iter().map(stored).collect(), max_shard_bytes);
    let partial = Partial::new(output)?;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let writer = layout.create(&partial.path, &metadata)?;
    let mut fingerprint = Fingerprint::new(checkpoint);
    for (done, (name, _)) in tensors.iter().enumerate() {
        let (tensor, digest) = checkpoint.read_with_digest(name)?;
        fingerprint.add(digest)?;
        checkpoint.check_finite(name, &tensor)?;
        let stored = checkpoint.dense_type(name);
        let tensor = rewrite.tensor(name, tensor, stored)?;
        if let Some((index, value)) = tensor.find_not_finite() {
            bail_usage!(
                "{}: tensor `{name}`: found {value} at element {index} once it was changed, expected numbers that {} can \
                 hold",
                output.display(),
                stored.name()
            );
        }
        writer.write(name, tensor.bytes())?;
        failpoint::moment("tensor");
        progress(done + 1)?;
    }
    rewrite.check_base(&fingerprint.finish()?)?;
    writer.finish(&metadata)?;
    let config = text_object(&checkpoint.dir().join("config.json"))?;
    let config = dense_config(&config, checkpoint.arch().tie_word_embeddings);
    write_json(&partial.path.join("config.json"), &config)?;
    copy_side_files(checkpoint.dir(), &partial.path)?;
    side_files.iter().try_for_each(|path| copy_side_file(path, &partial.path))?;
    if let Some((name, record)) = rewrite.record()? {
        write_json(&partial.path.join(name), &record)?;
    }
    // The finished directory has to be one that this program reads.
    Checkpoint::open(&partial.path)?;
    partial.commit(output)?;
    Ok(Written { files: layout.file_names().count(), bytes: layout.bytes() })
}
