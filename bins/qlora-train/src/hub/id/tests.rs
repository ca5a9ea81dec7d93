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
    let paths = ["rows.jsonl", "data/rows.jsonl", "data/rows.JSONL", "a/b/c", "./a/b", "/a/b", "a/b.txt", "data/*.x"];
    for path in paths {
        assert_eq!(DataSetId::parse(path).unwrap(), None, "{path}");
    }
    let wrong = ["a/b:", "a/b:../x", "a/b:train[x:]", "a/b:train[-5:]", "a/b:train[:101%]", "a/b:train[5]", "a/b:/x"];
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
