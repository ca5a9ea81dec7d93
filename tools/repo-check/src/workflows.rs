//! Workflows of the public CI, which nobody runs before they are needed: the files that their commands name are there,
//! and so are the commands of this repository.

use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

const FOLDER: &str = ".github/workflows/";
/// A script that a workflow runs.
const SCRIPT: &str = ".ci/run";
/// Endings of files in the root that a command names without a slash.
const ENDINGS: [&str; 7] = [".toml", ".lock", ".sh", ".py", ".md", ".yml", ".txt"];

/// A command line of a workflow or script.
#[derive(Debug, PartialEq)]
pub struct CommandLine {
    pub file: String,
    pub line: usize,
    pub text: String,
}

/// Command lines of the workflows and of their script, of files by these names.
pub fn command_lines(root: &Path, names: &[String]) -> Result<Vec<CommandLine>> {
    let mut all = Vec::new();
    for name in names {
        let is_workflow = name.starts_with(FOLDER);
        if !is_workflow && name != SCRIPT {
            continue;
        }
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        let lines = if is_workflow { lines_of_workflow(&text) } else { lines_of_script(&text) };
        all.extend(lines.into_iter().map(|(line, text)| CommandLine { file: name.clone(), line, text }));
    }
    Ok(all)
}

fn lines_of_script(text: &str) -> Vec<(usize, String)> {
    let is_command = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    (1..).zip(text.lines()).filter(|(_, line)| is_command(line)).map(|(at, line)| (at, line.to_owned())).collect()
}

/// Texts behind `run:` and `working-directory:`, on the line or indented below it, and the names in `hashFiles`.
fn lines_of_workflow(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    // Indentation of a key whose lines follow.
    let mut block: Option<usize> = None;
    for (at, line) in (1..).zip(text.lines()) {
        let indentation = line.len() - line.trim_start().len();
        if let Some(key) = block {
            if line.trim().is_empty() || indentation > key {
                lines.extend((!line.trim().is_empty()).then(|| (at, line.trim().to_owned())));
                continue;
            }
            block = None;
        }
        if let Some((_, rest)) = line.split_once("hashFiles('") {
            lines.extend(rest.split('\'').next().map(|name| (at, name.to_owned())));
        }
        let key = line.trim_start().trim_start_matches("- ");
        for name in ["run:", "working-directory:"] {
            let Some(value) = key.strip_prefix(name) else { continue };
            match value.trim() {
                "|" | ">" | "|-" | ">-" => block = Some(line.len() - key.len()),
                value => lines.push((at, value.to_owned())),
            }
        }
    }
    lines
}

/// Files that command lines name and that are not there, one sentence each.
pub fn missing_files(root: &Path, lines: &[CommandLine]) -> Vec<String> {
    let mut findings = Vec::new();
    for CommandLine { file, line, text } in lines {
        for path in paths(text).filter(|path| !root.join(path).exists()) {
            findings.push(format!("{file}:{line}: names {path}, which is not there"));
        }
    }
    findings
}

/// Words of a command that are paths in the repository: neither its outputs nor paths elsewhere.
fn paths(command: &str) -> impl Iterator<Item = &str> {
    let words = command.split_whitespace().map(|word| word.trim_matches(['"', '\'', ';', '(', ')']));
    words.filter(|word| {
        let is_elsewhere = word.starts_with(['-', '$', '~', '/', '^']) || word.contains(['$', '*', '=', ':']);
        let is_made = word.starts_with("target/") || *word == "SHA256SUMS";
        let is_path = word.contains('/') || ENDINGS.iter().any(|ending| word.ends_with(ending));
        is_path && !is_elsewhere && !is_made
    })
}

/// The arguments of each `cargo xtask` of a command line.
pub fn xtask_arguments(command: &str) -> Vec<Vec<String>> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let mut all = Vec::new();
    for (at, pair) in words.windows(2).enumerate() {
        if *pair == ["cargo", "xtask"] {
            let end = |word: &&str| ["&&", "||", "|", ";", "#"].contains(word) || word.contains(['$', '>']);
            let own = words[at + 2..].iter().take_while(|word| !end(word)).map(|word| word.trim_end_matches(';'));
            all.push(own.map(str::to_owned).collect());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_what_runs_and_their_files_are_looked_for() {
        let text = "on:\n  push:\njobs:\n  a:\n    steps:\n      - uses: actions/checkout@v4\n      - run: bash .ci/run\n      \
                    - name: b\n        run: |\n          cargo xtask dist --cuda && ls target/dist\n\n          sh tools/gone.sh\n        \
                    working-directory: benches\n        with:\n          key: x-${{ hashFiles('Cargo.lock') }}\n";
        let lines = lines_of_workflow(text);
        let found: Vec<(usize, &str)> = lines.iter().map(|(line, text)| (*line, text.as_str())).collect();
        let expected = [
            (7, "bash .ci/run"),
            (10, "cargo xtask dist --cuda && ls target/dist"),
            (12, "sh tools/gone.sh"),
            (13, "benches"),
            (15, "Cargo.lock"),
        ];
        assert_eq!(found, expected);
        assert_eq!(xtask_arguments(found[1].1), [["dist", "--cuda"]]);
        assert!(xtask_arguments("cargo build -p xtask").is_empty());
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join(".ci")).unwrap();
        fs::write(dir.path().join(".ci/run"), "#!/bin/sh\n\n# why\nexec cargo xtask test\n").unwrap();
        fs::create_dir_all(dir.path().join(".github/workflows")).unwrap();
        fs::write(dir.path().join(".github/workflows/ci.yml"), text).unwrap();
        let names = [".github/workflows/ci.yml".to_owned(), ".ci/run".to_owned(), "README.md".to_owned()];
        let lines = command_lines(dir.path(), &names).unwrap();
        assert_eq!(lines.last().map(|last| (last.line, last.text.as_str())), Some((4, "exec cargo xtask test")));
        let findings = missing_files(dir.path(), &lines);
        let named: Vec<&str> = findings.iter().map(|finding| finding.split(", which").next().unwrap()).collect();
        assert_eq!(
            named,
            [".github/workflows/ci.yml:12: names tools/gone.sh", ".github/workflows/ci.yml:15: names Cargo.lock"]
        );
    }

    #[test]
    fn what_a_workflow_makes_or_asks_of_the_system_is_no_file_of_the_repository() {
        let of = |command| paths(command).collect::<Vec<_>>();
        for none in [
            "\"$RUNNER_TEMP/venv/bin/pip\" install --no-deps target/dist/*.whl",
            "sha256sum --check --strict SHA256SUMS",
            "curl https://example.org/x.sh",
            "tar --extract --directory /opt",
        ] {
            assert_eq!(of(none), [""; 0], "{none}");
        }
        let found = of("rustup toolchain install \"$(grep -m1 '^rust-version' Cargo.toml | cut -d '\"' -f 2)\"");
        assert_eq!(found, ["Cargo.toml"]);
    }
}
