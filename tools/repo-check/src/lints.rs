//! `unsafe` only where it belongs, and modules only where the compiler looks for them.

use crate::files::{Language, Source};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// The compiler's lint against `unsafe`; in two pieces, as this file must not mention it either.
const LINT: &str = concat!("unsafe", "_code");
/// Files and folders that may allow what the lint denies: the layer over the C ABI, its tests and the timer of its
/// bench, the matrix products of the CPU, its placement of pages, the launch of a GPU's graphs, and the counting
/// allocator.
const UNSAFE_HOMES: [&str; 18] = [
    "src/device/",
    "src/interop/",
    "src/ops/",
    "src/sys.rs",
    "src/lib.rs",
    "tests/cuda",
    "benches/kernels/timer.rs",
    "bins/qlora-train/src/backend/cpu/bf16/amx.rs",
    "bins/qlora-train/src/backend/cpu/bf16/dots.rs",
    "bins/qlora-train/src/backend/cpu/bf16/isa.rs",
    "bins/qlora-train/src/backend/cpu/bf16/layout.rs",
    "bins/qlora-train/src/backend/cpu/bf16/scales.rs",
    "bins/qlora-train/src/backend/cpu/bf16/scores.rs",
    "bins/qlora-train/src/backend/cpu/bf16/weighted.rs",
    "bins/qlora-train/src/backend/cpu/gemm/",
    "bins/qlora-train/src/backend/cpu/numa.rs",
    "bins/qlora-train/src/backend/cuda/graphs.rs",
    "bins/qlora-train/src/data/template/allocations.rs",
];
/// A module from elsewhere; in two pieces, as above.
const PATH: &str = concat!("#[", "path");

pub fn of_source(source: &Source) -> Vec<String> {
    let name = &source.name;
    let mut findings = Vec::new();
    if source.language != Language::Rust || UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) {
        return findings;
    }
    for (index, line) in source.text.lines().enumerate() {
        let is_stricter = line.contains(&format!("deny({LINT})")) || line.contains(&format!("forbid({LINT})"));
        if line.contains(LINT) && !is_stricter {
            findings.push(format!("{name}:{}: {LINT} is allowed outside {}", index + 1, UNSAFE_HOMES.join(" and ")));
        }
    }
    findings
}

/// Shared with the build script, which cannot depend on a crate that is not published.
const OF_THE_BUILD_SCRIPT: &str = "build/compile.rs\"]";

/// Modules from elsewhere, by line.
pub fn paths(source: &Source) -> impl Iterator<Item = usize> {
    let lines = source.text.lines().enumerate().filter(|_| source.language == Language::Rust);
    lines
        .filter(|(_, line)| line.trim_start().starts_with(PATH) && !line.ends_with(OF_THE_BUILD_SCRIPT))
        .map(|(index, _)| index + 1)
}

/// The compiler refuses `unsafe` in every target of the workspace as long as the lint is denied and inherited.
pub fn manifests(root: &Path, names: &[String]) -> Result<Vec<String>> {
    let manifest = |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"));
    let mut findings = Vec::new();
    if !manifest("Cargo.toml")?.contains(&format!("\n{LINT} = \"deny\"\n")) {
        findings.push(format!("Cargo.toml: no `{LINT} = \"deny\"` in [workspace.lints.rust]"));
    }
    for name in names.iter().filter(|name| name.ends_with("Cargo.toml")) {
        let text = manifest(name)?;
        // A package that is a workspace of its own (an example of another engine) inherits nothing.
        let own_workspace = name != "Cargo.toml" && text.lines().any(|line| line == "[workspace]");
        if text.contains("[package]") && !own_workspace && !text.contains("\n[lints]\nworkspace = true") {
            findings.push(format!("{name}: no `[lints]` with `workspace = true`"));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, text: &str) -> Source {
        Source { name: name.into(), language: Language::Rust, text: text.into() }
    }

    #[test]
    fn allowing_unsafe_is_found_outside_its_home() {
        let text = format!("#![deny({LINT})]\n#[allow({LINT})]\nfn f() {{}}\n");
        let finding = format!("src/nf4/a.rs:2: {LINT} is allowed outside {}", UNSAFE_HOMES.join(" and "));
        assert_eq!(of_source(&source("src/nf4/a.rs", &text)), [finding]);
        for home in UNSAFE_HOMES {
            let file = if home.ends_with(".rs") { home.to_owned() } else { format!("{home}/a.rs") };
            assert!(of_source(&source(&file, &text)).is_empty(), "{file}");
        }
    }

    #[test]
    fn modules_from_elsewhere_are_found() {
        let text = format!("{PATH} = \"{OF_THE_BUILD_SCRIPT}\nmod a;\n{PATH} = \"../b.rs\"]\nmod b;\n");
        assert_eq!(paths(&source("a.rs", &text)).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_package_that_does_not_inherit_the_lints_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let deny = format!("[workspace.lints.rust]\n{LINT} = \"deny\"\n");
        let inherits = "[package]\nname = \"p\"\n\n[lints]\nworkspace = true\n";
        let names = ["Cargo.toml".to_owned(), "p/Cargo.toml".to_owned()];
        fs::create_dir(dir.path().join("p")).unwrap();
        fs::write(dir.path().join("Cargo.toml"), &deny).unwrap();
        fs::write(dir.path().join("p/Cargo.toml"), inherits).unwrap();
        assert_eq!(manifests(dir.path(), &names).unwrap(), Vec::<String>::new());
        fs::write(dir.path().join("p/Cargo.toml"), "[package]\nname = \"p\"\n").unwrap();
        fs::write(dir.path().join("Cargo.toml"), deny.replace("deny", "warn")).unwrap();
        assert_eq!(manifests(dir.path(), &names).unwrap().len(), 2);
    }
}
