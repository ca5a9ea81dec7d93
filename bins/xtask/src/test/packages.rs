//! The steps about the packages as others get them: sets of features, the oldest compiler, what is published.

use super::Outcome;
use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::fs;
use std::process::{Command, Stdio};
use tools_support::command::{check, finished};
use tools_support::cuda;
use tools_support::workspace::Workspace;

/// What the registry gets, in the order of their dependencies.
const PUBLISHED: [&str; 2] = ["qlora-kernels", "qlora-train"];
/// Bytes of a compressed package at most: sources, and none of the golden files, which are some megabytes.
const LIMIT: u64 = 1_000_000;

/// Every set of features compiles without a warning, each alone.
pub fn features(workspace: &Workspace) -> Result<Outcome> {
    cuda::toolkit(workspace)?;
    let mut count = 0;
    for package in packages(workspace)? {
        let name = package.name.as_str();
        // The trainer as a part of the workspace, so that its many dependencies keep their features and are not
        // checked again; the library alone, so that its dependents are not.
        let selection: &[&str] = if name == PUBLISHED[0] { &["--package", name] } else { &["--workspace"] };
        for set in power_set(&package.features.keys().map(String::as_str).collect::<Vec<_>>()) {
            println!("{name} with [{set}]");
            let set: Vec<_> = set.split(',').filter(|name| !name.is_empty()).collect();
            let set: Vec<_> = set.iter().map(|feature| format!("{name}/{feature}")).collect();
            let mut command = workspace.cargo(&["clippy", "--quiet", "--release", "--locked"]);
            command.args(selection).args(["--features", &set.join(","), "--", "--deny", "warnings"]);
            check(command.env("QLORA_CUDA_ARCHS", cuda::archs_variable()))?;
            count += 1;
        }
    }
    Ok(Outcome::Passed(vec![format!("{count} sets of features compile")]))
}

/// All subsets, as cargo takes them; without `default`, which is a set of others.
fn power_set(features: &[&str]) -> Vec<String> {
    let features: Vec<_> = features.iter().filter(|name| **name != "default").collect();
    let subset = |bits: usize| {
        let chosen = features.iter().enumerate().filter(|(index, _)| bits >> index & 1 == 1);
        chosen.map(|(_, name)| **name).collect::<Vec<_>>().join(",")
    };
    (0..1usize << features.len()).map(subset).collect()
}

