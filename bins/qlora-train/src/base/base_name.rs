//! The name of the model in a directory, and the directory of a named model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::bail_usage;
use crate::error::Result;
use crate::files::home::expand_home;
use crate::files::json::read_object;
use crate::hub::{Environment, HubId, Need, find_model, is_hub_name, is_rather_path};

const CACHE_PREFIX: &str = "models--";

/// The name by which an adapter refers to its base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseName {
    /// A hub id (`org/name`), or the directory's own name where none is known.
    pub name: String,
    /// The commit, where the directory is a snapshot of the Hugging Face cache.
    pub revision: Option<String>,
    /// False: `name` is only the name of a local directory.
    pub is_hub: bool,
}

impl BaseName {
    /// The name of the model in a directory. None: there is no model.
    pub fn of_dir(dir: &Path) -> Option<Self> {
        Some(Self::of(dir, &read_object(&dir.join("config.json")).ok()?))
    }

    /// The name from the cache layout of the path, or from `_name_or_path` of config.json if that is a hub id, or the
    /// directory's name.
    pub(super) fn of(dir: &Path, config: &Map<String, Value>) -> Self {
        let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let canonical = dir.canonicalize().unwrap_or_else(|_| absolute.clone());
        if let Some(found) = [&absolute, &canonical].into_iter().find_map(|path| from_cache_layout(path)) {
            return found;
        }
        if let Some(name) = config.get("_name_or_path").and_then(Value::as_str)
            && is_hub_name(name)
            && !Path::new(name).exists()
            && !dir.join(name).exists()
        {
            return Self { name: name.to_owned(), revision: None, is_hub: true };
        }
        let name = canonical.file_name().map_or("model".into(), |name| name.to_string_lossy().into_owned());
        Self { name, revision: None, is_hub: false }
    }
}

/// `…/models--org--name/snapshots/<commit>`.
fn from_cache_layout(path: &Path) -> Option<BaseName> {
    let mut parts = path.components().rev().map(|part| part.as_os_str().to_str());
    let (commit, snapshots, model) = (parts.next()??, parts.next()??, parts.next()??);
    let id = model.strip_prefix(CACHE_PREFIX).filter(|id| snapshots == "snapshots" && !id.is_empty())?;
    // Hub ids hold no "--", so the first one is the slash.
    Some(BaseName { name: id.replacen("--", "/", 1), revision: Some(commit.to_owned()), is_hub: true })
}

/// The directory of a model with its weights: `arg` itself if it is a directory, otherwise the snapshot of the hub id
/// `arg` (`org/name`, perhaps with `@revision`) in the local Hugging Face cache, into which it is downloaded where it
/// is not there (`revision`: a branch, tag or commit; "main" if none).
pub fn resolve_model(arg: &str, revision: Option<&str>) -> Result<PathBuf> {
    resolve_in(arg, revision, &Environment::read(), Need::Weights)
}

/// [`resolve_model`] with the caches, the hub and the recorded commits of `environment`.
pub fn resolve_model_by(arg: &str, revision: Option<&str>, environment: &Environment) -> Result<PathBuf> {
    resolve_in(arg, revision, environment, Need::Weights)
}

/// [`resolve_model`] where config, tokenizer and chat template are enough; no weights are downloaded.
pub fn resolve_description(arg: &str, revision: Option<&str>) -> Result<PathBuf> {
    resolve_description_by(arg, revision, &Environment::read())
}

/// [`resolve_description`] with the caches, the hub and the recorded commits of `environment`.
pub fn resolve_description_by(arg: &str, revision: Option<&str>, environment: &Environment) -> Result<PathBuf> {
    resolve_in(arg, revision, environment, Need::Description)
}

fn resolve_in(arg: &str, revision: Option<&str>, environment: &Environment, need: Need) -> Result<PathBuf> {
    let path = expand_home(Path::new(arg));
    let arg = path.display();
    if path.is_dir() {
        if let Some(revision) = revision {
            bail_usage!("{arg}: found a directory with revision {revision:?}, expected a revision only for a hub id");
        }
        return Ok(path);
    }
    if path.symlink_metadata().is_ok() {
        let found = if path.exists() { "a file" } else { "a link to nothing" };
        bail_usage!(
            "{arg}: found {found}, expected the directory of a model in Hugging Face format, or a hub id (org/name)"
        );
    }
    let Some(id) = path.to_str().and_then(HubId::parse) else {
        bail_usage!("{arg}: found no such directory, expected the directory of a model, or a hub id (org/name)");
    };
    if revision.is_none() && path.to_str().is_some_and(is_rather_path) {
        bail_usage!(
            "{arg}: found no such directory in one that is there; for the model of this name on the hub write \
             {arg}@main"
        );
    }
    find_model(environment, &id.at(revision)?, need)
}

#[cfg(test)]
mod tests;
