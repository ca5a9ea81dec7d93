//! The name of the model in a directory, and the directory of a named model: the layout of the local Hugging Face
//! cache, `models--org--name/{refs/<branch>, snapshots/<commit>/}`.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::Result;
use crate::files::home::expand_home;
use crate::files::json::read_bounded;
use crate::refuse;

const CACHE_PREFIX: &str = "models--";
/// Far above the name of a commit.
const MAX_REFERENCE_BYTES: u64 = 4096;

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
    /// From the cache layout of the path, else `_name_or_path` of config.json where that is a hub id, else the
    /// directory's name.
    pub(super) fn of(dir: &Path, config: &Map<String, Value>) -> Self {
        let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let canonical = dir.canonicalize().unwrap_or_else(|_| absolute.clone());
        if let Some(found) = [&absolute, &canonical].into_iter().find_map(|path| from_cache_layout(path)) {
            return found;
        }
        if let Some(name) = config.get("_name_or_path").and_then(Value::as_str)
            && looks_like_hub_id(name)
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

/// `org/name`, of the characters that the hub allows.
pub fn looks_like_hub_id(text: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && part.chars().all(allowed)
    };
    text.split_once('/').is_some_and(|(org, name)| part(org) && part(name)) && !text.contains("--")
}

/// The directory of a model: `arg` itself where it is a directory, else the snapshot of the hub id `arg` in the local
/// Hugging Face cache (`revision`: a branch, tag or commit; "main" if none). Refused, with the places looked at and the
/// command that downloads it, where there is none. Nothing is downloaded.
pub fn resolve_model(arg: &str, revision: Option<&str>) -> Result<PathBuf> {
    let arg = expand_home(Path::new(arg)).to_string_lossy().into_owned();
    resolve_in(&arg, revision, &cache_roots(|name| std::env::var_os(name)))
}

/// The first folder of huggingface_hub's cache that is there.
pub fn hub_cache() -> Option<PathBuf> {
    cache_roots(|name| std::env::var_os(name)).into_iter().find(|root| root.is_dir())
}

/// Folder of huggingface_hub's cache, the most specific setting first.
fn cache_roots(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut roots: Vec<PathBuf> = [
        path("HF_HUB_CACHE"),
        path("HUGGINGFACE_HUB_CACHE"),
        path("HF_HOME").map(|home| home.join("hub")),
        path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")),
        path("HOME").map(|home| home.join(".cache/huggingface/hub")),
    ]
    .into_iter()
    .flatten()
    .collect();
    roots.dedup();
    roots
}

fn resolve_in(arg: &str, revision: Option<&str>, roots: &[PathBuf]) -> Result<PathBuf> {
    let path = Path::new(arg);
    if path.is_dir() {
        if let Some(revision) = revision {
            refuse!("{arg}: found a directory with revision {revision:?}, expected a revision only for a hub id");
        }
        return Ok(path.to_owned());
    }
    if path.exists() {
        refuse!(
            "{arg}: found a file, expected the directory of a model in Hugging Face format, or a hub id (org/name)"
        );
    }
    if !looks_like_hub_id(arg) {
        refuse!("{arg}: found no such directory, expected the directory of a model, or a hub id (org/name)");
    }
    let wanted = revision.unwrap_or("main");
    if wanted.is_empty() || !Path::new(wanted).components().all(|part| matches!(part, Component::Normal(_))) {
        refuse!("{arg}: found revision {wanted:?}, expected a branch, tag or commit");
    }
    let folder = format!("{CACHE_PREFIX}{}", arg.replace('/', "--"));
    let mut looked = Vec::new();
    for model in roots.iter().map(|root| root.join(&folder)) {
        if let Some(found) = snapshot(&model, wanted)? {
            return Ok(found);
        }
        looked.push(model.display().to_string());
    }
    let places =
        if looked.is_empty() { "nowhere: neither HF_HOME nor HOME is set".to_owned() } else { looked.join(", ") };
    let suffix = revision.map_or(String::new(), |revision| format!(" --revision {revision}"));
    refuse!(
        "{arg}: found no such directory, and no snapshot of revision {wanted:?} in the local Hugging Face cache (looked \
         in {places}); download it with `hf download {arg}{suffix}`"
    )
}

/// The snapshot directory that a branch, tag or commit stands for.
fn snapshot(model: &Path, revision: &str) -> Result<Option<PathBuf>> {
    let reference = model.join("refs").join(revision);
    let commit = if reference.is_file() {
        let text = String::from_utf8_lossy(&read_bounded(&reference, MAX_REFERENCE_BYTES)?).trim().to_owned();
        if text.is_empty() || !text.chars().all(|c| c.is_ascii_alphanumeric()) {
            refuse!("{}: found {text:?}, expected the name of a commit: download the model again", reference.display());
        }
        text
    } else {
        revision.to_owned()
    };
    let dir = model.join("snapshots").join(commit);
    Ok(dir.is_dir().then_some(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_are_told_from_paths() {
        for id in ["meta-llama/Llama-3.1-8B", "a/b", "HuggingFaceTB/SmolLM2-135M_x"] {
            assert!(looks_like_hub_id(id), "{id}");
        }
        for path in ["/a/b", "./a", "../a", "a", "a/b/c", "~/m", "a/", "/", "", "a b/c", "a/.hidden", "a--b/c"] {
            assert!(!looks_like_hub_id(path), "{path}");
        }
    }

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
    fn cache_roots_follow_the_environment() {
        let roots = |set: &[(&str, &str)]| {
            cache_roots(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        assert_eq!(roots(&[("HOME", "/h")]), [PathBuf::from("/h/.cache/huggingface/hub")]);
        let all = roots(&[("HOME", "/h"), ("HF_HOME", "/x"), ("HF_HUB_CACHE", "/y"), ("XDG_CACHE_HOME", "")]);
        assert_eq!(all, ["/y", "/x/hub", "/h/.cache/huggingface/hub"].map(PathBuf::from));
    }

    #[test]
    fn a_hub_id_is_found_by_branch_and_by_commit_or_refused_with_the_places_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let model = root.path().join("models--org--tiny");
        std::fs::create_dir_all(model.join("snapshots/abc123")).unwrap();
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), "abc123\n").unwrap();
        let roots = [PathBuf::from("/nonexistent/hub"), root.path().to_owned()];
        let snapshot = model.join("snapshots/abc123");
        assert_eq!(resolve_in("org/tiny", None, &roots).unwrap(), snapshot);
        assert_eq!(resolve_in("org/tiny", Some("abc123"), &roots).unwrap(), snapshot);
        assert_eq!(resolve_in(snapshot.to_str().unwrap(), None, &roots).unwrap(), snapshot);

        let refused = |arg: &str, revision: Option<&str>, words: &[&str]| {
            let error = resolve_in(arg, revision, &roots).unwrap_err();
            assert_eq!(error.exit_status(), 2, "{error}");
            words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error} lacks {word}"));
        };
        let places = ["/nonexistent/hub/models--org--other", "hf download org/other"];
        refused("org/other", None, &places);
        refused("org/tiny", Some("v2"), &["\"v2\"", "hf download org/tiny --revision v2"]);
        refused("org/tiny", Some("../../x"), &["revision", "expected a branch, tag or commit"]);
        refused("/nonexistent/model", None, &["found no such directory"]);
        refused(snapshot.to_str().unwrap(), Some("main"), &["only for a hub id"]);
        std::fs::write(model.join("refs/main"), "../../../etc").unwrap();
        refused("org/tiny", None, &["refs/main", "expected the name of a commit"]);
    }
}