/// The oldest compiler that the packages name, where rustup has it; clippy looks for newer functions of std everywhere.
pub fn oldest_compiler(workspace: &Workspace) -> Result<Outcome> {
    let packages = packages(workspace)?;
    let version = packages[0].rust_version.as_ref().context("Cargo.toml names no rust-version")?;
    let toolchain = format!("{}.{}", version.major, version.minor);
    let has_it = ["rustc", "cargo"].into_iter().all(|program| {
        let mut command = Command::new("rustup");
        command.args(["run", &toolchain, program, "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    });
    if !has_it {
        let why =
            format!("rustup has no Rust {toolchain} (`rustup toolchain install {toolchain}`); clippy's lint looked");
        return Ok(Outcome::Skipped(why));
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

/// The packages as a registry would get them: described, small, and the library whole, as it compiles alone.
pub fn published(workspace: &Workspace) -> Result<Outcome> {
    let mut findings = Vec::new();
    let mut closing = Vec::new();
    for package in packages(workspace)? {
        findings.extend(described(&package));
        if package.repository.is_none() {
            closing.push(format!("{}: `repository` is not set yet", package.name));
        }
    }
    let dir = workspace.target.join("package");
    let mut command = workspace.cargo(&["package", "--quiet", "--locked", "--allow-dirty", "--no-verify"]);
    check(command.args(PUBLISHED.iter().flat_map(|name| ["--package", name])))?;
    for package in packages(workspace)? {
        let stem = format!("{}-{}", package.name, package.version);
        let archive = dir.join(format!("{stem}.crate"));
        let bytes = fs::metadata(&archive).with_context(|| format!("cargo left no {}", archive.display()))?.len();
        if bytes > LIMIT {
            findings.push(format!("{}: {bytes} bytes (at most {LIMIT}); is `include` right?", package.name));
        }
        let list = finished(Command::new("tar").arg("tzf").arg(&archive).output(), "tar tzf")?;
        let readme = package.readme.as_ref().map_or("README.md", |path| path.as_str());
        for name in [readme, "Cargo.toml", "LICENSE-MIT", "LICENSE-APACHE"] {
            if !list.lines().any(|line| line == format!("{stem}/{name}")) {
                findings.push(format!("{}: {name} is not in the package", package.name));
            }
        }
        closing.push(format!("{stem}: {} files, {} kB", list.lines().count(), bytes.div_ceil(1000)));
    }
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    compiles_alone(workspace)?;
    Ok(Outcome::Passed(closing))
}

/// The library's package with the kernels, which it has to hold.
fn compiles_alone(workspace: &Workspace) -> Result<()> {
    let library = &packages(workspace)?[0];
    let stem = format!("{}-{}", library.name, library.version);
    let unpacked = tempfile::tempdir_in(&workspace.target)?;
    let mut tar = Command::new("tar");
    tar.arg("xzf").arg(workspace.target.join("package").join(format!("{stem}.crate"))).arg("-C").arg(unpacked.path());
    check(&mut tar)?;
    let manifest = unpacked.path().join(&stem).join("Cargo.toml");
    let mut command = workspace.cargo(&["check", "--quiet", "--release", "--features", "emulation", "--target-dir"]);
    check(command.arg(&workspace.target).arg("--manifest-path").arg(manifest))
        .context("the package of the library does not compile alone: does `include` name all that it needs?")
}

fn packages(workspace: &Workspace) -> Result<Vec<Package>> {
    let mut command = MetadataCommand::new();
    let metadata = command.no_deps().current_dir(&workspace.root).exec().context("`cargo metadata` failed")?;
    let find = |name: &str| metadata.packages.iter().find(|package| package.name.as_str() == name).cloned();
    PUBLISHED.iter().map(|name| find(name).with_context(|| format!("the workspace has no package {name}"))).collect()
}

/// What a page of a registry would lack.
fn described(package: &Package) -> Vec<String> {
    let name = &package.name;
    let mut findings = Vec::new();
    for (field, is_set) in [
        ("description", package.description.is_some()),
        ("license", package.license.is_some()),
        ("documentation", package.documentation.is_some()),
        ("readme", package.readme.is_some()),
        ("rust-version", package.rust_version.is_some()),
        ("keywords", (1..=5).contains(&package.keywords.len())),
        ("categories", (1..=5).contains(&package.categories.len())),
        ("metadata.docs.rs", package.metadata.pointer("/docs/rs").is_some()),
    ] {
        if !is_set {
            findings.push(format!("{name}: `{field}` is not set (keywords and categories: one to five)"));
        }
    }
    for dependency in package.dependencies.iter().filter(|found| found.kind != DependencyKind::Development) {
        if dependency.path.is_some() && dependency.req.to_string() == "*" {
            findings.push(format!("{name}: the dependency {} has a path and no version", dependency.name));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_sets_of_features_are_formed() {
        assert_eq!(power_set(&[]), [""]);
        assert_eq!(power_set(&["a", "default", "b"]), ["", "a", "b", "a,b"]);
    }

    #[test]
    fn what_a_registry_would_lack_is_found() {
        let package = |extra: &str| -> Package {
            let text = format!(
                r#"{{"name":"p","version":"0.1.0","id":"p","dependencies":[{{"name":"d","source":null,"req":"*","kind":null,"optional":false,"uses_default_features":true,"features":[],"target":null,"rename":null,"registry":null,"path":"/d"}}],"targets":[],"features":{{}},"manifest_path":"/p/Cargo.toml","authors":[],"edition":"2024"{extra}}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let bare = described(&package("")).join("\n");
        for expected in
            ["`description`", "`categories`", "`metadata.docs.rs`", "dependency d has a path and no version"]
        {
            assert!(bare.contains(expected), "{expected}: {bare}");
        }
        let full = r#","description":"x","license":"MIT","documentation":"x","readme":"README.md","rust_version":"1.89","keywords":["a"],"categories":["b"],"metadata":{"docs":{"rs":{}}}"#;
        assert_eq!(described(&package(full)).len(), 1);
    }
}
