//! A model of the hub: the files of it that are read here, and no others.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::cache::Kind;
use super::commits::short;
use super::environment::Environment;
use super::id::HubId;
use super::listing::Listing;
use super::store::Store;
use crate::error::{Context, Result};
use crate::files::json::read_bounded;
use crate::refuse;
use crate::report::warning;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 100_000_000;
/// Files that say what a model is and how its text is written, beside its weights.
const DESCRIPTION: [&str; 12] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
];
/// Goes with the weights; nothing needs it.
const LICENSE: &str = "LICENSE";

/// How much of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Its config, its tokenizer and its chat template
    Description,
    /// Its weights too
    Weights,
}

/// The directory of a model of the hub, with the files that are needed.
///
/// Refused: there is no such model or revision, it may not be read, it has no safetensors, there is no room, or the
/// cache lacks files and the hub must not be asked. Failed: the hub cannot be reached, or sends something else.
pub fn find_model(environment: &Environment, id: &HubId, need: Need) -> Result<PathBuf> {
    let store = Store::new(environment, Kind::Model, id);
    let found = store.find()?;
    let listing = match found.listing {
        Some(listing) => listing,
        None => {
            // Another client downloaded it, and says nowhere whether all of it.
            let cached = store.folder_with(&found.commit).map(|folder| folder.snapshot(&found.commit));
            let enough = |dir: &PathBuf| store.is_offline() || is_whole(dir, need);
            if let Some(dir) = cached.clone().filter(enough) {
                return Ok(dir);
            }
            match (store.ask(&found.commit), cached) {
                (Ok(listing), _) => listing,
                (Err(error), Some(dir)) => {
                    warning!("{}: {error}; what the cache has is used", id.name);
                    return Ok(dir);
                }
                (Err(error), None) => return Err(error),
            }
        }
    };
    check_kind(&listing, id)?;
    let mut names: Vec<String> =
        DESCRIPTION.iter().filter(|name| listing.find(name).is_some()).map(|name| (*name).to_owned()).collect();
    let by_index = need == Need::Weights && listing.find(SINGLE).is_none();
    if by_index {
        check_weights(&listing, id)?;
        names.push(INDEX.to_owned());
    }
    let mut folder = store.ensure(&listing, &names)?;
    if need == Need::Weights {
        match by_index {
            true => names.extend(shards(&folder.snapshot(&listing.commit).join(INDEX), &listing, id)?),
            false => names.push(SINGLE.to_owned()),
        }
        folder = store.ensure(&listing, &names)?;
    }
    store.settle(folder, &listing);
    store.ensure_beside(folder, &listing, LICENSE);
    Ok(folder.snapshot(&listing.commit))
}

/// Refuses a repository without the config of a model.
fn check_kind(listing: &Listing, id: &HubId) -> Result<()> {
    let has = |name: &str| listing.find(name).is_some();
    if has(CONFIG) {
        return Ok(());
    }
    let (name, commit) = (&id.name, short(&listing.commit));
    if has("adapter_config.json") {
        refuse!(
            "{name}: holds an adapter at {commit} and no model; download it with `hf download {name} --local-dir DIR`, \
             and give DIR as the adapter"
        );
    }
    refuse!("{name}: has no {CONFIG} at {commit}, expected a model in Hugging Face format{}", instead(listing))
}

/// Refuses a repository without weights that are read here.
fn check_weights(listing: &Listing, id: &HubId) -> Result<()> {
    if listing.find(INDEX).is_some() {
        return Ok(());
    }
    refuse!(
        "{}: has neither {SINGLE} nor {INDEX} at {}, expected weights in safetensors{}",
        id.name,
        short(&listing.commit),
        instead(listing)
    )
}

