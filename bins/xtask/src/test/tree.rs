//! Checks of the files themselves.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Lines of a file at most, by the end of its name. Beyond that it usually holds two things.
const LINE_LIMITS: [(&str, usize); 3] = [(".rs", 400), (".cu", 500), (".cuh", 500)];
/// Whatever is larger belongs into `target/`, fetched or made.
const BYTE_LIMIT: u64 = 4 << 20;
/// Generated, so neither read nor edited by people.
const GENERATED: [&str; 1] = [crate::bindings::BINDINGS];
/// The compiler's lint against `unsafe`; in two pieces, as this file must not mention it either.
const LINT: &str = concat!("unsafe", "_code");
/// What may allow what the lint denies: the layer over the C ABI and its tests, and the one call into the matrix product
/// of the CPU.
const UNSAFE_HOMES: [&str; 7] = [
    "src/device/",
    "src/interop/",
    "src/ops/",
    "src/sys.rs",
    "src/lib.rs",
    "tests/cuda",
    "bins/qlora-train/src/backend/cpu/gemm/tiles.rs",
];

/// What is wrong with the repository's files, one line each.
pub fn findings(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for name in files(root)? {
        let path = root.join(&name);
        let metadata = fs::symlink_metadata(&path).with_context(|| format!("cannot read {name}"))?;
        if metadata.len() > BYTE_LIMIT {
            findings.push(format!("{name}: {} bytes (at most {BYTE_LIMIT})", metadata.len()));
        }
        if let Some((_, limit)) = LINE_LIMITS.iter().find(|(end, _)| name.ends_with(end)) {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
            findings.extend(source_findings(&name, &text, *limit));
        }
    }
    findings.extend(lint_findings(root)?);
    Ok(findings)
}

fn source_findings(name: &str, text: &str, limit: usize) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if lines > limit && !GENERATED.contains(&name) {
        findings.push(format!("{name}: {lines} lines (at most {limit})"));
    }
    if name.ends_with(".rs") && !UNSAFE_HOMES.iter().any(|home| name.starts_with(home)) {
        for (index, line) in text.lines().enumerate() {
            let stricter = line.contains(&format!("deny({LINT})")) || line.contains(&format!("forbid({LINT})"));
            if line.contains(LINT) && !stricter {
                findings.push(format!(
                    "{name}:{}: {LINT} is allowed outside {}",
                    index + 1,
                    UNSAFE_HOMES.join(" and ")
                ));
            }
        }
    }
    findings
}

/// The compiler refuses `unsafe` in every target of the workspace as long as the lint is denied and inherited.
fn lint_findings(root: &Path) -> Result<Vec<String>> {
    let manifest = |name: &str| fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"));
    let mut findings = Vec::new();
    if !manifest("Cargo.toml")?.contains(&format!("\n{LINT} = \"deny\"\n")) {
        findings.push(format!("Cargo.toml: no `{LINT} = \"deny\"` in [workspace.lints.rust]"));
    }
    for name in files(root)?.iter().filter(|name| name.ends_with("Cargo.toml")) {
        let text = manifest(name)?;
        // A package that is a workspace of its own (an example of another engine) inherits nothing.
        let own_workspace = name != "Cargo.toml" && text.lines().any(|line| line == "[workspace]");
        if text.contains("[package]") && !own_workspace && !text.contains("\n[lints]\nworkspace = true") {
            findings.push(format!("{name}: no `[lints]` with `workspace = true`"));
        }
    }
    Ok(findings)
}

/// Tracked files and those that would be, relative to `root`; where git cannot tell, all that is not built.
fn files(root: &Path) -> Result<Vec<String>> {
    let git = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output();
    let mut names = match git {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
            text.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect()
        }
        _ => {
            let mut names = Vec::new();
            walk(root, "", &mut names)?;
            names
        }
    };
    // A file deleted but not yet committed is still listed.
    names.retain(|name| fs::symlink_metadata(root.join(name)).is_ok());
    ensure!(!names.is_empty(), "no files found in {}", root.display());
    Ok(names)
}

fn walk(root: &Path, below: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("a file name is not UTF-8")?;
        if below.is_empty() && (name == "target" || name == ".git") {
            continue;
        }
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            walk(root, &path, names)?;
        } else {
            names.push(path);
        }
    }
    Ok(())
}

