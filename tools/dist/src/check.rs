//! A release that is packed, looked at by others' tools, installed and run where there is no Rust.

use crate::bare_root::BareRoot;
use crate::elf::Needs;
use crate::model;
use crate::release::{Flavor, SUMS, archive_name, pack, release};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tools_support::command::{check, finished};
use tools_support::pypi;
use tools_support::workspace::Workspace;

const SCRIPT: &str = include_str!("check.py");
/// auditwheel, the validator of CycloneDX, and what they import.
const PACKAGES: [&str; 16] = [
    "attrs==26.1.0",
    "auditwheel==6.8.2",
    "boolean.py==5.0",
    "cyclonedx-python-lib==11.12.0",
    "defusedxml==0.7.1",
    "jsonschema==4.26.0",
    "jsonschema-specifications==2025.9.1",
    "license-expression==30.4.4",
    "packageurl-python==0.17.6",
    "packaging==26.4",
    "py-serializable==2.2.0",
    "pyelftools==0.33",
    "referencing==0.37.0",
    "rpds-py==2026.9.1",
    "sortedcontainers==2.4.0",
    "typing-extensions==4.16.0",
];
const TRAIN: &str = "train --model model --data rows.jsonl --output-dir out --device cpu --max-length 32 --lora-r 4 \
                     --max-steps 2 --allow all --json";

/// Packs this binary of the tests twice, and installs and runs the packages, which a release refuses. Returns its
/// findings in a sentence.
pub fn run(workspace: &Workspace, binary: &Path) -> Result<String> {
    let folder = workspace.target.join("dist-check");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let (first, again) = (folder.join("first"), folder.join("again"));
    let released = release(workspace, binary, &Flavor::Cpu, &first);
    ensure!(released.is_err() && !first.exists(), "a program with failpoints was released: {released:?}");
    let made = pack(workspace, binary, &Flavor::Cpu, &first)?;
    pack(workspace, binary, &Flavor::Cpu, &again)?;
    let files = names(&first)?;
    ensure!(files == names(&again)?, "packed again there are other files: {files:?}");
    for name in &files {
        let same = fs::read(first.join(name))? == fs::read(again.join(name))?;
        ensure!(same, "{name}: packed again it has other bytes");
    }
    check(Command::new("sha256sum").args(["--check", "--strict", "--quiet", SUMS]).current_dir(&first))?;
    let wheel = first.join(files.iter().find(|name| name.ends_with(".whl")).context("there is no wheel")?);
    let platform = judged(workspace, &wheel, &first, binary)?;
    let version = installed_wheel(&folder.join("venv"), &wheel)?;
    let bare = match BareRoot::can_be_entered() {
        true => bare_root(&folder.join("root"), &first, &version)?,
        false => "no bare root: `unshare --user --map-root-user --mount --pid` is not allowed here".to_owned(),
    };
    Ok(format!("{made}; the same bytes twice; wheel: {platform}, installed by pip and run; {bare}"))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let files = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names =
        files.map(|file| Ok(file?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// The wheel's platform, which auditwheel has read from the binary too.
fn judged(workspace: &Workspace, wheel: &Path, folder: &Path, binary: &Path) -> Result<String> {
    let packages = workspace.target.join("tools/dist-python");
    let complete = packages.join("complete");
    if fs::read_to_string(&complete).is_ok_and(|list| list == PACKAGES.join("\n")) {
        println!("packages of PyPI: those in {}", packages.display());
    } else {
        pypi::install(&packages, &PACKAGES, "install them into the folder yourself")?;
        fs::write(&complete, PACKAGES.join("\n"))?;
    }
    let platform = Needs::of(&fs::read(binary)?)?.platform_tag()?;
    let mut command = Command::new("python3");
    command.args(["-c", SCRIPT]).arg(wheel).arg(bill(folder)?).arg(&platform).env("PYTHONPATH", packages);
    finished(command.output(), "auditwheel and the validator of CycloneDX")?;
    Ok(platform)
}

fn bill(folder: &Path) -> Result<PathBuf> {
    let name = names(folder)?.into_iter().find(|name| name.ends_with(".cdx.json"));
    Ok(folder.join(name.context("there is no bill of materials")?))
}

/// Installs the wheel into a fresh Python and runs it with no other program in PATH. Returns its version.
fn installed_wheel(venv: &Path, wheel: &Path) -> Result<String> {
    check(Command::new("python3").args(["-m", "venv"]).arg(venv)).context("python3 has no venv")?;
    let (bin, work) = (venv.join("bin"), venv.join("work"));
    let mut pip = Command::new(bin.join("python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]);
    check(pip.arg(wheel))?;
    model::write(&work)?;
    let run = |line: &str| {
        let mut command = Command::new(bin.join("qlora-train"));
        command.args(line.split_whitespace()).current_dir(&work).env_clear().env("PATH", &bin);
        finished(command.output(), &format!("qlora-train {line}, from the wheel"))
    };
    let version = used(&run)?;
    let page = fs::read_to_string(venv.join("share/man/man1/qlora-train.1")).context("the wheel has no manual page")?;
    ensure!(page.trim_end() == run("man")?.trim_end(), "the wheel's manual page is not the program's");
    ensure!(work.join("out/adapter_model.safetensors").is_file(), "the wheel's program trained no adapter");
    Ok(version)
}

fn bare_root(folder: &Path, release: &Path, expected: &str) -> Result<String> {
    let version = expected.split_whitespace().nth(1).context("a version without a number")?;
    let name = archive_name(version, &Flavor::Cpu);
    let root = BareRoot::unpack(folder, &release.join(format!("{name}.tar.gz")), &name)?;
    model::write(&root.path("work"))?;
    let found = used(&|line| root.run(line))?;
    ensure!(found == expected, "the tarball is of {found}, the wheel of {expected}");
    let trained = root.path("work/out/adapter_model.safetensors");
    ensure!(trained.is_file(), "the tarball's program trained no adapter");
    for file in ["LICENSE-MIT", "THIRD-PARTY-LICENSES", "share/man/man1/qlora-train-train.1", "README.md"] {
        ensure!(root.path(&format!("opt/{name}/{file}")).is_file(), "the tarball has no {file}");
    }
    Ok("tarball: run in a root with its C libraries alone".to_owned())
}

/// Uses an installed program as a new user does. Returns the first line of its version.
fn used(run: &dyn Fn(&str) -> Result<String>) -> Result<String> {
    let version = run("--version")?;
    let version = version.lines().next().unwrap_or_default();
    ensure!(version.starts_with("qlora-train "), "`--version` says {version:?}");
    let doctor = run("doctor")?;
    ensure!(doctor.contains("Runs work on the CPU."), "`doctor` says {doctor}");
    let page = run("man train")?;
    ensure!(page.contains(".TH qlora-train-train 1 "), "`man train` writes {page}");
    let trained: serde_json::Value = serde_json::from_str(&run(TRAIN)?).context("`train --json` prints no JSON")?;
    ensure!(trained["steps"] == 2, "it trained {}", trained["steps"]);
    Ok(version.to_owned())
}
