//! The files of a folder of records.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Files of this folder whose names end in `.json`. An error names the folder.
pub fn json_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        files.push(entry.with_context(|| format!("cannot read {}", dir.display()))?.path());
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    Ok(files)
}

/// Those of a folder that need not be there.
pub fn json_files_if_there(dir: &Path) -> Result<Vec<PathBuf>> {
    if dir.exists() { json_files(dir) } else { Ok(Vec::new()) }
}
