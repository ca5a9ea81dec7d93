use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn read(siblings: &str) -> Result<Listing> {
    Listing::of_answer(format!(r#"{{"sha": "{COMMIT}", "siblings": [{siblings}]}}"#).as_bytes(), "org/name")
}

#[test]
fn sizes_and_hashes_are_those_of_the_file_and_not_of_its_pointer() {
    let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    let listing = read(&format!(
        r#"{{"rfilename": "config.json", "size": 6, "blobId": "{COMMIT}"}},
               {{"rfilename": "model.safetensors", "size": 134, "blobId": "{COMMIT}",
                 "lfs": {{"sha256": "{sha256}", "size": 99, "pointerSize": 134}}}},
               {{"rfilename": "a b/ü"}}"#
    ))
    .unwrap();
    let of = |name: &str| listing.find(name).map(|file| (file.size, file.blob.clone())).unwrap();
    assert_eq!(of("config.json"), (Some(6), BlobName::parse(COMMIT)));
    assert_eq!(of("model.safetensors"), (Some(99), BlobName::parse(sha256)));
    assert_eq!(of("a b/ü"), (None, None));
    let again: Listing = serde_json::from_str(&serde_json::to_string(&listing).unwrap()).unwrap();
    assert_eq!(again, listing);
}

#[test]
fn names_that_lead_out_are_refused() {
    let long = "x".repeat(300);
    let upwards = ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "", "."];
    let others = ["a\\u0000b", "a\\nb", "\\u001b[31m", long.as_str()];
    for name in upwards.into_iter().chain(others) {
        let error = read(&format!(r#"{{"rfilename": "{name}"}}"#)).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("inside the repository"), "{name}: {error}");
    }
    let twice = r#"{"rfilename": "a"}, {"rfilename": "a"}"#;
    assert!(read(twice).unwrap_err().to_string().contains("twice"));
}

#[test]
fn what_is_no_listing_is_told() {
    for bytes in ["", "[]", "{}", r#"{"sha": 3}"#, "<html>"] {
        let error = Listing::of_answer(bytes.as_bytes(), "org/name").unwrap_err();
        assert!(error.to_string().contains("no list of files") && !error.is_usage(), "{bytes}: {error}");
    }
    let long = "x".repeat(1 << 20);
    for answer in [
        format!(r#"{{"sha": "{long}"}}"#),
        format!(r#"{{"sha": "{COMMIT}", "siblings": "{long}"}}"#),
        format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "{long}"}}]}}"#),
    ] {
        let error = Listing::of_answer(answer.as_bytes(), "org/name").unwrap_err();
        assert!(error.to_string().len() < 1000, "{} bytes", error.to_string().len());
    }
    for commit in ["main", "..", "0123", &COMMIT.to_uppercase()] {
        let error = Listing::of_answer(format!(r#"{{"sha": "{commit}"}}"#).as_bytes(), "org/name").unwrap_err();
        assert!(error.to_string().contains("names the commit"), "{error}");
    }
    let many: Vec<String> = (0..=MAX_FILES).map(|n| format!(r#"{{"rfilename": "f{n}"}}"#)).collect();
    assert!(read(&many.join(",")).unwrap_err().to_string().contains("50001 files"));
}
