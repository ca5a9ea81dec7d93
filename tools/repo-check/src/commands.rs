//! The commands that README.md, docs/ and the workflows of the CI name exist.

use crate::{files, workflows};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// `cargo xtask NAME` or `qlora-train NAME` somewhere in a document.
#[derive(Debug, PartialEq)]
struct NamedCommand {
    line: usize,
    /// `xtask` or `qlora-train`.
    program: String,
    name: String,
}

/// Asks the built programs, in the directory `programs`, for the help of every command.
pub fn check(root: &Path, programs: &Path) -> Result<String> {
    let mut documents = vec!["README.md".to_owned()];
    let has_docs = root.join("docs").is_dir();
    if has_docs {
        let mut names = Vec::new();
        files::walk(root, "docs", &mut names)?;
        documents.extend(names.into_iter().filter(|name| name.ends_with(".md")));
    }
    documents.extend(
        ["CONTRIBUTING.md", "ARCHITECTURE.md"].map(str::to_owned).into_iter().filter(|name| root.join(name).is_file()),
    );
    let mut findings = Vec::new();
    let mut count = 0;
    for document in &documents {
        let text = fs::read_to_string(root.join(document)).with_context(|| format!("cannot read {document}"))?;
        for NamedCommand { line, program, name } in commands_in(&text) {
            count += 1;
            let path = programs.join(format!("{program}{}", std::env::consts::EXE_SUFFIX));
            let mut help = Command::new(&path);
            help.args([&name, "--help"]).stdout(Stdio::null()).stderr(Stdio::null());
            if !help.status().with_context(|| format!("cannot run {}", path.display()))?.success() {
                findings.push(format!("{document}:{line}: {program} has no command `{name}`"));
            }
        }
    }
    for line in workflows::command_lines(root, &files::tracked(root)?)? {
        for arguments in workflows::xtask_arguments(&line.text) {
            count += 1;
            let path = programs.join(format!("xtask{}", std::env::consts::EXE_SUFFIX));
            let mut help = Command::new(&path);
            help.args(&arguments).arg("--help").stdout(Stdio::null()).stderr(Stdio::null());
            if !help.status().with_context(|| format!("cannot run {}", path.display()))?.success() {
                findings.push(format!("{}:{}: xtask does not take `{}`", line.file, line.line, arguments.join(" ")));
            }
        }
    }
    ensure!(count > 0, "no document names a `cargo xtask` or a `qlora-train` command");
    ensure!(findings.is_empty(), "{} findings:\n  {}", findings.len(), findings.join("\n  "));
    Ok(format!("{count} commands are named in {} documents, and all exist", documents.len()))
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
    fn only_code_of_a_document_names_commands() {
        let text = "Run `cargo xtask demo`, or xtask nothing.\n```sh\nqlora-train eval --json\n./target/release/qlora-train \
                    plan\ncargo build -p qlora-train --release\n```\nAlso `qlora-train train`, `qlora-train`.\n";
        let found: Vec<_> = commands_in(text).into_iter().map(|c| (c.line, c.program, c.name)).collect();
        let expected =
            [(1, "xtask", "demo"), (3, "qlora-train", "eval"), (4, "qlora-train", "plan"), (7, "qlora-train", "train")];
        assert_eq!(found, expected.map(|(line, program, name)| (line, program.to_owned(), name.to_owned())));
    }

    #[cfg(unix)]
    #[test]
    fn commands_that_do_not_exist_are_found() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("xtask");
        fs::write(&program, "#!/bin/sh\n[ \"$1\" = demo ]\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("README.md"), "`cargo xtask demo`\n").unwrap();
        assert!(check(dir.path(), dir.path()).unwrap().starts_with("1 commands"));
        fs::write(dir.path().join("README.md"), "\n`cargo xtask dmo`\n").unwrap();
        let error = check(dir.path(), dir.path()).unwrap_err().to_string();
        assert!(error.contains("README.md:2: xtask has no command `dmo`"), "{error}");
        fs::write(dir.path().join("README.md"), "").unwrap();
        fs::create_dir_all(dir.path().join(".github/workflows")).unwrap();
        fs::write(dir.path().join(".github/workflows/a.yml"), "- run: cargo xtask dist --cuda\n").unwrap();
        let error = check(dir.path(), dir.path()).unwrap_err().to_string();
        assert!(error.contains(".github/workflows/a.yml:1: xtask does not take `dist --cuda`"), "{error}");
    }
}
