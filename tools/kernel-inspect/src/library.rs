//! The kernels' library with the code of every architecture, and what `cuobjdump` says of it.

use crate::{resources, sass};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::ScopedJoinHandle;
use tools_support::artifacts;
use tools_support::calibration;
use tools_support::cuda::{self, ARCHS, Toolkit};
use tools_support::workspace::Workspace;

/// The built library. Its listings are kept in the target directory, by the library's hash: taking all of the machine
/// code apart takes tens of seconds of a processor, and several checks read it.
pub struct Library {
    toolkit: Toolkit,
    path: PathBuf,
    /// Folder of this library's listings.
    listings: PathBuf,
}

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
        let hash: String = Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let all = workspace.target.join(folder);
        let listings = all.join(&hash);
        if !listings.is_dir() {
            // Those of an older library are of no use to anyone.
            let _ = fs::remove_dir_all(&all);
            fs::create_dir_all(&listings).with_context(|| format!("cannot create {}", listings.display()))?;
        }
        Ok(Self { toolkit, path, listings })
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

    /// The output of `cuobjdump` with these arguments.
    pub fn listing(&self, arguments: &[&str]) -> Result<String> {
        let kept = self.listings.join(format!("{}.txt", arguments.join("").trim_start_matches('-')));
        if let Ok(listing) = fs::read_to_string(&kept) {
            return Ok(listing);
        }
        let listing = self.cuobjdump(arguments)?;
        // Two processes may list at once; each moves a whole file into place.
        let partial = kept.with_extension(std::process::id().to_string());
        fs::write(&partial, &listing).with_context(|| format!("cannot write {}", partial.display()))?;
        fs::rename(&partial, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
        Ok(listing)
    }

    fn cuobjdump(&self, arguments: &[&str]) -> Result<String> {
        let (program, library) = (&self.toolkit.cuobjdump, &self.path);
        let mut command = Command::new(program);
        command.args(arguments).arg(library);
        // It calls nvdisasm, which lies beside it and need not be in PATH.
        let beside = program.parent().map(std::path::Path::to_path_buf);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env("PATH", std::env::join_paths(beside.into_iter().chain(std::env::split_paths(&path)))?);
        let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
        ensure!(
            output.status.success(),
            "cuobjdump {} {}: {}: {}",
            arguments.join(" "),
            library.display(),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
