//! `cargo xtask install-lib`: header, static and shared library, and the files for pkg-config and CMake.

use anyhow::{Context, Result, anyhow, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tools_support::compile::{self, Compiler, sources};
use tools_support::workspace::Workspace;

/// The differences of the library for GPUs and the emulated one.
struct Kind {
    /// `-lLIBRARY`, and the name for CMake's `find_package`.
    library: &'static str,
    /// The name for pkg-config.
    package: &'static str,
    description: &'static str,
    definitions: &'static str,
    /// Flags for linking the static library, first the directory of cudart.
    private_libraries: String,
    compiler: Compiler,
    sources: Vec<PathBuf>,
}

/// Installs into `prefix`: include/, lib/, lib/pkgconfig/, lib/cmake/. Everything is built before the first file is
/// written. Returns a sentence for people.
pub fn install(workspace: &Workspace, prefix: &Path, emulated: bool) -> Result<String> {
    let mut kind = if emulated { emulation(workspace)? } else { cuda(workspace)? };
    kind.compiler.cache = Some(workspace.objects());
    let prefix = std::path::absolute(prefix)?;
    let build = workspace.target.join("library").join(kind.library);
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    eprintln!("compiling {} files of {} with {} ...", kind.sources.len(), kind.library, kind.compiler.path.display());
    let (objects, warnings) = kind
        .compiler
        .compile(&workspace.root, &kind.sources, &build.join("objects"), workers)
        .map_err(|e| anyhow!(e))?;
    for warning in warnings {
        eprintln!("{warning}");
    }

    let header = fs::read_to_string(workspace.root.join("cuda/include/qlora_kernels.h"))?;
    let abi_version = abi_version(&header)?;
    let archive = build.join(format!("lib{}.a", kind.library));
    let shared = build.join(format!("lib{}.so.{abi_version}", kind.library));
    link(&workspace.root, &kind, &objects, &archive, &shared)?;

    let fill = |template: &str| -> Result<String> {
        let path = workspace.root.join("cuda/package").join(template);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text = text
            .replace("@LIBRARY@", kind.library)
            .replace("@PACKAGE@", kind.package)
            .replace("@DESCRIPTION@", kind.description)
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
            .replace("@ABI_VERSION@", &abi_version)
            .replace("@DEFINITIONS@", kind.definitions)
            .replace("@PRIVATE_LIBRARIES@", &kind.private_libraries);
        ensure!(!text.contains('@'), "{} has a placeholder that is not filled in", path.display());
        Ok(text)
    };
    let texts = [
        ("include/qlora_kernels.h".to_owned(), header),
        (format!("lib/pkgconfig/{}.pc", kind.package), fill("library.pc.in")?),
        (format!("lib/cmake/{0}/{0}-config.cmake", kind.library), fill("config.cmake.in")?),
        (format!("lib/cmake/{0}/{0}-config-version.cmake", kind.library), fill("config-version.cmake.in")?),
    ];
    for (name, text) in texts {
        put(&prefix.join(name), text.as_bytes())?;
    }
    for file in [&archive, &shared] {
        put(&prefix.join("lib").join(file.file_name().context("a file")?), &fs::read(file)?)?;
    }
    let link = prefix.join(format!("lib/lib{}.so", kind.library));
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(shared.file_name().context("a file")?, &link)
        .with_context(|| format!("cannot make {}", link.display()))?;

    let mut installed =
        format!("installed {} into {} (pkg-config name: {})", kind.library, prefix.display(), kind.package);
    if emulated {
        installed += "\nTHIS IS THE EMULATED LIBRARY: it runs the kernels on the host CPU, very slowly, for tests without \
                      a GPU. Nothing that it shows says how a GPU performs.";
    }
    Ok(installed)
}

/// nvcc, if the machine or `target/` has it.
pub fn nvcc(workspace: &Workspace) -> Result<Option<PathBuf>> {
    let wheels = vec![workspace.target.clone(), workspace.root.join("target")];
    compile::find_nvcc(variable, wheels).map_err(|error| anyhow!(error))
}

/// The library and header directories of nvcc's CUDA runtime.
pub fn cuda_runtime(nvcc: &Path) -> Result<(PathBuf, PathBuf)> {
    let lib = compile::cudart_dir(nvcc, env::consts::ARCH).map_err(|error| anyhow!(error))?;
    let include = lib.ancestors().map(|dir| dir.join("include")).find(|dir| dir.join("cuda_runtime_api.h").is_file());
    Ok((lib, include.with_context(|| format!("cuda_runtime_api.h is not beside {}", nvcc.display()))?))
}

fn cuda(workspace: &Workspace) -> Result<Kind> {
    let Some(nvcc) = nvcc(workspace)? else {
        bail!(
            "the library is compiled by nvcc, which is not in NVCC, CUDA_HOME or PATH: `cargo xtask setup-cuda` fetches it into \
             target/ (--emulation builds the emulated library, for tests only)"
        )
    };
    let archs = variable("QLORA_CUDA_ARCHS").unwrap_or_else(|| compile::DEFAULT_ARCHS.into());
    let (runtime, _) = cuda_runtime(&nvcc)?;
    Ok(Kind {
        library: "qlora_kernels",
        package: "qlora-kernels",
        description: "Fused NF4 and LoRA kernels for NVIDIA GPUs",
        definitions: "",
        private_libraries: format!("-L{} -lcudart_static -ldl -lrt -lpthread -lstdc++", runtime.display()),
        compiler: Compiler::cuda(&nvcc, &archs).map_err(|error| anyhow!(error))?,
        sources: sources(&workspace.root, "cuda", "cu"),
    })
}

fn emulation(workspace: &Workspace) -> Result<Kind> {
    let mut files = sources(&workspace.root, "cuda", "cu");
    files.extend(sources(&workspace.root, "cuda/emulation", "cpp"));
    Ok(Kind {
        library: "qlora_kernels_emulated",
        package: "qlora-kernels-emulated",
        description: "NF4 and LoRA kernels emulated on the host CPU, for tests only",
        definitions: "-DQLORA_KERNELS_EMULATED",
        private_libraries: "-lstdc++ -lm -lpthread".into(),
        compiler: Compiler::emulation(Path::new(&tool("CXX", "c++")), &[]).map_err(|error| anyhow!(error))?,
        sources: files,
    })
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn tool(name: &str, default: &str) -> OsString {
    env::var_os(name).filter(|value| !value.is_empty()).unwrap_or_else(|| default.into())
}

/// The number of the line `#define QK_ABI_VERSION 1u`.
fn abi_version(header: &str) -> Result<String> {
    let digits = header.lines().find_map(|line| line.strip_prefix("#define QK_ABI_VERSION ")?.strip_suffix('u'));
    let digits = digits.context("qlora_kernels.h defines no QK_ABI_VERSION")?;
    ensure!(digits.parse::<u32>().is_ok(), "QK_ABI_VERSION is {digits:?}, expected a number");
    Ok(digits.to_owned())
}

fn link(root: &Path, kind: &Kind, objects: &[PathBuf], archive: &Path, shared: &Path) -> Result<()> {
    // ar adds to an archive that exists, and would keep what is no longer compiled.
    let _ = fs::remove_file(archive);
    let mut command = Command::new(tool("AR", "ar"));
    command.arg("crs").arg(archive).args(objects);
    succeed(command)?;
    let mut command = Command::new(tool("CXX", "c++"));
    let soname = shared.file_name().context("a file")?.to_string_lossy().into_owned();
    command.arg("-shared").arg("-o").arg(shared).arg(format!("-Wl,-soname,{soname}")).arg("-Wl,-z,defs");
    // Without it the C++ templates and the CUDA runtime inside would meet those of other libraries of a process.
    command.arg(format!("-Wl,--version-script={}", root.join("cuda/package/exports.map").display()));
    command.args(objects).args(kind.private_libraries.split_whitespace());
    succeed(command)
}

fn succeed(mut command: Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Writes a file beside its name and renames it: a process that has the old one loaded keeps it whole.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent = path.parent().context("a path in a directory")?;
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(parent)?;
        let partial = path.with_extension("partial");
        fs::write(&partial, bytes)?;
        fs::rename(&partial, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_interface_is_read_from_the_header() {
        let header = include_str!("../../../cuda/include/qlora_kernels.h");
        let declared = format!("pub const QK_ABI_VERSION: u32 = {};", abi_version(header).unwrap());
        assert!(include_str!("../../../src/sys.rs").contains(&declared), "the Rust declarations: {declared}");
        assert_eq!(abi_version("#define QK_ABI_VERSION 12u\n").unwrap(), "12");
        assert!(abi_version("#define QK_ABI_VERSION one\n").is_err());
        assert!(abi_version("#define QK_ABI_VERSION oneu\n").is_err());
    }
}
