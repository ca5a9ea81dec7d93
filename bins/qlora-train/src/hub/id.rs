//! Ids of the hub: `org/name`, perhaps with a revision, and of a data set perhaps the part and the rows that are meant.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::error::Result;
use crate::refuse;

/// Longer revisions and parts are no names.
const MAX_NAME_BYTES: usize = 200;
/// Endings of files: what has one is the path of a file that is not there.
const FILE_ENDINGS: &[&str] = &[
    ".jsonl", ".json", ".parquet", ".arrow", ".feather", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml", ".xml",
    ".html", ".gz", ".zst", ".xz", ".bz2", ".zip", ".tar", ".db", ".log", ".bin",
];

/// `org/name`, of the characters that the hub allows.
pub fn is_hub_name(text: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && part.chars().all(allowed)
    };
    text.split_once('/').is_some_and(|(org, name)| part(org) && part(name)) && !text.contains("--")
}

/// Whether a text that could be an id is rather a path with a mistake in it: its folder is there.
pub fn is_rather_path(text: &str) -> bool {
    let is_plain = !text.contains(['@', ':', '[']);
    is_plain && text.split_once('/').is_some_and(|(dir, _)| Path::new(dir).is_dir())
}

/// A branch, a tag, a commit, or another reference such as `refs/pr/1`.
pub(super) fn is_revision(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_graphic() && !r#"~^:?*[]\@{}"'"#.contains(c);
    is_inner_path(text) && text.chars().all(allowed)
}

/// A relative path whose parts are names, none of them upwards.
pub(super) fn is_inner_path(text: &str) -> bool {
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
    text.len() <= MAX_NAME_BYTES && text.split('/').all(is_name)
}

/// A model or a data set, and the revision that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`
    pub name: String,
    pub revision: Option<String>,
}

impl HubId {
    /// Reads `org/name` and `org/name@revision`. None: it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let is_id = is_hub_name(name) && revision.is_none_or(is_revision);
        is_id.then(|| Self { name: name.to_owned(), revision: revision.map(str::to_owned) })
    }

    /// With the revision that is given beside it. Refused: one that is no name, or another than the id has.
    pub fn at(self, revision: Option<&str>) -> Result<Self> {
        let Some(given) = revision else { return Ok(self) };
        if !is_revision(given) {
            refuse!("{}: found revision {given:?}, expected a branch, tag or commit", self.name);
        }
        match &self.revision {
            Some(own) if own != given => {
                refuse!(
                    "{}@{own}: found revision {given:?} beside it, expected one revision: keep one of them",
                    self.name
                )
            }
            _ => Ok(Self { revision: Some(given.to_owned()), ..self }),
        }
    }

    pub(super) fn revision_or_main(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// A data set, and which of its rows are meant: `org/name@revision:subset/split[from:to]`, of which all but the name
/// may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSetId {
    pub id: HubId,
    /// A split, a subset, both with a slash between, or the pattern of files in the repository
    pub part: Option<String>,
    pub rows: Option<Slice>,
}

impl DataSetId {
    /// None: the text is no id but a path. Refused: an id, with a part or rows that cannot be read.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let bracket = text.strip_suffix(']').and_then(|text| text.rsplit_once('['));
        let (head, rows) = match bracket.filter(|(_, inside)| inside.contains(':')) {
            Some((head, inside)) => (head, Some(inside)),
            None => (text, None),
        };
        let (name, part) = match head.split_once(':') {
            Some((name, part)) => (name, Some(part)),
            None => (head, None),
        };
        let is_file = |name: &str| FILE_ENDINGS.iter().any(|ending| name.to_lowercase().ends_with(ending));
        let Some(id) = HubId::parse(name).filter(|id| !is_file(&id.name)) else { return Ok(None) };
        if let Some(part) = part
            && (!is_inner_path(part) || (part.ends_with(']') && !is_file_pattern(part)))
        {
            refuse!(
                "{text}: found {part:?} behind the name of a data set, expected a split such as `{name}:train`, a subset \
                 and a split such as `{name}:main/train`, or some of their rows such as `{name}:train[:1000]`"
            );
        }
        let rows = match rows.map(|inside| (inside, Slice::parse(inside))) {
            Some((inside, None)) => refuse!(
                "{text}: found [{inside}], expected rows such as [:1000], [1000:2000] or [10%:], counted from the first"
            ),
            Some((_, rows)) => rows,
            None => None,
        };
        Ok(Some(Self { id, part: part.map(str::to_owned), rows }))
    }
}

