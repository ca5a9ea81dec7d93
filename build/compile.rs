//! Compilation of the kernels of `cuda/`, for build.rs and for `cargo xtask install-lib`. The flags are files beside
//! `cuda/CMakeLists.txt`, which reads them too.
//!
//! An object is compiled again only if the hash of its source, the headers that it includes, the flags and the
//! compiler's version changed.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A card of any of these runs its own cubin; 80 serves 86 and 89 too. PTX of the lowest is added for all others.
pub const DEFAULT_ARCHS: &str = "80,90,120";

const CUDA_FLAGS: &str = include_str!("../cuda/package/flags-cuda.txt");
const EMULATION_FLAGS: &str = include_str!("../cuda/package/flags-emulation.txt");

/// A sentence that says what is wrong and what to do.
pub type Result<T> = std::result::Result<T, String>;

/// A compiler with the flags for every file.
pub struct Compiler {
    pub path: PathBuf,
    /// The output of `--version`.
    version: String,
    flags: Vec<OsString>,
    /// A folder of objects by their hash, which builds share: `QLORA_OBJECT_CACHE`, which xtask sets. A build does not
    /// depend on it, so cargo need not know.
    pub cache: Option<PathBuf>,
}

impl Compiler {
    /// nvcc for the architectures of `archs`, for example "80,90".
    pub fn cuda(nvcc: &Path, archs: &str) -> Result<Self> {
        let mut compiler = Self::new(nvcc, CUDA_FLAGS)?;
        compiler.flags.extend(architecture_flags(archs)?);
        Ok(compiler)
    }

    /// The host C++ compiler, for the emulated build, with `extra` flags.
    pub fn emulation(path: &Path, extra: &[&str]) -> Result<Self> {
        let mut compiler = Self::new(path, EMULATION_FLAGS)?;
        compiler.flags.extend(extra.iter().map(OsString::from));
        Ok(compiler)
    }

    fn new(path: &Path, flags: &str) -> Result<Self> {
        let version = version(path)?;
        let flags = flags.split_whitespace().map(OsString::from).collect();
        let cache = std::env::var_os("QLORA_OBJECT_CACHE").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        Ok(Self { path: path.into(), version, flags, cache })
    }

    /// Compiles every file (below `root`, the repository's) whose hash is not that of its object in `dir`, `workers` at
    /// a time. Returns the objects and the compiler's warnings.
    pub fn compile(
        &self,
        root: &Path,
        files: &[PathBuf],
        dir: &Path,
        workers: usize,
    ) -> Result<(Vec<PathBuf>, Vec<String>)> {
        let mut common = DefaultHasher::new();
        (&self.path, &self.version, &self.flags).hash(&mut common);
        let common = common.finish();
        fs::create_dir_all(dir).map_err(|error| format!("{} cannot be made: {error}", dir.display()))?;
        let objects: Vec<PathBuf> = files.iter().map(|file| dir.join(object_name(root, file))).collect();
        let next = AtomicUsize::new(0);
        let outcome = Mutex::new((Vec::new(), None));
        std::thread::scope(|scope| {
            for _ in 0..workers.clamp(1, files.len().max(1)) {
                scope.spawn(|| {
                    while let Some(index) =
                        Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&index| index < files.len())
                    {
                        let result = self.compile_one(root, &files[index], &objects[index], common);
                        let mut outcome = outcome.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        match result {
                            Ok(warnings) => outcome.0.extend(warnings),
                            Err(error) => outcome.1 = Some(error),
                        }
                    }
                });
            }
        });
        let (warnings, error) = outcome.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        error.map_or(Ok((objects, warnings)), Err)
    }

    /// The warnings, if it had to be compiled.
    fn compile_one(&self, root: &Path, file: &Path, object: &Path, common: u64) -> Result<Vec<String>> {
        let mut hasher = DefaultHasher::new();
        (common, file.strip_prefix(root).unwrap_or(file)).hash(&mut hasher);
        self.hash_included(root, file, &mut Vec::new(), &mut hasher);
        let hash = hasher.finish().to_string();
        let stamp = object.with_extension("hash");
        if object.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == hash) {
            return Ok(Vec::new());
        }
        let cached = self.cache.as_ref().map(|dir| dir.join(&hash).with_extension("o"));
        let keep = |what: std::io::Error| format!("{} cannot be written: {what}", object.display());
        if let Some(cached) = cached.as_ref().filter(|cached| cached.is_file()) {
            fs::copy(cached, object).map_err(keep)?;
            fs::write(&stamp, hash).map_err(keep)?;
            return Ok(Vec::new());
        }
        let mut command = Command::new(&self.path);
        command.args(&self.flags).arg("-I").arg(root.join("cuda")).arg("-c").arg("-o").arg(object);
        if self.emulates() {
            command.arg("-xc++");
        }
        let output =
            command.arg(file).output().map_err(|error| format!("{} cannot be run: {error}", self.path.display()))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            eprintln!("{text}");
            return Err(format!("{} does not compile ({})", file.display(), output.status));
        }
        fs::write(&stamp, hash).map_err(keep)?;
        if let Some(cached) = cached {
            share(object, &cached).map_err(|error| format!("{} cannot be written: {error}", cached.display()))?;
        }
        Ok(text.lines().filter(|line| line.contains("warning")).map(str::to_owned).collect())
    }

    fn emulates(&self) -> bool {
        self.flags.iter().any(|flag| flag == "-DQK_EMULATION")
    }

    /// Hashes a file, and the files of this repository that it includes, each once. Those of the emulation are not
    /// there for nvcc.
    fn hash_included(&self, root: &Path, file: &Path, seen: &mut Vec<PathBuf>, hasher: &mut DefaultHasher) {
        let known = fs::canonicalize(file).unwrap_or_else(|_| file.into());
        if seen.contains(&known) {
            return;
        }
        seen.push(known);
        let text = fs::read(file).unwrap_or_default();
        text.hash(hasher);
        for line in String::from_utf8_lossy(&text).lines() {
            let quoted = line.trim().strip_prefix("#include").and_then(|rest| rest.trim().strip_prefix('"'));
            let Some((name, _)) = quoted.and_then(|rest| rest.split_once('"')) else { continue };
            if self.emulates() || !name.starts_with("emulation/") {
                let beside = file.with_file_name(name);
                if let Some(path) = [beside, root.join("cuda").join(name)].iter().find(|path| path.is_file()) {
                    self.hash_included(root, path, seen, hasher);
                }
            }
        }
    }
}

