//! Ids of the hub: `org/name`, optionally with a revision, and for a data set optionally with a part and a range of
//! rows.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use crate::bail_usage;
use crate::error::Result;

/// Limit on the length of revisions and parts.
const MAX_NAME_BYTES: usize = 200;
/// File endings: a text with one is the path of a missing file, not an id.
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

/// True if a text that could be an id is more likely a mistyped path: its folder exists.
pub fn is_rather_path(text: &str) -> bool {
    let is_plain = !text.contains(['@', ':', '[']);
    is_plain && text.split_once('/').is_some_and(|(dir, _)| Path::new(dir).is_dir())
}

/// True for a branch, a tag, a commit, or another reference such as `refs/pr/1`.
pub(super) fn is_revision(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_graphic() && !r#"~^:?*[]\@{}"'"#.contains(c);
    is_inner_path(text) && text.chars().all(allowed)
}

/// True for a relative path whose parts are names, none of them `..`.
pub(super) fn is_inner_path(text: &str) -> bool {
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(char::is_control);
    text.len() <= MAX_NAME_BYTES && text.split('/').all(is_name)
}

/// A model or a data set, with a revision.
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

    /// This id with a revision that is given separately. Refused: a revision that is no name, or differs from the id's
    /// own.
    pub fn at(self, revision: Option<&str>) -> Result<Self> {
        let Some(given) = revision else { return Ok(self) };
        if !is_revision(given) {
            bail_usage!("{}: found revision {given:?}, expected a branch, tag or commit", self.name);
        }
        match &self.revision {
            Some(own) if own != given => {
                bail_usage!(
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

/// A data set with a choice of its rows: `org/name@revision:subset/split[from:to]`, of which all but the name may be
/// left out.
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
            bail_usage!(
                "{text}: found {part:?} behind the name of a data set, expected a split such as `{name}:train`, a subset \
                 and a split such as `{name}:main/train`, or some of their rows such as `{name}:train[:1000]`"
            );
        }
        let rows = match rows.map(|inside| (inside, Slice::parse(inside))) {
            Some((inside, None)) => bail_usage!(
                "{text}: found [{inside}], expected rows such as [:1000], [1000:2000] or [10%:], counted from the first"
            ),
            Some((_, rows)) => rows,
            None => None,
        };
        Ok(Some(Self { id, part: part.map(str::to_owned), rows }))
    }
}

/// True if the part of a data set is a pattern of its files.
pub(super) fn is_file_pattern(part: &str) -> bool {
    part.contains(['*', '?']) || FILE_ENDINGS.iter().any(|ending| part.to_lowercase().ends_with(ending))
}

/// A range of rows, `[from:to]`: counted from 0, in rows or in percent.
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
    /// The number of the row; percentages are rounded as `datasets` does.
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

    /// Reads the text between the brackets. None: it is no range.
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

    /// The range of rows. None: a bound is a percentage, so that the number of rows must be known first.
    pub fn rows(&self) -> Option<Range<u64>> {
        let row = |bound: Option<Bound>, open: u64| match bound {
            None => Some(open),
            Some(Bound::Row(row)) => Some(row),
            Some(Bound::Percent(_)) => None,
        };
        Some(row(self.from, 0)?..row(self.to, u64::MAX)?)
    }

    /// The range of rows out of `rows`.
    pub fn of(&self, rows: u64) -> Range<u64> {
        self.from.map_or(0, |from| from.of(rows))..self.to.map_or(rows, |to| to.of(rows))
    }
}

#[cfg(test)]
mod tests;
