use super::*;

fn place(id: u32, signature: &str) -> Begun {
    let places = (1..=3).map(|part| format!("https://s/o?part={part}&uploadId={id}&x={signature}")).collect();
    let texts = ["https://hub", "org/mine", "ab"].map(str::to_owned);
    let [hub, repository, sha256] = texts;
    let (complete, taken) = (format!("https://hub/complete?{id}&{signature}"), Vec::new());
    Begun { hub, repository, sha256, size: 5, part: 2, places, complete, taken }
}

#[test]
fn an_upload_goes_on_until_its_store_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Kept::open(Some(dir.path()), "ab");
    let mut kept = open();
    assert_eq!(kept.begin(place(1, "a")), (place(1, "a"), Beginning::New));
    kept.take("\"one\"");
    // Another process that sends the same file keeps nothing.
    assert!(open().file.is_none());
    drop(kept);
    let with_one = |place: Begun| Begun { taken: vec!["\"one\"".to_owned()], ..place };
    let (begun, beginning) = open().begin(place(2, "b"));
    assert_eq!((&begun, beginning), (&with_one(place(1, "a")), Beginning::GoesOn));
    assert_eq!(begun.taken_bytes(), 2);
    // One upload with addresses that are signed anew
    let mut kept = open();
    assert_eq!(kept.begin(place(1, "c")), (with_one(place(1, "c")), Beginning::GoesOn));
    kept.refuse();
    assert_eq!(kept.begin(place(1, "d")), (with_one(place(1, "d")), Beginning::GoesOn));
    kept.refuse();
    assert_eq!(kept.begin(place(2, "e")), (place(2, "e"), Beginning::Again));
    // Parts that are all there and do not make the file are of no use.
    ["1", "2", "3"].iter().for_each(|name| kept.take(name));
    kept.refuse();
    assert_eq!(kept.begin(place(2, "f")), (place(2, "f"), Beginning::New));
    kept.forget();
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn what_is_not_of_the_file_or_not_whole_is_not_gone_on_with() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ab");
    let line = serde_json::to_string(&place(1, "a")).unwrap();
    let begins = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Kept::open(Some(dir.path()), "ab").begin(place(2, "b"))
    };
    // The second name was not written whole.
    let (begun, beginning) = begins(&format!("{line}\none\ntw"));
    assert_eq!((begun.taken, beginning), (vec!["one".to_owned()], Beginning::GoesOn));
    for text in [
        String::new(),
        "{}\n".to_owned(),
        line.clone(),
        format!("{line}\none\ntwo\nthree\nfour\n"),
        format!("{}\none\n", line.replace("org/mine", "org/yours")),
        format!("{}\none\n", line.replace("\"size\":5", "\"size\":50")),
        format!("{}\none\n", line.replace("\"part\":2", "\"part\":0")),
    ] {
        assert_eq!(begins(&text), (place(2, "b"), Beginning::New), "{text}");
    }
    std::fs::remove_file(&path).unwrap();
    Kept::open(Some(dir.path()), "ab").begin(place(1, "a"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // If nothing can be recorded, everything is sent.
    let mut kept = Kept::open(None, "ab");
    assert_eq!(kept.begin(place(1, "a")).1, Beginning::New);
    kept.take("one");
    kept.forget();
}
