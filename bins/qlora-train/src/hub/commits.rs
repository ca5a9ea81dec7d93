//! Commits that revisions stand for: those that a run meets, and those that a run which goes on began on.

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

    /// Whether all parts are names: a record is read from a file that anybody may have edited.
    pub(super) fn is_valid(&self) -> bool {
        let is_commit = !self.commit.is_empty() && self.commit.chars().all(|c| c.is_ascii_alphanumeric());
        is_commit && is_hub_name(&self.name) && is_revision(&self.revision) && is_revision(&self.commit)
    }
}

/// The branches that stand for another commit in `now` than in `recorded`, and what to do. None: there are none.
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
mod tests {
    use super::*;

    #[test]
    fn a_branch_that_moved_is_told_with_both_commits_and_what_to_do() {
        let at = |kind, revision: &str, commit: &str| HubCommit::new(kind, "org/name", revision, commit);
        let began = [at(Kind::Model, "main", &"a".repeat(40)), at(Kind::DataSet, "main", &"b".repeat(40))];
        assert_eq!(moved_since(&began, &began), None);
        assert_eq!(moved_since(&began, &[]), None);
        // Neither another kind nor another branch.
        assert_eq!(moved_since(&[at(Kind::Model, "v2", &"c".repeat(40))], &began), None);
        let now = [at(Kind::Model, "main", &"a".repeat(40)), at(Kind::DataSet, "main", &"c".repeat(40))];
        let told = moved_since(&now, &began).unwrap();
        let named = format!("org/name@{}", "b".repeat(40));
        for words in ["the data set org/name is at commit cccccccccccc of `main` now", "began on bbbbbbbbbbbb", &named]
        {
            assert!(told.contains(words), "{told} lacks {words}");
        }
        assert!(!told.contains("the model") && told.ends_with("the run began on"), "{told}");
    }

    #[test]
    fn a_record_is_kept_as_json_and_one_that_leads_out_is_none() {
        let commit = HubCommit::new(Kind::DataSet, "org/name", "refs/pr/1", "abc123");
        let json = serde_json::to_value(&commit).unwrap();
        let expected =
            serde_json::json!({"kind": "data_set", "name": "org/name", "revision": "refs/pr/1", "commit": "abc123"});
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<HubCommit>(json).unwrap(), commit);
        assert!(commit.is_valid());
        for (name, revision, commit) in
            [("../x", "main", "a"), ("org/name", "../x", "a"), ("org/name", "main", "../a"), ("org/name", "main", "")]
        {
            assert!(!HubCommit::new(Kind::Model, name, revision, commit).is_valid(), "{name} {revision} {commit}");
        }
    }
}