/// Weights of another kind that the repository has, for a message.
fn instead(listing: &Listing) -> String {
    let other = |name: &&str| [".bin", ".pt", ".pth", ".gguf", ".safetensors"].iter().any(|end| name.ends_with(end));
    match listing.names().into_iter().find(other) {
        Some(name) => format!("; it has {name}: choose the repository that it was made from, or one of safetensors"),
        None => String::new(),
    }
}

/// The files that an index of shards names. None: it is no index.
fn named_shards(index: &Path) -> Result<Option<BTreeSet<String>>> {
    let bytes = read_bounded(index, MAX_INDEX_BYTES)?;
    let parsed: Option<Value> = serde_json::from_slice(&bytes).ok();
    let map = parsed.as_ref().and_then(|index| index.get("weight_map")).and_then(Value::as_object);
    Ok(map.and_then(|map| map.values().map(|file| file.as_str().map(str::to_owned)).collect()))
}

/// The shards of an index, each of which the repository has to have.
fn shards(index: &Path, listing: &Listing, id: &HubId) -> Result<Vec<String>> {
    let Some(shards) = named_shards(index).context(|| id.name.clone())? else {
        refuse!("{}: not an index of shards (an object with `weight_map`: tensor → file)", index.display());
    };
    let names: HashSet<&str> = listing.names().into_iter().collect();
    if let Some(missing) = shards.iter().find(|shard| !names.contains(shard.as_str())) {
        refuse!(
            "{}: {INDEX} names {missing:?}, which the repository does not have at {}; choose another revision",
            id.name,
            short(&listing.commit)
        );
    }
    Ok(shards.into_iter().collect())
}

/// Whether a snapshot has all that is always needed.
fn is_whole(dir: &Path, need: Need) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    let weights = || {
        let named = || named_shards(&dir.join(INDEX)).ok().flatten();
        has(SINGLE) || (has(INDEX) && named().is_some_and(|shards| shards.iter().all(|shard| has(shard))))
    };
    has(CONFIG) && has(TOKENIZER) && (need == Need::Description || weights())
}

#[cfg(test)]
mod tests {
    use super::super::listing::File;
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let file = |name: &&str| File { name: (*name).to_owned(), size: None, blob: None };
        let commit = "0123456789abcdef0123456789abcdef01234567".to_owned();
        Listing { commit, files: names.iter().map(file).collect(), license: None }
    }

    #[test]
    fn a_repository_without_a_model_says_what_it_has() {
        let id = HubId::parse("org/name").unwrap();
        let kind = |names: &[&str]| check_kind(&listing(names), &id).unwrap_err().to_string();
        assert!(kind(&["adapter_config.json", "adapter_model.safetensors"]).contains("holds an adapter"));
        assert!(kind(&["model.Q4_K_M.gguf"]).contains("it has model.Q4_K_M.gguf"));
        let weights = |names: &[&str]| check_weights(&listing(names), &id).unwrap_err().to_string();
        assert!(weights(&["config.json", "pytorch_model.bin"]).contains("it has pytorch_model.bin"));
        assert!(check_weights(&listing(&[INDEX]), &id).is_ok());
    }

    #[test]
    fn a_snapshot_is_whole_with_every_shard() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let whole = |need| is_whole(dir.path(), need);
        write(CONFIG, "{}");
        assert!(!whole(Need::Description));
        write(TOKENIZER, "{}");
        assert!(whole(Need::Description) && !whole(Need::Weights));
        for index in ["", "[]", r#"{"weight_map": {"a": 3}}"#] {
            write(INDEX, index);
            assert!(!whole(Need::Weights), "{index}");
        }
        write(INDEX, r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#);
        write("one.safetensors", "");
        assert!(!whole(Need::Weights));
        write("two.safetensors", "");
        assert!(whole(Need::Weights));
        let id = HubId::parse("org/name").unwrap();
        let error = shards(&dir.path().join(INDEX), &listing(&["one.safetensors"]), &id).unwrap_err().to_string();
        assert!(error.contains("two.safetensors") && error.contains("does not have"), "{error}");
    }
}
