//! `export uniform`: an adapter of one rank and one alpha, for engines that ignore patterns.

use std::path::Path;

use crate::adapter::{ADAPTER_CONFIG, Adapter, add_tokenizer_files};
use crate::base::Partial;
use crate::error::{Context, Result};
use crate::files::atomic::AtomicFiles;

/// Writes the adapter of `dir` as plain LoRA of one rank and alpha to the directory `output`, with the tokenizer and
/// the chat template that lie beside it, and returns it. The directory appears whole or not at all. Refused: an adapter
/// that does not fit together, an output that is there and not empty.
pub fn export_uniform(adapter: &Adapter, dir: &Path, output: &Path) -> Result<Adapter> {
    let uniform = adapter.uniform().context(|| dir.display().to_string())?;
    let partial = Partial::new(output)?;
    let mut files = AtomicFiles::new(&partial.path)?;
    // The tokenizer comes first: the card names its owner.
    add_tokenizer_files(dir, &mut files, &[])?;
    uniform.add_to(&mut files)?;
    files.add_sums()?;
    files.commit_with_last(ADAPTER_CONFIG)?;
    partial.commit(output)?;
    Ok(uniform)
}
