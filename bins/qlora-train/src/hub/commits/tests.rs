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
    for words in ["the data set org/name is at commit cccccccccccc of `main` now", "began on bbbbbbbbbbbb", &named] {
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
