//! The files of a release.

use crate::archive::{Entry, tar_gz};
use crate::cuda_runtime::CudaRuntime;
use crate::elf::Needs;
use crate::sbom::{Crates, TRAINER};
use crate::wheel::Wheel;
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::process::Command;
use tools_support::artifacts::ensure_released;
use tools_support::command::{check, finished};
use tools_support::workspace::Workspace;

const DOCKERFILE: &str = include_str!("Dockerfile");
/// Name of the checksums, which `sha256sum --check` reads.
pub const SUMS: &str = "SHA256SUMS";

/// Device that a binary is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flavor {
    Cpu,
    /// With the runtime that is linked into the binary
    Cuda(CudaRuntime),
}

impl Flavor {
    fn features(&self) -> &'static [&'static str] {
        match self {
            Self::Cpu => &[],
            Self::Cuda(_) => &["qlora-train/cuda"],
        }
    }

    /// The second line of the program's `--version`
    fn built(&self) -> &'static str {
        match self {
            Self::Cpu => "built for the CPU",
            Self::Cuda(_) => "built with CUDA",
        }
    }

    fn suffix(&self) -> &'static str {
        match self {
            Self::Cpu => "",
            Self::Cuda(_) => "-cuda",
        }
    }

    fn runtime(&self) -> Option<&CudaRuntime> {
        match self {
            Self::Cpu => None,
            Self::Cuda(runtime) => Some(runtime),
        }
    }
}

/// Name of the archive of this flavor, and of the folder in it.
pub fn archive_name(version: &str, flavor: &Flavor) -> String {
    format!("{TRAINER}-{version}-{}-linux-gnu{}", std::env::consts::ARCH, flavor.suffix())
}

/// Packs a binary without parts of tests into `to`.
pub fn release(workspace: &Workspace, binary: &Path, flavor: &Flavor, to: &Path) -> Result<String> {
    ensure_released(binary, flavor.built())?;
    pack(workspace, binary, flavor, to)
}

/// Packs the binary into `to`: the tarball, for the CPU a wheel and a Dockerfile too, bills of materials, and checksums
/// of all that is there. Returns a sentence that lists them.
pub fn pack(workspace: &Workspace, binary: &Path, flavor: &Flavor, to: &Path) -> Result<String> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let crates = Crates::linked(workspace, flavor.features())?;
    let package = crates.trainer()?;
    let stripped = stripped(binary, &workspace.target.join("dist-stripped"))?;
    let needs = Needs::of(&stripped)?;
    let platform = needs.platform_tag()?;
    let sbom = format!("{:#}\n", crates.sbom(flavor.runtime())?).into_bytes();
    let mut licenses = vec![Entry::new("THIRD-PARTY-LICENSES", crates.notices()?)];
    for name in ["LICENSE-APACHE", "LICENSE-MIT"] {
        licenses.push(Entry::new(name, read(&workspace.root.join(name))?));
    }
    licenses.extend(flavor.runtime().map(|runtime| Entry::new("NVIDIA-CUDA-EULA", runtime.license.clone())));
    let shared = shared(binary, &workspace.target.join("dist-pages"))?;
    let readme = String::from_utf8(read(&workspace.root.join("README.md"))?).context("README.md is no text")?;

    let name = archive_name(&package.version.to_string(), flavor);
    let mut entries = vec![Entry::executable(format!("bin/{TRAINER}"), stripped.clone())];
    entries.extend(shared.iter().chain(&licenses).cloned());
    entries.push(Entry::new("README.md", readme.clone()));
    entries.push(Entry::new(format!("share/doc/{TRAINER}/{TRAINER}.cdx.json"), sbom.clone()));
    let entries: Vec<Entry> = entries.iter().map(|entry| entry.below(&name)).collect();
    let tarball = tar_gz(&entries)?;
    let mut made = vec![size_of(&format!("{name}.tar.gz"), &tarball)];
    write(to, &format!("{name}.tar.gz"), &tarball)?;
    write(to, &format!("{name}.cdx.json"), &sbom)?;
    if *flavor == Flavor::Cpu {
        let description = &readme;
        let wheel = Wheel { package, platform: &platform, binary: stripped, shared, licenses, sbom, description };
        let bytes = wheel.bytes()?;
        write(to, &wheel.file_name(), &bytes)?;
        made.push(size_of(&wheel.file_name(), &bytes));
        write(to, "Dockerfile", DOCKERFILE.replace("{ARCHIVE}", &name).as_bytes())?;
    }
    write(to, SUMS, sums(to)?.as_bytes())?;
    Ok(format!(
        "{}; needs {} and glibc {}.{}",
        made.join(", "),
        needs.libraries.join(", "),
        needs.glibc.0,
        needs.glibc.1
    ))
}

