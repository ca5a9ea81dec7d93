//! The packages as a registry would get them: described, small, and sources alone.

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use std::fs;
use std::path::Path;
use std::process::Command;
use tools_support::command::finished;

/// The packages of the registry, and bytes of each, compressed, at most: of the trainer a tenth of the 10 MiB that
/// crates.io takes. Its Rust sources alone are 0.9 MB.
const PUBLISHED: [(&str, u64); 2] = [("qlora-kernels", 600_000), ("qlora-train", 1 << 20)];
/// Kinds of files that a package has, and bytes of one of them at most: no golden file is among them.
const KINDS: [&str; 16] =
    ["rs", "cu", "cuh", "cpp", "h", "in", "map", "toml", "orig", "lock", "md", "txt", "css", "html", "json", "LICENSE"];
const LARGEST: u64 = 64_000;
/// The C interface: one header, which says all that its callers have to know, and its bindings by bindgen; bytes of
/// each at most.
const INTERFACE: ([&str; 2], u64) = (["/cuda/include/qlora_kernels.h", "/src/sys.rs"], 96_000);
/// Bytes of all files at most that are neither sources nor cargo's own: tables, pages and licenses.
const MOST_BESIDE: u64 = 80_000;

/// Looks at the archives that `cargo package` has left in `archives`.
pub fn check(root: &Path, archives: &Path) -> Result<String> {
    let metadata = MetadataCommand::new().no_deps().current_dir(root).exec().context("`cargo metadata` failed")?;
    let mut findings = Vec::new();
    let mut closing = Vec::new();
    for (name, limit) in PUBLISHED {
        let package = metadata.packages.iter().find(|package| package.name.as_str() == name);
        let package = package.with_context(|| format!("the workspace has no package {name}"))?;
        findings.extend(described(package));
        let stem = format!("{name}-{}", package.version);
        let archive = archives.join(format!("{stem}.crate"));
        let bytes = fs::metadata(&archive).with_context(|| format!("cargo left no {}", archive.display()))?.len();
        if bytes > limit {
            findings.push(format!("{name}: {bytes} bytes (at most {limit}); is `include` right?"));
        }
        let list = finished(Command::new("tar").arg("tzvf").arg(&archive).output(), "tar tzvf")?;
        let files = list.lines().map(listed).collect::<Result<Vec<_>>>()?;
        findings.extend(foreign(&files).into_iter().map(|found| format!("{name}: {found}")));
        let readme = package.readme.as_ref().map_or("README.md", |path| path.as_str());
        for file in [readme, "Cargo.toml", "LICENSE-MIT", "LICENSE-APACHE"] {
            if !files.iter().any(|(path, _)| *path == format!("{stem}/{file}")) {
                findings.push(format!("{name}: {file} is not in the package"));
            }
        }
        let repository = if package.repository.is_none() { " (`repository` is not set yet)" } else { "" };
        closing.push(format!("{stem}: {} files, {} kB{repository}", files.len(), bytes.div_ceil(1000)));
    }
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    Ok(closing.join("; "))
}

/// Path and bytes of a file, as `tar tv` lists it.
fn listed(line: &str) -> Result<(&str, u64)> {
    let mut words = line.split_whitespace();
    let bytes = words.nth(2).and_then(|bytes| bytes.parse().ok());
    let path = words.nth(2);
    path.zip(bytes).with_context(|| format!("`tar tv` printed {line:?}, expected a path after size, day and time"))
}

/// Files that are no source of a package.
fn foreign(files: &[(&str, u64)]) -> Vec<String> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let kind = |path: &str| match name(path) {
        name if name.starts_with("LICENSE") => "LICENSE".to_owned(),
        name => name.rsplit('.').next().unwrap_or_default().to_owned(),
    };
    let mut found = Vec::new();
    let mut beside = 0;
    for &(path, bytes) in files {
        let kind = kind(path);
        if path.ends_with("/tests.rs") || path.contains("/tests/") {
            found.push(format!("{path} is of tests; is `include` right?"));
        }
        if !KINDS.contains(&kind.as_str()) {
            found.push(format!("{path} is no source; is `include` right?"));
        }
        // Cargo writes the lock file, of all that the package depends on.
        let most = if INTERFACE.0.iter().any(|file| path.ends_with(file)) { INTERFACE.1 } else { LARGEST };
        if bytes > most && kind != "lock" {
            found.push(format!("{path} has {bytes} bytes (at most {most})"));
        }
        if !["rs", "cu", "cuh", "cpp", "h", "lock", "toml", "orig"].contains(&kind.as_str()) {
            beside += bytes;
        }
    }
    if beside > MOST_BESIDE {
        found.push(format!("{beside} bytes of tables, pages and licenses (at most {MOST_BESIDE})"));
    }
    found
}

/// Fields that a package's page on a registry would lack.
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
    fn what_is_no_source_is_found_in_a_package() {
        let line = "-rw-r--r-- 0/0           62026 2006-07-24 01:21 qlora-train-0.1.0/Cargo.lock";
        assert_eq!(listed(line).unwrap(), ("qlora-train-0.1.0/Cargo.lock", 62026));
        assert!(listed("Cargo.lock").is_err());
        let sources = [
            ("a/src/lib.rs", 20_000),
            ("a/cuda/include/qlora_kernels.h", 70_000),
            ("a/LICENSE-MIT", 1_000),
            ("a/cuda/x.cuh", 3),
            ("a/t.txt", 60_000),
        ];
        assert_eq!(foreign(&sources), Vec::<String>::new());
        for (golden, words) in [
            (("a/src/golden/model.safetensors", 300), "no source"),
            (("a/src/golden/rows.jsonl", 10), "no source"),
            (("a/src/golden", 10), "no source"),
            (("a/src/big.rs", 64_001), "64001 bytes"),
            (("a/src/ops/tests.rs", 10), "of tests"),
            (("a/src/ops/tests/abi.rs", 10), "of tests"),
            (("a/cuda/include/qlora_kernels.h", 96_001), "96001 bytes"),
            (("a/src/table.json", 40_000), "101000 bytes of tables"),
        ] {
            let found = foreign(&[&sources[..], &[golden]].concat());
            assert!(found.len() == 1 && found[0].contains(words), "{golden:?}: {found:?}");
        }
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
