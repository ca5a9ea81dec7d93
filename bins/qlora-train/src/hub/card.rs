//! Files of a data set by its card (README.md): the `configs` of the YAML before its text.

use indexmap::IndexMap;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::listing::shown;

/// A card is a page; some list thousands of columns.
pub(super) const MAX_CARD_BYTES: u64 = 16 << 20;
const RULE: &str = "---";

#[derive(Debug, Deserialize)]
struct FrontMatter {
    #[serde(default)]
    configs: Option<Vec<Config>>,
}

/// A subset, and the patterns of its files.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub config_name: Option<String>,
    #[serde(default)]
    pub default: Option<bool>,
    #[serde(default)]
    pub data_dir: Option<String>,
    #[serde(default)]
    pub data_files: Option<DataFiles>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum DataFiles {
    One(String),
    List(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Entry {
    Path(String),
    Split { split: String, path: Paths },
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Paths {
    One(String),
    Many(Vec<String>),
}

impl Paths {
    fn list(&self) -> Vec<String> {
        match self {
            Paths::One(path) => vec![path.clone()],
            Paths::Many(paths) => paths.clone(),
        }
    }
}

impl Config {
    /// (split, patterns), in the order of the card.
    pub fn splits(&self) -> Vec<(String, Vec<String>)> {
        const TRAIN: &str = "train";
        let Some(files) = &self.data_files else { return Vec::new() };
        let entries = match files {
            DataFiles::One(path) => return vec![(TRAIN.to_owned(), vec![path.clone()])],
            DataFiles::List(entries) => entries,
        };
        let mut splits: IndexMap<String, Vec<String>> = IndexMap::new();
        for entry in entries {
            let (split, paths) = match entry {
                Entry::Path(path) => (TRAIN, vec![path.clone()]),
                Entry::Split { split, path } => (split.as_str(), path.list()),
            };
            splits.entry(split.to_owned()).or_default().extend(paths);
        }
        splits.into_iter().collect()
    }
}

/// The YAML front matter of a card. None: there is none. Errors: YAML that cannot be read.
pub(super) fn front_matter<T: DeserializeOwned>(card: &str) -> Option<Result<T, String>> {
    let card = card.trim_start_matches('\u{feff}');
    let mut lines = card.split_inclusive('\n');
    let first = lines.next().filter(|line| line.trim_end() == RULE)?;
    let length: usize = lines.take_while(|line| line.trim_end() != RULE).map(str::len).sum();
    let yaml = &card[first.len()..first.len() + length];
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 32,
            max_documents: 1,
            max_events: 2_000_000,
            max_nodes: 1_000_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 10_000, },
        with_snippet: false,
    };
    let read = serde_saphyr::from_str_with_options::<T>(yaml, options);
    let one_line = |text: String| shown(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let told = read
        .map_err(|error| one_line(error.without_snippet().render_with_formatter(&serde_saphyr::UserMessageFormatter)));
    Some(told)
}

/// True if a card has YAML front matter. Errors: YAML that cannot be read, for which a hub would refuse the card.
pub fn has_fields(card: &str) -> Result<bool, String> {
    match front_matter::<Option<IndexMap<String, IgnoredAny>>>(card).transpose()? {
        Some(Some(fields)) => Ok(!fields.is_empty() && is_ended(card)),
        _ => Ok(false),
    }
}

/// True if a second rule ends the YAML of a card that begins with one: without it a hub treats everything as text.
fn is_ended(card: &str) -> bool {
    card.lines().skip(1).any(|line| line.trim_end() == RULE)
}

/// The subsets that a card names. None: it names none. Errors: YAML that cannot be read.
pub(super) fn configs(card: &str) -> Result<Option<Vec<Config>>, String> {
    let front: Option<Option<FrontMatter>> = front_matter(card).transpose()?;
    let configs = front.flatten().and_then(|front| front.configs);
    Ok(configs.filter(|configs| configs.iter().any(|config| config.data_files.is_some() || config.data_dir.is_some())))
}

#[cfg(test)]
mod tests;
