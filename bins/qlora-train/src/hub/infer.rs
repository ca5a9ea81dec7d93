//! The split of a data set's file, inferred from its name, for data sets whose card does not define splits.

/// Names of splits, and the words in a path that mean them.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];
/// A folder that is neither subset nor split.
const DATA: &str = "data";

/// Subset and split of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Folders that are no split; empty: none
    pub subset: String,
    /// None: its name does not show it.
    pub split: Option<String>,
}

/// The place of a file by its path.
pub(super) fn place(path: &str) -> Place {
    let (dirs, file) = path.rsplit_once('/').unwrap_or(("", path));
    let mut dirs: Vec<&str> = dirs.split('/').filter(|dir| !dir.is_empty() && *dir != DATA).collect();
    let stem = file.split('.').next().unwrap_or(file);
    let mut split = of_shard(stem).or_else(|| of_words(stem));
    if let (None, Some(at)) = (&split, dirs.iter().rposition(|dir| of_words(dir).is_some())) {
        split = of_words(dirs.remove(at));
    }
    Place { subset: dirs.join("/"), split }
}

/// The place of a file that the hub itself converted: `subset/split/0000.parquet`.
pub(super) fn converted_place(path: &str) -> Place {
    match path.split('/').collect::<Vec<_>>()[..] {
        [subset, split, _] => Place { subset: subset.to_owned(), split: Some(split.to_owned()) },
        _ => place(path),
    }
}

/// `train_sft` of `train_sft-00000-of-00002`.
fn of_shard(stem: &str) -> Option<String> {
    let numbers = |text: &str| text.len() >= 2 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = stem.split('-').collect();
    let of = parts.windows(3).position(|three| numbers(three[0]) && three[1] == "of" && numbers(three[2]))?;
    let name = parts[..of].join("-");
    let whole = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty();
    match whole {
        true => Some(name),
        false => of_words(&name),
    }
}

fn of_words(text: &str) -> Option<String> {
    let text = text.to_lowercase();
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.find_map(|word| WORDS.iter().find(|(_, names)| names.contains(&word))).map(|(name, _)| (*name).to_owned())
}

/// The number of shards in a file's name: 5 of `train-00001-of-00005`.
pub(super) fn shards(path: &str) -> Option<(String, usize)> {
    let (head, rest) = path.rsplit_once("-of-")?;
    let (head, number) = head.rsplit_once('-')?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Some((head.to_owned(), digits.parse().ok()?))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_told_by_shards_words_and_folders() {
        for (path, subset, split) in [
            ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "", Some("train")),
            ("data/train_sft-00000-of-00003.parquet", "", Some("train_sft")),
            ("main/test-00000-of-00001.parquet", "main", Some("test")),
            ("my-set-train-00000-of-00001.parquet", "", Some("train")),
            ("train.jsonl", "", Some("train")),
            ("training_data.json", "", Some("train")),
            ("data/VALID.csv", "", Some("validation")),
            ("eval.jsonl.gz", "", Some("test")),
            ("en/dev/rows.parquet", "en", Some("validation")),
            ("openhermes2_5.json", "", None),
            ("data/constraints.json", "", None),
            ("fr/rows.jsonl", "fr", None),
        ] {
            assert_eq!(place(path), Place { subset: subset.into(), split: split.map(str::to_owned) }, "{path}");
        }
        let converted = converted_place("default/partial-train/0000.parquet");
        assert_eq!(converted.split.as_deref(), Some("partial-train"));
    }

    #[test]
    fn shards_say_how_many_they_are() {
        assert_eq!(shards("data/train-00001-of-00005-abc.parquet"), Some(("data/train".into(), 5)));
        for none in ["train.jsonl", "best-of-5.json", "a-of-b.json"] {
            assert_eq!(shards(none), None, "{none}");
        }
    }
}
