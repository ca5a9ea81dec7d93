use super::*;
use crate::files::atomic::AtomicFiles;
use std::io::Write;
use std::os::unix::fs::symlink;

const CONFIG: &str = r#"{"base_model_name_or_path": "org/base"}"#;

/// A directory as a run leaves it.
fn finished(dir: &Path) {
    let mut files = AtomicFiles::new(dir).unwrap();
    for (name, text) in [
        (ADAPTER_MODEL, "tensors"),
        (ADAPTER_CONFIG, CONFIG),
        (CARD, "---\nbase_model: org/base\n---\n"),
        ("tokenizer.json", "{}"),
        ("optimizer.safetensors", "moments"),
    ] {
        files.add(name, |to| to.write_all(text.as_bytes())).unwrap();
    }
    files.add_sums().unwrap();
    files.commit().unwrap();
    std::fs::write(dir.join(RUN_FILE), r#"{"finished": {"steps": 3}}"#).unwrap();
    std::fs::write(dir.join("added_tokens.json"), "mine").unwrap();
    std::fs::create_dir(dir.join("checkpoint-3")).unwrap();
}

fn names(publication: &Publication) -> Vec<&str> {
    publication.files.iter().map(LocalFile::name).collect()
}

#[test]
fn what_is_of_the_adapter_is_sent_and_the_rest_stays() {
    let dir = tempfile::tempdir().unwrap();
    finished(dir.path());
    let ready = publication(dir.path()).unwrap();
    assert_eq!(names(&ready), [ADAPTER_MODEL, ADAPTER_CONFIG, CARD, "tokenizer.json", SUMS]);
    assert_eq!(ready.left, ["added_tokens.json", "checkpoint-3", "optimizer.safetensors", "run.json"]);
    assert_eq!(ready.warnings, [""; 0]);
    // An edited card is sent with its own hash.
    std::fs::write(dir.path().join(CARD), "# mine").unwrap();
    let ready = publication(dir.path()).unwrap();
    assert!(ready.warnings[0].contains("README.md: has no fields"), "{:?}", ready.warnings);
    let of = |name: &str| ready.files.iter().find(|file| file.name() == name).unwrap();
    let sums = String::from_utf8(of(SUMS).bytes().unwrap()).unwrap();
    assert!(sums.contains(&format!("{}  {CARD}\n", of(CARD).sha256())) && !sums.contains("optimizer"), "{sums}");
    std::fs::remove_file(dir.path().join(CARD)).unwrap();
    assert!(publication(dir.path()).unwrap().warnings[0].contains("found no card"));
}

#[test]
fn what_is_not_whole_or_not_there_is_refused() {
    let refused = |change: &dyn Fn(&Path), words: &str| {
        let dir = tempfile::tempdir().unwrap();
        finished(dir.path());
        change(dir.path());
        let error = publication(dir.path()).err().unwrap_or_else(|| panic!("{words}: is taken"));
        assert!(error.is_usage() && error.to_string().contains(words), "{words}: {error}");
    };
    let write =
        |name: &'static str, text: &'static str| move |dir: &Path| std::fs::write(dir.join(name), text).unwrap();
    refused(&write(ADAPTER_MODEL, "tensorz"), "the file changed after it was written");
    refused(&write(SUMS, ""), "found no line of adapter_config.json");
    refused(&write(RUN_FILE, "{}"), "the run there is not finished");
    refused(&write(RUN_FILE, "["), "cannot be read as the record of a run");
    refused(&write(CARD, "---\na: [\n---\n"), "README.md: its fields");
    refused(&|dir| std::fs::remove_file(dir.join(SUMS)).unwrap(), "SHA256SUMS: cannot be read");
    refused(&|dir| std::fs::remove_file(dir.join(ADAPTER_CONFIG)).unwrap(), "adapter_config.json: found no such file");
    refused(&|dir| std::fs::remove_file(dir.join("tokenizer.json")).unwrap(), "tokenizer.json: found no such file");
    for name in [ADAPTER_MODEL, CARD] {
        let link = |dir: &Path| {
            std::fs::rename(dir.join(name), dir.join("elsewhere")).unwrap();
            symlink("elsewhere", dir.join(name)).unwrap();
        };
        refused(&link, "found a link");
    }
    refused(&|dir| std::fs::create_dir(dir.join(CURVE)).unwrap(), "learning_curve.svg: found a link or something");
}

#[test]
fn a_base_that_others_do_not_find_is_told() {
    let dir = tempfile::tempdir().unwrap();
    finished(dir.path());
    let mut files = AtomicFiles::new(dir.path()).unwrap();
    let config = r#"{"base_model_name_or_path": "/models/base"}"#;
    files.add(ADAPTER_CONFIG, |to| to.write_all(config.as_bytes())).unwrap();
    files.update_sums().unwrap();
    files.commit().unwrap();
    let warnings = publication(dir.path()).unwrap().warnings;
    assert!(warnings[0].contains("\"/models/base\", a directory of this machine"), "{warnings:?}");
}
