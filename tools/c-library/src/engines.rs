//! The kernels' library installed and linked by engines that cargo does not build.

use crate::install::{cuda_runtime, install, nvcc};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tools_support::command::{check, check_and_keep};
use tools_support::workspace::Workspace;

/// Packages of the virtual environment.
const PACKAGES: [&str; 2] = ["numpy==2.2.6", "cmake==3.31.6"];
/// Real codes and absmax of bitsandbytes, with the weights that it dequantizes from them.
const WEIGHTS: &str = "tests/golden/nf4.safetensors";
/// The tensor of which the damaged copy has one byte changed.
const DAMAGED: &str = "up.b64.codes";

/// Every example against the emulated library, each also on a damaged weight, which it has to notice; and the C example
/// linked with the library that nvcc builds, which no machine without a GPU can run.
pub fn check_examples(workspace: &Workspace) -> Result<String> {
    let dir = workspace.target.join("engines");
    let prefix = dir.join("emulated");
    println!("{}", install(workspace, &prefix, true)?);
    check_header(&prefix.join("include/qlora_kernels.h"))?;
    let weights = workspace.root.join(WEIGHTS);
    let damaged = dir.join("damaged.safetensors");
    damage(&weights, &damaged)?;

    let libraries = prefix.join("lib");
    let engine = dir.join("c-engine");
    build_c(workspace, &prefix, "qlora-kernels-emulated", &engine, &[])?;
    run_both(&weights, &damaged, |weights| {
        let mut command = Command::new(&engine);
        command.arg(weights).env("LD_LIBRARY_PATH", &libraries);
        command
    })?;

    let python = python(&dir)?;
    run_both(&weights, &damaged, |weights| {
        let mut command = Command::new(&python);
        command.arg(workspace.root.join("examples/python/engine.py"));
        command.arg(libraries.join("libqlora_kernels_emulated.so")).arg(weights);
        command
    })?;
    for engine in build_cmake(workspace, &prefix, &dir)? {
        run_both(&weights, &damaged, |weights| {
            let mut command = Command::new(&engine);
            command.arg(weights);
            command
        })?;
    }
    let engine = build_rust(workspace, &dir)?;
    run_both(&weights, &damaged, |weights| {
        let mut command = Command::new(&engine);
        command.arg(weights);
        command
    })?;
    link_with_nvcc(workspace, &dir)
}

