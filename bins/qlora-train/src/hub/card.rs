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

/// What stands in YAML before the text of a card. None: nothing does. Errors: YAML that cannot be read.
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

/// Whether a card has fields in YAML before its text. Errors: YAML that cannot be read, by which a hub would refuse it.
pub fn has_fields(card: &str) -> Result<bool, String> {
    match front_matter::<Option<IndexMap<String, IgnoredAny>>>(card).transpose()? {
        Some(Some(fields)) => Ok(!fields.is_empty() && is_ended(card)),
        _ => Ok(false),
    }
}

/// Whether a second rule ends the YAML of a card that begins with one: without it a hub takes all for text.
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
mod tests {
    use super::*;

    #[test]
    fn a_card_names_subsets_splits_and_patterns() {
        let card = "---
license: mit
dataset_info:
- features:
  - name: question
    dtype: string
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path:
    - main/test-*
    - more/test.json
- config_name: socratic
  default: true
  data_files: socratic/*.parquet
- config_name: plain
  data_files:
  - a.jsonl
  - b.jsonl
---
# x
";
        let configs = configs(card).unwrap().unwrap();
        let names: Vec<_> = configs.iter().map(|config| config.config_name.as_deref().unwrap()).collect();
        assert_eq!(names, ["main", "socratic", "plain"]);
        assert_eq!(configs.iter().map(|config| config.default).collect::<Vec<_>>(), [None, Some(true), None]);
        let of = |at: usize| {
            let splits = configs[at].splits();
            splits.into_iter().map(|(split, paths)| format!("{split}={}", paths.join("|"))).collect::<Vec<_>>()
        };
        assert_eq!(of(0), ["train=main/train-*", "test=main/test-*|more/test.json"]);
        assert_eq!(of(1), ["train=socratic/*.parquet"]);
        assert_eq!(of(2), ["train=a.jsonl|b.jsonl"]);
    }

    #[test]
    fn a_card_may_say_nothing_and_broken_yaml_is_told() {
        let without_files = "---\nconfigs:\n- config_name: x\n---\n";
        for card in ["", "# A data set", "---\nlicense: mit\n---\n", "---\n---\n", without_files] {
            assert_eq!(configs(card).unwrap(), None, "{card}");
        }
        for card in ["---\nconfigs: [\n---\n", "---\nconfigs: 3\n---\n", "---\na: b: c\n---\n"] {
            assert!(configs(card).is_err(), "{card}");
        }
        let long = format!("---\nconfigs: {}\n---\n", "x".repeat(100_000));
        assert!(configs(&long).unwrap_err().len() < 2000);
        // Lines may end as Windows ends them, and the card without one.
        for card in ["---\r\nconfigs:\r\n- data_dir: a\r\n---\r\n", "---\nconfigs:\n- data_dir: a"] {
            assert_eq!(configs(card).unwrap().unwrap()[0].data_dir.as_deref(), Some("a"), "{card:?}");
        }
    }

    #[test]
    fn a_card_has_fields_or_none_or_no_yaml() {
        let has = |card: &str| has_fields(card);
        assert_eq!(has("---\nlicense: mit\ntags: [a, {b: c}]\n---\n# x\n"), Ok(true));
        for card in ["", "# x", "---\n---\n", "---\n{}\n---\n", "---\nlicense: mit\n", "---\nlicense: mit"] {
            assert_eq!(has(card), Ok(false), "{card}");
        }
        for card in ["---\na: [\n---\n", "---\na: b: c\n---\n", "---\n- a\n---\n"] {
            assert!(has(card).is_err(), "{card}");
        }
        // Nobody is told of the options of a library.
        let twice = has("---\na: 1\na: 2\n---\n").unwrap_err();
        assert!(twice.contains("duplicate mapping key") && !twice.contains("Policy"), "{twice}");
    }

    #[test]
    fn splits_are_gathered_in_time_that_grows_with_their_number() {
        let entry = |at: usize| Entry::Split { split: format!("s{}", at % 100_000), path: Paths::One(at.to_string()) };
        let data_files = Some(DataFiles::List((0..200_000).map(entry).collect()));
        let config = Config { config_name: None, default: None, data_dir: None, data_files };
        let splits = config.splits();
        assert_eq!(
            (splits.len(), &splits[7]),
            (100_000, &("s7".to_owned(), vec!["7".to_owned(), "100007".to_owned()]))
        );
    }
}
