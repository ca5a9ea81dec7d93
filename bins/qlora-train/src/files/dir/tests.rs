use super::*;
use std::os::unix::fs::symlink;

fn names(path: &Path) -> Vec<OsString> {
    Dir::open(path).unwrap().names().unwrap()
}

#[test]
fn links_are_removed_and_what_they_lead_to_is_not() {
    let base = tempfile::tempdir().unwrap();
    let (inside, outside) = (base.path().join("inside"), base.path().join("outside"));
    std::fs::create_dir_all(inside.join("a/b")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("mine"), "mine").unwrap();
    std::fs::write(inside.join("a/b/file"), "").unwrap();
    symlink(&outside, inside.join("a/b/link")).unwrap();
    symlink(outside.join("mine"), inside.join("a/file-link")).unwrap();
    symlink(&outside, inside.join("link")).unwrap();
    let dir = Dir::open(&inside).unwrap();
    let mut count = 0;
    dir.remove_all("a", &mut || count += 1).unwrap();
    assert_eq!(count, 5, "two directories, a file and two links");
    dir.remove_all("link", &mut || ()).unwrap();
    dir.remove_all("absent", &mut || ()).unwrap();
    assert!(names(&inside).is_empty());
    assert_eq!(std::fs::read_to_string(outside.join("mine")).unwrap(), "mine");
}

/// A directory that is mounted belongs elsewhere.
#[test]
fn what_is_mounted_is_not_removed() {
    let base = tempfile::tempdir().unwrap();
    let (inside, outside) = (base.path().join("inside"), base.path().join("outside"));
    std::fs::create_dir_all(inside.join("a")).unwrap();
    std::fs::create_dir(&outside).unwrap();
    let dir = Dir::open(&inside).unwrap();
    assert!(!dir.is_mount(OsStr::new("a")) && !dir.is_mount(OsStr::new("absent")));
    std::fs::write(outside.join("mine"), "mine").unwrap();
    let run = |program: &str, arguments: &[&OsStr]| {
        let mut command = std::process::Command::new(program);
        command.args(arguments).stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let place = inside.join("a");
    // Only root may mount.
    if !run("mount", &["--bind".as_ref(), outside.as_ref(), place.as_ref()]) {
        return println!("not run: nothing can be mounted here");
    }
    let known = dir.is_mount(OsStr::new("a"));
    let removed = if known { dir.remove_all("a", &mut || ()) } else { Ok(()) };
    assert!(run("umount", &[place.as_ref()]));
    assert!(!known || removed.unwrap_err().to_string().contains("a is mounted there: unmount it first"));
    assert_eq!(std::fs::read_to_string(outside.join("mine")).unwrap(), "mine");
}

#[test]
fn links_are_not_opened() {
    let base = tempfile::tempdir().unwrap();
    std::fs::write(base.path().join("file"), "mine").unwrap();
    std::fs::create_dir(base.path().join("dir")).unwrap();
    symlink("file", base.path().join("to-file")).unwrap();
    symlink("dir", base.path().join("to-dir")).unwrap();
    symlink("nowhere", base.path().join("dangling")).unwrap();
    let dir = Dir::open(base.path()).unwrap();
    assert!(dir.sub("to-dir").is_err() && dir.sub("dir").is_ok());
    assert!(dir.open_file("to-file").is_err() && dir.append_to("to-file").is_err());
    assert!(dir.create_file("dangling").is_err() && dir.append_to("dangling").is_err());
    assert!(!base.path().join("nowhere").exists());
    let kinds = ["file", "dir", "to-dir", "none"].map(|name| dir.kind(name).unwrap());
    assert_eq!(kinds, [Some(Kind::File), Some(Kind::Directory), Some(Kind::Other), None]);
}

#[test]
fn a_directory_that_was_replaced_is_known() {
    let base = tempfile::tempdir().unwrap();
    let path = base.path().join("out");
    let dir = Dir::create(&path).unwrap();
    assert!(dir.is_in_place().unwrap());
    std::fs::rename(&path, base.path().join("moved")).unwrap();
    assert!(!dir.is_in_place().unwrap());
    std::fs::create_dir(&path).unwrap();
    assert!(!dir.is_in_place().unwrap());
    // Files are still made where it was opened.
    dir.create_file("file").unwrap();
    assert!(base.path().join("moved/file").exists() && names(&path).is_empty());
}

#[test]
fn a_file_without_a_name_appears_when_it_is_linked() {
    let base = tempfile::tempdir().unwrap();
    let dir = Dir::open(base.path()).unwrap();
    // Some file systems have none.
    let Ok(file) = dir.create_nameless() else { return assert!(names(base.path()).is_empty()) };
    assert!(names(base.path()).is_empty());
    dir.link(&file, "file").unwrap();
    assert_eq!(names(base.path()), ["file"]);
    assert!(dir.link(&file, "file").is_err());
}

#[test]
fn unique_names_differ() {
    let drawn: std::collections::HashSet<String> = (0..1000).map(|_| unique()).collect();
    assert_eq!(drawn.len(), 1000);
}
