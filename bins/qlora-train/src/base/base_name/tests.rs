use super::*;

#[test]
fn the_cache_layout_names_model_and_commit() {
    let config = Map::new();
    let found = BaseName::of(Path::new("/c/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f"), &config);
    let expected = BaseName { name: "meta-llama/Llama-3.1-8B".into(), revision: Some("0e9e39f".into()), is_hub: true };
    assert_eq!(found, expected);
    assert_eq!(BaseName::of(Path::new("/c/hub/models--gpt2/snapshots/1"), &config).name, "gpt2");
    let local = BaseName::of(Path::new("/nonexistent/my-llama"), &config);
    assert_eq!(local, BaseName { name: "my-llama".into(), revision: None, is_hub: false });
}

#[test]
fn name_or_path_counts_when_it_is_a_hub_id_and_no_local_directory() {
    let dir = tempfile::tempdir().unwrap();
    let named = |name: &str| {
        let config = serde_json::json!({ "_name_or_path": name });
        BaseName::of(dir.path(), config.as_object().unwrap())
    };
    assert_eq!(named("org/name"), BaseName { name: "org/name".into(), revision: None, is_hub: true });
    assert!(!named("/home/someone/model").is_hub);
    std::fs::create_dir_all(dir.path().join("out/run")).unwrap();
    assert!(!named("out/run").is_hub, "a path that exists is no hub id");
}

#[test]
fn a_hub_id_is_found_by_branch_and_by_commit_or_refused_with_the_places_looked_at() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("models--org--tiny");
    std::fs::create_dir_all(model.join("snapshots/abc123")).unwrap();
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "abc123\n").unwrap();
    let environment = Environment::offline(&[PathBuf::from("/nonexistent/hub"), root.path().to_owned()]);
    let resolve = |arg: &str, revision: Option<&str>| resolve_in(arg, revision, &environment, Need::Weights);
    let snapshot = model.join("snapshots/abc123");
    assert_eq!(resolve("org/tiny", None).unwrap(), snapshot);
    assert_eq!(resolve("org/tiny", Some("abc123")).unwrap(), snapshot);
    assert_eq!(resolve("org/tiny@abc123", None).unwrap(), snapshot);
    assert_eq!(resolve(snapshot.to_str().unwrap(), None).unwrap(), snapshot);

    let refused = |arg: &str, revision: Option<&str>, words: &[&str]| {
        let error = resolve(arg, revision).unwrap_err();
        assert_eq!(error.exit_status(), 2, "{error}");
        words.iter().for_each(|word| assert!(error.to_string().contains(word), "{error} lacks {word}"));
    };
    let places = ["/nonexistent/hub/models--org--other", "hf download org/other"];
    refused("org/other", None, &places);
    refused("org/tiny", Some("v2"), &["\"v2\"", "hf download org/tiny --revision v2"]);
    refused("org/tiny", Some("../../x"), &["revision", "expected a branch, tag or commit"]);
    refused("org/tiny@abc123", Some("main"), &["\"main\"", "keep one of them"]);
    refused("/nonexistent/model", None, &["found no such directory"]);
    // Tests run in the directory of the package, which has a `src`.
    refused("src/llama", None, &["src/llama: found no such directory in one that is there", "src/llama@main"]);
    refused("src/llama@main", None, &["hf download src/llama"]);
    let dangling = root.path().join("dangling");
    std::os::unix::fs::symlink("gone", &dangling).unwrap();
    refused(dangling.to_str().unwrap(), None, &["found a link to nothing"]);
    refused(snapshot.to_str().unwrap(), Some("main"), &["only for a hub id"]);
    std::fs::write(model.join("refs/main"), "../../../etc").unwrap();
    refused("org/tiny", None, &["refs/main", "expected the name of a commit"]);
}
