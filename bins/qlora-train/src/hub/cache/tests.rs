use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn the_layout_is_that_of_the_hubs_own_client() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path(), Kind::DataSet, "org/name");
    let dir = root.path().join("datasets--org--name");
    let blob = BlobName::parse(COMMIT).unwrap();
    std::fs::create_dir_all(dir.join("blobs")).unwrap();
    std::fs::write(folder.blob(&blob), "rows").unwrap();
    for name in ["README.md", "data/deep/train.jsonl"] {
        folder.link(COMMIT, name, &blob).unwrap();
        // Linking twice is the same as once.
        folder.link(COMMIT, name, &blob).unwrap();
        let path = dir.join("snapshots").join(COMMIT).join(name);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "rows");
        assert!(std::fs::read_link(&path).unwrap().is_relative());
        assert!(folder.has(COMMIT, name, Some(4)) && !folder.has(COMMIT, name, Some(5)));
    }
    assert_eq!(folder.found(COMMIT).unwrap().names(), ["README.md", "data/deep/train.jsonl"]);
    assert!(folder.lock(&blob).starts_with(root.path().join(".locks/datasets--org--name")));
    for revision in ["main", "refs/convert/parquet"] {
        folder.write_reference(revision, COMMIT).unwrap();
        assert_eq!(std::fs::read_to_string(dir.join("refs").join(revision)).unwrap(), COMMIT);
        assert_eq!(folder.commit_of(revision).unwrap().as_deref(), Some(COMMIT));
        assert!(!folder.names_commit(revision));
    }
    assert!(folder.names_commit(COMMIT));
    assert_eq!(folder.commit_of("v2").unwrap(), None);
    std::fs::write(dir.join("refs/main"), "../../../etc").unwrap();
    assert!(folder.commit_of("main").unwrap_err().to_string().contains("expected the name of a commit"));
}

#[test]
fn a_listing_is_kept_and_one_that_was_changed_is_none() {
    let root = tempfile::tempdir().unwrap();
    let folder = Folder::new(root.path(), Kind::Model, "org/name");
    let file = super::super::listing::File { name: "a".to_owned(), size: Some(3), blob: BlobName::parse(COMMIT) };
    let listing = Listing { commit: COMMIT.to_owned(), files: vec![file], license: None };
    assert_eq!(folder.listing(COMMIT), None);
    folder.keep_listing(&listing).unwrap();
    assert_eq!(folder.listing(COMMIT), Some(listing.clone()));
    let path = folder.listing_file(COMMIT);
    let hostile = format!(r#"{{"commit": "{COMMIT}", "files": [{{"name": "../a"}}]}}"#);
    for text in ["{", r#"{"commit": "x", "files": []}"#, &hostile] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(folder.listing(COMMIT), None, "{text}");
    }
}
