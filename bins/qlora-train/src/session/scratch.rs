//! The scratch file of a run: its place, and the room for it.

use super::disk::{free_bytes, is_one_file_system, or_here};
use super::plan::MemoryPlan;
use crate::bail_usage;
use crate::config::{Checkpointing, Settings};
use crate::error::{Context, Result};
use crate::files::scratch::ScratchFile;
use crate::files::units::format_bytes;
use crate::report::{status, warning};
use std::path::{Path, PathBuf};

/// Directory of the scratch file: that of the settings, otherwise the output directory, or the nearest one above it
/// that is there.
pub fn dir(settings: &Settings, output: &Path) -> PathBuf {
    let above = || output.ancestors().map(or_here).find(|path| path.is_dir()).map(Path::to_owned);
    settings.scratch_dir.clone().or_else(above).unwrap_or_else(std::env::temp_dir)
}

/// Looks for the room that a plan needs on disk, in each of the `here` processes of this machine, and says so; `before`
/// tells the bytes that the run first takes of the file system of a directory. Returns the bytes that they take of that
/// of `output`. Refused: a directory that is not there or cannot be written, too little room, and a file system in
/// memory that nobody asked for.
pub fn check(
    settings: &Settings,
    plan: &MemoryPlan,
    output: &Path,
    here: usize,
    before: impl FnOnce(&Path) -> Result<u64>,
) -> Result<u64> {
    let bytes = plan.disk_bytes().saturating_mul(here as u64);
    if bytes == 0 {
        let may_write = [Checkpointing::Auto, Checkpointing::Disk].contains(&settings.gradient_checkpointing);
        if settings.scratch_dir.is_some() && !may_write {
            warning!("scratch_dir: nothing is written there without `gradient_checkpointing: disk`");
        }
        return Ok(0);
    }
    let dir = dir(settings, output);
    let (shown, of_all) = (dir.display(), if here > 1 { format!(" in {here} processes") } else { String::new() });
    let file = ScratchFile::create(&dir).usage_context(|| "layers' inputs on disk".to_owned())?;
    if file.is_in_memory() {
        if settings.gradient_checkpointing != Checkpointing::Disk {
            bail_usage!(
                "{shown}: is in memory, and the run fits only with {} of layers' inputs{of_all} on a disk: name a \
                 directory there with `scratch_dir`, or lower max_length",
                format_bytes(bytes)
            );
        }
        warning!(
            "{shown}: is in memory, where layers' inputs take {}{of_all} that the plan does not count; `scratch_dir` \
             names a directory on a disk",
            format_bytes(bytes)
        );
    }
    let before = before(&dir)?;
    let beside = match before {
        0 => String::new(),
        before => format!(" and {} for the base in NF4 (quantized_cache)", format_bytes(before)),
    };
    let free = free_bytes(&dir);
    if let Some(free) = free.filter(|free| *free < bytes.saturating_add(before)) {
        bail_usage!(
            "{shown}: {} are free on its file system, expected {} for layers' inputs{of_all}{beside}: make room, name another \
             directory with `scratch_dir`, or lower max_length",
            format_bytes(free),
            format_bytes(bytes)
        );
    }
    let free = free.map_or(String::new(), |free| format!(", {} free", format_bytes(free)));
    status!("layers' inputs: {}{of_all} in a scratch file in {shown}{free}", format_bytes(bytes));
    Ok(if is_one_file_system(&dir, output) { bytes } else { 0 })
}

#[cfg(test)]
mod tests;
