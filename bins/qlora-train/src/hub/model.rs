//! Download of a model of the hub: only the files that are read here.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::cache::Kind;
use super::commits::short;
use super::environment::Environment;
use super::id::HubId;
use super::listing::Listing;
use super::store::Store;
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::json::read_bounded;
use crate::report::warning;

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const MAX_INDEX_BYTES: u64 = 100_000_000;
/// Files of a model beside its weights: config, tokenizer and templates.
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
/// File that is downloaded with the weights; nothing needs it.
const LICENSE: &str = "LICENSE";

/// The files of a model that are needed.
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
            // Another client downloaded it, and does not record whether it is complete.
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
    store.keep_answer(folder, &listing);
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
        bail_usage!(
            "{name}: holds an adapter at {commit} and no model; download it with `hf download {name} --local-dir DIR`, \
             and give DIR as the adapter"
        );
    }
    bail_usage!("{name}: has no {CONFIG} at {commit}, expected a model in Hugging Face format{}", instead(listing))
}

/// Refuses a repository without weights that are read here.
fn check_weights(listing: &Listing, id: &HubId) -> Result<()> {
    if listing.find(INDEX).is_some() {
        return Ok(());
    }
    bail_usage!(
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

/// The shards of an index, which must all be in the repository.
fn shards(index: &Path, listing: &Listing, id: &HubId) -> Result<Vec<String>> {
    let Some(shards) = named_shards(index).context(|| id.name.clone())? else {
        bail_usage!("{}: not an index of shards (an object with `weight_map`: tensor → file)", index.display());
    };
    let names: HashSet<&str> = listing.names().into_iter().collect();
    if let Some(missing) = shards.iter().find(|shard| !names.contains(shard.as_str())) {
        bail_usage!(
            "{}: {INDEX} names {missing:?}, which the repository does not have at {}; choose another revision",
            id.name,
            short(&listing.commit)
        );
    }
    Ok(shards.into_iter().collect())
}

/// True if a snapshot has all files that are always needed.
fn is_whole(dir: &Path, need: Need) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    let weights = || {
        let named = || named_shards(&dir.join(INDEX)).ok().flatten();
        has(SINGLE) || (has(INDEX) && named().is_some_and(|shards| shards.iter().all(|shard| has(shard))))
    };
    has(CONFIG) && has(TOKENIZER) && (need == Need::Description || weights())
}

#[cfg(test)]
mod tests;
