//! The safetensors files of a checkpoint: `model.safetensors`, or the shards of an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::json::{UniqueMap, read_bounded};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// Files relative to the directory, sorted; with an index also which file holds which tensor.
pub(super) struct Files {
    pub paths: Vec<PathBuf>,
    /// Tensor name → position in `paths`.
    pub index: Option<BTreeMap<String, usize>>,
}

pub(super) fn locate(dir: &Path) -> Result<Files> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    // symlink_metadata: a dangling link is then reported by name, not as "nothing found".
    if single.symlink_metadata().is_ok() {
        if index.exists() {
            crate::report::warning!("{}: both {SINGLE} and {INDEX} are there; {SINGLE} is used", dir.display());
        }
        return Ok(Files { paths: vec![PathBuf::from(SINGLE)], index: None });
    }
    if index.symlink_metadata().is_ok() {
        return read_index(&index);
    }
    let Some(other) = other_weights(dir) else {
        bail_usage!("{}: found no weights, expected {SINGLE}, or {INDEX} and its shards", dir.display());
    };
    if other.ends_with(".safetensors") {
        bail_usage!("{}: found {other} without {INDEX}, expected {SINGLE}, or {INDEX} and its shards", dir.display());
    }
    bail_usage!(
        "{}: found only {other}, expected {SINGLE} or {INDEX}: convert the weights to safetensors (transformers: \
         `AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)`)",
        dir.display()
    )
}

/// The files of a directory that are named as shards are and that an index with `shards` does not list, sorted.
pub(super) fn unlisted_shards(dir: &Path, shards: &[PathBuf]) -> Vec<PathBuf> {
    let is_shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
    let entries =
        std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let unlisted =
        entries.filter(|name| is_shard(name) && !shards.iter().any(|shard| shard.as_os_str() == name.as_str()));
    let mut names: Vec<String> = unlisted.collect();
    names.sort();
    names.into_iter().map(|name| dir.join(name)).collect()
}

/// Weights of a kind that is not read: pickles, which can run code, and single-file formats of other engines.
fn other_weights(dir: &Path) -> Option<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
            ["bin", "pt", "pth", "gguf", "safetensors"].contains(&extension) || name == "pytorch_model.bin.index.json"
        })
        .collect();
    names.sort();
    names.into_iter().next()
}

fn read_index(path: &Path) -> Result<Files> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: UniqueMap<String>,
    }
    let shown = path.display();
    let bytes = read_bounded(path, MAX_INDEX_BYTES)?;
    let Index { weight_map: UniqueMap(entries) } = serde_json::from_slice(&bytes)
        .usage_context(|| format!("{shown}: not an index of shards (an object with `weight_map`: tensor → file)"))?;
    if entries.is_empty() {
        bail_usage!("{shown}: key `weight_map`: found no tensors, expected those of a model");
    }
    for (tensor, file) in &entries {
        let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        if file.is_empty() || file.contains('\0') || !inside {
            bail_usage!(
                "{shown}: key `weight_map`, tensor `{tensor}`: found file {file:?}, expected a file inside the directory \
                 of the index"
            );
        }
        if Path::new(file).extension().is_none_or(|extension| extension != "safetensors") {
            bail_usage!(
                "{shown}: key `weight_map`, tensor `{tensor}`: found file {file:?}, expected a .safetensors file"
            );
        }
    }
    let names: BTreeSet<&str> = entries.iter().map(|(_, file)| file.as_str()).collect();
    let positions: BTreeMap<&str, usize> = names.iter().enumerate().map(|(i, &name)| (name, i)).collect();
    let index = entries.iter().map(|(tensor, file)| (tensor.clone(), positions[file.as_str()])).collect();
    Ok(Files { paths: names.into_iter().map(PathBuf::from).collect(), index: Some(index) })
}
