use super::*;
use std::path::PathBuf;

#[test]
fn a_pipe_or_a_device_is_no_file_and_a_file_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (pipe, file) = (dir.path().join("pipe"), dir.path().join("file"));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let socket = dir.path().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // Without a writer, opening it would wait for ever.
    for (path, what) in [
        (&pipe, "a pipe"),
        (&PathBuf::from("/dev/zero"), "a device"),
        (&dir.path().to_owned(), "a directory"),
        (&socket, "a socket"),
    ] {
        let refused = read_at_most(path, 9).unwrap_err();
        let told = format!("found {what}, which is not a regular file");
        assert!(refused.to_string().contains(&told) && refused.is_usage(), "{refused}");
        let refused = is_there(path).unwrap_err();
        assert!(refused.to_string().contains(&format!("found {what}, expected a file")), "{refused}");
    }
    assert!(!is_there(&file).unwrap());
    std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
    assert_eq!(in_place_of(&dir.path().join("link")), Some("a link to nothing"));
    std::fs::write(&file, "123456789").unwrap();
    assert!(is_there(&file).unwrap() && is_there(&dir.path().join("link")).unwrap());
    assert_eq!(read_at_most(&file, 9).unwrap().unwrap(), b"123456789");
    assert_eq!(read_at_most(&file, 8).unwrap(), None);
}
