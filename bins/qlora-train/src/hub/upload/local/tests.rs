use super::*;

#[test]
fn a_file_has_both_hashes_and_pieces_and_is_known_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, "hello\n").unwrap();
    let open = || LocalFile::open("x", File::open(&path).unwrap(), path.display().to_string()).unwrap();
    let file = open();
    // Hashes of `sha256sum` and `git hash-object`.
    let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    assert_eq!((file.size(), file.sha256()), (6, sha256));
    for hash in [sha256, "ce013625030ba8dba906f756967f9e9ca394464a"] {
        assert!(file.is(&BlobName::parse(hash).unwrap()), "{hash}");
    }
    assert!(!file.is(&BlobName::parse(&"0".repeat(40)).unwrap()));
    assert_eq!((file.sample().unwrap(), file.bytes().unwrap()), (b"hello\n".to_vec(), b"hello\n".to_vec()));
    let (mut text, mut told) = (String::new(), 0);
    file.piece(1, 4, &mut |bytes| told += bytes).read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), told), ("ell", 3));
    file.check_unchanged().unwrap();
    std::fs::write(&path, "hell").unwrap();
    let error = file.check_unchanged().unwrap_err();
    assert!(error.to_string().contains("was changed while it was sent") && !error.is_usage(), "{error}");
    assert!(file.bytes().unwrap_err().to_string().contains("became shorter"));
    let bytes = LocalFile::of_bytes("y", b"hello\n".to_vec()).unwrap();
    assert_eq!((bytes.sha256(), bytes.bytes().unwrap()), (sha256, b"hello\n".to_vec()));
    assert_eq!(LocalFile::of_bytes("y", Vec::new()).unwrap().bytes().unwrap(), b"");
}
