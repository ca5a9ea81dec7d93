//! A name for the state of the kernels that a record was measured on.

use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// What nvcc sees of `cuda/`: folder and extension.
const SOURCES: [(&str, &str); 4] =
    [("cuda", "cu"), ("cuda", "cuh"), ("cuda/include", "h"), ("cuda/package", "flags-cuda.txt")];

/// SHA-256 over the names and contents of the kernels' sources, sorted, and of nvcc's flags; not of the emulation.
pub fn kernels_hash(root: &Path) -> std::io::Result<String> {
    let mut files: Vec<PathBuf> = Vec::new();
    for (folder, ending) in SOURCES {
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name == ending || path.extension().is_some_and(|extension| extension == ending) {
                files.push(path);
            }
        }
    }
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
