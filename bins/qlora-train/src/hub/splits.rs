//! The subsets and splits of a data set, and the choice of its files.

use std::collections::BTreeMap;

use super::card::Config;
use super::id::is_file_pattern;
use super::infer::{self, Place};
use super::listing::shown;
use super::pattern::{Budget, matching};

/// Endings of files of rows that are read, by kind; if two kinds have equally many files, the first is taken.
const KINDS: [&[&str]; 4] = [
    &[".parquet"],
    &[".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"],
    &[".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.zst", ".tsv.zst"],
    &[".arrow", ".feather"],
];
/// Files of metadata, which hold no rows.
const NO_ROWS: [&str; 6] = [
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "tokenizer_config.json",
];
const TRAIN: &str = "train";
const DEFAULT: &str = "default";
/// Names of validation splits; the first that exists is used.
const VALIDATION: [&str; 6] = ["validation", "valid", "val", "dev", "eval", "test"];
/// Names in one message
const MAX_NAMED: usize = 20;
/// Limit on the patterns of a card: each is compared with every file.
const MAX_PATTERNS: usize = 10_000;

/// Training files, and the validation files that belong to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chosen {
    pub training: Vec<String>,
    pub validation: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Subset {
    name: String,
    is_default: bool,
    /// (name, files), in the order of the card or of the names
    splits: Vec<(String, Vec<String>)>,
}

/// The files of rows of a data set, by subset and split.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Splits {
    subsets: Vec<Subset>,
    /// All files of rows
    names: Vec<String>,
}

fn kind_of(name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    KINDS.iter().position(|endings| endings.iter().any(|ending| name.ends_with(ending)))
}

/// True if a file of a repository holds rows in a format that is read here.
fn holds_rows(name: &str) -> bool {
    let hidden = name.split('/').any(|part| part.starts_with(['.', '_']));
    let file = name.rsplit('/').next().unwrap_or(name);
    kind_of(name).is_some() && !hidden && !NO_ROWS.contains(&file)
}

/// The files of rows of a repository, by name.
fn rows_of(names: &[&str]) -> Vec<String> {
    let mut rows: Vec<String> = names.iter().filter(|name| holds_rows(name)).map(|name| (*name).to_owned()).collect();
    rows.sort();
    rows
}

/// Files of the most common kind: the others are the same rows in another format.
fn of_one_kind(files: Vec<String>) -> Vec<String> {
    let count = |kind: usize| files.iter().filter(|file| kind_of(file) == Some(kind)).count();
    let most = (0..KINDS.len()).rev().max_by_key(|kind| count(*kind));
    files.into_iter().filter(|file| kind_of(file) == most).collect()
}

impl Splits {
    /// Subsets and splits from the card if it names files, otherwise from the file names alone. Errors: an invalid
    /// pattern in the card.
    pub fn new(names: &[&str], configs: Option<&[Config]>) -> Result<Self, String> {
        let names = rows_of(names);
        let patterns = |config: &Config| config.splits().iter().map(|(_, patterns)| patterns.len()).sum::<usize>();
        let count = configs.unwrap_or_default().iter().map(patterns).sum::<usize>();
        if count > MAX_PATTERNS {
            return Err(format!("has {count} patterns of files, expected at most {MAX_PATTERNS}"));
        }
        let mut budget = Budget::default();
        let subsets = match configs {
            Some(configs) => {
                let by_card = |config| by_card(config, &names, &mut budget);
                configs.iter().map(by_card).collect::<Result<Vec<_>, String>>()?
            }
            None => by_names(&names, infer::place),
        };
        Ok(Self { subsets, names }.with_default())
    }

    /// Files that the hub itself converted, in a branch of their own.
    pub fn converted(names: &[&str]) -> Self {
        let names = rows_of(names);
        Self { subsets: by_names(&names, infer::converted_place), names }.with_default()
    }

    /// Marks the default subset: the one that is declared, named or the only one.
    fn with_default(mut self) -> Self {
        self.subsets.retain(|subset| subset.splits.iter().any(|(_, files)| !files.is_empty()));
        if self.subsets.iter().any(|subset| subset.is_default) {
            return self;
        }
        let only = self.subsets.len() == 1;
        for subset in &mut self.subsets {
            subset.is_default = only || subset.name.is_empty() || subset.name == DEFAULT;
        }
        self
    }

    /// True if there are any rows that are read here.
    pub fn is_empty(&self) -> bool {
        self.subsets.is_empty()
    }

