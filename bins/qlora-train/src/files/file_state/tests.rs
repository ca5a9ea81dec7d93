use super::*;
use std::io::Write;

#[test]
fn whatever_is_done_to_a_file_is_another_state() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "some bytes").unwrap();
    let state = |path: &std::path::Path| FileState::of(&File::open(path).unwrap()).unwrap();
    let wait = || std::thread::sleep(Duration::from_millis(30));
    let first = state(&path);
    assert_eq!(state(&path).key(), first.key());
    let mut seen = vec![first.key()];
    let mut is_new = |what: &str| {
        let key = state(&path).key();
        assert!(!seen.contains(&key), "{what}");
        seen.push(key);
    };
    // Same size and same time of writing: only the time of change differs.
    wait();
    let written = path.metadata().unwrap().modified().unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    (&file).write_all(b"SOME BYTES").unwrap();
    file.set_modified(written).unwrap();
    assert_eq!(path.metadata().unwrap().modified().unwrap(), written);
    is_new("other bytes with the time of the first");
    wait();
    std::fs::write(&path, "more bytes than before").unwrap();
    is_new("another size");
    wait();
    let other = dir.path().join("other");
    std::fs::copy(&path, &other).unwrap();
    std::fs::rename(&other, &path).unwrap();
    is_new("another file of the name");
}

#[test]
fn a_state_is_settled_once_a_change_would_get_another_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "some bytes").unwrap();
    let state = FileState::of(&File::open(&path).unwrap()).unwrap();
    let changed = SystemTime::UNIX_EPOCH + Duration::new(state.changed.0 as u64, state.changed.1 as u32);
    let moment = Duration::from_nanos(1);
    for (now, is_settled) in [
        (changed, false),
        (changed + APART - moment, false),
        (changed + APART, true),
        (changed + 1000 * APART, true),
        // A clock that was set back.
        (changed - APART, false),
    ] {
        assert_eq!(state.is_settled(now), is_settled, "{now:?}");
    }
    let without = FileState { changed: (0, 0), ..state };
    assert!(!without.is_settled(changed + 1000 * APART));
}