/// Whether the part of a data set is a pattern of its files.
pub(super) fn is_file_pattern(part: &str) -> bool {
    part.contains(['*', '?']) || FILE_ENDINGS.iter().any(|ending| part.to_lowercase().ends_with(ending))
}

/// A range of rows, `[from:to]`: counted from 0, in rows or in hundredths of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    from: Option<Bound>,
    to: Option<Bound>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    Row(u64),
    Percent(u64),
}

impl Bound {
    /// The number of the row; hundredths are rounded as `datasets` does.
    fn of(self, rows: u64) -> u64 {
        match self {
            Bound::Row(row) => row.min(rows),
            Bound::Percent(percent) => ((rows as f64 * percent as f64 / 100.0).round_ties_even() as u64).min(rows),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Bound::Row(row) => write!(f, "{row}"),
            Bound::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// The text between the brackets.
impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let shown = |bound: Option<Bound>| bound.map_or(String::new(), |bound| bound.to_string());
        write!(f, "{}:{}", shown(self.from), shown(self.to))
    }
}

impl Slice {
    pub const ALL: Self = Self { from: None, to: None };

    pub fn exactly(rows: &Range<u64>) -> Self {
        Self { from: Some(Bound::Row(rows.start)), to: Some(Bound::Row(rows.end)) }
    }

    /// Reads what stands between the brackets. None: it is no range.
    pub fn parse(inside: &str) -> Option<Self> {
        let bound = |text: &str| -> Option<Option<Bound>> {
            let text = text.trim();
            match text.strip_suffix('%') {
                _ if text.is_empty() => Some(None),
                Some(percent) => {
                    let percent = percent.parse::<u64>().ok().filter(|percent| *percent <= 100)?;
                    Some(Some(Bound::Percent(percent)))
                }
                None => Some(Some(Bound::Row(text.parse::<u64>().ok()?))),
            }
        };
        let (from, to) = inside.split_once(':')?;
        Some(Self { from: bound(from)?, to: bound(to)? })
    }

    /// The rows where none of the bounds is a share of a number that is not known.
    pub fn rows(&self) -> Option<Range<u64>> {
        let row = |bound: Option<Bound>, open: u64| match bound {
            None => Some(open),
            Some(Bound::Row(row)) => Some(row),
            Some(Bound::Percent(_)) => None,
        };
        Some(row(self.from, 0)?..row(self.to, u64::MAX)?)
    }