    /// The files of a part: `split`, `subset`, `subset/split`, or a pattern of files; none: the training split of the
    /// default subset. Errors: there is no such part, or several match; the error lists the parts.
    pub fn choose(&self, part: Option<&str>) -> Result<Chosen, String> {
        let Some(part) = part else {
            let Some(subset) = self.default() else {
                return Err(format!("has several subsets, expected one of them: {}", self.all_parts()));
            };
            return self.training_of(subset);
        };
        if is_file_pattern(part) {
            let training = matching(part, &self.names, &mut Budget::default())?;
            return match training.is_empty() {
                true => Err(format!("has no file of rows {part:?}, expected some of {}", listed(&self.names))),
                false => Ok(Chosen { training, validation: Vec::new() }),
            };
        }
        let split = |subset: &Subset, name: &str| {
            let found = subset.splits.iter().find(|(split, _)| split == name);
            found.map(|(_, files)| Chosen { training: files.clone(), validation: Vec::new() })
        };
        if let Some(chosen) = self.default().and_then(|subset| split(subset, part)) {
            return Ok(chosen);
        }
        if let Some(subset) = self.named(part) {
            return self.training_of(subset);
        }
        let inner = part.rsplit_once('/').and_then(|(subset, name)| split(self.named(subset)?, name));
        inner.ok_or_else(|| format!("has no part {part:?}, expected one of {}", self.all_parts()))
    }

    fn default(&self) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.is_default)
    }

    fn named(&self, name: &str) -> Option<&Subset> {
        let own = self.subsets.iter().find(|subset| subset.name == name);
        own.or_else(|| self.default().filter(|_| name == DEFAULT))
    }

    /// The training split of a subset, and the validation split that belongs to it.
    fn training_of(&self, subset: &Subset) -> Result<Chosen, String> {
        let is_training =
            |name: &str| name.strip_prefix(TRAIN).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
        let own = subset.splits.iter().find(|(name, _)| name == TRAIN);
        let all: Vec<_> = subset.splits.iter().filter(|(name, _)| is_training(name)).collect();
        let (name, training) = match (own, &all[..]) {
            (Some(own), _) | (None, &[own]) => own,
            _ => {
                return Err(format!("has no split that is the one for training, expected one of {}", self.all_parts()));
            }
        };
        let suffix = name.strip_prefix(TRAIN).unwrap_or_default();
        let goes_with = |split: &&str| subset.splits.iter().find(|(name, _)| *name == format!("{split}{suffix}"));
        let validation = VALIDATION.iter().find_map(goes_with);
        let validation = validation.map_or_else(Vec::new, |(_, files)| files.clone());
        Ok(Chosen { training: training.clone(), validation })
    }

    /// Every part by the name that asks for it.
    fn all_parts(&self) -> String {
        let part = |subset: &Subset, split: &str| match subset.is_default || subset.name.is_empty() {
            true => split.to_owned(),
            false => format!("{}/{split}", subset.name),
        };
        let parts: Vec<String> = self
            .subsets
            .iter()
            .flat_map(|subset| subset.splits.iter().map(move |(split, _)| part(subset, split)))
            .collect();
        listed(&parts)
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(MAX_NAMED).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(MAX_NAMED);
    if more > 0 { format!("{shown} and {more} more") } else { shown }
}

fn by_card(config: &Config, names: &[String], budget: &mut Budget) -> Result<Subset, String> {
    let dir = config.data_dir.as_deref().map(|dir| dir.trim_matches('/')).filter(|dir| !dir.is_empty());
    let below = |pattern: &str| dir.map_or_else(|| pattern.to_owned(), |dir| format!("{dir}/{pattern}"));
    let name = config.config_name.clone().unwrap_or_else(|| DEFAULT.to_owned());
    let mut splits = Vec::new();
    for (split, patterns) in config.splits() {
        let mut files = Vec::new();
        for pattern in patterns {
            files.extend(matching(&below(&pattern), names, budget)?);
        }
        files.sort();
        files.dedup();
        splits.push((split, of_one_kind(files)));
    }
    if splits.is_empty() {
        let inside = matching(&below("**"), names, budget)?;
        let place = |path: &str| Place { subset: String::new(), ..infer::place(path) };
        splits = by_names(&inside, place).into_iter().flat_map(|subset| subset.splits).collect();
    }
    Ok(Subset { name, is_default: config.default == Some(true), splits })
}

/// Subsets by file names. If no name shows a split, all rows are for training.
fn by_names(names: &[String], place: fn(&str) -> Place) -> Vec<Subset> {
    let places: Vec<(Place, &String)> = names.iter().map(|name| (place(name), name)).collect();
    let any = places.iter().any(|(place, _)| place.split.is_some());
    let mut found: BTreeMap<String, BTreeMap<String, Vec<String>>> = BTreeMap::new();
    for (Place { subset, split }, name) in places {
        let split = match (split, any) {
            (Some(split), _) => split,
            (None, false) => TRAIN.to_owned(),
            // A file outside of the splits belongs to none.
            (None, true) => continue,
        };
        found.entry(subset).or_default().entry(split).or_default().push(name.clone());
    }
    let subset = |(name, splits): (String, BTreeMap<String, Vec<String>>)| Subset {
        name,
        is_default: false,
        splits: splits.into_iter().map(|(split, files)| (split, of_one_kind(files))).collect(),
    };
    found.into_iter().map(subset).collect()
}

#[cfg(test)]
mod tests;
