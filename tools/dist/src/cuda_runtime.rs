//! NVIDIA's runtime library, which a binary for GPUs holds: its version and its license, from the toolkit of an nvcc.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Beginning of the folder in which a wheel of the runtime says what it is.
const WHEEL: &str = "nvidia_cuda_runtime-";

/// `libcudart_static.a`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaRuntime {
    pub version: String,
    /// Terms under which it is passed on
    pub license: Vec<u8>,
}

impl CudaRuntime {
    /// That of the toolkit that nvcc is of: of the wheels that `cargo xtask setup-cuda` unpacks, or installed. Refused:
    /// its license is not there.
    pub fn of(nvcc: &Path) -> Result<Self> {
        let nvcc = nvcc.canonicalize().with_context(|| format!("cannot find {}", nvcc.display()))?;
        let root = nvcc.parent().and_then(Path::parent).context("nvcc is in no toolkit")?;
        let found = match of_wheel(root) {
            Some((version, license)) => Some((version, license)),
            None => installed_version(root).map(|version| (version, root.join("EULA.txt"))),
        };
        let (version, license) = found.with_context(|| {
            format!(
                "{} does not say which version of CUDA's runtime it has: take nvcc out of NVCC, CUDA_HOME, CUDA_PATH and \
                 PATH, and `cargo xtask setup-cuda` fetches one that does",
                root.display()
            )
        })?;
        let license = fs::read(&license).with_context(|| {
            format!("cannot read {}: CUDA's runtime is passed on with its license only", license.display())
        })?;
        Ok(Self { version, license })
    }

    /// Name of the library among components.
    pub fn reference(&self) -> String {
        format!("pkg:generic/cudart@{}", self.version)
    }

    /// A component of CycloneDX.
    pub fn component(&self) -> Value {
        json!({
            "type": "library",
            "bom-ref": self.reference(),
            "supplier": {"name": "NVIDIA Corporation"},
            "name": "cudart",
            "version": self.version,
            "purl": self.reference(),
            "licenses": [{"license": {"name": "NVIDIA CUDA Toolkit EULA"}}],
        })
    }
}

/// Version and license of a runtime that pip unpacked: `<root>` is `SITE/nvidia/cu13`.
fn of_wheel(root: &Path) -> Option<(String, PathBuf)> {
    let site = root.parent()?.parent()?;
    for entry in fs::read_dir(site).ok()?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(version) = name.strip_prefix(WHEEL).and_then(|rest| rest.strip_suffix(".dist-info")) {
            return Some((version.to_owned(), entry.path().join("licenses/License.txt")));
        }
    }
    None
}

/// `version.json` of an installed toolkit.
fn installed_version(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("version.json")).ok()?;
    let versions: Value = serde_json::from_str(&text).ok()?;
    Some(versions.pointer("/cuda_cudart/version")?.as_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_runtime_is_that_of_the_wheels_or_of_an_installed_toolkit() {
        let dir = tempfile::tempdir().unwrap();
        let wheels = dir.path().join("wheels");
        let nvcc = wheels.join("nvidia/cu13/bin/nvcc");
        file(&nvcc, "");
        let error = CudaRuntime::of(&nvcc).unwrap_err().to_string();
        assert!(error.contains("does not say which version") && error.contains("setup-cuda"), "{error}");
        file(&wheels.join("nvidia_cuda_runtime-13.0.96.dist-info/METADATA"), "");
        let error = CudaRuntime::of(&nvcc).unwrap_err().to_string();
        assert!(error.contains("with its license only"), "{error}");
        file(&wheels.join("nvidia_cuda_runtime-13.0.96.dist-info/licenses/License.txt"), "terms");
        let expected = CudaRuntime { version: "13.0.96".to_owned(), license: b"terms".to_vec() };
        assert_eq!(CudaRuntime::of(&nvcc).unwrap(), expected);

        let installed = dir.path().join("cuda-13.1");
        file(&installed.join("bin/nvcc"), "");
        file(&installed.join("version.json"), r#"{"cuda_cudart": {"name": "CUDA Runtime", "version": "13.1.20"}}"#);
        file(&installed.join("EULA.txt"), "other terms");
        let found = CudaRuntime::of(&installed.join("bin/nvcc")).unwrap();
        assert_eq!((found.version.as_str(), &found.license[..]), ("13.1.20", &b"other terms"[..]));
        assert_eq!(found.component()["bom-ref"], "pkg:generic/cudart@13.1.20");
    }
}
