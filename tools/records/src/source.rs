//! A name for the state of the kernels that a record was measured on.

use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// Ends of the names of the files of `cuda/` that nvcc sees.
const SOURCES: [&str; 4] = [".cu", ".cuh", ".h", "flags-cuda.txt"];

/// SHA-256 over the names and contents of the kernels' sources, sorted, and of nvcc's flags; not of the emulation.
pub fn kernels_hash(root: &Path) -> std::io::Result<String> {
    let mut files = Vec::new();
    collect(&root.join("cuda"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
        let bytes = fs::read(file)?;
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type()?.is_dir() && name != "emulation" {
            collect(&path, files)?;
        } else if SOURCES.iter().any(|end| name.ends_with(end)) {
            files.push(path);
        }
    }
    Ok(())
}
