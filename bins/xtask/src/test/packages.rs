//! The steps about the packages as others get them: sets of features, the oldest compiler, what is published.

use super::step::Outcome;
use crate::setup::{mpi, rustup};
use anyhow::{Context, Result};
use cargo_metadata::{MetadataCommand, Package};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tools_support::command::{check, finished, last_line};
use tools_support::cuda;
use tools_support::workspace::Workspace;

/// The packages of the registry, in the order of their dependencies.
const PUBLISHED: [&str; 2] = ["qlora-kernels", "qlora-train"];
/// Features that no build but that of tests has.
const OF_TESTS: [&str; 1] = ["failpoints"];
/// A feature that the trainer hands on to the kernels.
const EMULATION: &str = "emulation";
/// Features that need a library which a machine may not have: in no set of others.
const OF_LIBRARIES: [&str; 1] = ["mpi"];

/// Every set of features compiles without a warning, each alone.
pub fn features(workspace: &Workspace) -> Result<Outcome> {
    cuda::toolkit(workspace)?;
    let mut count = 0;
    for package in packages(workspace)? {
        let name = package.name.as_str();
        // The trainer as a part of the workspace, so that its many dependencies keep their features and are not
        // checked again; the library alone, so that its dependents are not.
        let selection: &[&str] = if name == PUBLISHED[0] { &["--package", name] } else { &["--workspace"] };
        let sets = different_sets(&package.features);
        for (index, set) in sets.iter().enumerate() {
            // The trainer has no code of its own for it: the last set, which has all features, is checked with it.
            if name == PUBLISHED[1] && set.contains(&EMULATION) && index + 1 < sets.len() {
                continue;
            }
            println!("{name} with [{}]", set.join(","));
            let set: Vec<_> = set.iter().map(|feature| format!("{name}/{feature}")).collect();
            let mut command = workspace.cargo(&["clippy", "--quiet", "--release", "--locked"]);
            command.args(selection).args(["--features", &set.join(","), "--", "--deny", "warnings"]);
            check(command.env("QLORA_CUDA_ARCHS", cuda::archs_variable()))?;
            count += 1;
        }
    }
    Ok(Outcome::Passed(vec![format!("{count} sets of features compile"), with_mpi(workspace)?]))
}

/// The trainer compiles with MPI, where it was fetched. Returns a line that says so.
fn with_mpi(workspace: &Workspace) -> Result<String> {
    let Some(dir) = mpi::fetched(workspace).into_iter().next() else {
        return Ok("`mpi` was not compiled: no library was fetched (`cargo xtask setup`)".to_owned());
    };
    let include = finished(Command::new("cc").arg("-print-file-name=include").output(), "cc -print-file-name=include")?;
    let mut command = workspace.cargo(&["clippy", "--quiet", "--release", "--locked", "--workspace"]);
    // Its bindgen would be built for the variables below, and again without them.
    command.args(["--exclude", "bindings", "--features", "qlora-train/mpi", "--", "--deny", "warnings"]);
    command.env("MPICC", dir.join("bin").join("mpicc"));
    command.env("BINDGEN_EXTRA_CLANG_ARGS", format!("-I{}", include.trim()));
    if let Some(libclang) = cuda::libclang(workspace)? {
        command.env("LIBCLANG_PATH", libclang);
    }
    check(command)?;
    Ok(format!("`mpi` compiles with {}", dir.file_name().unwrap_or_default().to_string_lossy()))
}

/// All sets of features that differ: one that another of the set turns on adds nothing. `default` is a set of others,
/// and what only tests turn on is there in the last set, with all others.
fn different_sets(features: &BTreeMap<String, Vec<String>>) -> Vec<Vec<&str>> {
    let counts = |name: &&str| *name != "default" && !OF_LIBRARIES.contains(name);
    let known: Vec<&str> = features.keys().map(String::as_str).filter(counts).collect();
    let adds_nothing = |name: &str, set: &[&str]| set.iter().any(|other| features[*other].iter().any(|on| on == name));
    let subset = |bits: usize| -> Vec<&str> {
        let chosen = known.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1);
        chosen.map(|(_, name)| *name).collect()
    };
    let sets = (0..1usize << known.len()).map(subset);
    let all = known.iter().copied().filter(|name| !adds_nothing(name, &known)).collect::<Vec<_>>();
    sets.filter(|set| !set.iter().any(|name| adds_nothing(name, set)))
        .filter(|set| *set == all || !set.iter().any(|name| OF_TESTS.contains(name)))
        .collect()
}

