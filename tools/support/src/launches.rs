//! The file in which the emulated suite notes its launches, for later readers.

use crate::compile::sources;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Variable that names the file to the emulation.
pub const VARIABLE: &str = "QLORA_EMULATION_LAUNCHES";

/// Begins a new file, with the hash of the kernels and tests that are about to run in its first line.
pub fn begin(workspace: &Workspace) -> Result<PathBuf> {
    let path = path(workspace);
    fs::write(&path, header(workspace)).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The suite's notes of the kernels and tests as they are now. None: it has not run since they changed, or since a
/// program whose functions are noted by their place was linked again.
pub fn noted(workspace: &Workspace) -> Option<String> {
    let path = path(workspace);
    let text = fs::read_to_string(&path).ok()?;
    let notes = text.strip_prefix(&header(workspace)).filter(|notes| !notes.is_empty())?;
    are_of_their_programs(notes, modified(&path)?).then(|| notes.to_owned())
}

/// True if all programs that notes name are older than the notes.
fn are_of_their_programs(notes: &str, written: SystemTime) -> bool {
    let programs: BTreeSet<&str> = notes.lines().filter_map(|line| line.splitn(3, ' ').nth(2)).collect();
    programs.iter().all(|program| modified(Path::new(program)).is_some_and(|linked| linked <= written))
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|found| found.modified()).ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn notes_of_a_program_that_was_linked_anew_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("a program");
        fs::write(&program, "x").unwrap();
        let linked = modified(&program).unwrap();
        let notes = format!("3aa9d0 64 {0}\n3aa800 0 {0}\n", program.display());
        assert!(are_of_their_programs(&notes, linked + Duration::from_secs(1)));
        assert!(!are_of_their_programs(&notes, linked - Duration::from_secs(1)));
        fs::remove_file(&program).unwrap();
        assert!(!are_of_their_programs(&notes, linked + Duration::from_secs(1)));
    }
}
