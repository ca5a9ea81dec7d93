//! Adapter directories that stand where a model is expected.

use super::kind::{ADAPTER_CONFIG, check_adapter};
use crate::bail_usage;
use crate::error::Result;
use crate::files::json::read_bounded;
use crate::hub::{HubId, is_hub_name, is_rather_path};
use serde_json::{Map, Value};
use std::path::Path;

/// The record of a run, or an adapter's configuration.
pub(super) const MAX_RECORD_BYTES: u64 = 256 << 20;
/// The record of a run, in its output directory.
pub(super) const RUN_FILE: &str = "run.json";

/// True if a directory holds an adapter and no model. A configuration that is no file counts: reading it gives the
/// error.
pub fn is_adapter(dir: &Path) -> bool {
    dir.join(ADAPTER_CONFIG).symlink_metadata().is_ok() && !dir.join("config.json").is_file()
}

/// A value in a JSON file. None: there is no such file, it is damaged, or it holds none there.
fn value_in(file: &Path, pointer: &str) -> Option<Value> {
    let json: Value = serde_json::from_slice(&read_bounded(file, MAX_RECORD_BYTES).ok()?).ok()?;
    json.pointer(pointer).cloned()
}

/// A text in a JSON file. None: there is no such file, it is damaged, or it holds none there.
fn text_in(file: &Path, pointer: &str) -> Option<String> {
    value_in(file, pointer)?.as_str().map(str::to_owned)
}

/// The record of the run that an adapter is the result or a checkpoint of, as far as `pointer` leads. None: the adapter
/// has no such record.
pub(super) fn recorded(adapter: &Path, pointer: &str) -> Option<Value> {
    let run = [adapter.join(RUN_FILE), adapter.parent()?.join(RUN_FILE)];
    let is_checkpoint = adapter.file_name()?.to_str()?.starts_with("checkpoint-");
    let runs = if is_checkpoint { &run[..] } else { &run[..1] };
    runs.iter().find_map(|run| value_in(run, pointer))
}

/// A setting, where it is a word or a path, of the run that an adapter is the result or a checkpoint of. None: the
/// adapter has no such record.
pub fn recorded_setting(adapter: &Path, name: &str) -> Option<String> {
    recorded(adapter, &format!("/settings/{name}"))?.as_str().map(str::to_owned)
}

/// All settings of the run that is in a directory, or whose checkpoint this is. None: it has no such record.
pub fn recorded_settings(dir: &Path) -> Option<Map<String, Value>> {
    match recorded(dir, "/settings")? {
        Value::Object(settings) => Some(settings),
        _ => None,
    }
}

/// The base that an adapter was trained on: from the record of its run, or from adapter_config.json.
///
/// An id of the hub has the revision that adapter_config.json records, unless another one is chosen (`revision`).
///
/// Refused: no adapter; no record; a directory that is not there, of a path that was given in another one.
pub fn recorded_base(adapter: &Path, revision: Option<&str>) -> Result<String> {
    check_adapter(adapter)?;
    let recorded =
        [recorded_setting(adapter, "model"), text_in(&adapter.join(ADAPTER_CONFIG), "/base_model_name_or_path")];
    let mut recorded = recorded.into_iter().flatten();
    let is_there = |base: &String| Path::new(base).exists() || (HubId::parse(base).is_some() && !is_rather_path(base));
    match recorded.clone().find(is_there).or_else(|| recorded.next()) {
        Some(base) if is_there(&base) => Ok(at_recorded_revision(adapter, base, revision)),
        Some(base) => bail_usage!(
            "{}: records the base {base:?}, and there is no such directory{}; give it with --model",
            adapter.display(),
            if Path::new(&base).is_absolute() { "" } else { " below the working directory" }
        ),
        None => {
            bail_usage!(
                "{}: found no record of the base that it was trained on; give it with --model",
                adapter.display()
            )
        }
    }
}

/// The id of a base with its recorded revision, or without any where another is chosen.
fn at_recorded_revision(adapter: &Path, base: String, chosen: Option<&str>) -> String {
    let Some(id) = HubId::parse(&base).filter(|_| !Path::new(&base).exists()) else { return base };
    if chosen.is_some() {
        return id.name;
    }
    let config = adapter.join(ADAPTER_CONFIG);
    let named = text_in(&config, "/base_model_name_or_path").is_some_and(|named| named == base);
    match text_in(&config, "/revision").filter(|revision| named && is_hub_name(&base) && revision != "main") {
        Some(revision) if HubId::parse(&format!("{base}@{revision}")).is_some() => format!("{base}@{revision}"),
        _ => base,
    }
}

#[cfg(test)]
mod tests;
