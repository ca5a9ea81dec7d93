use super::*;

#[test]
fn a_range_is_of_all_files_together() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, rows: usize| {
        let path = dir.path().join(name);
        std::fs::write(&path, "{\"text\": \"x\"}\n".repeat(rows)).unwrap();
        path
    };
    let files = vec![file("a.jsonl", 3), file("b.jsonl", 2), file("c.jsonl", 5)];
    let of = |rows: &str| {
        let cut = cut(Path::new("entry"), files.clone(), Slice::parse(rows).unwrap())?;
        let shown = |(path, rows): (PathBuf, Slice)| format!("{}[{rows}]", path.file_name().unwrap().display());
        Ok::<String, crate::error::Error>(cut.into_iter().map(shown).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(of(":4").unwrap(), "a.jsonl[0:3] b.jsonl[0:1]");
    assert_eq!(of("4:").unwrap(), "b.jsonl[1:2] c.jsonl[0:5]");
    assert_eq!(of(":50%").unwrap(), "a.jsonl[0:3] b.jsonl[0:2]");
    assert_eq!(of("90%:").unwrap(), "c.jsonl[4:5]");
    assert_eq!(of(":").unwrap(), "a.jsonl[:] b.jsonl[:] c.jsonl[:]");
    for none in ["10:", "3:3", ":0%"] {
        assert!(of(none).unwrap_err().to_string().contains("has no rows"), "{none}");
    }
    let no_files = vec![file("d.jsonl", 1), dir.path().to_owned()];
    let counted = cut(Path::new("e"), no_files, Slice::parse("50%:").unwrap()).unwrap_err().to_string();
    assert!(counted.contains("is no plain file") && counted.contains("[:1000]"), "{counted}");
    // A file alone need not be counted: it may be a pipe.
    let alone = cut(Path::new("e"), vec![PathBuf::from("gone")], Slice::parse("2:9").unwrap()).unwrap();
    assert_eq!(alone, [(PathBuf::from("gone"), Slice::exactly(&(2..9)))]);
}