/// `cargo xtask NAME` or `qlora-train NAME` somewhere in README.md.
#[derive(Debug, PartialEq)]
pub struct NamedCommand {
    pub line: usize,
    /// `xtask` or `qlora-train`.
    pub program: String,
    pub name: String,
}

pub fn readme_commands(root: &Path) -> Result<Vec<NamedCommand>> {
    let text = fs::read_to_string(root.join("README.md")).context("cannot read README.md")?;
    Ok(commands_in(&text))
}

/// Only what stands as code counts: in a fenced block or between backticks.
fn commands_in(text: &str) -> Vec<NamedCommand> {
    let mut commands = Vec::new();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let code: Vec<&str> = if fenced { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for words in code.iter().map(|code| code.split_whitespace().collect::<Vec<_>>()) {
            for pair in words.windows(2) {
                let program = pair[0].rsplit('/').next().unwrap_or_default();
                let is_name = pair[1].starts_with(|first: char| first.is_ascii_lowercase());
                if ["xtask", "qlora-train"].contains(&program) && is_name && !is_cargo_package(&words, pair[0]) {
                    let name = pair[1].trim_end_matches([',', '.', ')', ';', ':']).to_owned();
                    commands.push(NamedCommand { line: index + 1, program: program.to_owned(), name });
                }
            }
        }
    }
    commands
}

/// `cargo build -p qlora-train …` names a package, not a command.
fn is_cargo_package(words: &[&str], program: &str) -> bool {
    words.windows(2).any(|pair| ["-p", "--package", "--bin"].contains(&pair[0]) && pair[1] == program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowing_unsafe_is_found_outside_its_home() {
        let text = format!("#![deny({LINT})]\n#[allow({LINT})]\nfn f() {{}}\n");
        let finding = format!("src/nf4/a.rs:2: {LINT} is allowed outside {}", UNSAFE_HOMES.join(" and "));
        assert_eq!(source_findings("src/nf4/a.rs", &text, 9), [finding]);
        for home in UNSAFE_HOMES {
            let file = if home.ends_with(".rs") { home.to_owned() } else { format!("{home}/a.rs") };
            assert!(source_findings(&file, &text, 9).is_empty(), "{file}");
        }
    }

    #[test]
    fn a_package_that_does_not_inherit_the_lints_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let deny = format!("[workspace.lints.rust]\n{LINT} = \"deny\"\n");
        let inherits = "[package]\nname = \"p\"\n\n[lints]\nworkspace = true\n";
        fs::create_dir(dir.path().join("p")).unwrap();
        fs::write(dir.path().join("Cargo.toml"), &deny).unwrap();
        fs::write(dir.path().join("p/Cargo.toml"), inherits).unwrap();
        assert_eq!(lint_findings(dir.path()).unwrap(), Vec::<String>::new());
        fs::write(dir.path().join("p/Cargo.toml"), "[package]\nname = \"p\"\n").unwrap();
        fs::write(dir.path().join("Cargo.toml"), deny.replace("deny", "warn")).unwrap();
        assert_eq!(lint_findings(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn long_files_are_found_unless_generated() {
        assert_eq!(source_findings("a.cu", "x\n\n\n", 2), ["a.cu: 3 lines (at most 2)"]);
        assert!(source_findings("a.cu", "x\n\n", 2).is_empty());
        assert!(source_findings(GENERATED[0], "x\n\n\n", 2).is_empty());
    }

    #[test]
    fn only_code_of_the_readme_names_commands() {
        let text = "Run `cargo xtask demo`, or xtask nothing.\n```sh\nqlora-train eval --json\n./target/release/qlora-train \
                    plan\ncargo build -p qlora-train --release\n```\nAlso `qlora-train train`, `qlora-train`.\n";
        let found: Vec<_> = commands_in(text).into_iter().map(|c| (c.line, c.program, c.name)).collect();
        let expected =
            [(1, "xtask", "demo"), (3, "qlora-train", "eval"), (4, "qlora-train", "plan"), (7, "qlora-train", "train")];
        assert_eq!(found, expected.map(|(line, program, name)| (line, program.to_owned(), name.to_owned())));
    }

    #[test]
    fn all_files_are_listed_without_git_too() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::create_dir_all(dir.path().join("target")).unwrap();
        for name in ["a/b/c.rs", "d.rs", "target/e.rs"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let mut names = Vec::new();
        walk(dir.path(), "", &mut names).unwrap();
        names.sort_unstable();
        assert_eq!(names, ["a/b/c.rs", "d.rs"]);
    }
}
