//! The files of the repository.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Most bytes of a tracked file: larger ones belong into `target/`, fetched or made.
const BYTE_LIMIT: u64 = 4 << 20;
/// A question for a reader, not an error: a limit by line count cuts one thing in two.
const LONG: [(Language, usize); 2] = [(Language::Rust, 400), (Language::C, 500)];
/// Generated, so neither read nor edited by people.
const GENERATED: [&str; 1] = ["src/sys.rs"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Rust,
    /// C, C++ and CUDA.
    C,
    /// Python, shell scripts, TOML, CMake: comments begin with `#`.
    Script,
}

#[derive(Debug)]
pub struct Source {
    pub name: String,
    pub language: Language,
    pub text: String,
}

impl Source {
    pub fn is_long(&self) -> bool {
        LONG.iter().any(|&(language, lines)| language == self.language && self.text.lines().count() > lines)
    }

    /// The text of a line that holds only a comment, without its markers; none for other lines.
    pub fn comment<'a>(&self, line: &'a str) -> Option<&'a str> {
        let line = line.trim_start();
        match self.language {
            Language::Rust | Language::C => {
                let text = line.strip_prefix("//")?.trim_start_matches(['/', '!']);
                Some(text.trim())
            }
            Language::Script => Some(line.strip_prefix('#').filter(|rest| !rest.starts_with('!'))?.trim()),
        }
    }
}

pub fn language(name: &str) -> Option<Language> {
    let (_, extension) = name.rsplit_once('.')?;
    match extension {
        "rs" => Some(Language::Rust),
        "cu" | "cuh" | "h" | "c" | "cpp" | "hpp" | "inc" => Some(Language::C),
        "py" | "sh" | "toml" | "cmake" | "yml" => Some(Language::Script),
        _ => None,
    }
}

pub fn sources(root: &Path, names: &[String]) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for name in names {
        let Some(language) = language(name).filter(|_| !GENERATED.contains(&name.as_str())) else { continue };
        let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
        sources.push(Source { name: name.clone(), language, text });
    }
    Ok(sources)
}

pub fn oversized(root: &Path, names: &[String]) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for name in names {
        let bytes = fs::symlink_metadata(root.join(name)).with_context(|| format!("cannot read {name}"))?.len();
        if bytes > BYTE_LIMIT {
            findings.push(format!("{name}: {bytes} bytes (at most {BYTE_LIMIT})"));
        }
    }
    Ok(findings)
}

/// Tracked files and those that would be, relative to `root`; where git cannot tell, all that is not built.
pub fn tracked(root: &Path) -> Result<Vec<String>> {
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

pub fn walk(root: &Path, below: &str, names: &mut Vec<String>) -> Result<()> {
    for entry in
        fs::read_dir(root.join(below)).with_context(|| format!("cannot read {}", root.join(below).display()))?
    {
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn large_files_are_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::File::create(dir.path().join("large")).unwrap().set_len(BYTE_LIMIT + 1).unwrap();
        fs::File::create(dir.path().join("small")).unwrap().set_len(BYTE_LIMIT).unwrap();
        let findings = oversized(dir.path(), &["large".into(), "small".into()]).unwrap();
        assert_eq!(findings, ["large: 4194305 bytes (at most 4194304)"]);
    }

    #[test]
    fn comments_are_told_from_code_by_language() {
        let source = |language| Source { name: String::new(), language, text: String::new() };
        assert_eq!(source(Language::Rust).comment("    /// A text."), Some("A text."));
        assert_eq!(source(Language::C).comment("x; // no"), None);
        assert_eq!(source(Language::Script).comment("#!/bin/sh"), None);
        assert_eq!(source(Language::Script).comment("# why"), Some("why"));
    }
}
