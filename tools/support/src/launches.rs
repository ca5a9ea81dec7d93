//! The file in which the emulated suite notes its launches, for whoever reads them later.

use crate::compile::sources;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;

/// Variable that names the file to the emulation.
pub const VARIABLE: &str = "QLORA_EMULATION_LAUNCHES";

/// Makes the file anew, with the kernels and tests that are about to run in its first line.
pub fn begin(workspace: &Workspace) -> Result<PathBuf> {
    let path = path(workspace);
    fs::write(&path, header(workspace)).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// What the suite noted of the kernels and tests as they are now. None: it has not run since they changed.
pub fn noted(workspace: &Workspace) -> Option<String> {
    let text = fs::read_to_string(path(workspace)).ok()?;
    text.strip_prefix(&header(workspace)).filter(|notes| !notes.is_empty()).map(str::to_owned)
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.target.join("kernel-launches.txt")
}

fn header(workspace: &Workspace) -> String {
    let mut hasher = DefaultHasher::new();
    for (dir, extension) in
        [("cuda", "cu"), ("cuda", "cuh"), ("cuda", "cpp"), ("tests/cuda", "rs"), ("tests/lab", "rs")]
    {
        for file in sources(&workspace.root, dir, extension) {
            (file.strip_prefix(&workspace.root).unwrap_or(&file), fs::read(&file).unwrap_or_default())
                .hash(&mut hasher);
        }
    }
    format!("{:016x}\n", hasher.finish())
}
