use super::*;

fn names(dir: &Path) -> Vec<String> {
    let names = Dir::open(dir).unwrap().names().unwrap();
    names.into_iter().map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn files_appear_together_with_their_sums_and_what_changes_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = AtomicFiles::new(dir.path()).unwrap();
    files.add("one", |to| to.write_all(b"1")).unwrap();
    files.add("two", |to| to.write_all(b"2")).unwrap();
    files.add_sums().unwrap();
    assert!(names(dir.path()).iter().all(|name| name.ends_with(".partial")));
    files.commit_with_last("one").unwrap();
    assert_eq!(names(dir.path()), [SUMS, "one", "two"]);
    let damage = |required: &[&str], unchecked: &[&str]| {
        find_damage(dir.path(), required, unchecked).unwrap().map(|damage| damage.to_string())
    };
    assert_eq!(damage(&["one"], &[]), None);
    assert!(damage(&["three"], &[]).unwrap().contains("found no line of three"));
    std::fs::write(dir.path().join("two"), "3").unwrap();
    assert!(damage(&[], &[]).unwrap().contains("two: found a SHA-256 of 4e07408562be"));
    assert_eq!(damage(&["one"], &["two"]), None);
    // Lines of other files stay.
    let mut files = AtomicFiles::new(dir.path()).unwrap();
    files.add("two", |to| to.write_all(b"3")).unwrap();
    files.add("three", |to| to.write_all(b"4")).unwrap();
    files.update_sums().unwrap();
    files.commit().unwrap();
    assert_eq!(damage(&["one", "two", "three"], &[]), None);
    let sums = std::fs::read_to_string(dir.path().join(SUMS)).unwrap();
    assert_eq!(parse_sums(&sums).iter().map(|sum| sum.1).collect::<Vec<_>>(), ["one", "two", "three"]);
    std::fs::remove_file(dir.path().join("three")).unwrap();
    assert!(damage(&[], &[]).unwrap().contains("three: found no such file"));
    std::fs::remove_file(dir.path().join("one")).unwrap();
    assert!(damage(&[], &["two"]).unwrap().contains("one: found no such file"));
    std::fs::remove_file(dir.path().join(SUMS)).unwrap();
    assert!(damage(&[], &[]).unwrap().contains("SHA256SUMS: cannot be read"));
}

#[test]
fn a_failure_leaves_nothing_of_what_was_not_put_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = AtomicFiles::new(dir.path()).unwrap();
    files.add("one", |to| to.write_all(b"1")).unwrap();
    assert!(files.add("two", |_| Err(io::Error::other("torn"))).is_err());
    drop(files);
    assert!(names(dir.path()).is_empty());
    std::fs::create_dir(dir.path().join("two")).unwrap();
    let mut files = AtomicFiles::new(dir.path()).unwrap();
    for name in ["one", "two", "three"] {
        files.add(name, |to| to.write_all(b"1")).unwrap();
    }
    assert!(files.commit().unwrap_err().to_string().contains("two: cannot be put in place"));
    assert_eq!(names(dir.path()), ["one", "two"]);
}
