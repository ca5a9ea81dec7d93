//! Compiles the kernels of `cuda/`.
//!
//! - feature `cuda`: with nvcc, for the architectures of `QLORA_CUDA_ARCHS` (default 80,90,120, and PTX of the first);
//! - feature `emulation` (tests): the same files with the host C++ compiler, `QLORA_EMULATION_SANITIZE=address` under
//!   AddressSanitizer;
//! - neither: nothing is compiled, and no C++ compiler is needed.
//!
//! An object is compiled again only if the hash of its source, all headers, the flags and the compiler's version changed.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::atomic::{AtomicUsize, Ordering};

const DEFAULT_ARCHS: &str = "80,90,120";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(sanitize_address)");
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();
    let emulation = env::var_os("CARGO_FEATURE_EMULATION").is_some();
    match (cuda, emulation) {
        (false, false) => {}
        (true, false) => build_cuda(),
        (false, true) => build_emulation(),
        (true, true) => {
            refuse("features `cuda` and `emulation` exclude each other: both define the kernels' C functions")
        }
    }
}

/// Ends the build with one sentence instead of a panic's backtrace.
fn refuse(message: &str) -> ! {
    println!("cargo:warning={message}");
    eprintln!("{message}");
    exit(1);
}

fn variable(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}

fn build_cuda() {
    let nvcc = find_nvcc();
    let version = version(&nvcc);
    let mut flags: Vec<OsString> =
        ["-std=c++17", "-O3", "-lineinfo", "-Xcompiler=-fPIC,-Wall", "-diag-suppress=177"].map(OsString::from).into();
    flags.extend(architecture_flags(&variable("QLORA_CUDA_ARCHS").unwrap_or_else(|| DEFAULT_ARCHS.into())));
    let objects = compile(&nvcc, &version, &flags, &sources("cuda", "cu"), "cuda");
    archive(&objects, "qlora_kernels_cuda");
    // One kernel per PTX instruction, for the tests. Nothing of it is linked where nothing calls it.
    let twins =
        sources("tests/kernels", "cu").into_iter().filter(|file| file.ends_with("twins.cu")).collect::<Vec<_>>();
    archive(&compile(&nvcc, &version, &flags, &twins, "cuda"), "qlora_kernels_twins");
    let root =
        nvcc.canonicalize().ok().and_then(|path| Some(path.parent()?.parent()?.to_path_buf())).unwrap_or_default();
    let machine = format!("targets/{}-linux/lib", env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default());
    let runtime = ["lib64", "lib", machine.as_str()]
        .map(|dir| root.join(dir))
        .into_iter()
        .find(|dir| dir.join("libcudart_static.a").is_file());
    let Some(runtime) = runtime else {
        refuse(&format!(
            "libcudart_static.a is not under {}: run `cargo xtask setup-cuda`, or point CUDA_HOME at a full toolkit",
            root.display()
        ))
    };
    println!("cargo:rustc-link-search=native={}", runtime.display());
    println!("cargo:rustc-link-lib=static=cudart_static");
    for library in ["dl", "rt", "pthread"] {
        println!("cargo:rustc-link-lib={library}");
    }
}

