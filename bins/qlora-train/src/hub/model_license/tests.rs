use super::super::cache::Kind;
use super::super::listing::Listing;
use super::*;
use serde_json::Value;

#[test]
fn a_license_is_read_from_the_card_beside_the_model() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(license_of(dir.path()), None);
    let of = |text: &str| {
        std::fs::write(dir.path().join(CARD), text).unwrap();
        license_of(dir.path())
    };
    let plain = |id: &str| License { id: id.to_owned(), name: None, link: None };
    assert_eq!(of("---\nlicense: apache-2.0\ntags: [a]\n---\n# x\n"), Some(plain("apache-2.0")));
    assert_eq!(of("---\nlicense:\n- mit\n---\n"), Some(plain("mit")));
    let other = License { name: Some("terms".into()), link: Some("LICENSE".into()), ..plain("other") };
    assert_eq!(of("---\nlicense: other\nlicense_name: terms\nlicense_link: LICENSE\n---\n"), Some(other));
    for none in [
        "# no fields",
        "---\ntags: []\n---\n",
        "---\nlicense:\n- mit\n- gpl\n---\n",
        "---\nlicense: [\n---\n",
        "---\nlicense: \"a\\nb: c\"\n---\n",
        "---\nlicense: a b\n---\n",
        "---\nlicense: ''\n---\n",
    ] {
        assert_eq!(of(none), None, "{none}");
    }
}

#[test]
fn a_license_is_kept_with_the_listing_of_a_commit() {
    let root = tempfile::tempdir().unwrap();
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let folder = Folder::new(root.path(), Kind::Model, "org/name");
    let answer = |card: Value| json!({"sha": commit, "siblings": [], "cardData": card}).to_string();
    let listing = Listing::of_answer(answer(json!({"license": "llama3.1"})).as_bytes(), "org/name").unwrap();
    folder.keep_listing(&listing).unwrap();
    let snapshot = folder.snapshot(commit);
    assert_eq!(license_of(&snapshot).unwrap().id, "llama3.1");
    assert_eq!(license_of(&root.path().join("snapshots").join(commit)), None);
    // The files are listed whatever the card contains.
    for card in [json!(null), json!(7), json!({"license": ["a", "b"]}), json!({"license": {"x": 1}})] {
        assert_eq!(Listing::of_answer(answer(card).as_bytes(), "org/name").unwrap().license, None);
    }
}