/// The oldest compiler that the packages name, where rustup has it or can fetch it; clippy looks for newer functions of
/// std everywhere.
pub fn oldest_compiler(workspace: &Workspace) -> Result<Outcome> {
    let packages = packages(workspace)?;
    let version = packages[0].rust_version.as_ref().context("Cargo.toml names no rust-version")?;
    let toolchain = format!("{}.{}", version.major, version.minor);
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let this = finished(rustc.arg("--version").output(), "rustc --version")?;
    if this.starts_with(&format!("rustc {toolchain}.")) {
        return Ok(Outcome::Passed(vec![format!("all steps compile with it: {}", this.trim())]));
    }
    let has_it = || {
        ["rustc", "cargo"].into_iter().all(|program| {
            let mut command = Command::new("rustup");
            command.args(["run", &toolchain, program, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        })
    };
    if !has_it()
        && let Err(why) =
            rustup::fetch(&["toolchain", "install", &toolchain, "--profile", "minimal", "--no-self-update"])
    {
        return Ok(Outcome::Skipped(format!("no Rust {toolchain}: {why}; clippy's lint looked")));
    }
    let mut command = Command::new("rustup");
    command.args(["run", &toolchain, "cargo", "check", "--locked", "--target-dir"]).arg(workspace.target.join("msrv"));
    command.args(PUBLISHED.iter().flat_map(|name| ["--package", name])).current_dir(&workspace.root);
    // Cargo sets these for its children; they are of this toolchain.
    ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN"].into_iter().for_each(|name| {
        command.env_remove(name);
    });
    check(&mut command)?;
    Ok(Outcome::Passed(vec![format!("the packages compile with Rust {toolchain}")]))
}

/// The packages as a registry would get them: described, small and whole, as each compiles alone.
pub fn published(workspace: &Workspace) -> Result<Outcome> {
    let mut command = workspace.cargo(&["package", "--quiet", "--locked", "--allow-dirty", "--no-verify"]);
    check(command.args(PUBLISHED.iter().flat_map(|name| ["--package", name])))?;
    let archives = workspace.target.join("package");
    let closing = last_line(workspace.tool("repo-check", &["packages", &archives.to_string_lossy()])?)?;
    compile_alone(workspace, &archives)?;
    Ok(Outcome::Passed(closing))
}

/// Compiles each package as others get it: the library with the kernels, which it has to hold, and the trainer with
/// that library. Their dependencies are those of the other builds, in whose directory they are checked.
fn compile_alone(workspace: &Workspace, archives: &Path) -> Result<()> {
    // One place for all runs, so that the artifacts of one replace those of the run before.
    let unpacked = archives.join("alone");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))?;
    }
    fs::create_dir_all(&unpacked).with_context(|| format!("cannot create {}", unpacked.display()))?;
    let mut library: Option<String> = None;
    for package in packages(workspace)? {
        let stem = format!("{}-{}", package.name, package.version);
        let mut tar = Command::new("tar");
        // With the time of now: by the archive's, which is always the same, cargo would not see a change.
        tar.arg("xzmf").arg(archives.join(format!("{stem}.crate"))).arg("-C").arg(&unpacked);
        check(&mut tar)?;
        let folder = unpacked.join(&stem);
        let mut command = workspace.cargo(&["check", "--quiet", "--release", "--target-dir"]);
        command.arg(&workspace.target).arg("--manifest-path").arg(folder.join("Cargo.toml"));
        match &library {
            None => command.args(["--features", EMULATION]),
            // The registry need not have it yet.
            Some(path) => command.arg("--config").arg(format!("patch.crates-io.{}.path={path:?}", PUBLISHED[0])),
        };
        check(&mut command).with_context(|| {
            format!("the package {stem} does not compile alone: does `include` name all that it needs?")
        })?;
        library.get_or_insert(folder.display().to_string());
    }
    Ok(())
}

fn packages(workspace: &Workspace) -> Result<Vec<Package>> {
    let mut command = MetadataCommand::new();
    let metadata = command.no_deps().current_dir(&workspace.root).exec().context("`cargo metadata` failed")?;
    let find = |name: &str| metadata.packages.iter().find(|package| package.name.as_str() == name).cloned();
    PUBLISHED.iter().map(|name| find(name).with_context(|| format!("the workspace has no package {name}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sets_of_features_that_differ_are_formed() {
        let sets = |features: &[(&str, &[&str])]| -> Vec<String> {
            let of = |on: &&[&str]| on.iter().map(|name| name.to_string()).collect();
            let features = features.iter().map(|(name, on)| (name.to_string(), of(on))).collect();
            different_sets(&features).into_iter().map(|set| set.join(",")).collect()
        };
        assert_eq!(sets(&[]), [""]);
        assert_eq!(sets(&[("a", &[]), ("default", &["a"]), ("b", &["dep:c"])]), ["", "a", "b", "a,b"]);
        assert_eq!(sets(&[("a", &[]), ("b", &["a"]), ("c", &[])]), ["", "a", "b", "c", "a,c", "b,c"]);
        assert_eq!(sets(&[("a", &[]), ("failpoints", &[])]), ["", "a", "a,failpoints"]);
        assert_eq!(sets(&[("a", &[]), ("failpoints", &[]), ("mpi", &["dep:mpi"])]), ["", "a", "a,failpoints"]);
    }
}
