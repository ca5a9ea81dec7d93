//! The kernels' library with the code of every architecture, and what `cuobjdump` says of it.

use crate::{resources, sass};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::ScopedJoinHandle;
use tools_support::artifacts;
use tools_support::calibration;
use tools_support::cuda::{self, ARCHS, Toolkit};
use tools_support::workspace::Workspace;

/// The built library. The listings of its objects are kept in the target directory, by the object's hash: taking all of
/// the machine code apart takes tens of seconds of a processor, and several checks read it.
pub struct Library {
    toolkit: Toolkit,
    /// Folders of its objects, in its order, with their listings.
    objects: Vec<PathBuf>,
}

/// An object in its folder.
const OBJECT: &str = "object.o";

impl Library {
    /// Compiles and links everything of the kernels' crate for every architecture; nothing of it runs.
    pub fn build_with_tests(workspace: &Workspace) -> Result<Self> {
        Self::of(workspace, &["--lib", "--tests"])
    }

    /// Compiles the kernels for every architecture.
    pub fn build(workspace: &Workspace) -> Result<Self> {
        Self::of(workspace, &["--lib"])
    }

    fn of(workspace: &Workspace, targets: &[&str]) -> Result<Self> {
        let toolkit = cuda::toolkit(workspace)?;
        let arguments = [&["build", "--package", "qlora-kernels", "--features", "cuda"], targets].concat();
        let built = artifacts::build(workspace, &arguments, &[("QLORA_CUDA_ARCHS", &cuda::archs_variable())])?;
        let path = built.kernels_out_dir()?.join("libqlora_kernels_cuda.a");
        ensure!(path.is_file(), "the build script left no {}", path.display());
        Self::at(workspace, toolkit, path, "kernel-listings")
    }

    /// The micro-kernels of `benches/calibration` in place of the library.
    pub fn of_calibration(workspace: &Workspace) -> Result<Self> {
        let toolkit = cuda::toolkit(workspace)?;
        let path = calibration::compile(workspace, &toolkit)?;
        Self::at(workspace, toolkit, path, "calibration-listings")
    }

    /// A built library or object, with the folder of its listings in the target directory.
    fn at(workspace: &Workspace, toolkit: Toolkit, path: PathBuf, folder: &str) -> Result<Self> {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let members = members(&bytes).with_context(|| format!("{} is cut short", path.display()))?;
        let all = workspace.target.join(folder);
        let of_hash = |object: &&[u8]| {
            let hash: String = Sha256::digest(object)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
            all.join(hash)
        };
        let objects: Vec<PathBuf> = members.iter().map(of_hash).collect();
        for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
            if !objects.contains(&entry.path()) {
                // Those of older objects are of no use to anyone.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        for (dir, object) in objects.iter().zip(members) {
            if !dir.join(OBJECT).is_file() {
                fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
                keep(&dir.join(OBJECT), object)?;
            }
        }
        Ok(Self { toolkit, objects })
    }

    /// The compiler's version: `13.0.88`.
    pub fn compiler(&self) -> Result<String> {
        let nvcc = &self.toolkit.nvcc;
        let output =
            Command::new(nvcc).arg("--version").output().with_context(|| format!("cannot run {}", nvcc.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().find_map(|word| word.strip_prefix('V')).map(str::to_owned);
        version.with_context(|| format!("{} --version names no version", nvcc.display()))
    }

    /// Every kernel of every architecture of [`ARCHS`].
    pub fn machine_code(&self) -> Result<Vec<sass::Code>> {
        let listings = std::thread::scope(|scope| {
            let listers = ARCHS.map(|arch| scope.spawn(move || self.listing(&["-sass", "-arch", arch])));
            let join = |lister: ScopedJoinHandle<'_, Result<String>>| {
                lister.join().map_err(|_| anyhow::anyhow!("the caller of cuobjdump panicked"))?
            };
            listers.into_iter().map(join).collect::<Result<Vec<String>>>()
        })?;
        Ok(listings.iter().flat_map(|listing| sass::parse(listing)).collect())
    }

    pub fn resources(&self) -> Result<Vec<resources::Resources>> {
        Ok(resources::parse(&self.listing(&["--dump-resource-usage"])?))
    }

    /// The outputs of `cuobjdump` with these arguments for all objects, one after the other.
    pub fn listing(&self, arguments: &[&str]) -> Result<String> {
        let name = format!("{}.txt", arguments.join("").trim_start_matches('-'));
        let of_object = |dir: &PathBuf| {
            let kept = dir.join(&name);
            if let Ok(listing) = fs::read_to_string(&kept) {
                return Ok(listing);
            }
            let listing = self.cuobjdump(arguments, &dir.join(OBJECT))?;
            keep(&kept, listing.as_bytes())?;
            Ok(listing)
        };
        self.objects.iter().map(of_object).collect()
    }

    fn cuobjdump(&self, arguments: &[&str], object: &Path) -> Result<String> {
        let program = &self.toolkit.cuobjdump;
        let mut command = Command::new(program);
        command.args(arguments).arg(object);
        // It calls nvdisasm, which lies beside it and need not be in PATH.
        let beside = program.parent().map(Path::to_path_buf);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env("PATH", std::env::join_paths(beside.into_iter().chain(std::env::split_paths(&path)))?);
        let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
        ensure!(
            output.status.success(),
            "cuobjdump {} {}: {}: {}",
            arguments.join(" "),
            object.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Writes a file that other processes find whole or not at all: two may list at once.
fn keep(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension(std::process::id().to_string());
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The objects of an archive, or an object alone. `None`: it ends before its last member does.
fn members(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let Some(mut rest) = bytes.strip_prefix(b"!<arch>\n") else { return Some(vec![bytes]) };
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (header, after) = rest.split_at_checked(60)?;
        let size = std::str::from_utf8(&header[48..58]).ok()?.trim().parse().ok()?;
        let (member, after) = after.split_at_checked(size)?;
        // A byte fills up those of odd length.
        rest = after.get(size % 2..).unwrap_or_default();
        // Tables of symbols and of long names
        if !["/ ", "//", "/SYM64/"].iter().any(|table| header.starts_with(table.as_bytes())) {
            found.push(member);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archives_objects_are_found_beside_its_tables() {
        let member = |name: &str, text: &str| {
            let (zero, size) = (0, text.len());
            let header = format!("{name:<16}{zero:<12}{zero:<6}{zero:<6}{:<8}{size:<10}`\n", 644);
            header + text + if size % 2 == 1 { "\n" } else { "" }
        };
        let tables =
            [member("/", "symbols"), member("/SYM64/", "more"), member("//", "a_long_name_of_it.o/\n")].concat();
        let archive = format!("!<arch>\n{tables}{}{}", member("a.o/", "odd"), member("/0", "even"));
        assert_eq!(members(archive.as_bytes()).unwrap(), [&b"odd"[..], b"even"]);
        assert_eq!(members(&archive.as_bytes()[..archive.len() - 1]), None);
        assert_eq!(members(b"an object").unwrap(), [b"an object"]);
    }
}
