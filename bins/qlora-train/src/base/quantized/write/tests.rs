use super::*;

/// On a file system without files of no name, for two processes that begin at a time.
#[test]
fn a_record_is_whole_and_locked_when_it_gets_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let parent = Dir::open(dir.path()).unwrap();
    let write = |mut file: File| -> io::Result<File> {
        file.try_lock().unwrap();
        file.write_all(b"whole")?;
        assert!(parent.kind("record").unwrap().is_none());
        Ok(file)
    };
    let held = write_named_record(&parent, "record", ".partial-1", &write).unwrap();
    let other = parent.open_to_lock("record").unwrap();
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
    let taken = write_named_record(&parent, "record", ".partial-2", &|file| Ok(file)).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(dir.path().join("record")).unwrap(), "whole");
    assert_eq!(parent.names().unwrap(), ["record"]);
    drop(held);
    other.try_lock().unwrap();
}