fn size_of(name: &str, bytes: &[u8]) -> String {
    format!("{name}: {:.1} MB", bytes.len() as f64 / 1e6)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(to: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = to.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// The binary without symbols.
fn stripped(binary: &Path, scratch: &Path) -> Result<Vec<u8>> {
    let mut strip = Command::new("strip");
    strip.arg("--strip-all").arg("-o").arg(scratch).arg(binary);
    check(strip).context("binutils' strip makes the binary small")?;
    read(scratch)
}

/// Manual pages and completions, as the binary writes them, where a prefix has them.
fn shared(binary: &Path, scratch: &Path) -> Result<Vec<Entry>> {
    if scratch.exists() {
        fs::remove_dir_all(scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    }
    finished(Command::new(binary).args(["man", "--output-dir"]).arg(scratch).output(), "qlora-train man")?;
    let mut entries = Vec::new();
    for page in fs::read_dir(scratch).with_context(|| format!("cannot read {}", scratch.display()))? {
        let page = page?;
        let name = page.file_name().to_string_lossy().into_owned();
        entries.push(Entry::new(format!("share/man/man1/{name}"), read(&page.path())?));
    }
    ensure!(!entries.is_empty(), "`qlora-train man` wrote no page");
    entries.sort_by(|a, b| a.path.cmp(&b.path));
    for (shell, path) in [
        ("bash", "share/bash-completion/completions/qlora-train"),
        ("fish", "share/fish/vendor_completions.d/qlora-train.fish"),
        ("zsh", "share/zsh/site-functions/_qlora-train"),
    ] {
        let script = finished(Command::new(binary).args(["completions", shell]).output(), "qlora-train completions")?;
        entries.push(Entry::new(path, script));
    }
    Ok(entries)
}

/// Checksums of the folder's files, as `sha256sum` writes them.
fn sums(folder: &Path) -> Result<String> {
    let mut lines = Vec::new();
    for file in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name != SUMS && path.is_file() {
            let hash: String = Sha256::digest(read(&path)?).iter().map(|byte| format!("{byte:02x}")).collect();
            lines.push((name.clone(), format!("{hash}  {name}\n")));
        }
    }
    lines.sort();
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_that_sha256sum_checks() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("b", "two"), ("a", "one"), (SUMS, "of before")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let sums = sums(dir.path()).unwrap();
        fs::write(dir.path().join(SUMS), &sums).unwrap();
        let mut command = Command::new("sha256sum");
        command.args(["--check", "--strict", SUMS]).current_dir(dir.path());
        let said = finished(command.output(), "sha256sum").unwrap();
        assert_eq!(said, "a: OK\nb: OK\n");
    }

    #[test]
    fn the_image_holds_the_archive_by_its_name() {
        let name = archive_name("1.2.3", &Flavor::Cpu);
        let dockerfile = DOCKERFILE.replace("{ARCHIVE}", &name);
        assert!(dockerfile.contains(&format!("ADD {name}.tar.gz /opt/\n")), "{dockerfile}");
        assert!(dockerfile.contains(&format!("PATH=/opt/{name}/bin:$PATH\n")) && !dockerfile.contains('{'));
        let runtime = CudaRuntime { version: "13.0.96".to_owned(), license: Vec::new() };
        assert_eq!(archive_name("1.2.3", &Flavor::Cuda(runtime)), format!("{name}-cuda"));
    }
}
