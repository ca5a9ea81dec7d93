//! Commits of revisions: those that a run resolves, and those that a resumed run began on.

use serde::{Deserialize, Serialize};

use super::cache::Kind;
use super::id::{is_hub_name, is_revision};

/// A branch or tag of a model or data set, and the commit that it stood for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubCommit {
    kind: Kind,
    /// `org/name`
    name: String,
    revision: String,
    commit: String,
}

impl HubCommit {
    pub(super) fn new(kind: Kind, name: &str, revision: &str, commit: &str) -> Self {
        Self { kind, name: name.to_owned(), revision: revision.to_owned(), commit: commit.to_owned() }
    }

    /// The commit, if this is that revision.
    pub(super) fn of(&self, kind: Kind, name: &str, revision: &str) -> Option<&str> {
        (self.kind == kind && self.name == name && self.revision == revision).then_some(self.commit.as_str())
    }

    /// True if all parts are names: a record is read from a file that anybody may have edited.
    pub(super) fn is_valid(&self) -> bool {
        let is_commit = !self.commit.is_empty() && self.commit.chars().all(|c| c.is_ascii_alphanumeric());
        is_commit && is_hub_name(&self.name) && is_revision(&self.revision) && is_revision(&self.commit)
    }
}

/// A message on branches whose commit in `now` differs from `recorded`, with advice. None: there are none.
pub fn moved_since(now: &[HubCommit], recorded: &[HubCommit]) -> Option<String> {
    let moved = |now: &HubCommit| {
        let began = recorded.iter().find_map(|began| began.of(now.kind, &now.name, &now.revision))?;
        let (name, revision) = (&now.name, &now.revision);
        (began != now.commit).then(|| {
            format!(
                "the {} {name} is at commit {} of `{revision}` now, the run there began on {}, which {name}@{began} \
                 names",
                now.kind.noun(),
                short(&now.commit),
                short(began)
            )
        })
    };
    let moved: Vec<String> = now.iter().filter_map(moved).collect();
    let goes_on = "--resume-from-checkpoint goes on with the commits that the run began on";
    (!moved.is_empty()).then(|| format!("{}; {goes_on}", moved.join("; ")))
}

/// The beginning of a commit's name.
pub(super) fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

#[cfg(test)]
mod tests;