/// A copy that is there whole or not at all, as another build may read it now.
fn share(object: &Path, cached: &Path) -> std::io::Result<()> {
    fs::create_dir_all(cached.parent().unwrap_or(Path::new(".")))?;
    let partial = cached.with_extension(format!("{}.partial", std::process::id()));
    fs::copy(object, &partial)?;
    fs::rename(&partial, cached)
}

/// The path below the root with dashes, so that files of one name in two folders have two objects.
fn object_name(root: &Path, file: &Path) -> PathBuf {
    let name: Vec<_> = file.strip_prefix(root).unwrap_or(file).iter().map(|part| part.to_string_lossy()).collect();
    Path::new(&name.join("-")).with_extension("o")
}

fn version(compiler: &Path) -> Result<String> {
    match Command::new(compiler).arg("--version").output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(format!("{} --version ended with {}", compiler.display(), output.status)),
        Err(error) => Err(format!("{} cannot be run: {error}", compiler.display())),
    }
}

fn architecture_flags(list: &str) -> Result<Vec<OsString>> {
    let archs: Vec<&str> = list.split(',').map(str::trim).collect();
    let valid = |arch: &&str| {
        let digits = arch.strip_suffix(['a', 'f']).unwrap_or(arch);
        digits.parse::<u32>().is_ok_and(|number| number >= 80)
    };
    if let Some(bad) = archs.iter().find(|arch| !valid(arch)) {
        return Err(format!(
            "QLORA_CUDA_ARCHS is \"{list}\": \"{bad}\" is not an architecture of at least 80 (expected for example {DEFAULT_ARCHS})"
        ));
    }
    let mut flags: Vec<OsString> =
        archs.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}").into()).collect();
    // PTX of the lowest: the driver can compile it for every card that has no cubin here.
    if let Some(lowest) =
        archs.iter().filter(|arch| arch.bytes().all(|b| b.is_ascii_digit())).min_by_key(|arch| arch.parse::<u32>().ok())
    {
        flags.push(format!("-gencode=arch=compute_{lowest},code=compute_{lowest}").into());
    }
    Ok(flags)
}

/// nvcc of NVCC, CUDA_HOME, CUDA_PATH or PATH (`variable` reads the environment), otherwise of `wheels`: directories
/// that may hold what `cargo xtask setup-cuda` fetches. None if there is none; an NVCC that is not a file is an error.
pub fn find_nvcc(variable: impl Fn(&str) -> Option<String>, wheels: Vec<PathBuf>) -> Result<Option<PathBuf>> {
    if let Some(nvcc) = variable("NVCC") {
        let nvcc = PathBuf::from(nvcc);
        return if nvcc.is_file() {
            Ok(Some(nvcc))
        } else {
            Err(format!("NVCC is {}, which is not a file", nvcc.display()))
        };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| Path::new(&home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let wheels = wheels.into_iter().map(|dir| dir.join("cuda-toolkit/nvidia/cu13/bin"));
    let candidates = homes.chain(std::env::split_paths(&path)).chain(wheels);
    Ok(candidates.map(|bin| bin.join("nvcc")).find(|nvcc| nvcc.is_file()))
}

/// The directory of libcudart_static.a in nvcc's toolkit, for the processor `arch` ("x86_64", "aarch64").
pub fn cudart_dir(nvcc: &Path, arch: &str) -> Result<PathBuf> {
    let root =
        nvcc.canonicalize().ok().and_then(|path| Some(path.parent()?.parent()?.to_path_buf())).unwrap_or_default();
    let machine = format!("targets/{}-linux/lib", if arch == "aarch64" { "sbsa" } else { arch });
    let dirs = ["lib64", "lib", machine.as_str()].map(|dir| root.join(dir));
    dirs.into_iter().find(|dir| dir.join("libcudart_static.a").is_file()).ok_or_else(|| {
        format!(
            "libcudart_static.a is not under {}: run `cargo xtask setup-cuda`, or point CUDA_HOME at a full toolkit",
            root.display()
        )
    })
}

/// The files below `root/dir` with this extension, sorted by their paths.
pub fn sources(root: &Path, dir: &str, extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root.join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
