//! Files of a data set by its card (README.md): the `configs` of the YAML before its text.

use serde::Deserialize;

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
        let mut splits: Vec<(String, Vec<String>)> = Vec::new();
        for entry in entries {
            let (split, paths) = match entry {
                Entry::Path(path) => (TRAIN, vec![path.clone()]),
                Entry::Split { split, path } => (split.as_str(), path.list()),
            };
            match splits.iter_mut().find(|(name, _)| name == split) {
                Some((_, known)) => known.extend(paths),
                None => splits.push((split.to_owned(), paths)),
            }
        }
        splits
    }
}

/// The subsets that a card names. None: it names none. Errors: YAML that cannot be read.
pub(super) fn configs(card: &str) -> Result<Option<Vec<Config>>, String> {
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    if lines.next().map(str::trim_end) != Some(RULE) {
        return Ok(None);
    }
    let yaml: Vec<&str> = lines.take_while(|line| line.trim_end() != RULE).collect();
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
    let read = serde_saphyr::from_str_with_options::<Option<FrontMatter>>(&yaml.join("\n"), options);
    let one_line = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let front = read.map_err(|error| one_line(error.without_snippet().to_string()))?;
    let configs = front.and_then(|front| front.configs);
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
    }
}
