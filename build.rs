//! Compiles the kernels of `cuda/`.
//!
//! - feature `cuda`: with nvcc, for the architectures of `QLORA_CUDA_ARCHS` (default 80,90,120, and PTX of the first);
//! - feature `emulation` (tests), with or without `cuda`: the same files with the host C++ compiler,
//!   `QLORA_EMULATION_SANITIZE=address` under AddressSanitizer;
//! - neither: nothing is compiled, and no C++ compiler is needed.
//!
//! The crate's code asks `cfg(kernels = "cuda" | "emulated" | "absent")` which it was. On docs.rs nothing is compiled,
//! and the documentation is that of the features.

#[path = "build/compile.rs"]
mod compile;

use compile::{Compiler, sources};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rustc-check-cfg=cfg(sanitize_address)");
    println!("cargo:rustc-check-cfg=cfg(kernels, values(\"cuda\", \"emulated\", \"absent\"))");
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();
    let emulation = env::var_os("CARGO_FEATURE_EMULATION").is_some();
    // Both define the kernels' C functions. A build that names `emulation` is one for tests.
    let kernels = match (cuda, emulation) {
        (false, false) => "absent",
        (true, false) => "cuda",
        (_, true) => "emulated",
    };
    println!("cargo:rustc-cfg=kernels=\"{kernels}\"");
    let built = match kernels {
        _ if variable("DOCS_RS").is_some() => Ok(()),
        "cuda" => build_cuda(),
        "emulated" => build_emulation(),
        _ => Ok(()),
    };
    if let Err(message) = built {
        // One sentence instead of a panic's backtrace.
        println!("cargo:warning={message}");
        eprintln!("{message}");
        exit(1);
    }
}

fn variable(name: &str) -> Option<String> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn out_dir() -> PathBuf {
    PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"))
}

fn build_cuda() -> compile::Result<()> {
    // The wheels that `cargo xtask setup-cuda` unpacks lie beside the build.
    let out = out_dir();
    let wheels = out.ancestors().map(Path::to_path_buf).chain(["target".into()]).collect();
    let nvcc = compile::find_nvcc(variable, wheels)?.ok_or(
        "feature `cuda` needs nvcc, which is not in NVCC, CUDA_HOME or PATH: `cargo xtask setup-cuda` fetches it into target/",
    )?;
    let archs = variable("QLORA_CUDA_ARCHS").unwrap_or_else(|| compile::DEFAULT_ARCHS.into());
    let compiler = Compiler::cuda(&nvcc, &archs)?;
    println!("cargo:rustc-env=QLORA_KERNELS_ARCHS={archs}");
    archive(&compiler, &sources(Path::new(""), "cuda", "cu"), "cuda", "qlora_kernels_cuda")?;
    // One kernel per PTX instruction. Nothing of it is linked where nothing calls it.
    let parity: Vec<_> = kernels_of_tests().into_iter().filter(|path| path.ends_with("ptx_parity.cu")).collect();
    if !parity.is_empty() {
        archive(&compiler, &parity, "cuda", "qlora_kernels_ptx_parity")?;
    }
    let runtime = compile::cudart_dir(&nvcc, &env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default())?;
    println!("cargo:rustc-link-search=native={}", runtime.display());
    println!("cargo:rustc-link-lib=static=cudart_static");
    for library in ["dl", "rt", "pthread"] {
        println!("cargo:rustc-link-lib={library}");
    }
    Ok(())
}

fn build_emulation() -> compile::Result<()> {
    let found = cc::Build::new().cpp(true).cargo_metadata(false).get_compiler();
    let extra: &[&str] = match variable("QLORA_EMULATION_SANITIZE").as_deref() {
        None => &[],
        Some("address") => {
            link_address_sanitizer(found.path())?;
            &["-fsanitize=address", "-fno-omit-frame-pointer"]
        }
        Some(other) => return Err(format!("QLORA_EMULATION_SANITIZE is \"{other}\"; only \"address\" is known")),
    };
    let flags = [extra, native_fma()].concat();
    let compiler = Compiler::emulation(found.path(), &flags)?;
    let root = Path::new("");
    let mut files = sources(root, "cuda", "cu");
    files.extend(sources(root, "cuda/emulation", "cpp"));
    files.extend(kernels_of_tests());
    if env::var_os("CARGO_FEATURE_EMULATION_SHARED").is_some() {
        return share(&compiler, &files, "emulation", "qlora_kernels_emulation");
    }
    archive(&compiler, &files, "emulation", "qlora_kernels_emulation")
}

/// Fused multiply-adds as instructions where this machine, which runs the tests, has them: a call each else. The values
/// are equal.
fn native_fma() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if env::var_os("TARGET") == env::var_os("HOST")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
    {
        return &["-mavx2", "-mfma"];
    }
    &[]
}

/// The static runtime, whole: rustc links with -nodefaultlibs, so that -fsanitize=address adds nothing, and the shared
/// runtime would have to be the first library loaded.
fn link_address_sanitizer(compiler: &Path) -> compile::Result<()> {
    let output = Command::new(compiler).arg("-print-file-name=libasan.a").output();
    let path = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    if !Path::new(&path).is_file() {
        return Err(format!("{} has no libasan.a, which QLORA_EMULATION_SANITIZE=address links", compiler.display()));
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
    Ok(())
}

/// Compiles the files and links the crate with them.
fn archive(compiler: &Compiler, files: &[PathBuf], kind: &str, name: &str) -> compile::Result<()> {
    cc::Build::new().cpp(true).objects(&objects(compiler, files, kind)?).compile(name);
    Ok(())
}

/// Links the objects into a shared library, which the tests find where cargo says that the build script's libraries
/// are.
fn share(compiler: &Compiler, files: &[PathBuf], kind: &str, name: &str) -> compile::Result<()> {
    let library = out_dir().join(format!("lib{name}.so"));
    let objects = objects(compiler, files, kind)?;
    let status = Command::new(&compiler.path).arg("-shared").arg("-o").arg(&library).args(objects).status();
    if !status.is_ok_and(|status| status.success()) {
        return Err(format!("{} does not link {}", compiler.path.display(), library.display()));
    }
    println!("cargo:rustc-link-search=native={}", out_dir().display());
    println!("cargo:rustc-link-lib=dylib={name}");
    Ok(())
}

/// Kernels that only the tests of this repository call. The published package has none of them.
fn kernels_of_tests() -> Vec<PathBuf> {
    const FOLDER: &str = "tests/kernels";
    let files = sources(Path::new(""), FOLDER, "cu");
    if !files.is_empty() {
        // For a folder that is not there cargo would run this each time.
        println!("cargo:rerun-if-changed={FOLDER}");
    }
    files
}

fn objects(compiler: &Compiler, files: &[PathBuf], kind: &str) -> compile::Result<Vec<PathBuf>> {
    println!("cargo:rerun-if-changed=cuda");
    let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    let (objects, warnings) = compiler.compile(Path::new(""), files, &out_dir().join(kind), workers)?;
    for warning in warnings {
        println!("cargo:warning={warning}");
    }
    Ok(objects)
}
