//! The data set of a file in the cache, by its path: `datasets--org--name/snapshots/<commit>/<file>`.

use std::path::Path;

use super::id::is_hub_name;
use super::listing::is_commit;

/// A file of a data set at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSetFile {
    /// `org/name`
    pub id: String,
    pub commit: String,
    pub file: String,
}

/// The data set that a file was downloaded from. None: its path is not in the cache.
pub fn data_set_of(path: &Path) -> Option<DataSetFile> {
    let parts: Vec<&str> = path.components().map(|part| part.as_os_str().to_str()).collect::<Option<_>>()?;
    let at = parts.windows(3).rposition(|part| part[1] == "snapshots" && is_commit(part[2]))?;
    let id = parts[at].strip_prefix("datasets--")?.replacen("--", "/", 1);
    let file = parts[at + 3..].join("/");
    (is_hub_name(&id) && !file.is_empty()).then(|| DataSetFile { id, commit: parts[at + 2].to_owned(), file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_cache_is_of_a_data_set_and_others_are_not() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let of = |path: String| data_set_of(Path::new(&path));
        let file = DataSetFile { id: "org/a-b".into(), commit: commit.into(), file: "data/train-0.jsonl".into() };
        assert_eq!(of(format!("/h/hub/datasets--org--a-b/snapshots/{commit}/data/train-0.jsonl")), Some(file));
        for none in [
            "rows.jsonl".to_owned(),
            format!("/h/hub/models--org--a/snapshots/{commit}/rows.jsonl"),
            format!("/h/hub/datasets--org--a/snapshots/{commit}"),
            "/h/hub/datasets--org--a/snapshots/main/rows.jsonl".to_owned(),
            format!("/h/hub/datasets--org--a--b/snapshots/{commit}/rows.jsonl"),
            format!("/h/hub/datasets--a b--c/snapshots/{commit}/rows.jsonl"),
            format!("snapshots/{commit}/rows.jsonl"),
        ] {
            assert_eq!(of(none.clone()), None, "{none}");
        }
    }
}
