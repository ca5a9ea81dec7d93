use super::*;

#[test]
fn what_was_written_is_read_and_nothing_has_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = ScratchFile::create(dir.path()).unwrap();
    // More than one piece, and an end within a block.
    let values: Vec<u8> = (0..PIECE + 5000).map(|at| (at % 251) as u8).collect();
    let offset = 3 * BLOCK;
    file.reserve(offset..offset + values.len() as u64).unwrap();
    file.write(&values, offset).unwrap();
    file.write(&values[..100], 0).unwrap();
    let mut found = vec![0; values.len()];
    file.read(&mut found, offset).unwrap();
    assert!(found == values);
    file.read(&mut found[..100], 0).unwrap();
    assert_eq!(found[..100], values[..100]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_was_cut_or_cannot_be_made_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = ScratchFile::create(dir.path()).unwrap();
    file.write(&[1; 5000], 0).unwrap();
    file.file.set_len(4999).unwrap();
    let error = file.read(&mut [0; 5000], 0).unwrap_err();
    assert_eq!(error.exit_status(), 1);
    let missing = ScratchFile::create(&dir.path().join("missing")).err().unwrap();
    for (error, what) in [(error, "cannot be read"), (missing, "cannot be made")] {
        let text = error.to_string();
        let shown = dir.path().display().to_string();
        assert!(text.starts_with(&shown) && text.contains(what) && text.contains("`scratch_dir`"), "{text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_system_in_memory_is_told() {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        assert!(ScratchFile::create(memory).unwrap().is_in_memory());
    }
}
