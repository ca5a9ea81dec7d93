//! The files of an adapter that are published: everything that others need to use it, and nothing else of the run.

use std::path::Path;

use serde_json::Value;

use super::card::CURVE;
use super::files::{CARD, TOKENIZER_FILES};
use super::kind::{ADAPTER_CONFIG, ADAPTER_MODEL, check_adapter};
use super::locate::{MAX_RECORD_BYTES, RUN_FILE};
use crate::bail_usage;
use crate::error::{Context, Result};
use crate::files::atomic::{MAX_SUMS_BYTES, SUMS, find_damage, parse_sums};
use crate::files::dir::{Dir, Kind};
use crate::files::json::read_bounded;
use crate::hub::{LocalFile, has_fields, is_hub_name};

/// An adapter, ready to be sent.
pub struct Publication {
    pub files: Vec<LocalFile>,
    /// Names in the directory that stay where they are
    pub left: Vec<String>,
    /// Warnings for the user before others see it
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
        bail_usage!(
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
            Some(_) => bail_usage!(
                "{}: found a link or something else that is no file; only files of the directory itself are sent: put \
                 the file in its place",
                path.display()
            ),
        }
        let file = open.open_file(name).usage_context(what)?;
        let file = LocalFile::open(name, file, path.display().to_string())?;
        if !may_be_edited && !summed.contains(&(file.sha256(), name)) {
            bail_usage!("{}: was written to while it was read; push it again when it is done", path.display());
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
        bail_usage!(
            "{}: the run there is not finished: go on with it (`--resume-from-checkpoint`), or push one of its \
             checkpoints",
            dir.display()
        );
    }
    Ok(())
}

/// Refuses a card that the hub would refuse only after the upload.
fn check_card(dir: &Path, publication: &mut Publication) -> Result<()> {
    const MAX_CARD_BYTES: u64 = 1 << 20;
    let path = dir.join(CARD);
    if !publication.files.iter().any(|file| file.name() == CARD) {
        publication.warnings.push(format!("{}: found no card that describes the adapter", path.display()));
        return Ok(());
    }
    let card = read_bounded(&path, MAX_CARD_BYTES)?;
    match has_fields(&String::from_utf8_lossy(&card)) {
        Ok(true) => {}
        Ok(false) => publication
            .warnings
            .push(format!("{}: has no fields (YAML between lines of ---) that name the base", path.display())),
        Err(why) => bail_usage!("{}: its fields (YAML between lines of ---) cannot be read: {why}", path.display()),
    }
    Ok(())
}

/// Warns of a base that others cannot find.
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
mod tests;
