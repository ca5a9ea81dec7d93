//! The files of an adapter that are published: what others need to use it, and nothing of the run that it came of.

use std::path::Path;

use serde_json::Value;

use super::card::CURVE;
use super::files::{CARD, TOKENIZER_FILES};
use super::kind::{ADAPTER_CONFIG, ADAPTER_MODEL, check_adapter};
use super::locate::{MAX_RECORD_BYTES, RUN_FILE};
use crate::error::{Context, Result};
use crate::files::atomic::{MAX_SUMS_BYTES, SUMS, find_damage, parse_sums};
use crate::files::dir::{Dir, Kind};
use crate::files::json::read_bounded;
use crate::hub::{LocalFile, has_fields, is_hub_name};
use crate::refuse;

/// An adapter, ready to be sent.
pub struct Publication {
    pub files: Vec<LocalFile>,
    /// Names in the directory that stay where they are
    pub left: Vec<String>,
    /// What a user should know before others see it
    pub warnings: Vec<String>,
}

/// The files of an adapter that this program wrote: those of the adapter, its card and its learning curve, the
/// tokenizer and the chat template, and the hashes of all of them. Optimizer states, checkpoints and records of the run
/// are none of it.
///
/// Refused: no adapter; one that is not finished, damaged, or not of this program; a link, or anything but a file, in
/// the place of one of them; a card whose fields no hub reads.
pub fn publication(dir: &Path) -> Result<Publication> {
    check_adapter(dir)?;
    check_finished(dir)?;
    if let Some(damage) = find_damage(dir, &[ADAPTER_CONFIG, ADAPTER_MODEL], &[CARD, CURVE])? {
        refuse!(
            "{damage}: only an adapter that is whole is sent; train it anew, or if another program wrote or changed \
             it, use `hf upload`"
        );
    }
    let open = Dir::open(dir).usage_context(|| format!("{}: cannot be read", dir.display()))?;
    let sums = read_bounded(&dir.join(SUMS), MAX_SUMS_BYTES)?;
    let sums = String::from_utf8_lossy(&sums).into_owned();
    let summed = parse_sums(&sums);
    let mut publication = Publication { files: Vec::new(), left: Vec::new(), warnings: Vec::new() };
    for name in [ADAPTER_CONFIG, ADAPTER_MODEL, CARD, CURVE].into_iter().chain(TOKENIZER_FILES) {
        let path = open.join(name);
        let may_be_edited = [CARD, CURVE].contains(&name);
        let what = || format!("{}: cannot be read", path.display());
        match open.kind(name).usage_context(what)? {
            None => continue,
            // A file that somebody put there is not the adapter's.
            Some(_) if !may_be_edited && !summed.iter().any(|(_, summed)| *summed == name) => continue,
            Some(Kind::File) => {}
            Some(_) => refuse!(
                "{}: found a link or something else that is no file; only files of the directory itself are sent: put \
                 the file in its place",
                path.display()
            ),
        }
        let file = open.open_file(name).usage_context(what)?;
        let file = LocalFile::open(name, file, path.display().to_string())?;
        if !may_be_edited && !summed.contains(&(file.sha256(), name)) {
            refuse!("{}: was written to while it was read; push it again when it is done", path.display());
        }
        publication.files.push(file);
    }
    check_card(dir, &mut publication)?;
    check_base(dir, &mut publication);
    // The card may have been edited: the sums are of what is sent, in the order in which they were.
    let place = |file: &LocalFile| summed.iter().position(|(_, name)| *name == file.name()).unwrap_or(usize::MAX);
    publication.files.sort_by_key(place);
    let sums: String = publication.files.iter().map(|file| format!("{}  {}\n", file.sha256(), file.name())).collect();
    publication.files.push(LocalFile::of_bytes(SUMS, sums.into_bytes())?);
    let names = open.names().usage_context(|| format!("{}: cannot be read", dir.display()))?;
    let names = names.into_iter().map(|name| name.to_string_lossy().into_owned());
    let is_sent = |name: &str| publication.files.iter().any(|file| file.name() == name);
    publication.left = names.filter(|name| !name.starts_with('.') && !is_sent(name)).collect();
    Ok(publication)
}

/// Refuses the directory of a run that is not finished.
fn check_finished(dir: &Path) -> Result<()> {
    let path = dir.join(RUN_FILE);
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let what = || format!("{}: cannot be read as the record of a run", path.display());
    let run: Value = serde_json::from_slice(&read_bounded(&path, MAX_RECORD_BYTES)?).usage_context(what)?;
    if run.get("finished").is_none_or(Value::is_null) {
        refuse!(
            "{}: the run there is not finished: go on with it (`--resume-from-checkpoint`), or push one of its \
             checkpoints",
            dir.display()
        );
    }
    Ok(())
}

/// Refuses a card that the hub would refuse at the end of everything.
fn check_card(dir: &Path, publication: &mut Publication) -> Result<()> {
    const MAX_CARD_BYTES: u64 = 1 << 20;
    let path = dir.join(CARD);
    if !publication.files.iter().any(|file| file.name() == CARD) {
        publication.warnings.push(format!("{}: found no card; nobody is told what the adapter is", path.display()));
        return Ok(());
    }
    let card = read_bounded(&path, MAX_CARD_BYTES)?;
    match has_fields(&String::from_utf8_lossy(&card)) {
        Ok(true) => {}
        Ok(false) => publication
            .warnings
            .push(format!("{}: has no fields (YAML between lines of ---) that name the base", path.display())),
        Err(why) => refuse!("{}: its fields (YAML between lines of ---) cannot be read: {why}", path.display()),
    }
    Ok(())
}

/// A base that others do not find is told.
fn check_base(dir: &Path, publication: &mut Publication) {
    let path = dir.join(ADAPTER_CONFIG);
    let read = read_bounded(&path, MAX_RECORD_BYTES).ok();
    let config: Option<Value> = read.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let base = config.as_ref().and_then(|config| config.get("base_model_name_or_path")?.as_str());
    if let Some(base) = base.filter(|base| !is_hub_name(base) || Path::new(base).exists()) {
        publication.warnings.push(format!(
            "{}: names the base {base:?}, a directory of this machine: others see the path and do not find it; train on \
             its id on the hub to have that there (base_model_name_or_path)",
            path.display()
        ));
    }
}

#[cfg(test)]
mod tests {
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
        refused(
            &|dir| std::fs::remove_file(dir.join(ADAPTER_CONFIG)).unwrap(),
            "adapter_config.json: found no such file",
        );
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
}
