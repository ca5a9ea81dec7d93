//! The name of the model in a directory, and the directory of a named model.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::Result;
use crate::files::home::expand_home;
use crate::files::json::read_object;
use crate::hub::{Environment, HubId, Need, find_model, is_hub_name, is_rather_path};
use crate::refuse;

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
    /// That of the model in a directory. None: there is none.
    pub fn of_dir(dir: &Path) -> Option<Self> {
        Some(Self::of(dir, &read_object(&dir.join("config.json")).ok()?))
    }

    /// From the cache layout of the path, else `_name_or_path` of config.json where that is a hub id, else the
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

/// The directory of a model with its weights: `arg` itself where it is a directory, else the snapshot of the hub id
/// `arg` (`org/name`, perhaps with `@revision`) in the local Hugging Face cache, into which it is downloaded where it
/// is not there (`revision`: a branch, tag or commit; "main" if none).
pub fn resolve_model(arg: &str, revision: Option<&str>) -> Result<PathBuf> {
    resolve_in(arg, revision, &Environment::read(), Need::Weights)
}

/// Like [`resolve_model`], by the caches, the hub and the recorded commits of `environment`.
pub fn resolve_model_by(arg: &str, revision: Option<&str>, environment: &Environment) -> Result<PathBuf> {
    resolve_in(arg, revision, environment, Need::Weights)
}

/// Like [`resolve_model`], of a model whose config, tokenizer and chat template are enough.
pub fn resolve_description(arg: &str, revision: Option<&str>) -> Result<PathBuf> {
    resolve_description_by(arg, revision, &Environment::read())
}

/// Like [`resolve_description`], by the caches, the hub and the recorded commits of `environment`.
pub fn resolve_description_by(arg: &str, revision: Option<&str>, environment: &Environment) -> Result<PathBuf> {
    resolve_in(arg, revision, environment, Need::Description)
}

fn resolve_in(arg: &str, revision: Option<&str>, environment: &Environment, need: Need) -> Result<PathBuf> {
    let path = expand_home(Path::new(arg));
    let arg = path.display();
    if path.is_dir() {
        if let Some(revision) = revision {
            refuse!("{arg}: found a directory with revision {revision:?}, expected a revision only for a hub id");
        }
        return Ok(path);
    }
    if path.symlink_metadata().is_ok() {
        let found = if path.exists() { "a file" } else { "a link to nothing" };
        refuse!(
            "{arg}: found {found}, expected the directory of a model in Hugging Face format, or a hub id (org/name)"
        );
    }
    let Some(id) = path.to_str().and_then(HubId::parse) else {
        refuse!("{arg}: found no such directory, expected the directory of a model, or a hub id (org/name)");
    };
    if revision.is_none() && path.to_str().is_some_and(is_rather_path) {
        refuse!(
            "{arg}: found no such directory in one that is there; for the model of this name on the hub write \
             {arg}@main"
        );
    }
    find_model(environment, &id.at(revision)?, need)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_layout_names_model_and_commit() {
        let config = Map::new();
        let found = BaseName::of(Path::new("/c/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f"), &config);
        let expected =
            BaseName { name: "meta-llama/Llama-3.1-8B".into(), revision: Some("0e9e39f".into()), is_hub: true };
        assert_eq!(found, expected);
        assert_eq!(BaseName::of(Path::new("/c/hub/models--gpt2/snapshots/1"), &config).name, "gpt2");
        let local = BaseName::of(Path::new("/nonexistent/my-llama"), &config);
        assert_eq!(local, BaseName { name: "my-llama".into(), revision: None, is_hub: false });
    }

    #[test]
    fn name_or_path_counts_when_it_is_a_hub_id_and_no_local_directory() {
        let dir = tempfile::tempdir().unwrap();
        let named = |name: &str| {
            let config = serde_json::json!({ "_name_or_path": name });
            BaseName::of(dir.path(), config.as_object().unwrap())
        };
        assert_eq!(named("org/name"), BaseName { name: "org/name".into(), revision: None, is_hub: true });
        assert!(!named("/home/someone/model").is_hub);
        std::fs::create_dir_all(dir.path().join("out/run")).unwrap();
        assert!(!named("out/run").is_hub, "a path that exists is no hub id");
    }

    #[test]
    fn a_hub_id_is_found_by_branch_and_by_commit_or_refused_with_the_places_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("models--org--tiny");
        std::fs::create_dir_all(model.join("snapshots/abc123")).unwrap();
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), "abc123\n").unwrap();
        let environment = Environment::offline(&[PathBuf::from("/nonexistent/hub"), root.path().to_owned()]);
        let resolve = |arg: &str, revision: Option<&str>| resolve_in(arg, revision, &environment, Need::Weights);
        let snapshot = model.join("snapshots/abc123");
        assert_eq!(resolve("org/tiny", None).unwrap(), snapshot);
        assert_eq!(resolve("org/tiny", Some("abc123")).unwrap(), snapshot);
        assert_eq!(resolve("org/tiny@abc123", None).unwrap(), snapshot);
        assert_eq!(resolve(snapshot.to_str().unwrap(), None).unwrap(), snapshot);

        let refused = |arg: &str, revision: Option<&str>, words: &[&str]| {
            let error = resolve(arg, revision).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{error}");
            words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error} lacks {word}"));
        };
        let places = ["/nonexistent/hub/models--org--other", "hf download org/other"];
        refused("org/other", None, &places);
        refused("org/tiny", Some("v2"), &["\"v2\"", "hf download org/tiny --revision v2"]);
        refused("org/tiny", Some("../../x"), &["revision", "expected a branch, tag or commit"]);
        refused("org/tiny@abc123", Some("main"), &["\"main\"", "keep one of them"]);
        refused("/nonexistent/model", None, &["found no such directory"]);
        // Tests run in the directory of the package, which has a `src`.
        refused("src/llama", None, &["src/llama: found no such directory in one that is there", "src/llama@main"]);
        refused("src/llama@main", None, &["hf download src/llama"]);
        let dangling = root.path().join("dangling");
        std::os::unix::fs::symlink("gone", &dangling).unwrap();
        refused(dangling.to_str().unwrap(), None, &["found a link to nothing"]);
        refused(snapshot.to_str().unwrap(), Some("main"), &["only for a hub id"]);
        std::fs::write(model.join("refs/main"), "../../../etc").unwrap();
        refused("org/tiny", None, &["refs/main", "expected the name of a commit"]);
    }
}
