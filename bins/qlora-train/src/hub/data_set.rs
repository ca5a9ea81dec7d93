//! A data set of the hub: the files of the requested part.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::cache::Kind;
use super::card::{Config, MAX_CARD_BYTES, configs};
use super::commits::short;
use super::environment::Environment;
use super::id::{DataSetId, HubId, is_file_pattern};
use super::infer;
use super::listing::Listing;
use super::splits::{Chosen, Splits};
use super::store::Store;
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::json::read_bounded;
use crate::report::{status, warning};

const CARD: &str = "README.md";
/// Branch with the hub's own conversion of a data set.
const CONVERTED: &str = "refs/convert/parquet";
/// Prefix of converted files that do not have all rows.
const PARTIAL: &str = "partial-";

/// Files of rows in the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSetFiles {
    pub training: Vec<PathBuf>,
    /// Validation rows that belong to them, if no part was requested by name
    pub validation: Vec<PathBuf>,
}

/// The files of a data set, downloaded where the cache lacks them.
///
/// Refused: there is no such data set, revision or part, it may not be read, none of its files can be read here, or the
/// cache lacks some and the hub must not be asked. Failed: the hub cannot be reached, or sends something else.
pub fn find_data_set(environment: &Environment, asked: &DataSetId) -> Result<DataSetFiles> {
    let part = asked.part.as_deref();
    if let Some(files) = of_revision(environment, &asked.id, part, false)? {
        return Ok(files);
    }
    let name = &asked.id.name;
    let what = || format!("{name}: has no files of rows that are read here");
    if let Some(revision) = &asked.id.revision {
        bail_usage!("{} at {revision} (JSON Lines, JSON, Parquet, Arrow, CSV)", what());
    }
    status!("{}; looking for the hub's own conversion", what());
    let converted = HubId { name: name.clone(), revision: Some(CONVERTED.to_owned()) };
    let files = of_revision(environment, &converted, part, true);
    match files.map_err(|error| error.usage_hint(|| format!("{}, which would have been taken first", what())))? {
        Some(files) => Ok(files),
        None => bail_usage!("{}, and the hub made none of it (branch {CONVERTED})", what()),
    }
}

/// The files of a revision. None: none of its files can be read here.
fn of_revision(
    environment: &Environment,
    id: &HubId,
    part: Option<&str>,
    converted: bool,
) -> Result<Option<DataSetFiles>> {
    let store = Store::new(environment, Kind::DataSet, id);
    let found = store.find()?;
    let (listing, is_certain) = match found.listing {
        Some(listing) => (listing, true),
        None if store.is_offline() => {
            warning!(
                "{}: it is not known whether the cache has all files of {}; those that are there are used",
                id.name,
                short(&found.commit)
            );
            (as_found(&store, &found.commit)?, false)
        }
        None => match store.ask(&found.commit) {
            Ok(listing) => (listing, true),
            Err(error) => {
                warning!("{}: {error}; what the cache has is used", id.name);
                (as_found(&store, &found.commit)?, false)
            }
        },
    };
    let splits = if converted { Splits::converted(&listing.names()) } else { by_card(&store, &listing)? };
    if splits.is_empty() {
        return Ok(None);
    }
    let chosen = match splits.choose(part) {
        Ok(chosen) => chosen,
        Err(why) => bail_usage!("{}: {why} (as in {}:NAME)", id.name, id.name),
    };
    let Chosen { training, validation } = &chosen;
    if let Some(partial) = training.iter().find(|file| converted && file.contains(PARTIAL)) {
        bail_usage!(
            "{}: the hub made {partial} of its first rows only; download the data set with \
             `hf download --repo-type dataset {}` and give its files",
            id.name,
            id.name
        );
    }
    // If files are requested by name, some may be missing.
    if !part.is_some_and(is_file_pattern) {
        check_shards(&store, &listing, training.iter().chain(validation))?;
    }
    let names: Vec<String> = training.iter().chain(validation).cloned().collect();
    let folder = store.ensure(&listing, &names)?;
    if is_certain {
        store.keep_answer(folder, &listing);
    }
    let snapshot = folder.snapshot(&listing.commit);
    let paths = |names: &[String]| names.iter().map(|name| snapshot.join(name)).collect();
    status!("{} at {}: {}", id.name, short(&listing.commit), shown(training));
    Ok(Some(DataSetFiles { training: paths(training), validation: paths(validation) }))
}

/// The files in the cache, if there is no listing of those that should be.
fn as_found(store: &Store, commit: &str) -> Result<Listing> {
    match store.folder_with(commit) {
        Some(folder) => folder.found(commit),
        None => bail_usage!("{}: the cache has no files of commit {}", store.name(), short(commit)),
    }
}

/// Subsets and splits by the card, which is downloaded if need be, or by names alone.
fn by_card(store: &Store, listing: &Listing) -> Result<Splits> {
    let configs = match listing.find(CARD) {
        Some(_) => {
            let folder = store.ensure(listing, &[CARD.to_owned()])?;
            read_card(store, &folder.snapshot(&listing.commit).join(CARD))?
        }
        None => None,
    };
    match Splits::new(&listing.names(), configs.as_deref()) {
        Ok(splits) => Ok(splits),
        Err(why) => bail_usage!("{}: {CARD}: {why}", store.name()),
    }
}

fn read_card(store: &Store, path: &Path) -> Result<Option<Vec<Config>>> {
    let bytes = read_bounded(path, MAX_CARD_BYTES).context(|| store.name().to_owned())?;
    match configs(&String::from_utf8_lossy(&bytes)) {
        Ok(configs) => Ok(configs),
        Err(why) => {
            let name = store.name();
            warning!("{name}: its {CARD} cannot be read ({why}); its files are sorted by their names alone");
            Ok(None)
        }
    }
}

/// Refuses a split whose file names show that files are missing.
fn check_shards<'a>(store: &Store, listing: &Listing, files: impl Iterator<Item = &'a String>) -> Result<()> {
    let mut found: BTreeMap<(String, usize), BTreeSet<&str>> = BTreeMap::new();
    for file in files {
        if let Some(shard) = infer::shards(file) {
            found.entry(shard).or_default().insert(file);
        }
    }
    match found.iter().find(|((_, expected), files)| files.len() < *expected) {
        Some(((head, expected), files)) => bail_usage!(
            "{}: found {} of the {expected} files {head}-*-of-* at {}, expected all of them; download it again",
            store.name(),
            files.len(),
            short(&listing.commit)
        ),
        None => Ok(()),
    }
}

/// Names of files, for people.
fn shown(names: &[String]) -> String {
    match names {
        [] => "no files".to_owned(),
        [one] => one.clone(),
        [first, .., last] => format!("{first} … {last} ({} files)", names.len()),
    }
}