    /// The rows out of so many.
    pub fn of(&self, rows: u64) -> Range<u64> {
        self.from.map_or(0, |from| from.of(rows))..self.to.map_or(rows, |to| to.of(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_told_from_paths() {
        for id in ["meta-llama/Llama-3.1-8B", "a/b", "HuggingFaceTB/SmolLM2-135M_x"] {
            assert!(is_hub_name(id), "{id}");
        }
        for path in ["/a/b", "./a", "../a", "a", "a/b/c", "~/m", "a/", "/", "", "a b/c", "a/.hidden", "a--b/c"] {
            assert!(!is_hub_name(path), "{path}");
        }
    }

    #[test]
    fn a_name_in_a_folder_that_is_there_is_rather_a_path() {
        // Tests run in the directory of the package.
        for path in ["src/llama", "tests/train"] {
            assert!(is_rather_path(path) && is_hub_name(path), "{path}");
        }
        for id in ["no-such-org/llama", "src", "src/llama@main", "src/rows:train", "src/rows[:5]", "Cargo.toml/x"] {
            assert!(!is_rather_path(id), "{id}");
        }
    }

    #[test]
    fn an_id_may_have_a_revision_and_one_only() {
        let id = |text: &str| HubId::parse(text).unwrap();
        assert_eq!(id("a/b"), HubId { name: "a/b".into(), revision: None });
        assert_eq!(id("a/b@refs/pr/1").revision.as_deref(), Some("refs/pr/1"));
        for none in ["a/b@", "a/b@../x", "a/b@x y", "a/b@x@y", "a@b/c", "a/b@/x", "a/b@x//y", "a/b:train"] {
            assert_eq!(HubId::parse(none), None, "{none}");
        }
        assert_eq!(id("a/b").at(Some("v2")).unwrap(), id("a/b@v2"));
        assert_eq!(id("a/b@v2").at(Some("v2")).unwrap(), id("a/b@v2"));
        assert!(id("a/b@v2").at(Some("v3")).unwrap_err().to_string().contains("keep one"));
        for wrong in ["", "..", "a/../b", "a\nb", "/abs"] {
            assert!(id("a/b").at(Some(wrong)).unwrap_err().to_string().contains("expected a branch"), "{wrong:?}");
        }
    }

    #[test]
    fn a_data_set_has_parts_and_rows_and_a_path_is_none() {
        let read = |text: &str| DataSetId::parse(text).unwrap().unwrap();
        let plain = read("tatsu-lab/alpaca");
        assert_eq!((plain.id.name.as_str(), &plain.part, plain.rows), ("tatsu-lab/alpaca", &None, None));
        assert_eq!(read("teknium/OpenHermes-2.5").id.name, "teknium/OpenHermes-2.5");
        let all = read("a/b@v1:main/train[10:20]");
        assert_eq!((all.id.revision.as_deref(), all.part.as_deref()), (Some("v1"), Some("main/train")));
        assert_eq!(all.rows.unwrap().rows(), Some(10..20));
        assert_eq!(read("a/b[:7]").rows.unwrap().rows(), Some(0..7));
        assert_eq!(read("a/b:data/x*.jsonl").part.as_deref(), Some("data/x*.jsonl"));
        assert!(is_file_pattern("data/x*.jsonl") && is_file_pattern("x.json") && !is_file_pattern("train"));
        let paths =
            ["rows.jsonl", "data/rows.jsonl", "data/rows.JSONL", "a/b/c", "./a/b", "/a/b", "a/b.txt", "data/*.x"];
        for path in paths {
            assert_eq!(DataSetId::parse(path).unwrap(), None, "{path}");
        }
        let wrong =
            ["a/b:", "a/b:../x", "a/b:train[x:]", "a/b:train[-5:]", "a/b:train[:101%]", "a/b:train[5]", "a/b:/x"];
        for wrong in wrong {
            let error = DataSetId::parse(wrong).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains("expected"), "{wrong}: {error}");
        }
    }

    #[test]
    fn shares_of_rows_are_rounded_and_bounded() {
        let slice = |inside: &str| Slice::parse(inside).unwrap();
        for inside in [":", "1:", ":10%", "3:5"] {
            assert_eq!(slice(inside).to_string(), inside);
        }
        assert_eq!(slice("10%:").rows(), None);
        assert_eq!((slice("10%:").of(40), slice(":10%").of(40)), (4..40, 0..4));
        assert_eq!((slice(":").of(3), slice(":9").of(3), slice("5:").of(3)), (0..3, 0..3, 3..3));
        // Every row is in one of two neighbors.
        for rows in 0..50 {
            assert_eq!(slice(":37%").of(rows).end, slice("37%:").of(rows).start);
        }
    }
}