/// The header is C99 and C++17 without a warning.
fn check_header(header: &Path) -> Result<()> {
    for (compiler, language, standard) in [("cc", "-xc", "-std=c99"), ("c++", "-xc++", "-std=c++17")] {
        let mut command = Command::new(compiler);
        command.args([language, standard, "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]).arg(header);
        check(command)?;
    }
    Ok(())
}

/// By the example's own Makefile, which asks pkg-config; variables are make's.
fn build_c(workspace: &Workspace, prefix: &Path, package: &str, out: &Path, variables: &[String]) -> Result<()> {
    let mut command = Command::new("make");
    command
        .args(["--always-make", "-C"])
        .arg(workspace.root.join("examples/c-engine"))
        .arg(format!("PACKAGE={package}"));
    command.arg(format!("OUT={}", out.display())).args(variables);
    command.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    check(command)
        .context("the C example needs make, pkg-config and a C compiler (Debian, Ubuntu: build-essential pkg-config)")
}

/// A project with the kernels as a subdirectory, and with targets that many a project has.
const CMAKE_HOST: &str = "cmake_minimum_required(VERSION 3.21)
project(host LANGUAGES C CXX)
add_custom_target(kernels)
add_custom_target(static)
add_custom_target(shared)
set(QLORA_EMULATION ON)
set(QLORA_KERNELS_INSTALL ON)
set(EMULATED ON)
add_subdirectory(${ROOT}/cuda cuda)
add_subdirectory(${ROOT}/examples/c-engine engine)
";

/// The C example by CMake: with the kernels as a subdirectory, with what that project installs, and with `prefix`,
/// where `cargo xtask install-lib` has installed them. CMake is that of the virtual environment.
fn build_cmake(workspace: &Workspace, prefix: &Path, dir: &Path) -> Result<[PathBuf; 3]> {
    let cmake = dir.join("venv/bin/cmake");
    let dir = dir.join("cmake");
    let (host, installed) = (dir.join("host"), dir.join("installed"));
    fs::create_dir_all(&host).with_context(|| format!("cannot make {}", host.display()))?;
    fs::write(host.join("CMakeLists.txt"), CMAKE_HOST)?;
    let run = |arguments: &[&str], paths: &[(&str, &Path)]| {
        let mut command = Command::new(&cmake);
        command.args(arguments);
        for (option, path) in paths {
            command.arg(format!("{option}{}", path.display()));
        }
        check(command)
    };
    let built = dir.join("host-build");
    run(&["--log-level=ERROR"], &[("-DROOT=", &workspace.root), ("-S", &host), ("-B", &built)])?;
    let build = built.to_string_lossy().into_owned();
    run(&["--build", &build, "--parallel", "2"], &[])?;
    run(&["--install", &build], &[("--prefix=", &installed)])?;
    let example = workspace.root.join("examples/c-engine");
    let mut engines = vec![built.join("engine/engine")];
    for (name, prefix) in [("from-cmake", installed.as_path()), ("from-xtask", prefix)] {
        let built = dir.join(name);
        let paths = [("-DCMAKE_PREFIX_PATH=", prefix), ("-S", &example), ("-B", &built)];
        run(&["--log-level=ERROR", "--fresh", "-DEMULATED=ON"], &paths)?;
        run(&["--build", &built.to_string_lossy()], &[])?;
        engines.push(built.join("engine"));
    }
    engines.try_into().map_err(|_| anyhow::anyhow!("three engines are built"))
}

/// By cargo, in the example's own workspace.
fn build_rust(workspace: &Workspace, dir: &Path) -> Result<PathBuf> {
    let target = dir.join("rust");
    let mut command = workspace.cargo(&["build", "--release", "--locked", "--features", "emulation"]);
    command.arg("--manifest-path").arg(workspace.root.join("examples/rust-engine/Cargo.toml"));
    command.arg("--target-dir").arg(&target);
    check(command)?;
    Ok(target.join("release/rust-engine"))
}

/// The example's `ok` lines on the true weights; on the damaged ones it must fail, and say WRONG.
fn run_both(weights: &Path, damaged: &Path, engine: impl Fn(&Path) -> Command) -> Result<()> {
    let lines = check_and_keep(&mut engine(weights), |line| line.starts_with("ok "))?;
    ensure!(lines.iter().any(|line| line.contains("loss")), "the example ended well without an `ok` of its training");
    let output = engine(damaged).stderr(Stdio::inherit()).output().context("cannot run the example again")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        !output.status.success() && text.contains("WRONG"),
        "with one byte of {DAMAGED} changed the example still ended with {}: {text}",
        output.status
    );
    Ok(())
}

/// A copy of a safetensors file with one byte of [`DAMAGED`] inverted.
fn damage(weights: &Path, copy: &Path) -> Result<()> {
    let mut bytes = fs::read(weights).with_context(|| format!("cannot read {}", weights.display()))?;
    let (header_bytes, header) = safetensors::SafeTensors::read_metadata(&bytes)?;
    let tensor = header.info(DAMAGED).with_context(|| format!("{} has no {DAMAGED}", weights.display()))?;
    let start = 8 + header_bytes + tensor.data_offsets.0;
    let byte = bytes.get_mut(start + 1000).context("the tensor is shorter than expected")?;
    *byte ^= 0xff;
    fs::write(copy, bytes).with_context(|| format!("cannot write {}", copy.display()))
}

/// The Python of a virtual environment with [`PACKAGES`].
fn python(dir: &Path) -> Result<PathBuf> {
    let venv = dir.join("venv");
    let python = venv.join("bin/python");
    let stamp = venv.join("requirements");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == PACKAGES.join(" ")) {
        return Ok(python);
    }
    let mut command = Command::new("python3");
    command.args(["-m", "venv", "--clear"]).arg(&venv);
    check(command).context("the Python example needs python3 with venv (Debian, Ubuntu: python3-venv)")?;
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]);
    command.args(PACKAGES);
    check(command).context("numpy and cmake come from PyPI (a mirror: PIP_INDEX_URL)")?;
    fs::write(&stamp, PACKAGES.join(" "))?;
    Ok(python)
}

fn link_with_nvcc(workspace: &Workspace, dir: &Path) -> Result<String> {
    let Some(nvcc) = nvcc(workspace)? else {
        return Ok("the C example was not linked with the nvcc-built library: no nvcc".into());
    };
    let prefix = dir.join("cuda");
    println!("{}", install(workspace, &prefix, false)?);
    let (lib, include) = cuda_runtime(&nvcc)?;
    let variables = [
        format!("CUDA_CFLAGS=-isystem {}", include.display()),
        format!("CUDA_LIBS=-L{} -lcudart_static -ldl -lrt -lpthread", lib.display()),
    ];
    build_c(workspace, &prefix, "qlora-kernels", &dir.join("c-engine-cuda"), &variables)?;
    Ok("the C example links with the nvcc-built library (not run: that takes a GPU)".into())
}
