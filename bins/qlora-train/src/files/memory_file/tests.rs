use super::*;

#[test]
fn a_file_in_memory_is_one_for_all_who_open_it_and_has_one_size() {
    let file = create().unwrap();
    file.write_all_at(b"mark of this file", 0).unwrap();
    let other = open(place(&file), b"mark of").unwrap();
    set_last_len(&file, 5000).unwrap();
    other.write_all_at(b"end", 4997).unwrap();
    let mut found = [0; 3];
    file.read_exact_at(&mut found, 4997).unwrap();
    assert_eq!(&found, b"end");
    // Nobody can make it shorter or longer.
    for bytes in [4999, 5001] {
        assert!(other.set_len(bytes).is_err() && file.set_len(bytes).is_err(), "{bytes}");
    }
    assert!(other.write_all_at(b"x", 5000).is_err());
    assert_eq!(file.metadata().unwrap().len(), 5000);
    let large = create().unwrap();
    large.set_len(300).unwrap();
    set_last_len(&large, 200).unwrap();
    assert_eq!(large.metadata().unwrap().len(), 300);
}

#[test]
fn what_is_not_that_file_is_not_opened() {
    let (file, disk) = (create().unwrap(), tempfile::tempfile().unwrap());
    file.write_all_at(b"one", 0).unwrap();
    let error = |place, mark: &[u8]| open(place, mark).unwrap_err().to_string();
    assert!(error(place(&file), b"two").contains("is something else here"));
    assert!(error(place(&disk), b"one").contains("is something else here"));
    let (process, handle) = place(&file);
    // No process has that number, nor a file.
    assert!(open((u32::MAX, handle), b"one").is_err() && open((process, i32::MAX), b"one").is_err());
    assert!(open((process, handle), b"one, and more").is_err());
}
