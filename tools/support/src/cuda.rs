//! `cargo xtask setup-cuda`: nvcc and libclang, the machine's or fetched from PyPI into `<target>/cuda-toolkit`.

use crate::pypi;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail, ensure};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The architectures that a cubin is made for.
pub const ARCHS: [&str; 3] = ["sm_80", "sm_90", "sm_120"];

/// The wheels of nvcc, which unpack to the layout in which build.rs looks for it.
const NVCC_PACKAGES: [&str; 7] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-cuobjdump==13.*",
    "nvidia-cuda-nvdisasm==13.*",
];
const LIBCLANG_PACKAGE: &str = "libclang==18.1.1";
const NVCC_BIN: &str = "nvidia/cu13/bin";
const NVCC_FILES: [&str; 4] = ["bin/nvcc", "bin/cuobjdump", "bin/nvdisasm", "lib/libcudart_static.a"];
const LIBCLANG_DIR: &str = "clang/native";

/// The compiler, and the tools that take apart what it made.
#[derive(Clone, Debug)]
pub struct Toolkit {
    pub nvcc: PathBuf,
    pub cuobjdump: PathBuf,
}

/// Fetches the tools that the machine lacks, and prints the path of each.
pub fn run(workspace: &Workspace) -> Result<()> {
    println!("nvcc:     {}", toolkit(workspace)?.nvcc.display());
    match libclang(workspace)? {
        Some(dir) => println!("libclang: {}", dir.display()),
        None => println!("libclang: LIBCLANG_PATH"),
    }
    Ok(())
}

/// [`ARCHS`] as the build script takes them.
pub fn archs_variable() -> String {
    ARCHS.map(|arch| arch.trim_start_matches("sm_")).join(",")
}

/// nvcc by the search order of build.rs, fetched if that finds none.
pub fn toolkit(workspace: &Workspace) -> Result<Toolkit> {
    let dir = workspace.target.join("cuda-toolkit");
    let nvcc = match machine_nvcc(|name| std::env::var_os(name))? {
        Some(nvcc) => nvcc,
        None => {
            ensure_fetched(&dir, true)?;
            dir.join(NVCC_BIN).join("nvcc")
        }
    };
    let cuobjdump = nvcc.with_file_name("cuobjdump");
    ensure!(
        cuobjdump.is_file() && nvcc.with_file_name("nvdisasm").is_file(),
        "{} has no cuobjdump and nvdisasm beside it: install them from the same toolkit, or unset NVCC, CUDA_HOME and \
         CUDA_PATH and take nvcc out of PATH, and `cargo xtask setup-cuda` fetches all three",
        nvcc.display()
    );
    Ok(Toolkit { nvcc, cuobjdump })
}

/// The directory of libclang to be given as LIBCLANG_PATH; none where that is set already.
pub fn libclang(workspace: &Workspace) -> Result<Option<PathBuf>> {
    if std::env::var_os("LIBCLANG_PATH").is_some_and(|path| !path.is_empty()) {
        return Ok(None);
    }
    let dir = workspace.target.join("cuda-toolkit");
    ensure_fetched(&dir, machine_nvcc(|name| std::env::var_os(name))?.is_none())?;
    Ok(Some(dir.join(LIBCLANG_DIR)))
}

fn machine_nvcc(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<PathBuf>> {
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(nvcc) = set("NVCC").map(PathBuf::from) {
        ensure!(nvcc.is_file(), "NVCC is {}, which is not a file", nvcc.display());
        return Ok(Some(nvcc));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set).map(|home| Path::new(&home).join("bin"));
    let path = set("PATH").unwrap_or_default();
    let found = homes.chain(std::env::split_paths(&path)).map(|bin| bin.join("nvcc")).find(|nvcc| nvcc.is_file());
    Ok(found)
}

/// True if `dir` holds libclang, and nvcc where that is wanted too.
fn is_complete(dir: &Path, with_nvcc: bool) -> bool {
    let root = dir.join(NVCC_BIN).join("..");
    dir.join(LIBCLANG_DIR).join("libclang.so").is_file()
        && (!with_nvcc || NVCC_FILES.iter().all(|name| root.join(name).is_file()))
}

fn ensure_fetched(dir: &Path, with_nvcc: bool) -> Result<()> {
    if is_complete(dir, with_nvcc) {
        return Ok(());
    }
    let parent = dir.parent().context("a toolkit directory without a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    // Two runs at once would fetch twice; the lock goes with the process.
    let lock_path = parent.join(".cuda-toolkit.lock");
    let lock = fs::File::create(&lock_path).with_context(|| format!("cannot create {}", lock_path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if is_complete(dir, with_nvcc) {
        return Ok(());
    }
    ensure!(cfg!(target_os = "linux"), "the CUDA toolkit is fetched for Linux only: install it and set CUDA_HOME");

    let mut packages = vec![LIBCLANG_PACKAGE];
    if with_nvcc {
        packages.extend(NVCC_PACKAGES);
    }
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(parent)?;
    // tempdir makes it private to the user; the toolkit is as readable as its neighbors.
    let fresh = partial.path().join("new");
    fs::create_dir(&fresh)?;
    let by_hand = "install the CUDA toolkit (set CUDA_HOME) and libclang (set LIBCLANG_PATH) by hand";
    pypi::install(&fresh, &packages, by_hand)?;
    if !is_complete(&fresh, with_nvcc) {
        bail!(
            "pip reported success, but {} do not hold nvcc, its tools and libclang where they used to",
            packages.join(", ")
        );
    }
    if dir.exists() {
        fs::rename(dir, partial.path().join("stale")).with_context(|| format!("cannot replace {}", dir.display()))?;
    }
    fs::rename(&fresh, dir).with_context(|| format!("cannot move the toolkit to {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn the_machines_nvcc_is_found_in_the_order_of_the_build_script() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["named/nvcc", "home/bin/nvcc", "path/nvcc"] {
            file(&dir.path().join(name));
        }
        let find = |set: &[(&str, &str)]| {
            let variable = |name: &str| {
                let value = set.iter().find(|(key, _)| *key == name).map(|(_, value)| value)?;
                Some(if value.is_empty() { OsString::new() } else { dir.path().join(value).into() })
            };
            machine_nvcc(variable).map(|found| found.map(|nvcc| nvcc.strip_prefix(dir.path()).unwrap().to_owned()))
        };
        let all = [("PATH", "path"), ("CUDA_HOME", "home"), ("NVCC", "named/nvcc")];
        assert_eq!(find(&all).unwrap(), Some("named/nvcc".into()));
        assert_eq!(find(&all[..2]).unwrap(), Some("home/bin/nvcc".into()));
        assert_eq!(find(&all[..1]).unwrap(), Some("path/nvcc".into()));
        assert_eq!(find(&[("PATH", "empty"), ("CUDA_HOME", ""), ("NVCC", "")]).unwrap(), None);
        let error = find(&[("NVCC", "absent")]).unwrap_err().to_string();
        assert!(error.contains("absent") && error.contains("not a file"), "{error}");
    }

    #[test]
    fn a_complete_toolkit_is_reused_and_one_without_nvcc_only_where_none_is_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let toolkit = dir.path().join("cuda-toolkit");
        file(&toolkit.join(LIBCLANG_DIR).join("libclang.so"));
        assert!(is_complete(&toolkit, false) && !is_complete(&toolkit, true));
        for name in NVCC_FILES {
            file(&toolkit.join(NVCC_BIN).parent().unwrap().join(name));
        }
        assert!(is_complete(&toolkit, true));
        ensure_fetched(&toolkit, true).unwrap();
    }
}