/// NVCC, CUDA_HOME, PATH, then the wheels that `cargo xtask setup-cuda` unpacks beside the build.
fn find_nvcc() -> PathBuf {
    if let Some(nvcc) = variable("NVCC") {
        let nvcc = PathBuf::from(nvcc);
        if nvcc.is_file() {
            return nvcc;
        }
        refuse(&format!("NVCC is {}, which is not a file", nvcc.display()));
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).map(|home| Path::new(&home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let out = out_dir();
    let wheels = out.ancestors().map(|dir| dir.join("cuda-toolkit/nvidia/cu13/bin"));
    let own = PathBuf::from("target/cuda-toolkit/nvidia/cu13/bin");
    let candidates = homes.chain(env::split_paths(&path)).chain(wheels).chain([own]);
    candidates.map(|bin| bin.join("nvcc")).find(|nvcc| nvcc.is_file()).unwrap_or_else(|| {
        refuse("feature `cuda` needs nvcc, which is not in NVCC, CUDA_HOME or PATH: `cargo xtask setup-cuda` fetches it into target/")
    })
}

fn architecture_flags(list: &str) -> Vec<OsString> {
    let archs: Vec<&str> = list.split(',').map(str::trim).collect();
    let valid = |arch: &&str| {
        let digits = arch.strip_suffix(['a', 'f']).unwrap_or(arch);
        digits.parse::<u32>().is_ok_and(|number| number >= 80)
    };
    if let Some(bad) = archs.iter().find(|arch| !valid(arch)) {
        refuse(&format!(
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
    flags
}

fn build_emulation() {
    let compiler = cc::Build::new().cpp(true).cargo_metadata(false).get_compiler();
    let version = version(compiler.path());
    let mut flags: Vec<OsString> = [
        "-std=c++17",
        "-O3",
        "-g1",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-DQK_EMULATION",
    ]
    .map(OsString::from)
    .into();
    match variable("QLORA_EMULATION_SANITIZE").as_deref() {
        None => {}
        Some("address") => {
            flags.extend(["-fsanitize=address", "-fno-omit-frame-pointer"].map(OsString::from));
            link_address_sanitizer(compiler.path());
        }
        Some(other) => refuse(&format!("QLORA_EMULATION_SANITIZE is \"{other}\"; only \"address\" is known")),
    }
    let mut files = sources("cuda", "cu");
    files.extend(sources("cuda/emulation", "cpp"));
    files.extend(sources("tests/kernels", "cu"));
    let objects = compile(compiler.path(), &version, &flags, &files, "emulation");
    archive(&objects, "qlora_kernels_emulation");
}

/// The static runtime, whole: rustc links with -nodefaultlibs, so that -fsanitize=address adds nothing, and the shared runtime
/// would have to be the first library loaded.
fn link_address_sanitizer(compiler: &Path) {
    let output = Command::new(compiler).arg("-print-file-name=libasan.a").output();
    let path = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if !Path::new(&path).is_file() {
        refuse(&format!("{} has no libasan.a, which QLORA_EMULATION_SANITIZE=address links", compiler.display()));
    }
    for argument in [
        "-Wl,--whole-archive",
        &path,
        "-Wl,--no-whole-archive",
        "-lstdc++",
        "-ldl",
        "-lrt",
        "-lpthread",
        "-lm",
        "-lgcc_s",
    ] {
        println!("cargo:rustc-link-arg={argument}");
    }
    println!("cargo:rustc-cfg=sanitize_address");
}

fn version(compiler: &Path) -> String {
    match Command::new(compiler).arg("--version").output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => refuse(&format!("{} --version ended with {}", compiler.display(), output.status)),
        Err(error) => refuse(&format!("{} cannot be run: {error}", compiler.display())),
    }
}

fn sources(dir: &str, extension: &str) -> Vec<PathBuf> {
    println!("cargo:rerun-if-changed={dir}");
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

fn headers_hash(hasher: &mut DefaultHasher) {
    for (dir, extension) in [("cuda", "cuh"), ("cuda/include", "h"), ("cuda/emulation", "h")] {
        for header in sources(dir, extension) {
            fs::read(header).unwrap_or_default().hash(hasher);
        }
    }
}

/// Compiles every file whose hash is not that of its object, as many at a time as cargo grants.
fn compile(compiler: &Path, version: &str, flags: &[OsString], files: &[PathBuf], kind: &str) -> Vec<PathBuf> {
    let mut common = DefaultHasher::new();
    (compiler, version, flags).hash(&mut common);
    headers_hash(&mut common);
    let common = common.finish();
    let dir = out_dir().join(kind);
    fs::create_dir_all(&dir).unwrap_or_else(|error| refuse(&format!("{} cannot be made: {error}", dir.display())));
    let objects: Vec<PathBuf> =
        files.iter().map(|file| dir.join(file.file_name().unwrap_or_default()).with_extension("o")).collect();
    let next = AtomicUsize::new(0);
    let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1usize);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(files.len()) {
            scope.spawn(|| {
                while let Some(index) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&index| index < files.len())
                {
                    compile_one(compiler, flags, &files[index], &objects[index], common);
                }
            });
        }
    });
    objects
}

fn compile_one(compiler: &Path, flags: &[OsString], file: &Path, object: &Path, common: u64) {
    let mut hasher = DefaultHasher::new();
    (common, file, fs::read(file).unwrap_or_default()).hash(&mut hasher);
    let hash = hasher.finish().to_string();
    let stamp = object.with_extension("hash");
    if object.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == hash) {
        return;
    }
    let mut command = Command::new(compiler);
    command.args(flags).arg("-Icuda").arg("-c").arg("-o").arg(object);
    if flags.iter().any(|flag| flag == "-DQK_EMULATION") {
        command.arg("-xc++");
    }
    let output = command
        .arg(file)
        .output()
        .unwrap_or_else(|error| refuse(&format!("{} cannot be run: {error}", compiler.display())));
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        eprintln!("{text}");
        refuse(&format!("{} does not compile ({})", file.display(), output.status));
    }
    for line in text.lines().filter(|line| line.contains("warning")) {
        println!("cargo:warning={line}");
    }
    fs::write(&stamp, hash).unwrap_or_else(|error| refuse(&format!("{} cannot be written: {error}", stamp.display())));
}

fn archive(objects: &[PathBuf], name: &str) {
    cc::Build::new().cpp(true).objects(objects).compile(name);
}
