//! A root directory with a release's tarball and the C libraries that its binary names, and nothing else: no shell, no
//! Rust, no Python.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tools_support::command::{check, finished};

pub struct BareRoot {
    folder: PathBuf,
    /// The program, as a path in the root
    program: String,
}

impl BareRoot {
    /// Unpacks the tarball, which holds a folder `name`, as `docker build` does with the Dockerfile beside it.
    pub fn unpack(folder: &Path, tarball: &Path, name: &str) -> Result<Self> {
        for empty in ["opt", "proc", "tmp", "work"] {
            let path = folder.join(empty);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--gzip", "--file"]).arg(tarball).arg("--directory").arg(folder.join("opt"));
        check(tar)?;
        let program = format!("/opt/{name}/bin/qlora-train");
        for library in libraries(&folder.join(program.trim_start_matches('/')))? {
            let to = folder.join(library.strip_prefix("/").unwrap_or(&library));
            fs::create_dir_all(to.parent().context("a library without a folder")?)?;
            fs::copy(&library, &to).with_context(|| format!("cannot copy {}", library.display()))?;
        }
        Ok(Self { folder: folder.to_owned(), program })
    }

    /// True if this machine lets us enter such a root.
    pub fn can_be_entered() -> bool {
        let mut command = entering(Path::new("/"));
        command.arg("true").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// The standard output of the program, run in the root's /work.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut command = entering(&self.folder);
        command.args(["--wd", "/work", &self.program]).args(line.split_whitespace());
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        finished(command.output(), &format!("qlora-train {line}, in a bare root"))
    }

    /// A file of the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }
}

/// util-linux's `unshare`, which needs no rights where the kernel lets users have namespaces.
fn entering(root: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "--root"]).arg(root);
    command
}

/// Files of the libraries and of the loader that `ldd` finds for a program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = finished(Command::new("ldd").arg(program).output(), "ldd")?;
    let files = files_of(&listed)?;
    ensure!(!files.is_empty(), "ldd found no library of {}", program.display());
    Ok(files)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`; the kernel's own has no
/// file.
fn files_of(listed: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for line in listed.lines().map(str::trim) {
        let found = line.split_once(" => ").map_or(line, |(_, found)| found);
        ensure!(!found.starts_with("not found"), "{line}");
        if found.starts_with('/') {
            files.push(PathBuf::from(found.split_whitespace().next().unwrap_or(found)));
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_what_ldd_prints() {
        let listed = "\tlinux-vdso.so.1 (0x00007f8f34781000)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f8f3241e000)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f8f34783000)\n";
        let expected = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(files_of(listed).unwrap(), expected);
        assert!(files_of("\tlibssl.so.3 => not found\n").unwrap_err().to_string().contains("libssl"));
    }
}
