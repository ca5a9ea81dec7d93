//! The model's directory: made once, replaced when it is stale, and never half.

use super::*;
use anyhow::bail;

fn convert(dir: &Path) -> Result<()> {
    fs::write(dir.join("config.json"), "{}")?;
    Ok(fs::write(dir.join("model.safetensors"), "weights")?)
}

#[test]
fn a_directory_is_reused_until_its_stamp_or_a_file_differs_and_then_rebuilt() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    assert!(!is_current(&dir, "hash"));
    build(convert, "hash", &dir).unwrap();
    assert!(is_current(&dir, "hash"));
    assert!(!is_current(&dir, "another hash"));

    fs::write(dir.join("config.json"), "{").unwrap();
    assert!(!is_current(&dir, "hash"));
    build(convert, "hash", &dir).unwrap();
    assert!(is_current(&dir, "hash"));

    let stamp = fs::read_to_string(dir.join(STAMP)).unwrap();
    fs::write(dir.join(STAMP), stamp.replace("\"converter_version\": 1", "\"converter_version\": 0")).unwrap();
    assert!(!is_current(&dir, "hash"));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "something was left beside the model");
}

#[test]
fn a_failed_conversion_leaves_what_was_there() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("model");
    build(convert, "hash", &dir).unwrap();
    let fail = |dir: &Path| {
        convert(dir)?;
        bail!("damaged")
    };
    assert!(build(fail, "another hash", &dir).is_err());
    assert!(is_current(&dir, "hash"));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);

    fs::remove_file(dir.join(STAMP)).unwrap();
    let error = build(convert, "hash", &dir).unwrap_err().to_string();
    assert!(error.contains("was not made by"), "{error}");
    assert!(dir.join("config.json").exists());
}
